"""Measures the clips of a source once, keeps the results in a JSON file, and counts the clips that are bad."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdjax.data.motion import MotionBuckets
from svdjax.errors import MissingPackage, UserError

log = logging.getLogger(__name__)


class BadClips:
    """Counts and logs clips that cannot be used, and gives up when they are too many."""

    def __init__(self, *, max_share: float, what: str) -> None:
        self._errors: dict[int | str, UserError] = {}
        self._max_share, self._what = max_share, what

    def skip(self, key: int | str, error: UserError) -> None:
        """Note a clip, by a key of its own: a clip that fails again counts once."""
        if self._errors.setdefault(key, error) is error:
            log.warning("skipped: %s", error)

    def judge(self, total: int) -> None:
        """
        Raises:
            UserError: no clip of ``total`` is left, or more than the set share is bad.
        """
        bad = len(self._errors)
        if not bad or (bad < total and bad <= self._max_share * total):
            return
        why = f"more than the {100 * self._max_share:.3g}% allowed" if bad < total else "so none is left"
        raise UserError(
            f"{bad} of {total} {self._what} cannot be used, {why}: see the log for their names, remove or replace "
            "them"
        )


@dataclass(frozen=True, kw_only=True)
class Measurable:
    """A clip to measure.

    Attributes:
        name: of the clip in its source.
        stamp: measurements that were kept with the same stamp still hold.
        measure: gives the clip's annotations; raises UserError for a clip that cannot be used.
    """

    name: str
    stamp: dict[str, int]
    measure: Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The annotations of each clip that can be used, by name, and the map of their motion buckets."""

    annotations: dict[str, dict[str, Any]]
    buckets: MotionBuckets


def measure_all(clips: Sequence[Measurable], cache: Path, *, what: str, max_bad: float) -> Measured:
    """Measure the clips that the cache does not know, and keep the results there.

    The motion buckets are fitted the first time and then kept: a bucket goes on to mean the same when clips come
    or go.

    Args:
        clips: what to measure. cache: a JSON file, made if it is missing.
        what: what to call the clips in errors.
        max_bad: share of them that may fail; they are left out and logged by name.

    Raises:
        UserError: none can be used, too many cannot, or what measures them is not installed.
    """
    kept = _read(cache)
    known = kept.get("clips", {})
    bad = BadClips(max_share=max_bad, what=what)
    annotations: dict[str, dict[str, Any]] = {}
    for clip in clips:
        entry = known.get(clip.name)
        if entry is None or not clip.stamp.items() <= entry.items():
            try:
                entry = clip.stamp | clip.measure()
            except MissingPackage:  # or every clip would seem to be bad
                raise
            except UserError as error:
                bad.skip(clip.name, error)
                continue
        annotations[clip.name] = entry
    bad.judge(len(clips))
    if "motion_thresholds" in kept:
        buckets = MotionBuckets(thresholds=tuple(kept["motion_thresholds"]))
    else:
        buckets = MotionBuckets.fit([entry["motion_score"] for entry in annotations.values()])
    _write(cache, {"motion_thresholds": buckets.thresholds, "clips": annotations})
    return Measured(annotations=annotations, buckets=buckets)


def _read(cache: Path) -> dict[str, Any]:
    try:
        found = json.loads(cache.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and "clips" in found else {}


def _write(cache: Path, found: dict[str, Any]) -> None:
    partial = cache.with_name(cache.name + ".partial")
    try:
        partial.write_text(json.dumps(found, indent=1))
        partial.replace(cache)
    except OSError as error:
        log.warning("%s is not kept (%s): the clips will be measured again", cache, error.strerror)
