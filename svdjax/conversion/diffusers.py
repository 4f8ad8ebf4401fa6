"""Diffusers folders: one sub-folder per network, with a config.json and one or several .safetensors files."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from svdjax.conversion.checkpoint import (
    CONFIG_KEY,
    Checkpoint,
    Options,
    check_has_counterpart,
    check_params,
    check_said,
    summary,
)
from svdjax.conversion.clip import classic_keys, clip_text_table, clip_vision_table, diffusers_text_config
from svdjax.conversion.diffusers_config import read_config, write_configs
from svdjax.conversion.mapping import Entry, prefixed, to_ours, to_theirs
from svdjax.conversion.safetensors_file import read_safetensors, write_safetensors
from svdjax.conversion.tensors import Progressed, Tensor
from svdjax.conversion.unet import unet_table
from svdjax.conversion.vae import vae_table
from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig

# Folder of each network, and how its weights file is called there.
COMPONENTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "image_encoder": "model",
    "text_encoder": "model",
}
# What else a folder holds: small texts that are carried along, so that writing the folder again changes nothing.
TEXT_FOLDERS = ("scheduler", "feature_extractor", "tokenizer")
DIFFUSERS_FILES = ("model_index.json",)
# How the VAEs of 2022 name the projections of their attention.
_OLD_VAE_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def tables(config: SVDConfig) -> dict[str, list[Entry]]:
    """The table of every component folder; paths are full, keys are the folder's."""
    found = {"unet": unet_table(config.unet, "diffusers"), "vae": vae_table(config.vae, "diffusers")}
    if config.image_encoder:
        found["image_encoder"] = clip_vision_table(config.image_encoder, "diffusers")
    if config.text_encoder:
        found["text_encoder"] = clip_text_table(diffusers_text_config(config.text_encoder), "diffusers")
    return {name: prefixed(table, ours=f"{name}.") for name, table in found.items()}


def read_diffusers(folder: Path, options: Options) -> Checkpoint:
    """Read a folder.

    Raises:
        UserError: a file is missing or broken, or a key is missing, left over or of a wrong shape.
    """
    what = str(folder)
    files = _texts(folder)
    config = read_config(files, what)
    names = list(tables(config))
    variant = options.variant if options.variant is not None else _common_variant(folder, names)
    config = _as_written(config, _single(folder, "unet", variant), what)
    check_said(what, config, options)
    params: dict[str, Tensor] = {}
    notices = [] if not variant else [f"reading the {variant} files"]
    for name, table in tables(config).items():
        tensors, dropped = _classic(name, _component(folder, name, variant))
        notices += [summary(f"{name}: left out, no weights of the model", dropped)] if dropped else []
        params |= to_ours(table, tensors, what=f"{what}/{name}")
    check_params(what, config, params)
    return Checkpoint(what=what, config=config, params=params, files=files, notices=tuple(notices))


def _as_written(config: SVDConfig, unet: Path, what: str) -> SVDConfig:
    """The configuration that we wrote with the weights, if the folder still says what we wrote beside it.

    Diffusers' files have no place for some of it: group-norm epsilons, sizes and guidance of samples.
    """
    metadata = read_safetensors(unet)[1] if unet.is_file() else {}
    if CONFIG_KEY not in metadata:
        return config
    written = SVDConfig.from_json(metadata[CONFIG_KEY], where=str(unet))
    if read_config(write_configs(written), what) != config:
        return config
    return replace(written, text_encoder=config.text_encoder)  # without the layer that the folder leaves out


def _texts(folder: Path) -> dict[str, str]:
    found = [folder / "model_index.json", *(folder / name / "config.json" for name in COMPONENTS)]
    for name in TEXT_FOLDERS:
        found += sorted(path for path in (folder / name).glob("*") if path.suffix in (".json", ".txt"))
    try:
        return {path.relative_to(folder).as_posix(): path.read_text("utf-8") for path in found if path.is_file()}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{folder}: a configuration file cannot be read ({error})") from None


def _variants(folder: Path, stem: str) -> set[str]:
    """The variants in a component's folder; the plain files are the empty one."""
    pattern = rf"{stem}(?:\.safetensors\.index)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.(?:safetensors|json)"
    matches = [re.fullmatch(pattern, path.name) for path in folder.glob(f"{stem}*")]
    return {match[1] or "" for match in matches if match}


def _common_variant(folder: Path, names: list[str]) -> str:
    found = {name: _variants(folder / name, COMPONENTS[name]) for name in names}
    common = set.intersection(*found.values())
    if "" in common or not any(found.values()):
        return ""
    if len(common) == 1:
        return common.pop()
    listed = "; ".join(
        f"{name}: {', '.join(sorted(v or 'plain' for v in found[name])) or 'none'}" for name in names
    )
    raise UserError(
        f"{folder}: its components come in different variants ({listed}): complete one, or give --variant"
    )


def _single(folder: Path, name: str, variant: str) -> Path:
    """Where a component's weights are if they are one file."""
    dotted = f".{variant}" if variant else ""
    return folder / name / f"{COMPONENTS[name]}{dotted}.safetensors"


def _component(folder: Path, name: str, variant: str) -> dict[str, Tensor]:
    single = _single(folder, name, variant)
    folder, dotted = single.parent, f".{variant}" if variant else ""
    index = folder / f"{COMPONENTS[name]}.safetensors.index{dotted}.json"
    if single.is_file():
        return read_safetensors(single)[0]
    if not index.is_file():
        raise UserError(f"{single}: missing: download it, or choose other files with --variant")
    try:
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        shards = sorted({str(name) for name in weight_map.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index}: not the index of a sharded file") from None
    return _shards(folder, weight_map, shards)


def _shards(folder: Path, weight_map: Mapping[str, str], shards: list[str]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name in shards:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: missing: one of {len(shards)} parts that the index lists; download it"
            )
        part = read_safetensors(folder / name)[0]
        listed = {key for key, shard in weight_map.items() if shard == name}
        if listed != part.keys():
            key = sorted(listed ^ part.keys())[0]
            raise UserError(f"{folder / name}: does not hold what its index lists, e.g. {key}")
        tensors |= part
    return tensors


def _classic(name: str, tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under the spelling that the tables know, and the keys that are no weights."""
    if name == "vae":
        pattern = re.compile(rf"(\.attentions\.0\.)({'|'.join(_OLD_VAE_NAMES)})\.")
        renamed = {pattern.sub(lambda m: f"{m[1]}{_OLD_VAE_NAMES[m[2]]}.", key): key for key in tensors}
    elif name == "unet":
        renamed = {key: key for key in tensors}
    else:
        renamed = classic_keys(tensors)
    return {key: tensors[spelled] for key, spelled in renamed.items()}, sorted(tensors.keys() - renamed.values())


def write_diffusers(checkpoint: Checkpoint, folder: Path, progress: Progressed) -> tuple[str, ...]:
    """Write a folder that diffusers' ``from_pretrained`` loads.

    Texts that came from a diffusers folder are written again as they were; without a tokenizer among them an
    SD 2.1 pipeline needs one from elsewhere.

    Returns:
        Notices about what the format has no place for.

    Raises:
        UserError: the model does not fit diffusers' classes.
    """
    check_has_counterpart(checkpoint)
    config = checkpoint.config
    if config.unet.temporal and config.unet.vector_dim == 0:
        raise UserError(
            f"{checkpoint.what}: diffusers' video UNet needs vector conditioning: choose --to sgm or svdjax"
        )
    if config.preconditioning.startswith("discrete") == config.unet.temporal:
        kind = "a video" if config.unet.temporal else "an image"
        raise UserError(
            f"{checkpoint.what}: diffusers has no pipeline for {kind} model trained on noise levels as this one "
            f'is (preconditioning "{config.preconditioning}") and would sample it wrongly: choose --to svdjax'
        )
    parts = tables(config)
    for name, text in _texts_for(checkpoint).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    for name, table in parts.items():
        wanted = {path for row in table for path in row.ours}
        mine = {path: tensor for path, tensor in checkpoint.params.items() if path in wanted}
        tensors = to_theirs(table, mine, what=f"{checkpoint.what}/{name}")
        metadata = {"format": "pt"} | ({CONFIG_KEY: config.to_json()} if name == "unet" else {})
        write_safetensors(_single(folder, name, ""), tensors, metadata, progress)
    kept = {path for table in parts.values() for row in table for path in row.ours}
    return _notices(checkpoint, [path for path in checkpoint.params if path not in kept])


def _texts_for(checkpoint: Checkpoint) -> dict[str, str]:
    """The texts that the source had where they still describe the model; it may have changed since, by training."""
    fresh = write_configs(checkpoint.config)
    carried = fresh | checkpoint.files

    def sizes(files: Mapping[str, str]) -> SVDConfig:
        config = read_config(files, checkpoint.what)
        return replace(config, defaults=checkpoint.config.defaults)

    if sizes(carried) == sizes(fresh):
        return carried
    return fresh | {name: text for name, text in checkpoint.files.items() if name.startswith("tokenizer/")}


def _notices(checkpoint: Checkpoint, unused: list[str]) -> tuple[str, ...]:
    notes = []
    if unwritten := [*unused, *checkpoint.extras]:
        notes.append(
            summary("left out, diffusers has no place for them (and nothing computes with them)", unwritten)
        )
    if checkpoint.config.text_encoder and not any(name.startswith("tokenizer/") for name in checkpoint.files):
        notes.append("no tokenizer written: pass one of SD 2.1 to from_pretrained(..., tokenizer=...)")
    if checkpoint.config.unet.temporal and not checkpoint.config.vae.temporal_decoder:
        notes.append("diffusers has no pipeline for an image decoder in a video model: load the parts one by one")
    return tuple(notes)
