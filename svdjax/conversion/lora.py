"""LoRA files: safetensors with the key names of diffusers (PEFT's, and two older ones) or of kohya's scripts.

=========  ============================================================================  =======================
style      keys of a layer                                                               alpha
=========  ============================================================================  =======================
diffusers  ``unet.MODULE.lora_A.weight`` [rank, in], ``unet.MODULE.lora_B.weight``       in the header, or = rank
           [out, rank]; read also: ``.lora.down.weight``, ``.lora.up.weight``, and
           ``unet.ATTENTION.processor.to_q_lora.down.weight``, ``...up.weight``
network    the first of these without ``unet.``; read only                               in the header, or = rank
PEFT       the first of these with ``base_model.model.`` for ``unet.``; read only        in adapter_config.json
                                                                                         beside the file
kohya      ``lora_unet_MODULE.lora_down.weight``, ``.lora_up.weight``, with              ``.alpha``, a scalar
           underscores for the dots in MODULE
=========  ============================================================================  =======================

MODULE is the layer's name in diffusers' UNet, which the table in `svdjax.conversion.unet` knows.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

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
STYLES = get_args(Style)
_PEFT_START = "base_model.model."
# Where LoRA begins with a part of the weights that it adapts, and takes it out of them.
_OF_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_PEFT = "lora_adapter_metadata"  # the entry of the header in which diffusers keeps PEFT's settings
# UNets of this family name their layers alike, whatever their sizes: here is every name that a smaller one has (of
# SD 2.1's, all but those of the layers that take in the time embedding).
_EVERY_LAYER = UNetConfig(channels=(64,) * 6, num_res_blocks=6, attention=(True,) * 6)


def speak_of_lora(keys: Iterable[str]) -> bool:
    """Whether some key is one of a LoRA, of a kind that is supported or not (LyCORIS')."""
    return any(re.search("lora|hada_|lokr_", key) for key in keys)


def is_lora(path: Path) -> bool:
    """Whether a path is a .safetensors file with a LoRA, by its keys."""
    try:
        return path.is_file() and speak_of_lora(read_safetensors(path)[0])
    except (UserError, OSError):
        return False


def convert_lora(
    source: Path, destination: Path, *, style: str, dtype: np.dtype | None = None, overwrite: bool = False
) -> None:
    """Write a LoRA file again in another style, or an older one in today's; which UNet it is for does not matter.

    Args:
        source, destination: .safetensors files. style: ``diffusers`` or ``kohya``.
        dtype: of the matrices; None keeps theirs. overwrite: replace the destination if it exists.

    Raises:
        UserError: the source is unusable, there is no such style, or the destination cannot be written.
    """
    if style not in STYLES:
        raise UserError(f"{source}: a LoRA, which --to {style} cannot hold: choose {' or '.join(STYLES)}")
    if destination.suffix != ".safetensors":
        raise UserError(f"{destination}: a LoRA is one file: give a name that ends with .safetensors")
    lora = read_lora(source, _EVERY_LAYER)
    cast = {path: checked(Tensor.of(path, x), dtype).load() for path, x in lora.params.items()}
    _, header = read_safetensors(source)
    write_lora(
        destination,
        replace(lora, params=cast),
        _EVERY_LAYER,
        style=style,
        header={key: text for key, text in header.items() if key != _PEFT},
        overwrite=overwrite,
    )


def read_lora(path: Path, unet: UNetConfig) -> LoRA:
    """Read a LoRA file of any of the styles.

    Args:
        path: the file. unet: sizes of the UNet that it belongs to; which of its linear layers the file adapts is
            the file's to say.

    Returns:
        The LoRA, in the file's dtypes.

    Raises:
        UserError: no such file, no LoRA, of another model, one whose layers are incomplete or differ in rank or
            alpha, or of a kind that adds to other weights than the model's.
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
        alpha=_alpha(path, found, _settings(path, tensors, metadata), rank),
        base=metadata.get("base", ""),
    )


def write_lora(
    path: Path,
    lora: LoRA,
    unet: UNetConfig,
    *,
    style: Style = "diffusers",
    header: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = True,
) -> None:
    """Write a LoRA file; an older one is replaced once the new one is complete.

    Args:
        path: where. lora: what, in its dtypes; the header says its rank, alpha and base.
        unet: sizes of the UNet that it belongs to. style: of the keys.
        header: what else to say there. overwrite: whether the file may exist.

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
            tensors[keys[ALPHA]] = Tensor.of(keys[ALPHA], _as_scalar(lora.alpha))
    about = {"format": "pt", "rank": str(lora.rank), "alpha": f"{lora.alpha:g}", "base": lora.base}
    metadata = {**header, **about}
    if style == "diffusers":
        modules = _modules(unet)
        adapted = [modules[layer] for layer in lora.layers]
        peft = {"unet.r": lora.rank, "unet.lora_alpha": lora.alpha, "unet.target_modules": adapted}
        metadata[_PEFT] = json.dumps(peft)
    with finished(path, overwrite=overwrite) as partial:
        write_safetensors(partial, tensors, metadata)


def _as_scalar(alpha: float) -> np.ndarray:
    """In float32, as kohya's scripts have it, or in float64 if only that is exact."""
    scalar = np.array(alpha, np.float32)
    return scalar if float(scalar) == alpha else np.array(alpha, np.float64)


def _modules(unet: UNetConfig) -> dict[str, str]:
    """Our paths and diffusers' names of all linear layers."""
    rows = [row for row in unet_table(unet, "diffusers") if row.layout is LINEAR]
    return {f"unet.{row.ours[0].removesuffix('.kernel')}": row.theirs[0].removesuffix(".weight") for row in rows}


def _styles(unet: UNetConfig) -> dict[str, dict[str, Keys]]:
    """The keys of every layer that a LoRA could adapt, in every style."""
    names = ("diffusers", "older", "oldest", "kohya", "peft", "network")
    styles: dict[str, dict[str, Keys]] = {name: {} for name in names}
    for layer, module in _modules(unet).items():
        for style, start in (("diffusers", "unet."), ("peft", _PEFT_START), ("network", "")):
            styles[style][layer] = _pair(f"{start}{module}", "lora_A", "lora_B")
        styles["older"][layer] = _pair(f"unet.{module}.lora", "down", "up")
        if projection := re.fullmatch(r"(.*attn\d)\.(to_[a-z]+)(\.0)?", module):
            styles["oldest"][layer] = _pair(f"unet.{projection[1]}.processor.{projection[2]}_lora", "down", "up")
        flat = f"lora_unet_{module.replace('.', '_')}"
        styles["kohya"][layer] = {**_pair(flat, "lora_down", "lora_up"), ALPHA: f"{flat}.alpha"}
    return styles


def _pair(start: str, down: str, up: str) -> Keys:
    return {DOWN: f"{start}.{down}.weight", UP: f"{start}.{up}.weight"}


def _check_known(path: Path, keys: Collection[str], known: Collection[str]) -> None:
    if not speak_of_lora(keys):
        raise UserError(f"{path}: not a LoRA file: none of its keys speaks of lora")
    if unknown := sorted(key for key in keys if key not in known):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UserError(
            f"{path}: {unknown[0]}{more} of its {len(keys)} keys belong to no linear layer of the UNet: it is for "
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
    path: Path, found: Mapping[str, Mapping[str, np.ndarray]], settings: tuple[str, str], rank: int
) -> float:
    """That of the layers, or of PEFT's settings, or, where nothing says more, the rank."""
    alphas = {float(parts[ALPHA].item()) if ALPHA in parts else None for parts in found.values()}
    if len(alphas) > 1:
        raise UserError(f"{path}: its layers have several alphas: only one alpha for all is supported")
    (alpha,) = alphas
    if alpha is None:
        alpha = _alpha_of_settings(path, *settings, rank)
    if not 0 < alpha < math.inf:
        raise UserError(f"{path}: its alpha is {alpha:g}, not a positive number: the file is damaged")
    return alpha


def _alpha_of_settings(path: Path, where: str, settings: str, rank: int) -> float:
    """The alpha that PEFT's settings name; they may also say that this is no LoRA as others are."""
    try:
        peft = {key.removeprefix("unet."): value for key, value in json.loads(settings).items()}
        stated, alpha = int(peft.get("r", rank)), float(peft.get("lora_alpha", rank))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise UserError(f"{path}: its {where} is malformed: write the file again") from None
    if stated != rank:
        raise UserError(f"{path}: its {where} says rank {stated}, its matrices have {rank}: the file is damaged")
    if any(peft.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora", "use_dora")):
        raise UserError(
            f"{path}: a variant of LoRA whose layers count differently (see its {where}): not supported"
        )
    if str(peft.get("init_lora_weights")).lower().startswith(_OF_CHANGED_WEIGHTS):
        raise UserError(
            f"{path}: made by {peft['init_lora_weights']}, which changes the model's own weights too: let PEFT "
            "convert it to a plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return alpha


def _settings(path: Path, keys: Iterable[str], metadata: Mapping[str, str]) -> tuple[str, str]:
    """Where PEFT's settings are, and they: diffusers keeps them in the header, PEFT itself beside the file.

    Raises:
        UserError: the file is PEFT's, and they are not there.
    """
    if _PEFT in metadata or not any(key.startswith(_PEFT_START) for key in keys):
        return _PEFT, metadata.get(_PEFT, "{}")
    beside = path.parent / "adapter_config.json"
    try:
        return beside.name, beside.read_text(errors="replace")
    except OSError as error:
        raise UserError(
            f"{path}: its alpha is in {beside.name}, which PEFT writes beside it: keep both in one folder "
            f"({error.strerror})"
        ) from None
