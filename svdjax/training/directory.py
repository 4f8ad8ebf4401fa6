"""The directory of a run: it belongs to one configuration and one map of motion buckets, written into it first."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svdjax.conversion.output import finished
from svdjax.data.cache import LatentCache, write_json
from svdjax.data.sources import ClipSource
from svdjax.errors import UserError
from svdjax.training import processes
from svdjax.training.config import RunConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.stage import INTERVALS
from svdjax.training.vae_stage import DecoderStage, VAEStage

# What may change when a run goes on: names of fields, wherever they are. All but the learning rate and what becomes
# of bad steps change nothing that is trained, and a run that diverged is to go on with another of these.
_FREE = {
    *INTERVALS,
    *("out", "export_dtype", "keep", "in_memory", "remat", "log", "profile", "rate", "bad", "max_bad"),
    *("mesh", "distributed", "offload", "accumulate", "threads", "workers"),
}
# What a run of any configuration leaves: the folders of its stages, and its result.
_TRACES = (VAEStage.name, DecoderStage.name, DiffusionStage.name, DiffusionStage.result, LoRAStage.result)


def claim(config: RunConfig) -> None:
    """Make the run's directory and write its configuration; or check that what is trained there is of this run.

    Process 0 writes; the others, after it, only compare.

    Raises:
        UserError: the directory holds another run, or cannot be written.
    """
    path = config.out / "config.json"
    text = config.to_json()
    if not processes.is_main():
        processes.patiently(lambda: _compare(path, json.loads(text)))
        return
    try:
        config.out.mkdir(parents=True, exist_ok=True)
        if found := _found(config):
            if not path.exists():
                raise UserError(
                    f"--out {config.out}: holds {found}, but no run (config.json): choose another place"
                )
            check_same(path, json.loads(text), what="a run")
        if not path.exists() or path.read_text() != text:
            with finished(path, overwrite=True) as partial:
                partial.write_text(text)
    except OSError as error:
        raise UserError(f"--out {config.out}: cannot be written ({error.strerror}): choose another place") from None


def _compare(path: Path, wanted: dict[str, Any]) -> None:
    """Check that process 0 has written the configuration that this process has.

    Raises:
        UserError: it has not, or this process does not see it.
    """
    if not path.exists():
        raise processes.unseen(path)
    check_same(path, wanted, what="a run")


def check_run(config: RunConfig) -> None:
    """Look, without a change, whether the run's directory holds a run of this configuration.

    Raises:
        UserError: it does not.
    """
    path = config.out / "config.json"
    if not path.exists():
        raise UserError(f"--out {config.out}: there is no run: name its directory")
    check_same(path, json.loads(config.to_json()), what="a run")


def keep_motion_map(config: RunConfig, train: ClipSource | LatentCache) -> None:
    """Write down what the motion buckets of a run's clips mean; or check that it is what was trained with.

    ``motion_buckets.json`` holds ``motion_measure`` and ``motion_thresholds``, as a data set does: the map of a
    mixture is written nowhere else.

    Raises:
        UserError: it is another map.
    """
    path = config.out / "motion_buckets.json"
    motion = {"motion_measure": train.motion_measure, "motion_thresholds": list(train.buckets.thresholds)}

    def check() -> None:
        if not path.exists():
            raise processes.unseen(path)
        if json.loads(path.read_text()) != motion:
            raise UserError(f"{path}: the clips have another map of motion buckets now: bring the old data back")

    if not processes.is_main():
        processes.patiently(check)
    elif path.exists() and _found(config):
        check()
    else:
        write_json(path, motion)


def _found(config: RunConfig) -> str:
    """What a stage of this or of another run has left in the directory; empty if none has begun there."""
    return next((name for name in _TRACES if (config.out / name).exists()), "")


def check_same(path: Path, wanted: dict[str, Any], *, what: str) -> None:
    """Check that a JSON file says what is wanted, but for what may change when a run goes on.

    Raises:
        UserError: it does not; the message names what differs, and calls the file's directory ``what``.
    """
    try:
        found = dict(leaves(json.loads(path.read_text())))
    except ValueError:
        raise UserError(f"{path}: not the configuration of {what}: choose another --out") from None
    new = dict(leaves(wanted))
    names = [name for name in {**found, **new} if found.get(name) != new.get(name)]
    changed = [f"{name} {found.get(name)} -> {new.get(name)}" for name in names]
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise UserError(
            f"{path.parent} holds {what} of another configuration ({', '.join(changed[:3])}{more}): "
            "go on with its own, choose another --out, or remove it"
        )


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of everything in nested JSON objects, but for what may change when a run goes on."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, inner in value.items():
        if key not in _FREE:
            yield from leaves(inner, f"{name}.{key}".strip("."))
