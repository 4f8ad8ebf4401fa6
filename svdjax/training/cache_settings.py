"""What a latent cache is made of: kept by ``svdjax precompute``, and held against the run that trains from it."""

import json
from typing import Any

import numpy as np

from svdjax.data import cache
from svdjax.errors import UserError
from svdjax.tasks import task_of
from svdjax.training.config import RunConfig
from svdjax.training.directory import leaves
from svdjax.training.initial import CHANGEABLE, encoder_marks

_WEIGHTS = "weights"
_ENCODERS = ("vae", "image_encoder", "text_encoder")
# Of an encoder's settings, those that change nothing of what it makes: of the VAE's, the decoder's.
_NO_MATTER = {name: CHANGEABLE[name] | {"post_quant_conv"} for name in _ENCODERS}


def cache_settings(config: RunConfig) -> dict[str, Any]:
    """All that decides what is kept of a given clip, as JSON can hold it.

    Tasks of one kind read the same of a cache, so the kind is named: ``KnownFrames`` is interpolation, too.

    Raises:
        UserError: as `encoder_marks`.
    """
    run, task = json.loads(config.to_json()), task_of(config.model)
    return {
        "task": type(task).__name__,
        "picture": task.picture,  # which tells SV3D from SVD-MV
        "model": {name: _matters(name, run["model"][name]) for name in _ENCODERS},
        "data": {"sampling": run["data"]["sampling"]},
        _WEIGHTS: encoder_marks(config),
    }


def check_cache(config: RunConfig) -> None:
    """Check that a latent cache, if the run's training data is one, is what the run would make of the clips.

    What may differ is all that comes after the encoders, and the type in which they computed.

    Raises:
        UserError: it is not, or the run trains an encoder whose outputs are cached.
    """
    directory = config.data.train
    if not cache.is_cache(directory):
        return
    settings, wanted = cache.read_settings(directory), cache_settings(config)
    if _WEIGHTS not in settings:
        raise UserError(
            f"--data.train {directory}: its {cache.SETTINGS} is unreadable, or of an earlier version and does not "
            "say which weights encoded: make the cache again with svdjax precompute"
        )
    found = dict(leaves(settings))
    for name, value in leaves(wanted):
        if not _same(name, made_with := found.get(name, "not recorded"), value):
            raise UserError(
                f"--data.train {directory}: a latent cache made with {name} {made_with}, where this run has "
                f"{value}: give the run the same ({cache.SETTINGS} there has it all), or make another cache with "
                "svdjax precompute"
            )
    for stage in config.stages():
        if trained := [path for path in wanted[_WEIGHTS] if stage.trains(path)]:
            raise UserError(
                f"--data.train {directory}: a latent cache has what the encoders made, and stage {stage.name} "
                f"trains {trained[0]}: train something else, or name clips"
            )


def _matters(name: str, network: dict[str, Any] | None) -> dict[str, Any] | None:
    return network and {key: value for key, value in network.items() if key not in _NO_MATTER[name]}


def _same(name: str, found: Any, wanted: Any) -> bool:
    """Weights may have been rounded to half precision in the file of one of the two."""
    if name.startswith(f"{_WEIGHTS}.") and isinstance(found, list):
        return np.allclose(found, wanted, rtol=0.01, atol=1e-6)
    return found == wanted
