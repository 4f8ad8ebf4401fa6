"""Tables of the two CLIP towers: keys of open_clip (sgm files) and of transformers (diffusers folders)."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

from svdjax.conversion.mapping import (
    FUSED_QKV,
    FUSED_QKV_BIAS,
    LINEAR,
    Entry,
    conv2d,
    entry,
    linear,
    norm,
    prefixed,
)
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.clip_vision import CLIPVisionConfig

Format = Literal["sgm", "diffusers"]


def clip_vision_table(config: CLIPVisionConfig, format: Format) -> list[Entry]:
    """Rows of the image tower.

    Args:
        config: sizes; ``leftover_text`` adds the unused text weights of an sgm file, for which diffusers has no
            place.
        format: ``"sgm"``: keys after ``conditioner.embedders.N.open_clip.model.``; ``"diffusers"``: keys of
            transformers' ``CLIPVisionModelWithProjection``.
    """
    if format == "diffusers":
        return _diffusers_vision(config)
    rows = [
        *conv2d("patch_embed", "visual.conv1", bias=False),
        entry("class_embed", "visual.class_embedding"),
        entry("position_embed", "visual.positional_embedding"),
        *norm("norm_pre", "visual.ln_pre"),
        *_open_clip_blocks(config.layers, "visual.transformer.resblocks"),
        *norm("norm_post", "visual.ln_post"),
        entry("projection.kernel", "visual.proj"),
    ]
    leftover = prefixed([*_open_clip_text_ends(), *_open_clip_dead()], ours="leftover_text.")
    return rows + leftover if config.leftover_text is not None else rows


def clip_text_table(config: CLIPTextConfig, format: Format) -> list[Entry]:
    """Rows of the text tower.

    Args:
        config: sizes, and which dead parts the checkpoint has.
        format: ``"sgm"``: keys after ``cond_stage_model.model.`` or ``conditioner.embedders.N.model.``;
            ``"diffusers"``: the classic keys of transformers' ``CLIPTextModel`` (see :func:`classic_keys`).
    """
    if format == "diffusers":
        return _diffusers_text(config)
    dead = _open_clip_dead() if config.projection_dim is not None else []
    blocks = _open_clip_blocks(config.held_layers, "transformer.resblocks")
    return [*_open_clip_text_ends(), *blocks, *dead]


def diffusers_text_config(config: CLIPTextConfig) -> CLIPTextConfig:
    """The part of a text tower that SD 2.1's diffusers folder holds: no last block, no projection."""
    return replace(config, last_block=False, projection_dim=None)


def classic_keys(keys: Iterable[str]) -> dict[str, str]:
    """How a transformers file spells the keys that the tables know: classic key -> key in the file.

    transformers 5 saves a ``CLIPTextModel`` without the ``text_model.`` that everything published
    before it has; old files hold ``position_ids`` buffers, which are constants and left out here.
    """
    heads = ("text_model.", "vision_model.", "visual_projection.")
    return {
        key if key.startswith(heads) else f"text_model.{key}": key
        for key in keys
        if not key.endswith("embeddings.position_ids")
    }


def _open_clip_blocks(layers: int, theirs: str) -> list[Entry]:
    return [row for i in range(layers) for row in _open_clip_block(f"blocks.{i}", f"{theirs}.{i}")]


def _open_clip_block(ours: str, theirs: str) -> list[Entry]:
    def fused(name: str) -> tuple[str, ...]:
        return tuple(f"{ours}.attn.{part}.{name}" for part in "qkv")

    return [
        *norm(f"{ours}.norm1", f"{theirs}.ln_1"),
        Entry(fused("kernel"), (f"{theirs}.attn.in_proj_weight",), FUSED_QKV),
        Entry(fused("bias"), (f"{theirs}.attn.in_proj_bias",), FUSED_QKV_BIAS),
        *linear(f"{ours}.attn.out", f"{theirs}.attn.out_proj"),
        *norm(f"{ours}.norm2", f"{theirs}.ln_2"),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.c_fc"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.c_proj"),
    ]


def _open_clip_text_ends() -> list[Entry]:
    return [
        entry("token_embed.embedding", "token_embedding.weight"),
        entry("position_embed", "positional_embedding"),
        *norm("norm_final", "ln_final"),
    ]


def _open_clip_dead() -> list[Entry]:
    return [entry("text_projection", "text_projection"), entry("logit_scale", "logit_scale")]


def _diffusers_vision(config: CLIPVisionConfig) -> list[Entry]:
    return [
        *conv2d("patch_embed", "vision_model.embeddings.patch_embedding", bias=False),
        entry("class_embed", "vision_model.embeddings.class_embedding"),
        entry("position_embed", "vision_model.embeddings.position_embedding.weight"),
        *norm("norm_pre", "vision_model.pre_layrnorm"),  # the original misspells it
        *_transformers_blocks(config.layers, "vision_model.encoder.layers"),
        *norm("norm_post", "vision_model.post_layernorm"),
        entry("projection.kernel", "visual_projection.weight", LINEAR),
    ]


def _diffusers_text(config: CLIPTextConfig) -> list[Entry]:
    return [
        entry("token_embed.embedding", "text_model.embeddings.token_embedding.weight"),
        entry("position_embed", "text_model.embeddings.position_embedding.weight"),
        *_transformers_blocks(config.held_layers, "text_model.encoder.layers"),
        *norm("norm_final", "text_model.final_layer_norm"),
    ]


def _transformers_blocks(layers: int, theirs: str) -> list[Entry]:
    return [row for i in range(layers) for row in _transformers_block(f"blocks.{i}", f"{theirs}.{i}")]


def _transformers_block(ours: str, theirs: str) -> list[Entry]:
    projections = [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")]
    return [
        *norm(f"{ours}.norm1", f"{theirs}.layer_norm1"),
        *(row for a, b in projections for row in linear(f"{ours}.attn.{a}", f"{theirs}.self_attn.{b}")),
        *norm(f"{ours}.norm2", f"{theirs}.layer_norm2"),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2"),
    ]
