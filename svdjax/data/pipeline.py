"""From a source of clips to training batches, with grain: deterministic, resumable, one slice per host.

source -> shuffle(seed) -> slice by host -> repeat -> random clip (start, frame rate, flip) -> batch.
The iterator's state (``get_state`` / ``set_state``) is one integer, and everything random is a function of
(seed, position): a resumed run sees exactly the batches that the uninterrupted one would have seen.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import grain
import jax.numpy as jnp
import numpy as np

from svdjax.data.decoding import decode, sample_times
from svdjax.data.motion import MotionBuckets
from svdjax.data.records import ClipRecord
from svdjax.data.sources import BadClips, ClipSource, InMemory
from svdjax.errors import UserError
from svdjax.typing import Array, Float, UInt8, ndarray

Item = Mapping[str, Any]


@runtime_checkable
class Source(Protocol):
    """Random access to anything that can be batched: clips as dicts, or what a ``cut`` makes into dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class ClipSampling:
    """What is cut out of a video.

    Attributes:
        frames: frames per clip.
        fps: lowest and highest frame rate; drawn uniformly from the part of it that the video can give.
        size: (height, width) after resizing and centre-cropping.
        flip: mirror half of the clips left to right. Captions that name a side then lie.
        captions: whether clips carry ``caption``.
    """

    frames: int = 8
    fps: tuple[float, float] = (7.0, 7.0)
    size: tuple[int, int] = (64, 64)
    flip: bool = False
    captions: bool = False

    def __post_init__(self) -> None:
        if self.frames < 1 or min(self.size) < 1 or not 0 < self.fps[0] <= self.fps[1]:
            raise UserError(
                f"no clip can have {self.frames} frames of {self.size} at {self.fps} fps: use positive values"
            )
        if self.captions and self.flip:
            raise UserError("mirrored clips contradict captions that name a side: turn off flip or captions")


def clip_batches(
    source: ClipSource,
    sampling: ClipSampling,
    *,
    batch_size: int,
    seed: int,
    in_memory: bool = False,
    max_bad: float = 0.1,
    **options: Any,
) -> grain.IterDataset:
    """Batches of ``{"video": uint8 [b t h w 3], "fps": float32 [b], "motion_bucket": float32 [b]}``.

    ``fps`` is the true frame rate of each clip, ``motion_bucket`` is 1..255 on the source's map; with
    ``sampling.captions`` also ``caption``, a list of b strings, "" where a clip has none. Videos that cannot be
    decoded or are too short are skipped, and logged by name.

    Args:
        in_memory: decode every video once and keep its frames (see `sources.InMemory`).
        max_bad: share of the videos that may turn out bad before the run stops.
        options: ``host``, ``hosts``, ``epochs``, ``threads`` of `batches`.

    Raises:
        UserError: too few clips (see `batches`); while iterating: too many bad videos.
    """
    return batches(
        InMemory(source, sampling.size) if in_memory else source,
        batch_size=batch_size,
        seed=seed,
        cut=partial(_item, sampling, source.buckets),
        bad=BadClips(max_share=max_bad, what="clips"),
        **options,
    )


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    cut: Callable[[Any, np.random.Generator], Item] | None = None,
    bad: BadClips | None = None,
    host: int = 0,
    hosts: int = 1,
    epochs: int | None = None,
    threads: int = 2,
) -> grain.IterDataset:
    """Shuffled batches of any source; ``iter(...)`` gives the iterator with ``get_state`` and ``set_state``.

    Args:
        batch_size: items per batch on this host.
        cut: makes an item of a source's element, with random numbers of its own.
        bad: takes note of elements that raise UserError, which are then left out; None lets the error through.
        host, hosts: this host's number and how many there are; each epoch's elements are dealt out among them.
        epochs: None for ever, and then a few long videos fill a batch of many clips. Else the last, smaller batch
            is dropped.
        threads: elements read side by side.

    Raises:
        UserError: fewer elements than hosts, or in a finite run than a batch holds on some host.
    """
    least = 1 if epochs is None else batch_size
    if len(source) // hosts < least:
        raise UserError(
            f"{len(source)} clips on {hosts} host(s) do not fill a batch of {batch_size}: use a smaller batch"
        )
    return (
        grain.MapDataset.range(len(source))
        .seed(seed)
        .shuffle()
        .slice(slice(host, None, hosts))
        .repeat(epochs)
        .random_map(_Pick(source, cut, bad))
        .to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * batch_size))
        .batch(batch_size, drop_remainder=True, batch_fn=to_batch)
    )


def to_batch(items: Sequence[Item]) -> dict[str, Any]:
    """A batch of items with equal keys: arrays and numbers stacked, strings as a list."""
    columns = {key: [item[key] for item in items] for key in items[0]}
    return {key: values if isinstance(values[0], str) else np.stack(values) for key, values in columns.items()}


def fixed_clips(
    source: ClipSource,
    sampling: ClipSampling,
    *,
    buckets: MotionBuckets | None = None,
    seed: int = 0,
    max_bad: float = 0.1,
) -> Iterator[Item]:
    """One clip of each video, always the same: for validation, and for latents that are computed once.

    Args:
        source, sampling, max_bad: as of `clip_batches`, and so are the items, without the batch axis.
        buckets: the map from scores to motion buckets, if not the source's own.
        seed: of what is cut out.

    Raises:
        UserError: too many bad videos.
    """
    cut = partial(_item, sampling, buckets or source.buckets)
    pick = _Pick(source, cut, BadClips(max_share=max_bad, what="clips"))
    items = (pick(index, np.random.default_rng((seed, index))) for index in range(len(source)))
    return (item for item in items if item is not None)


@dataclass(frozen=True)
class _Pick:
    """Index -> item, or None for an element that gives none."""

    source: Source
    cut: Callable[[Any, np.random.Generator], Item] | None
    bad: BadClips | None

    def __call__(self, index: int, rng: np.random.Generator) -> Item | None:
        try:
            element = self.source[index]
            return self.cut(element, rng) if self.cut else element
        except UserError as error:
            if self.bad is None:
                raise
            self.bad.skip(index, error)
            self.bad.judge(len(self.source))
            return None


def _item(sampling: ClipSampling, buckets: MotionBuckets, record: ClipRecord, rng: np.random.Generator) -> Item:
    video, fps = cut_clip(record, sampling, rng)
    bucket = buckets.bucket(record.annotations["motion_score"])
    item = {"video": video, "fps": np.float32(fps), "motion_bucket": np.float32(bucket)}
    return item | ({"caption": record.annotations.get("caption", "")} if sampling.captions else {})


def cut_clip(
    record: ClipRecord, sampling: ClipSampling, rng: np.random.Generator
) -> tuple[UInt8[ndarray, "t h w 3"], float]:
    """A random clip of a video, and its frame rate.

    Raises:
        UserError: the video cannot be read, or is too short or too slow for the frames and rates asked for.
    """
    notes = record.annotations
    name, native = notes["name"], notes["fps"]
    last = notes["seconds"] - 1 / native
    steps = sampling.frames - 1
    # Rates at which the clip fits in and no frame is shown twice; the thousandth forgives rounded time stamps.
    lowest, highest = sampling.fps[0], min(sampling.fps[1], 1.001 * native)
    if steps:
        lowest = max(lowest, 0.999 * steps / last if last > 0 else np.inf)
    if lowest > highest:
        raise UserError(
            f"{name} is too short or slow ({last:.2f} s at {native:.4g} fps) for {sampling.frames} frames "
            f"at {sampling.fps[0]:g} to {sampling.fps[1]:g} fps: replace it or ask for fewer frames"
        )
    fps = float(rng.uniform(lowest, highest))
    start = float(rng.uniform(0, max(0.0, last - steps / fps)))
    frames = decode(record.video, sample_times(start, fps, sampling.frames), size=sampling.size, name=name)
    return (frames[:, :, ::-1] if sampling.flip and rng.random() < 0.5 else frames), fps


def to_unit(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0..255 as float32 in [-1, 1], on the device: batches travel there as bytes."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def stream(dataset, *, start=0, threads=2, workers=0):
    iterator = iter(dataset)
    for _ in range(start):
        next(iterator)
    return iterator
