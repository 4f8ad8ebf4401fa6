"""Tables of the autoencoder: our paths beside the names of diffusers and of the original PyTorch code (sgm)."""

from typing import Literal

from svdjax.conversion.mapping import (
    CONV1X1_AS_LINEAR,
    Entry,
    conv2d,
    conv3d,
    entry,
    linear,
    norm,
)
from svdjax.errors import UserError
from svdjax.models.vae import VAEConfig

Format = Literal["sgm", "diffusers"]
Part = Literal["encoder", "image decoder", "temporal decoder"]


def vae_table(config: VAEConfig, format: Format) -> list[Entry]:
    """Every parameter of an autoencoder.

    Args:
        config: sizes, and which decoder.
        format: ``diffusers`` for ``AutoencoderKLTemporalDecoder`` and ``AutoencoderKL``; ``sgm`` for a complete
            autoencoder in the original naming: ``first_stage_model`` of SD 2.1, or the one of SVD's
            conditioner. (SVD's ``first_stage_model`` itself lacks ``quant_conv``: compose the tables below.)

    Raises:
        UserError: diffusers cannot hold a temporal decoder with these sizes.
    """
    table = encoder_table(config, format) + quant_table(config) + decoder_table(config, format)
    return table + (conv2d("post_quant_conv", "post_quant_conv") if config.post_quant_conv else [])


def quant_table(config: VAEConfig) -> list[Entry]:
    """The 1x1 convolution behind the encoder: the same for every configuration and in both formats."""
    return conv2d("quant_conv", "quant_conv")


def encoder_table(config: VAEConfig, format: Format) -> list[Entry]:
    """The encoder; paths and keys both start with ``encoder.``."""
    last = len(config.channels) - 1
    table = _ends("encoder", format) + _mid("encoder", format, "encoder")
    for i, changes in enumerate(_width_changes(config.channels)):
        ours = f"encoder.down.{i}"
        theirs = ours if format == "sgm" else f"encoder.down_blocks.{i}"
        table += _level(ours, theirs, format, "encoder", config.num_res_blocks, changes)
        if i < last:
            resample = "downsample" if format == "sgm" else "downsamplers.0"
            table += conv2d(f"{ours}.downsample.conv", f"{theirs}.{resample}.conv")
    return table


def decoder_table(config: VAEConfig, format: Format) -> list[Entry]:
    """The decoder, temporal or plain; paths and keys both start with ``decoder.``.

    Raises:
        UserError: diffusers cannot hold a temporal decoder with these sizes.
    """
    temporal = config.temporal_decoder
    if temporal and format == "diffusers" and config.num_res_blocks != 2:
        raise UserError(
            f"num_res_blocks = {config.num_res_blocks}: diffusers' temporal decoder only works with 2; "
            "use the sgm format"
        )
    part: Part = "temporal decoder" if temporal else "image decoder"
    last = len(config.channels) - 1
    table = _ends("decoder", format) + _mid("decoder", format, part)
    if temporal:
        name = "conv_out.time_mix_conv" if format == "sgm" else "time_conv_out"
        table += conv3d("decoder.time_conv", f"decoder.{name}")
    for i, changes in enumerate(_width_changes(config.channels[::-1])):
        ours = f"decoder.up.{i}"
        # sgm numbers the levels by resolution, we and diffusers by the order of execution
        theirs = f"decoder.up.{last - i}" if format == "sgm" else f"decoder.up_blocks.{i}"
        table += _level(ours, theirs, format, part, config.num_res_blocks + 1, changes)
        if i < last:
            resample = "upsample" if format == "sgm" else "upsamplers.0"
            table += conv2d(f"{ours}.upsample.conv", f"{theirs}.{resample}.conv")
    return table


def _width_changes(widths: tuple[int, ...]) -> list[bool]:
    """Whether the first block of each level changes the width, and so has a shortcut."""
    return [i > 0 and widths[i - 1] != width for i, width in enumerate(widths)]


def _ends(part: str, format: Format) -> list[Entry]:
    norm_out = "norm_out" if format == "sgm" else "conv_norm_out"
    return (
        conv2d(f"{part}.conv_in", f"{part}.conv_in")
        + norm(f"{part}.norm_out", f"{part}.{norm_out}")
        + conv2d(f"{part}.conv_out", f"{part}.conv_out")
    )


def _mid(name: str, format: Format, part: Part) -> list[Entry]:
    theirs = f"{name}.mid" if format == "sgm" else f"{name}.mid_block"
    table = _attention(f"{name}.mid.attn", theirs, format)
    for i in range(2):
        block = f"{theirs}.block_{i + 1}" if format == "sgm" else f"{theirs}.resnets.{i}"
        table += _block(f"{name}.mid.res.{i}", block, format, part, shortcut=False)
    return table


def _attention(ours: str, mid: str, format: Format) -> list[Entry]:
    if format == "diffusers":
        theirs = f"{mid}.attentions.0"
        names = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
        rows = [row for a, b in names.items() for row in linear(f"{ours}.{a}", f"{theirs}.{b}")]
        return norm(f"{ours}.norm", f"{theirs}.group_norm") + rows
    theirs = f"{mid}.attn_1"
    table = norm(f"{ours}.norm", f"{theirs}.norm")
    for a, b in {"q": "q", "k": "k", "v": "v", "out": "proj_out"}.items():
        table += [
            entry(f"{ours}.{a}.kernel", f"{theirs}.{b}.weight", CONV1X1_AS_LINEAR),
            entry(f"{ours}.{a}.bias", f"{theirs}.{b}.bias"),
        ]
    return table


def _level(ours: str, theirs: str, format: Format, part: Part, blocks: int, changes: bool) -> list[Entry]:
    name = "block" if format == "sgm" else "resnets"
    table = []
    for j in range(blocks):
        shortcut = changes and j == 0
        table += _block(f"{ours}.res.{j}", f"{theirs}.{name}.{j}", format, part, shortcut=shortcut)
    return table


def _block(ours: str, theirs: str, format: Format, part: Part, *, shortcut: bool) -> list[Entry]:
    if part == "encoder":
        return _spatial(ours, theirs, format, shortcut)
    if part == "image decoder":
        return _spatial(f"{ours}.spatial", theirs, format, shortcut)
    if format == "sgm":
        spatial, time, mixer = theirs, f"{theirs}.time_stack", f"{theirs}.mix_factor"
        names = ("in_layers.0", "in_layers.2", "out_layers.0", "out_layers.3")
    else:
        spatial, time = f"{theirs}.spatial_res_block", f"{theirs}.temporal_res_block"
        mixer = f"{theirs}.time_mixer.mix_factor"
        names = ("norm1", "conv1", "norm2", "conv2")
    return (
        _spatial(f"{ours}.spatial", spatial, format, shortcut)
        + norm(f"{ours}.temporal.norm1", f"{time}.{names[0]}")
        + conv3d(f"{ours}.temporal.conv1", f"{time}.{names[1]}")
        + norm(f"{ours}.temporal.norm2", f"{time}.{names[2]}")
        + conv3d(f"{ours}.temporal.conv2", f"{time}.{names[3]}")
        + [entry(f"{ours}.mix_factor", mixer)]
    )


def _spatial(ours: str, theirs: str, format: Format, shortcut: bool) -> list[Entry]:
    table = (
        norm(f"{ours}.norm1", f"{theirs}.norm1")
        + conv2d(f"{ours}.conv1", f"{theirs}.conv1")
        + norm(f"{ours}.norm2", f"{theirs}.norm2")
        + conv2d(f"{ours}.conv2", f"{theirs}.conv2")
    )
    if not shortcut:
        return table
    name = "nin_shortcut" if format == "sgm" else "conv_shortcut"
    return table + conv2d(f"{ours}.shortcut", f"{theirs}.{name}")
