"""Table of the UNet's parameters: our paths beside the original (sgm) and the diffusers keys."""

from dataclasses import dataclass
from typing import Literal

from svdjax.conversion.mapping import Entry, conv2d, conv3d, entry, linear, norm
from svdjax.models.unet import UNetConfig, down_widths, up_widths

Format = Literal["sgm", "diffusers"]


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What a format calls the parts."""

    time_embed: tuple[str, str]
    vector_embed: tuple[str, str]
    conv_in: str
    norm_out: str
    conv_out: str
    res: tuple[str, str, str, str, str, str]  # norm1, conv1, emb, norm2, conv2, shortcut
    res_spatial: str
    res_temporal: str
    attn_temporal: str
    frame_embed: tuple[str, str]


_SGM = _Names(
    time_embed=("time_embed.0", "time_embed.2"),
    vector_embed=("label_emb.0.0", "label_emb.0.2"),
    conv_in="input_blocks.0.0",
    norm_out="out.0",
    conv_out="out.2",
    res=("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"),
    res_spatial="",
    res_temporal="time_stack.",
    attn_temporal="time_stack.0",
    frame_embed=("time_pos_embed.0", "time_pos_embed.2"),
)
_DIFFUSERS = _Names(
    time_embed=("time_embedding.linear_1", "time_embedding.linear_2"),
    vector_embed=("add_embedding.linear_1", "add_embedding.linear_2"),
    conv_in="conv_in",
    norm_out="conv_norm_out",
    conv_out="conv_out",
    res=("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"),
    res_spatial="spatial_res_block.",
    res_temporal="temporal_res_block.",
    attn_temporal="temporal_transformer_blocks.0",
    frame_embed=("time_pos_embed.linear_1", "time_pos_embed.linear_2"),
)


def unet_table(config: UNetConfig, format: Format) -> list[Entry]:
    """Rows for every parameter of a :class:`svdjax.models.unet.UNet`.

    Args:
        config: the network's sizes; ``temporal=False`` gives the table of the SD 2.1 image model.
        format: ``"sgm"`` for the keys of the original single file, ``"diffusers"`` for those of its ``unet/``
            folder.

    Returns:
        Rows with paths and keys that both start at the network (no ``unet.`` or ``model.diffusion_model.``).
    """
    names = _SGM if format == "sgm" else _DIFFUSERS
    rows = _embedding("time_embed", names.time_embed)
    if config.vector_dim:
        rows += _embedding("vector_embed", names.vector_embed)
    rows += conv2d("conv_in", names.conv_in)
    stages = _sgm_stages(config) if format == "sgm" else _diffusers_stages(config)
    widths = _widths(config)
    for ours, theirs in stages:
        if ".res." in ours:
            rows += _res(ours, theirs, names, config, shortcut=len(set(widths[ours])) == 2)
        elif ".attn." in ours:
            rows += _transformer(ours, theirs, names, config)
        else:
            rows += conv2d(ours, theirs)
    return [*rows, *norm("norm_out", names.norm_out), *conv2d("conv_out", names.conv_out)]


def _widths(config: UNetConfig) -> dict[str, tuple[int, int]]:
    """Input and output channels of every residual block by path."""
    levels = range(len(config.channels))
    widths = {f"mid.res.{j}": (config.channels[-1],) * 2 for j in range(2)}
    for level in levels:
        widths |= {f"down.{level}.res.{j}": pair for j, pair in enumerate(down_widths(config, level))}
        up = levels[-1] - level
        widths |= {f"up.{up}.res.{j}": pair for j, pair in enumerate(up_widths(config, level))}
    return widths


def _sgm_stages(config: UNetConfig) -> list[tuple[str, str]]:
    """Paths and keys of all blocks: sgm numbers them through, level after level, in the order of execution."""
    last = len(config.channels) - 1
    pairs = [("mid.res.0", "middle_block.0"), ("mid.attn.0", "middle_block.1"), ("mid.res.1", "middle_block.2")]
    number = 1  # input block 0 is the first convolution
    for i, attends in enumerate(config.attention):
        for j in range(config.num_res_blocks):
            pairs.append((f"down.{i}.res.{j}", f"input_blocks.{number}.0"))
            pairs += [(f"down.{i}.attn.{j}", f"input_blocks.{number}.1")] * attends
            number += 1
        if i < last:
            pairs.append((f"down.{i}.downsample.conv", f"input_blocks.{number}.0.op"))
            number += 1
    for i, attends in enumerate(reversed(config.attention)):
        first = i * (config.num_res_blocks + 1)
        for j in range(config.num_res_blocks + 1):
            pairs.append((f"up.{i}.res.{j}", f"output_blocks.{first + j}.0"))
            pairs += [(f"up.{i}.attn.{j}", f"output_blocks.{first + j}.1")] * attends
        # The upsampler sits behind the last block's transformer, or in its place.
        key = f"output_blocks.{first + config.num_res_blocks}.{1 + attends}.conv"
        pairs += [(f"up.{i}.upsample.conv", key)] * (i < last)
    return pairs


def _diffusers_stages(config: UNetConfig) -> list[tuple[str, str]]:
    """Paths and keys of all blocks: diffusers numbers blocks within their level, as we do."""
    last = len(config.channels) - 1
    pairs = _diffusers_blocks("mid", "mid_block", 2, 1)
    for i, attends in enumerate(config.attention):
        count = config.num_res_blocks
        pairs += _diffusers_blocks(f"down.{i}", f"down_blocks.{i}", count, count * attends)
        pairs += [(f"down.{i}.downsample.conv", f"down_blocks.{i}.downsamplers.0.conv")] * (i < last)
    for i, attends in enumerate(reversed(config.attention)):
        count = config.num_res_blocks + 1
        pairs += _diffusers_blocks(f"up.{i}", f"up_blocks.{i}", count, count * attends)
        pairs += [(f"up.{i}.upsample.conv", f"up_blocks.{i}.upsamplers.0.conv")] * (i < last)
    return pairs


def _diffusers_blocks(ours: str, theirs: str, res: int, attn: int) -> list[tuple[str, str]]:
    return [(f"{ours}.res.{j}", f"{theirs}.resnets.{j}") for j in range(res)] + [
        (f"{ours}.attn.{j}", f"{theirs}.attentions.{j}") for j in range(attn)
    ]


def _embedding(ours: str, theirs: tuple[str, str]) -> list[Entry]:
    return linear(f"{ours}.linear1", theirs[0]) + linear(f"{ours}.linear2", theirs[1])


def _res(ours: str, theirs: str, names: _Names, config: UNetConfig, *, shortcut: bool) -> list[Entry]:
    if not config.temporal:
        return _res_part(f"{ours}.spatial", f"{theirs}.", names, temporal=False, shortcut=shortcut)
    return [
        *_res_part(f"{ours}.spatial", f"{theirs}.{names.res_spatial}", names, temporal=False, shortcut=shortcut),
        *_res_part(f"{ours}.temporal", f"{theirs}.{names.res_temporal}", names, temporal=True, shortcut=False),
        entry(f"{ours}.mix_factor", f"{theirs}.time_mixer.mix_factor"),
    ]


def _res_part(ours: str, theirs: str, names: _Names, *, temporal: bool, shortcut: bool) -> list[Entry]:
    conv = conv3d if temporal else conv2d
    norm1, conv1, emb, norm2, conv2, skip = (theirs + name for name in names.res)
    rows = norm(f"{ours}.norm1", norm1) + conv(f"{ours}.conv1", conv1) + linear(f"{ours}.emb", emb)
    rows += norm(f"{ours}.norm2", norm2) + conv(f"{ours}.conv2", conv2)
    return rows + conv2d(f"{ours}.shortcut", skip) if shortcut else rows


def _transformer(ours: str, theirs: str, names: _Names, config: UNetConfig) -> list[Entry]:
    rows = norm(f"{ours}.norm", f"{theirs}.norm") + linear(f"{ours}.proj_in", f"{theirs}.proj_in")
    rows += _block(f"{ours}.spatial", f"{theirs}.transformer_blocks.0")
    if config.temporal:
        temporal = f"{theirs}.{names.attn_temporal}"
        rows += norm(f"{ours}.temporal.norm_in", f"{temporal}.norm_in")
        rows += _feed_forward(f"{ours}.temporal.ff_in", f"{temporal}.ff_in")
        rows += _block(f"{ours}.temporal", temporal)
        rows += _embedding(f"{ours}.frame_embed", tuple(f"{theirs}.{name}" for name in names.frame_embed))
        rows.append(entry(f"{ours}.mix_factor", f"{theirs}.time_mixer.mix_factor"))
    return rows + linear(f"{ours}.proj_out", f"{theirs}.proj_out")


def _block(ours: str, theirs: str) -> list[Entry]:
    rows = _feed_forward(f"{ours}.ff", f"{theirs}.ff")
    for i in (1, 2, 3):
        rows += norm(f"{ours}.norm{i}", f"{theirs}.norm{i}")
    for attn in ("attn1", "attn2"):
        for name in ("q", "k", "v"):
            rows += linear(f"{ours}.{attn}.{name}", f"{theirs}.{attn}.to_{name}", bias=False)
        rows += linear(f"{ours}.{attn}.out", f"{theirs}.{attn}.to_out.0")
    return rows


def _feed_forward(ours: str, theirs: str) -> list[Entry]:
    return linear(f"{ours}.proj_in", f"{theirs}.net.0.proj") + linear(f"{ours}.proj_out", f"{theirs}.net.2")
