"""Measures the clips of a source once, keeps the results in a JSON file, and counts the clips that are bad."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from svdjax.data.cache import write_json
from svdjax.data.motion import MotionBuckets
from svdjax.errors import MissingPackage, Unread, UserError
from svdjax.progress import step_bar

_ERROR = "error"  # what an entry says instead of annotations, of a clip that cannot be used
_OFTEN = 60.0  # seconds from one time that measurements are kept to the next

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
    """Measure the clips that the cache does not know, and keep the results there: every minute, and at the end.

    The motion buckets are fitted the first time and then kept: a bucket goes on to mean the same when clips come
    or go.

    Args:
        clips: what to measure. cache: a JSON file, made if it is missing.
        what: what to call the clips in errors.
        max_bad: share of them that may fail; they are left out and logged by name, and not tried again until their
            stamps change, but for those that the system could not read.

    Raises:
        UserError: none can be used, too many cannot, what measures them is not installed, or the cache is damaged.
    """
    kept = _Kept(cache, clips)
    bad = BadClips(max_share=max_bad, what=what)
    if todo := [clip for clip in clips if clip.name not in kept.entries]:
        _measure(todo, kept, bad)
    for name, entry in kept.entries.items():
        if _ERROR in entry:
            bad.skip(name, UserError(entry[_ERROR]))
    bad.judge(len(clips))
    in_order = {clip.name: kept.entries[clip.name] for clip in clips if clip.name in kept.entries}
    annotations = {name: entry for name, entry in in_order.items() if _ERROR not in entry}
    if kept.buckets is None:
        kept.buckets = MotionBuckets.fit([entry["motion_score"] for entry in annotations.values()])
        kept.write()
    return Measured(annotations=annotations, buckets=kept.buckets)


def _measure(clips: Sequence[Measurable], kept: "_Kept", bad: BadClips) -> None:
    """Measure clips under a progress bar; what is known by then is kept whatever ends it."""
    written, changed = time.monotonic(), False
    with step_bar(Console(stderr=True)) as bar:
        shown = bar.add_task("measuring clips", total=len(clips))
        try:
            for clip in clips:
                try:
                    kept.entries[clip.name] = clip.stamp | clip.measure()
                except MissingPackage:  # or every clip would seem to be bad
                    raise
                except Unread as error:  # which next time may not be so
                    bad.skip(clip.name, error)
                except UserError as error:
                    kept.entries[clip.name] = clip.stamp | {_ERROR: str(error)}
                    bad.skip(clip.name, error)
                changed |= clip.name in kept.entries
                bar.advance(shown)
                if time.monotonic() - written > _OFTEN:
                    kept.write()
                    written, changed = time.monotonic(), False
        finally:
            if changed:
                kept.write()


class _Kept:
    """What a cache holds.

    Attributes:
        entries: by the clips' names, the annotations, or what is wrong, of those whose stamps still hold.
        buckets: the map of motion buckets, once it is fitted.
    """

    def __init__(self, cache: Path, clips: Sequence[Measurable]) -> None:
        """
        Raises:
            UserError: the cache is there and cannot be read.
        """
        self._cache, self._writable = cache, True
        self.entries: dict[str, dict[str, Any]] = {}
        self.buckets: MotionBuckets | None = None
        try:
            found = json.loads(cache.read_text())
            known, thresholds = found["clips"], found.get("motion_thresholds")
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, LookupError) as error:  # half a file, or another one
            raise UserError(
                f"{cache} cannot be read ({error}): restore it, or remove it to have the clips measured and sorted "
                "into motion buckets anew"
            ) from None
        for clip in clips:
            entry = known.get(clip.name)
            if entry is not None and clip.stamp.items() <= entry.items():
                self.entries[clip.name] = entry
        if thresholds is not None:
            self.buckets = MotionBuckets(thresholds=tuple(thresholds))

    def write(self) -> None:
        """Replace the file. Where that fails, the log says so, once."""
        motion = {} if self.buckets is None else {"motion_thresholds": self.buckets.thresholds}
        try:
            if self._writable:
                write_json(self._cache, motion | {"clips": self.entries})
        except UserError as error:
            self._writable = False
            log.warning("%s: the clips will be measured again", error)
