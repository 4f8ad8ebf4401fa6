"""The UNet's table covers every parameter once, and writes back the bits it read."""

from dataclasses import replace

import numpy as np
import pytest

from svdjax.conversion.mapping import to_ours, to_theirs
from svdjax.conversion.unet import unet_table
from svdjax.models.params import abstract, flat_params
from svdjax.models.unet import UNet, UNetConfig

CONFIGS = [UNetConfig.svd(), UNetConfig.sd21(), replace(UNetConfig.tiny(), vector_dim=0)]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_parameter_has_one_key(config):
    expected = sorted(flat_params(abstract(UNet, config)))
    for format in ("sgm", "diffusers"):
        table = unet_table(config, format)
        paths = [path for row in table for path in row.ours]
        keys = [key for row in table for key in row.theirs]
        assert sorted(paths) == expected
        assert len(set(keys)) == len(keys) == len(paths)


@pytest.mark.parametrize(
    ("ours", "sgm", "diffusers"),
    [
        ("down.0.downsample.conv.kernel", "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
        ("down.3.res.1.spatial.conv1.kernel", "input_blocks.11.0.in_layers.2", "down_blocks.3.resnets.1."
         "spatial_res_block.conv1"),
        ("up.0.upsample.conv.kernel", "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
        ("up.2.upsample.conv.kernel", "output_blocks.8.2.conv", "up_blocks.2.upsamplers.0.conv"),
        ("mid.attn.0.temporal.ff_in.proj_out.kernel", "middle_block.1.time_stack.0.ff_in.net.2",
         "mid_block.attentions.0.temporal_transformer_blocks.0.ff_in.net.2"),
    ],
)  # fmt: skip
def test_published_names(ours, sgm, diffusers):
    for format, key in (("sgm", sgm), ("diffusers", diffusers)):
        found = {
            path: key
            for row in unet_table(UNetConfig.svd(), format)
            for path, key in zip(row.ours, row.theirs, strict=True)
        }
        assert found[ours] == f"{key}.weight"


@pytest.mark.parametrize("format", ["sgm", "diffusers"])
def test_there_and_back_is_bit_for_bit(format):
    config = replace(UNetConfig.tiny(), channels=(64, 128), attention=(True, False))
    draw = np.random.default_rng(0)
    flat = {path: draw.normal(size=x.shape) for path, x in flat_params(abstract(UNet, config)).items()}
    table = unet_table(config, format)
    back = to_ours(table, to_theirs(table, flat, what="tree"), what="file")
    assert back.keys() == flat.keys()
    assert all(np.array_equal(back[path], flat[path]) for path in flat)
