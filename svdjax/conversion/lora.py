"""LoRA files: safetensors with the key names of diffusers (PEFT's, and two older ones) or of kohya's scripts.

=========  ============================================================================  =======================
style      keys of a layer                                                               alpha
=========  ============================================================================  =======================
diffusers  ``unet.MODULE.lora_A.weight`` [rank, in], ``unet.MODULE.lora_B.weight``       in the header, or = rank
           [out, rank]; read also: ``.lora.down.weight``, ``.lora.up.weight``, and
           ``unet.ATTENTION.processor.to_q_lora.down.weight``, ``...up.weight``
kohya      ``lora_unet_MODULE.lora_down.weight``, ``.lora_up.weight``, with              ``.alpha``, a scalar
           underscores for the dots in MODULE
=========  ============================================================================  =======================

MODULE is the layer's name in diffusers' UNet, which the table in `svdjax.conversion.unet` knows.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from svdjax.conversion.mapping import LINEAR
from svdjax.conversion.output import finished
from svdjax.conversion.safetensors_file import read_safetensors, write_safetensors
from svdjax.conversion.tensors import Tensor, checked
from svdjax.conversion.unet import unet_table
from svdjax.errors import UserError
from svdjax.models.lora import DOWN, UP, LoRA
from svdjax.models.unet import UNetConfig

Style = Literal["diffusers", "kohya"]
Keys = dict[str, str]  # what a layer's down, up and (kohya) alpha are called
ALPHA = "alpha"
_PEFT = "lora_adapter_metadata"  # the entry of the header in which diffusers keeps PEFT's settings


def read_lora(path: Path, unet: UNetConfig) -> LoRA:
    """Read a LoRA file of any of the styles.

    Args:
        path: the file. unet: sizes of the UNet that it belongs to; which of its linear layers the file adapts is
            the file's to say.

    Returns:
        The LoRA, in the file's dtypes.

    Raises:
        UserError: no such file, no LoRA, of another model, or one whose layers are incomplete or differ in rank or
            alpha.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such LoRA file: give a .safetensors file")
    tensors, metadata = read_safetensors(path)
    known = {
        key: (layer, part)
        for style in _styles(unet).values()
        for layer, keys in style.items()
        for part, key in keys.items()
    }
    _check_known(path, tensors, known)
    found: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        layer, part = known[key]
        found.setdefault(layer, {})[part] = checked(tensor).load()
    for layer, parts in found.items():
        if missing := {DOWN, UP} - parts.keys():
            raise UserError(f"{path}: {layer} has no {min(missing)}: the file is incomplete; download it again")
    rank = _rank(path, found)
    return LoRA(
        params={f"{layer}.{part}": found[layer][part].T for layer in found for part in (DOWN, UP)},
        alpha=_alpha(path, found, metadata, rank),
        base=metadata.get("base", ""),
    )


def write_lora(path: Path, lora: LoRA, unet: UNetConfig, *, style: Style = "diffusers") -> None:
    """Write a LoRA file; an older one is replaced once the new one is complete.

    Args:
        path: where. lora: what, in its dtypes; the header says its rank, alpha and base.
        unet: sizes of the UNet that it belongs to. style: of the keys.

    Raises:
        UserError: the LoRA adapts what this UNet does not have, or the file cannot be written.
    """
    names = _styles(unet)[style]
    if missing := [layer for layer in lora.layers if layer not in names]:
        raise UserError(f"{path}: the LoRA adapts {missing[0]}, which this UNet does not have: give its own model")
    tensors: dict[str, Tensor] = {}
    for layer in lora.layers:
        keys = names[layer]
        for part in (DOWN, UP):
            (matrix,) = LINEAR.to_theirs((np.asarray(lora.params[f"{layer}.{part}"]),))
            tensors[keys[part]] = Tensor.of(keys[part], matrix)
        if ALPHA in keys:
            tensors[keys[ALPHA]] = Tensor.of(keys[ALPHA], np.array(lora.alpha, np.float32))
    metadata = {"format": "pt", "rank": str(lora.rank), "alpha": f"{lora.alpha:g}", "base": lora.base}
    if style == "diffusers":
        modules = [_modules(unet)[layer] for layer in lora.layers]
        peft = {"unet.r": lora.rank, "unet.lora_alpha": lora.alpha, "unet.target_modules": modules}
        metadata[_PEFT] = json.dumps(peft)
    with finished(path, overwrite=True) as partial:
        write_safetensors(partial, tensors, metadata)


def _modules(unet: UNetConfig) -> dict[str, str]:
    """Our paths and diffusers' names of all linear layers."""
    rows = [row for row in unet_table(unet, "diffusers") if row.layout is LINEAR]
    return {f"unet.{row.ours[0].removesuffix('.kernel')}": row.theirs[0].removesuffix(".weight") for row in rows}


def _styles(unet: UNetConfig) -> dict[str, dict[str, Keys]]:
    """The keys of every layer that a LoRA could adapt, in every style."""
    styles: dict[str, dict[str, Keys]] = {"diffusers": {}, "older": {}, "oldest": {}, "kohya": {}}
    for layer, module in _modules(unet).items():
        styles["diffusers"][layer] = _pair(f"unet.{module}", "lora_A", "lora_B")
        styles["older"][layer] = _pair(f"unet.{module}.lora", "down", "up")
        if projection := re.fullmatch(r"(.*attn\d)\.(to_[a-z]+)(\.0)?", module):
            styles["oldest"][layer] = _pair(f"unet.{projection[1]}.processor.{projection[2]}_lora", "down", "up")
        flat = f"lora_unet_{module.replace('.', '_')}"
        styles["kohya"][layer] = {**_pair(flat, "lora_down", "lora_up"), ALPHA: f"{flat}.alpha"}
    return styles


def _pair(start: str, down: str, up: str) -> Keys:
    return {DOWN: f"{start}.{down}.weight", UP: f"{start}.{up}.weight"}


def _check_known(path: Path, keys: Collection[str], known: Collection[str]) -> None:
    if not any("lora" in key for key in keys):
        raise UserError(f"{path}: not a LoRA file: none of its keys speaks of lora")
    if unknown := sorted(key for key in keys if key not in known):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}: {unknown[0]}{more} of its {len(keys)} keys belong to no linear layer of this UNet: it is for "
            "another model, or of an unsupported kind"
        )


def _rank(path: Path, found: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    ranks = set()
    for layer, parts in found.items():
        down, up = parts[DOWN].shape, parts[UP].shape
        if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
            raise UserError(
                f"{path}: {layer} has matrices of shapes {down} and {up}, not [rank, in] and [out, rank]"
            )
        ranks.add(down[0])
    if len(ranks) > 1:
        raise UserError(f"{path}: its layers have the ranks {sorted(ranks)}: only one rank for all is supported")
    return ranks.pop()


def _alpha(
    path: Path, found: Mapping[str, Mapping[str, np.ndarray]], metadata: Mapping[str, str], rank: int
) -> float:
    """That of the layers, or of the header, or as PEFT's default the rank."""
    alphas = {float(parts[ALPHA].item()) if ALPHA in parts else None for parts in found.values()}
    if len(alphas) > 1:
        raise UserError(f"{path}: its layers have several alphas: only one alpha for all is supported")
    (alpha,) = alphas
    if alpha is not None:
        return alpha
    try:
        peft = {key.removeprefix("unet."): value for key, value in json.loads(metadata.get(_PEFT, "{}")).items()}
        stated, alpha = int(peft.get("r", rank)), float(peft.get("lora_alpha", rank))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{path}: its {_PEFT} is malformed: write the file again") from None
    if stated != rank:
        raise UserError(f"{path}: its header says rank {stated}, its matrices have {rank}: the file is damaged")
    if any(peft.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora")):
        raise UserError(
            f"{path}: a variant of LoRA whose layers count differently (see its {_PEFT}): not supported"
        )
    return alpha
