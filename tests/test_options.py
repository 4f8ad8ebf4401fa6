"""``--help`` takes an option's text from the line of the docstring that begins with its name."""

import dataclasses
import inspect
import re

import pytest

from svdjax.curation.standings import Elo
from svdjax.models.lora import LoRAConfig
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.options import Sample
from svdjax.training.bad_steps import BadSteps
from svdjax.training.data import DataConfig
from svdjax.training.keep import Keep
from svdjax.training.optim import OptimConfig
from svdjax.training.stage import Stage

OPTIONS = (Sample, Stage, DataConfig, OptimConfig, BadSteps, Keep, LoRAConfig, Elo, SamplingDefaults)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.__name__)
def test_every_option_begins_a_line(options):
    described = re.findall(r"^ +(\w+): ", inspect.getdoc(options), re.MULTILINE)
    names = [field.name for field in dataclasses.fields(options) if field.init]
    assert not set(names) - set(described)
