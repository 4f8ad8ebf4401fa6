"""Sizes of the networks from the shapes in a single file, which holds no configuration.

Keys are in the original (sgm) naming. Two things leave no trace in the shapes: how a width is divided into
attention heads, in the UNet and in CLIP. Both have the released models' values unless the caller gives others.
"""

import math
import re
from collections.abc import Mapping

from svdjax.conversion.checkpoint import Options
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig

Shapes = Mapping[str, tuple[int, ...]]


class _Shapes:
    """The shapes under one prefix; a key that is not there is the user's mistake."""

    def __init__(self, shapes: Shapes, prefix: str, what: str) -> None:
        self.prefix, self.what = prefix, what
        self.shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}

    def size(self, key: str, axis: int) -> int:
        """One side of one tensor."""
        shape = self.shapes.get(key)
        if shape is None:
            raise UserError(f"{self.what}: {self.prefix}{key} is missing: not a complete checkpoint")
        if axis >= len(shape):
            raise UserError(f"{self.what}: {self.prefix}{key} has wrong shape {shape}")
        return shape[axis]

    def has(self, pattern: str) -> bool:
        """Whether some key begins with the regular expression."""
        return any(re.match(pattern, key) for key in self.shapes)

    def count(self, pattern: str) -> int:
        """How many numbers follow each other from 0 in the place of ``{}``."""
        count = 0
        while self.has(pattern.format(count)):
            count += 1
        return count


def _uniform(values: list[int], of: str, what: str) -> int:
    if len(set(values)) != 1:
        raise UserError(f"{what}: {of} differ between levels ({values}), which this architecture does not have")
    return values[0]


def infer_unet(shapes: Shapes, prefix: str, options: Options, what: str) -> UNetConfig:
    """Sizes of the UNet under ``prefix``.

    Raises:
        UserError: a key that tells a size is missing, or the levels are not those of an SVD or SD 2.1 UNet.
    """
    seen = _Shapes(shapes, prefix, what)
    in_channels = seen.size("input_blocks.0.0.weight", 1)
    levels = _unet_levels(seen)
    channels = tuple(width for width, _, _ in levels)
    head_dim = 64 if options.head_dim is None else options.head_dim
    attention = tuple(attends for _, _, attends in levels)
    for width, attends in zip(channels, (*attention[:-1], True), strict=True):  # the middle always attends
        if head_dim < 1 or (attends and width % head_dim):
            raise UserError(f"{what}: {width} channels cannot be divided into heads of {head_dim}: give --head-dim")
    context = next((key for key in seen.shapes if key.endswith("transformer_blocks.0.attn2.to_k.weight")), "attn2")
    return UNetConfig(
        in_channels=in_channels,
        out_channels=seen.size("out.2.weight", 0),
        channels=channels,
        num_res_blocks=_uniform([count for _, count, _ in levels], "residual blocks", what),
        attention=attention,
        head_dim=head_dim,
        context_dim=seen.size(context, 1),
        vector_dim=seen.size("label_emb.0.0.weight", 1) if seen.has(r"label_emb\.") else 0,
        temporal=seen.has(r".*time_stack\."),
    )


def _unet_levels(seen: _Shapes) -> list[tuple[int, int, bool]]:
    """Width, number of residual blocks and attention of each level; a downsampling block ends a level."""
    levels: list[list[tuple[int, bool]]] = [[]]
    for i in range(1, seen.count(r"input_blocks\.{}\.")):
        if seen.has(rf"input_blocks\.{i}\.0\.op\."):
            levels.append([])
        else:
            width = seen.size(f"input_blocks.{i}.0.in_layers.2.weight", 0)
            levels[-1].append((width, seen.has(rf"input_blocks\.{i}\.1\.proj_in\.")))
    for level in levels:
        if len(set(level)) != 1:
            raise UserError(f"{seen.what}: the blocks of a level differ: not a UNet of SVD or SD 2.1")
    return [(level[0][0], len(level), level[0][1]) for level in levels]


def infer_vae(shapes: Shapes, encoder: str, decoder: str, what: str) -> VAEConfig:
    """Sizes of the autoencoder whose encoder and decoder are under these prefixes.

    Args:
        shapes: of the whole file.
        encoder: prefix in front of ``encoder.`` and ``quant_conv.``.
        decoder: prefix in front of ``decoder.`` and, in complete image autoencoders, ``post_quant_conv.``.
        what: the file, for messages.
    """
    down, up = _Shapes(shapes, encoder, what), _Shapes(shapes, decoder, what)
    down.size("encoder.conv_in.weight", 0)  # says what is missing where there is no encoder at all
    levels = range(down.count(r"encoder\.down\.{}\."))
    blocks = [down.count(rf"encoder\.down\.{i}\.block\.{{}}\.") for i in levels]
    return VAEConfig(
        channels=tuple(down.size(f"encoder.down.{i}.block.0.conv2.weight", 0) for i in levels),
        num_res_blocks=_uniform(blocks, "residual blocks of the encoder", what),
        latent_channels=up.size("decoder.conv_in.weight", 1),
        temporal_decoder=up.has(r"decoder\..*time_stack\."),
        post_quant_conv=up.has(r"post_quant_conv\."),
    )


def infer_clip_vision(shapes: Shapes, prefix: str, options: Options, what: str) -> CLIPVisionConfig:
    """Sizes of the image tower whose ``visual.`` is under ``prefix``."""
    seen = _Shapes(shapes, f"{prefix}visual.", what)
    width, patch = seen.size("conv1.weight", 0), seen.size("conv1.weight", 3)
    return CLIPVisionConfig(
        width=width,
        layers=seen.count(r"transformer\.resblocks\.{}\."),
        heads=_heads(width, 80, options, what),
        mlp_dim=seen.size("transformer.resblocks.0.mlp.c_fc.weight", 0),
        patch_size=patch,
        image_size=math.isqrt(seen.size("positional_embedding", 0) - 1) * patch,
        projection_dim=seen.size("proj", 1),
    )


def infer_clip_text(shapes: Shapes, prefix: str, options: Options, what: str) -> CLIPTextConfig:
    """Sizes of the text tower under ``prefix``."""
    seen = _Shapes(shapes, prefix, what)
    width = seen.size("token_embedding.weight", 1)
    return CLIPTextConfig(
        width=width,
        layers=seen.count(r"transformer\.resblocks\.{}\."),
        heads=_heads(width, 64, options, what),
        mlp_dim=seen.size("transformer.resblocks.0.mlp.c_fc.weight", 0),
        context_length=seen.size("positional_embedding", 0),
        vocab_size=seen.size("token_embedding.weight", 0),
        projection_dim=seen.size("text_projection", 1) if seen.has(r"text_projection$") else None,
    )


def _heads(width: int, head_dim: int, options: Options, what: str) -> int:
    heads = max(1, width // head_dim) if options.clip_heads is None else options.clip_heads
    unsure = options.clip_heads is None and width % head_dim
    if unsure or heads < 1 or width % heads:
        raise UserError(f"{what}: the file does not say how CLIP's width {width} is divided: give --clip-heads")
    return heads
