"""The conversion tables of the CLIP towers: complete, without overlap, and exact in both directions."""

from dataclasses import replace

import numpy as np
import pytest

from svdjax.conversion.clip import (
    classic_keys,
    clip_text_table,
    clip_vision_table,
    diffusers_text_config,
)
from svdjax.conversion.mapping import to_ours, to_theirs
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.params import abstract, flat_params

VISION = replace(CLIPVisionConfig.tiny(), leftover_text=(64, 77, 32))
TEXT = replace(CLIPTextConfig.tiny(), vocab_size=100)
CASES = [
    (CLIPVision, VISION, clip_vision_table, "sgm"),
    (CLIPVision, CLIPVisionConfig.tiny(), clip_vision_table, "sgm"),
    (CLIPVision, CLIPVisionConfig.tiny(), clip_vision_table, "diffusers"),
    (CLIPText, TEXT, clip_text_table, "sgm"),
    (CLIPText, diffusers_text_config(TEXT), clip_text_table, "diffusers"),
    (CLIPText, replace(TEXT, projection_dim=None), clip_text_table, "diffusers"),
]


@pytest.mark.parametrize(("make", "config", "table", "format"), CASES)
def test_round_trip_fills_every_path_and_returns_every_bit(make, config, table, format):
    rng = np.random.default_rng(0)
    shapes = {path: value.shape for path, value in flat_params(abstract(make, config)).items()}
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    rows = table(config, format)
    paths = [path for row in rows for path in row.ours]
    keys = [key for row in rows for key in row.theirs]
    assert len(paths) == len(set(paths)) and len(keys) == len(set(keys))
    back = to_ours(rows, to_theirs(rows, flat, what="out"), what="in")
    assert back.keys() == flat.keys()
    for path in flat:
        np.testing.assert_array_equal(back[path], flat[path])


@pytest.mark.parametrize(
    ("table", "config", "count"),
    [
        (clip_vision_table, CLIPVisionConfig.vit_h(), 392),
        (clip_text_table, CLIPTextConfig.vit_h(), 294),
    ],
)
def test_open_clip_tensor_counts(table, config, count):
    assert sum(len(row.theirs) for row in table(config, "sgm")) == count


def test_fused_projections_stack_query_key_value():
    rows = clip_vision_table(CLIPVisionConfig.tiny(), "sgm")
    shapes = {
        path: value.shape for path, value in flat_params(abstract(CLIPVision, CLIPVisionConfig.tiny())).items()
    }
    flat = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    flat["blocks.1.attn.k.kernel"][3, 5] = 7  # from input 3 to output 5 of the keys
    fused = to_theirs(rows, flat, what="out")["visual.transformer.resblocks.1.attn.in_proj_weight"]
    assert fused.shape == (192, 64)
    assert np.argwhere(fused).tolist() == [[64 + 5, 3]]


def test_classic_keys_restore_the_prefix_and_leave_out_buffers():
    found = ["embeddings.position_ids", "text_model.embeddings.position_ids", "final_layer_norm.weight"]
    assert classic_keys(found) == {"text_model.final_layer_norm.weight": "final_layer_norm.weight"}
    same = [
        "vision_model.post_layernorm.bias",
        "visual_projection.weight",
        "text_model.final_layer_norm.bias",
    ]
    assert classic_keys(same) == {key: key for key in same}
