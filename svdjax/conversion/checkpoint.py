"""What every format is read into and written from: sizes, parameters that load on demand, and leftovers."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from svdjax.conversion.tensors import Tensor, checked, is_floating
from svdjax.errors import UserError, check_keys
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD, SVDConfig

CONFIG_KEY = "svdjax_config"  # in the metadata of the files that we write in PyTorch's formats


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a checkpoint cannot say by itself; None takes the checkpoint's word, or the released models' values.

    Attributes:
        variant: which files of a diffusers folder, e.g. ``fp16``; empty for the plain ones.
        head_dim: width of one attention head of the UNet, for single files (64 if left out).
        clip_heads: attention heads of the CLIP tower, for single files (one per 80 channels if left out, 64 for
            the text tower).
        prediction: what an SD 2.1 single file predicts: ``v`` (768 px) or ``eps`` (512 px base).
    """

    variant: str | None = None
    head_dim: int | None = None
    clip_heads: int | None = None
    prediction: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, whatever its format.

    Attributes:
        what: the path that it was read from, for messages.
        config: sizes of every network.
        params: every parameter of :class:`svdjax.models.svd.SVD` by dotted path, and nothing else.
        extras: tensors of the source that the model has no place for, under their original keys.
        files: small text files of a diffusers folder (configurations, tokenizer) by relative path.
        notices: remarks for the user, e.g. about keys left out.
    """

    what: str
    config: SVDConfig
    params: dict[str, Tensor]
    extras: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notices: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in [*self.params.values(), *self.extras.values()])

    def cast(self, dtype: np.dtype | None) -> "Checkpoint":
        """The same checkpoint in one dtype (None keeps each tensor's), refusing NaN and infinity on load."""
        dtypes = sorted({tensor.dtype.name for tensor in self.params.values()})
        notice = f"mixed dtypes ({', '.join(dtypes)}): {f'cast to {dtype.name}' if dtype else 'kept as they are'}"
        return replace(
            self,
            params={path: checked(tensor, dtype) for path, tensor in self.params.items()},
            extras={key: checked(tensor, dtype) for key, tensor in self.extras.items()},
            notices=(*self.notices, notice) if len(dtypes) > 1 else self.notices,
        )


@functools.lru_cache(maxsize=16)
def shapes_of(config: SVDConfig) -> SVD:
    """The model of a configuration, as shapes without values; tracing a full-size one takes seconds."""
    return abstract(SVD, config)


def check_said(what: str, config: SVDConfig, options: Options) -> None:
    """Compare what the user says with a configuration that came with the weights.

    Raises:
        UserError: they differ.
    """
    prediction = "eps" if config.preconditioning == "discrete_eps" else "v"
    said: dict[str, tuple] = {
        "--head-dim": (options.head_dim, config.unet.head_dim),
        "--prediction": (options.prediction, prediction),
    }
    if tower := config.image_encoder or config.text_encoder:
        said["--clip-heads"] = (options.clip_heads, tower.heads)
    for name, (given, stated) in said.items():
        if given is not None and given != stated:
            raise UserError(
                f"{what}: {name} {given} contradicts its configuration, which says {stated}: leave it out"
            )


def check_has_counterpart(checkpoint: Checkpoint) -> None:
    """Check that PyTorch's networks compute what this model computes: their group norms always have 32 groups, and
    none of them has a latent for missing frames.

    Raises:
        UserError: they do not.
    """
    if checkpoint.config.missing_frame:
        raise UserError(
            f"{checkpoint.what}: has a latent for missing frames, for which neither diffusers nor the original "
            "code has a place: only svdjax's own formats can hold it"
        )
    for name, network in {"UNet": checkpoint.config.unet, "VAE": checkpoint.config.vae}.items():
        if network.norm_groups != 32:
            raise UserError(
                f"{checkpoint.what}: its {name} has norm_groups {network.norm_groups}; diffusers and the original "
                "code have 32 and would compute something else: only svdjax's own formats can hold it"
            )


def check_params(what: str, config: SVDConfig, params: dict[str, Tensor]) -> None:
    """Compare parameters with the model that the configuration describes.

    Raises:
        UserError: a parameter is missing or left over, has another shape, or is not floating-point.
    """
    wanted = flat_params(shapes_of(config))
    check_keys(what, params, wanted)
    wrong = [
        f"{params[path].name} has shape {params[path].shape} ({path} needs {tuple(shape.shape)} after rearranging)"
        for path, shape in wanted.items()
        if params[path].shape != tuple(shape.shape)
    ]
    if wrong:
        raise UserError(f"{what}: {len(wrong)} wrong shapes: {'; '.join(wrong[:3])}")
    integers = [tensor.name for tensor in params.values() if not is_floating(tensor.dtype)]
    if integers:
        raise UserError(f"{what}: {integers[0]} is not floating-point: give a file that is not quantised")


def summary(what: str, keys: Iterable[str]) -> str:
    """How many keys, under which prefixes: ``34 tensors (model_ema.)``."""
    keys = list(keys)
    prefixes = sorted({".".join(key.split(".")[:2]) for key in keys})
    shown = ", ".join(prefixes[:6]) + (", ..." if len(prefixes) > 6 else "")
    return f"{what}: {len(keys)} tensors ({shown})"
