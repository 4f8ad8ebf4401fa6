"""What becomes of a checkpoint's parameters in another model: declared first, then held against what is there."""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from svdjax.errors import UserError, check_keys
from svdjax.models.svd import SVDConfig
from svdjax.typing import Float, ndarray

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Init:
    """Where a model differs from the checkpoint that it starts from; all that is not named here is loaded.

    Each entry is a dotted path in which ``*`` stands for any text, and must match something.

    Attributes:
        new: parameters that the checkpoint lacks, drawn at random.
        zero: parameters that the checkpoint lacks, and that start at zero.
        widened: parameters with more inputs than in the checkpoint, the new ones at zero: so the model starts as
            the old one. Scalars of the vector conditioning are matched by name, other inputs by their position.
        dropped: parameters of the checkpoint that the model has no use for.
        image_encoder: a second checkpoint, which gives the image encoder; None where the first one has it.
    """

    new: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    image_encoder: str | None = None


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """The declaration spelled out: the paths of each kind. All but ``dropped`` are of the new model."""

    loaded: tuple[str, ...]
    widened: tuple[str, ...]
    zero: tuple[str, ...]
    new: tuple[str, ...]
    dropped: tuple[str, ...]


def resolve(init: Init, ours: Shapes, theirs: Shapes, *, what: str) -> Transfer:
    """Hold a declaration against the parameters of the model and of the checkpoint.

    Args:
        init: the declaration.
        ours: shape of every parameter of the model.
        theirs: shape of every parameter of the checkpoint.
        what: the checkpoint, for messages.

    Raises:
        UserError: the two do not agree exactly; the message lists the parameters.
    """
    named = {kind: _matches(getattr(init, kind), ours, kind, "the model") for kind in ("new", "zero", "widened")}
    dropped = _matches(init.dropped, theirs, "dropped", what)
    for path in ours:
        if len(kinds := [kind for kind, paths in named.items() if path in paths]) > 1:
            raise UserError(f"{path}: declared both init.{kinds[0]} and init.{kinds[1]}: keep one")
    wanted = [path for path in ours if path not in named["new"] and path not in named["zero"]]
    left = [path for path in theirs if path not in dropped]
    check_keys(f"{what}: to load, with what init declares new, zero and dropped", left, wanted)
    for path in wanted:
        _check_shape(path, ours[path], theirs[path], path in named["widened"], what)
    return Transfer(
        loaded=tuple(path for path in wanted if path not in named["widened"]),
        dropped=tuple(dropped),
        **{kind: tuple(paths) for kind, paths in named.items()},
    )


def _matches(patterns: tuple[str, ...], paths: Shapes, kind: str, where: str) -> dict[str, None]:
    """The paths that match any of the patterns, in order; a dict is an ordered set."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise UserError(f"init.{kind} names {pattern}, but {where} has no such parameter: mend the pattern")
    return dict.fromkeys(path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns))


def _check_shape(path: str, ours: tuple[int, ...], theirs: tuple[int, ...], widened: bool, what: str) -> None:
    if not widened and ours != theirs:
        raise UserError(f"{what}: {path} has shape {theirs}, the model needs {ours}: change the model")
    if widened and (len(ours) < 2 or _without_inputs(ours) != _without_inputs(theirs) or ours[-2] <= theirs[-2]):
        raise UserError(
            f"{what}: {path} has shape {theirs}, the model {ours}: init.widened is for more inputs and nothing else"
        )


def _without_inputs(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], *shape[-1:])


def widen(
    path: str, kernel: Float[ndarray, "*k old out"], inputs: int, ours: SVDConfig, theirs: SVDConfig
) -> Float[ndarray, "*k new out"]:
    """A kernel with more inputs that computes the same, whatever the new ones are.

    Args:
        path: of the parameter: inputs of the vector conditioning's MLP are scalars, matched by name.
        kernel: the old one.
        inputs: how many the new one has.
        ours, theirs: configurations of the new and the old model.

    Raises:
        UserError: the model lacks a scalar that the checkpoint was conditioned on.
    """
    wide = np.zeros((*kernel.shape[:-2], inputs, kernel.shape[-1]), kernel.dtype)
    if path != "unet.vector_embed.linear1.kernel":
        wide[..., : kernel.shape[-2], :] = kernel
        return wide
    places = _places(ours)
    for scalar, place in _places(theirs).items():
        if scalar not in places:
            name, width = scalar
            raise UserError(f"{path}: the checkpoint has {name} of width {width}: keep it in model.scalars")
        wide[places[scalar]] = kernel[place]
    return wide


def _places(config: SVDConfig) -> dict[tuple[str, int], slice]:
    """Where each scalar, of a name and a width, lies in the vector conditioning."""
    places, start = {}, 0
    for name, width in config.scalars:
        places[name, width] = slice(start, start + width)
        start += width
    return places
