"""Clips as records of ArrayRecord shards, with one ``dataset.json`` beside them.

A record is, in this order: the 4 bytes ``SVC1``; the length of the annotations as a little-endian uint32; the
annotations, a JSON object in UTF-8; the bytes of a video file of any kind. Annotations always hold ``name``,
``fps``, ``seconds`` and ``motion_score``, often ``caption``, or ``captions``, of which one is drawn each time (see
`sampling.caption_of`), and for the built-in world all of `sprites.Truth`.
With ``image_only`` they are those of a picture, and the bytes are a picture file's.

``dataset.json`` holds ``format``, ``clips``, ``pictures`` (how many of the clips are), ``bytes``, ``shards`` (file
name -> clips in it), ``motion_measure`` (the words that say what the scores are) and ``motion_thresholds`` (of the
videos, see `motion.MotionBuckets`); for the built-in world also ``sprites``, the settings that it was drawn with.
``geometry.npy`` [clips, 4] holds the fps, seconds, height and width of each clip in the order in which the shards
are read, where the annotations of all clips have them.
"""

import json
import math
import shutil
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.data.decoding import Frames, Video
from svdjax.data.motion import MEASURE, STILL, MotionBuckets
from svdjax.data.shards import record_writer
from svdjax.data.sprites import World, draw_clips
from svdjax.data.video import encode_lossless
from svdjax.errors import UserError

# What is known of every clip without reading it, in this order in ``geometry.npy``.
GEOMETRY = ("fps", "seconds", "height", "width")
FORMAT = "svdjax-clips-1"
GEOMETRY_FILE = "geometry.npy"
_MAGIC = b"SVC1"


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One clip of any source: the video and what is known about it."""

    video: Video
    annotations: dict[str, Any]

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture; then ``video`` is a picture file, and one frame is all there is."""
        return bool(self.annotations.get("image_only"))


def annotations_json(record: ClipRecord) -> bytes:
    """The annotations of a record as JSON in UTF-8."""
    return json.dumps(record.annotations, ensure_ascii=False).encode()


def video_bytes(record: ClipRecord) -> bytes:
    """The file of a record; a video given as a path is read."""
    if isinstance(record.video, Frames):
        raise TypeError("a record holds an encoded video, not decoded frames")
    return record.video.read_bytes() if isinstance(record.video, Path) else record.video


def pack(record: ClipRecord) -> bytes:
    """The bytes of a record."""
    header = annotations_json(record)
    return _MAGIC + struct.pack("<I", len(header)) + header + video_bytes(record)


def unpack(data: bytes) -> ClipRecord:
    """The record in ``data``.

    Raises:
        UserError: the bytes are no such record.
    """
    if data[:4] != _MAGIC:
        raise UserError("a shard holds records of another format: write it again with write_shards")
    (length,) = struct.unpack("<I", data[4:8])
    return ClipRecord(annotations=json.loads(data[8 : 8 + length]), video=data[8 + length :])


def write_shards(
    clips: Iterable[ClipRecord],
    directory: Path,
    *,
    shards: int = 4,
    motion_measure: str = MEASURE,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write clips, dealt out to the shards in turn, and ``dataset.json``; the directory appears at the end.

    Args:
        clips: what to write. directory: where. shards: number of files.
        motion_measure: what the motion scores of the videos are.
        notes: more entries for ``dataset.json``.

    Raises:
        UserError: the directory exists and is not empty, cannot be written, or there are no clips.
    """
    if directory.exists() and any(directory.iterdir()):
        raise UserError(f"{directory} is not empty: choose another directory or remove it")
    partial = directory.with_name(directory.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        index = _write_all(clips, partial, shards)
        still = index["pictures"] == index["clips"]
        index |= {"motion_measure": STILL if still else motion_measure, **(notes or {})}
        (partial / "dataset.json").write_text(json.dumps(index, indent=1))
        partial.replace(directory)
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}): choose another directory") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_all(clips: Iterable[ClipRecord], directory: Path, shards: int) -> dict[str, Any]:
    names = [f"clips-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    counts, scores, pictures, size = dict.fromkeys(names, 0), [], 0, 0
    geometry: list[list[list[float]]] = [[] for _ in names]
    with ExitStack() as stack:
        write = {name: stack.enter_context(record_writer(directory / name)) for name in names}
        for number, clip in enumerate(clips):
            name = names[number % shards]
            data = pack(clip)
            write[name](data)
            counts[name] += 1
            size += len(data)
            if clip.is_picture:
                pictures += 1
            else:
                scores.append(float(clip.annotations["motion_score"]))
            geometry[number % shards].append([clip.annotations.get(name, math.nan) for name in GEOMETRY])
    in_order = np.array(list(chain.from_iterable(geometry)), float)
    if np.isfinite(in_order).all():
        np.save(directory / GEOMETRY_FILE, in_order)
    thresholds = MotionBuckets.fit(scores or [0.0] * pictures).thresholds
    return {
        "format": FORMAT,
        "clips": len(scores) + pictures,
        "pictures": pictures,
        "bytes": size,
        "shards": counts,
        "motion_thresholds": thresholds,
    }


def write_sprites(world: World, directory: Path, *, seed: int, count: int, shards: int = 4) -> None:
    """Write the first ``count`` clips of the built-in world's series ``seed``, scored by their true motion."""
    records = (
        ClipRecord(
            video=encode_lossless(clip.frames, clip.fps),
            annotations={
                "name": f"sprites-{seed}-{index}",
                "fps": clip.fps,
                "seconds": len(clip.frames) / clip.fps,
                "height": clip.frames.shape[1],
                "width": clip.frames.shape[2],
                "motion_score": clip.truth.motion,
                **clip.truth.annotations(),
            },
        )
        for index, clip in enumerate(draw_clips(world, seed, count))
    )
    write_shards(
        records,
        directory,
        shards=shards,
        motion_measure="true flow, pixels per frame",
        notes={"sprites": _drawn_with(world, seed, count)},
    )


def check_sprites(world: World, directory: Path, *, seed: int, count: int) -> None:
    """Check that what `write_sprites` wrote into a directory is what it would write now; other data passes.

    Raises:
        UserError: it was drawn with other settings.
    """
    index = directory / "dataset.json"
    try:
        found = json.loads(index.read_text()).get("sprites")
    except (OSError, ValueError, AttributeError):
        return  # no data set of ours: whoever opens it says so
    wanted = _drawn_with(world, seed, count)
    if found is None:
        return
    # In data that is older than a field of the world, the field's default is what it was drawn with.
    found = _drawn_with(World(), seed, count) | found
    if found != wanted:
        names = [name for name in wanted if found.get(name) != wanted[name]]
        raise UserError(
            f"{directory} was drawn with another {', '.join(names)} of the built-in world: remove it to have it "
            "drawn anew, or name another folder"
        )


def _drawn_with(world: World, seed: int, count: int) -> dict[str, Any]:
    return json.loads(json.dumps({"seed": seed, "count": count, **asdict(world)}))
