"""What a task asks the user for on the command line."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.options import Sample


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a user gave, one entry for each video.

    Attributes:
        inputs: of the task's ``request``.
        names: of the files, without suffix; some may be equal.
        notes: what to write into each file beside the settings.
    """

    inputs: dict[str, Any]
    names: Sequence[str]
    notes: Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one task is asked for.

    Attributes:
        models: tasks of the checkpoints that can be asked so.
        options: fields of `Sample` that are read here, of those that not every task reads.
        read: reads them, given the size of the videos; raises UserError where one is missing or unusable.
    """

    models: tuple[str, ...]
    options: tuple[str, ...]
    read: Callable[[Sample, SamplingDefaults], Given]
