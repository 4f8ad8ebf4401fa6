"""From a source of clips to training batches, with grain: deterministic, resumable, one slice per host.

source -> shuffle(seed) -> slice by host -> repeat -> random clip (start, frame rate, flip) -> batch.
The iterator's state (``get_state`` / ``set_state``) is a handful of integers, and everything random is a function of
(seed, position): a resumed run sees exactly the batches that the uninterrupted one would have seen.
"""

from dataclasses import dataclass
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np

from svdjax.data.records import ClipRecord
from svdjax.data.sources import BadClips, ClipSource, InMemory
from svdjax.data.video import decode, probe, sample_times
from svdjax.errors import UserError
from svdjax.typing import Array, Float, UInt8


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """What is cut out of a video.

    Attributes:
        frames: frames per clip.
        fps: lowest and highest frame rate; drawn uniformly from the part of it that the video can give.
        size: (height, width) after resizing and centre-cropping.
        flip: mirror half of the clips left to right. Captions that name a side then lie.
    """

    frames: int = 8
    fps: tuple[float, float] = (7.0, 7.0)
    size: tuple[int, int] = (64, 64)
    flip: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.size) < 1 or not 0 < self.fps[0] <= self.fps[1]:
            raise UserError(
                f"no clip can have {self.frames} frames of {self.size} at {self.fps} fps: use positive values"
            )


def batches(
    source: ClipSource,
    sampling: ClipSampling,
    *,
    batch_size: int,
    seed: int,
    host: int = 0,
    hosts: int = 1,
    epochs: int | None = None,
    captions: bool = False,
    in_memory: bool = False,
    max_bad: float = 0.1,
    threads: int = 2,
) -> grain.IterDataset:
    """Batches of ``{"video": uint8 [b t h w 3], "fps": float32 [b], "motion_bucket": float32 [b]}``.

    ``fps`` is the true frame rate of each clip, ``motion_bucket`` is 1..255 on the source's map; ``caption`` is a list
    of b strings, "" where a clip has none. Videos that cannot be decoded or are too short are skipped, and logged
    by name. Use ``iter(...)`` for the iterator with ``get_state`` and ``set_state``.

    Args:
        batch_size: clips per batch on this host.
        host, hosts: this host's number and how many there are; each epoch's clips are dealt out among them.
        epochs: None for ever. The last, smaller batch is dropped.
        captions: whether to add ``caption``.
        in_memory: decode every clip once and keep its frames (see `sources.InMemory`).
        max_bad: share of the clips that may turn out bad before the run stops.
        threads: clips decoded side by side.

    Raises:
        UserError: fewer clips than a batch holds on some host, captions together with flips; while iterating:
            too many bad clips.
    """
    if captions and sampling.flip:
        raise UserError("mirrored clips contradict captions that name a side: turn off flip or captions")
    if len(source) // hosts < batch_size:
        raise UserError(
            f"{len(source)} clips on {hosts} hosts do not fill a batch of {batch_size}: use a smaller batch"
        )
    cut = _Cut(sampling, source, captions, BadClips(max_share=max_bad, what="clips"))
    return (
        grain.MapDataset.source(InMemory(source, sampling.size) if in_memory else source)
        .seed(seed)
        .shuffle()
        .slice(slice(host, None, hosts))
        .repeat(epochs)
        .random_map(cut)
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * batch_size))
        .batch(batch_size, drop_remainder=True, batch_fn=_stack)
    )


class _Cut:
    """Record -> clip, or None for a record that gives none (grain leaves those out)."""

    def __init__(self, sampling: ClipSampling, source: ClipSource, captions: bool, bad: BadClips) -> None:
        self._sampling, self._captions, self._bad = sampling, captions, bad
        self._buckets, self._total = source.buckets, len(source)

    def __call__(self, record: ClipRecord, rng: np.random.Generator) -> dict[str, Any] | None:
        notes = record.annotations
        try:
            video, fps = cut_clip(record, self._sampling, rng)
        except UserError as error:
            self._bad.skip(error, notes["name"])
            self._bad.judge(self._total)
            return None
        item = {
            "video": video,
            "fps": np.float32(fps),
            "motion_bucket": np.float32(self._buckets.bucket(notes["motion_score"])),
        }
        return item | ({"caption": notes.get("caption", "")} if self._captions else {})


def cut_clip(
    record: ClipRecord, sampling: ClipSampling, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "t h w 3"], float]:
    """A random clip of a video, and its frame rate.

    Raises:
        UserError: the video cannot be read, or is too short or too slow for the frames and rates asked for.
    """
    name = record.annotations["name"]
    info = probe(record.video, name)
    steps = sampling.frames - 1
    # Rates between which no frame is shown twice and the clip fits in; the thousandth forgives rounded time stamps.
    lowest = max(sampling.fps[0], 0.999 * steps / info.last if info.last else np.inf) if steps else sampling.fps[0]
    highest = min(sampling.fps[1], 1.001 * info.fps)
    if lowest > highest:
        raise UserError(
            f"{name} is too short or slow ({info.last:.2f} s at {info.fps:.4g} fps) for {sampling.frames} frames at "
            f"{sampling.fps[0]:g} to {sampling.fps[1]:g} fps: replace it or ask for fewer frames"
        )
    fps = float(rng.uniform(lowest, highest))
    start = float(rng.uniform(0, max(0.0, info.last - steps / fps)))
    frames = decode(record.video, sample_times(start, fps, sampling.frames), size=sampling.size, name=name)
    return (frames[:, :, ::-1] if sampling.flip and rng.random() < 0.5 else frames), fps


def _stack(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of clips: arrays stacked, captions as a list."""
    return {
        key: [item[key] for item in items] if key == "caption" else np.stack([item[key] for item in items])
        for key in items[0]
    }


def to_unit(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0..255 as float32 in [-1, 1], on the device: batches travel there as bytes."""
    return video.astype(jnp.float32) / 127.5 - 1.0
