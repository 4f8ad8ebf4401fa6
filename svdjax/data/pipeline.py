"""From a source of clips to training batches: index based, so that a position in the data is one integer.

Element i of the dataset is batch i of the run, a function of (seed, i) alone: a run resumes by starting at its
step, and every host computes its own rows of the same global batches, whatever the number of hosts and workers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import grain
import jax.numpy as jnp
import numpy as np
from absl import flags

from svdjax.data.drawing import Group, Order
from svdjax.data.measuring import BadClips
from svdjax.data.motion import MotionBuckets
from svdjax.data.records import ClipRecord
from svdjax.data.sampling import ClipSampling, caption_of, cut_clip, views_of
from svdjax.data.sources import ClipSource, InMemory, Mixture
from svdjax.errors import UserError
from svdjax.typing import Array, Float, UInt8

Item = Mapping[str, Any]
Batch = dict[str, Any]
Cut = Callable[[Any, np.random.Generator], Item]

_ROW = 2  # what these random numbers are for; see `drawing`
_ATTEMPTS = 100
_STEPS = 2**40  # more than any run makes


@runtime_checkable
class Source(Protocol):
    """Random access to anything that can be batched: clips as dicts, or what a ``cut`` makes into dicts."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> Any: ...


def clip_batches(
    source: ClipSource,
    sampling: ClipSampling,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    in_memory: bool = False,
    max_bad: float = 0.1,
) -> grain.MapDataset:
    """Batches of ``{"video": uint8 [b t h w 3], "fps": float32 [b], "motion_bucket": float32 [b]}``.

    ``fps`` is the true frame rate of each clip, ``motion_bucket`` is 1..255 on the source's map. With
    ``sampling.captions`` also ``caption``, a list of b strings (see `sampling.caption_of`); with ``sampling.views``
    ``azimuths`` and ``elevation``, float32 [b t], in degrees. ``replaced``, int32 [b], counts the videos that could
    not be used for a row: one that cannot be decoded or is too short is logged by name, and another one takes its
    place. Where the source has pictures, ``image_only``, bool [b], marks them: each fills all frames of its row,
    and its ``fps`` is drawn from those of ``sampling``.

    Args:
        in_memory: decode every video once and keep its frames (see `sources.InMemory`).
        max_bad: share of the videos that may turn out bad before the run stops; every process counts what it reads.
        batch_size, seed, rows: of `batches`.

    Raises:
        UserError: too many bad videos, when a batch is read.
    """
    return batches(
        InMemory(source, sampling) if in_memory else source,
        batch_size=batch_size,
        seed=seed,
        rows=rows,
        cut=partial(_item, sampling, source.buckets, source.has_pictures),
        bad=BadClips(max_share=max_bad, what="clips"),
        groups=clip_groups(source, sampling),
    )


def batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    rows: Sequence[int] | None = None,
    cut: Cut | None = None,
    bad: BadClips | None = None,
    groups: Sequence[Group] | None = None,
) -> grain.MapDataset:
    """The batches of a run from any source: element i is batch i, without end, a function of (seed, i) alone.

    Args:
        batch_size: items per global batch.
        seed: of the order and of the cuts. Row r of batch i has random numbers f(seed, i * batch_size + r).
        rows: the rows of each batch to make, in this order; None for all. A host asks for its own.
        cut: makes an item of a source's element, with random numbers of its own.
        bad: takes note of elements that raise UserError, for which others are then drawn, each row counting them
            in ``replaced``; None lets the error through.
        groups: what is drawn together and how often; None draws all elements alike.

    Raises:
        UserError: the source is empty, or ``rows`` lie outside the batch.
    """
    if not len(source):
        raise UserError("no clips to make batches of: the data set is empty")
    rows = tuple(range(batch_size) if rows is None else rows)
    if not rows or min(rows) < 0 or max(rows) >= batch_size:
        raise UserError(f"a batch of {batch_size} has no rows {rows}: give numbers from 0 to {batch_size - 1}")
    everything = Group(shape=(), indices=np.arange(len(source)), weight=1.0)
    make = _MakeBatch(
        source=source,
        order=Order(groups or [everything], seed),
        seed=seed,
        batch_size=batch_size,
        rows=rows,
        cut=cut,
        bad=bad,
    )
    return grain.MapDataset.range(_STEPS).map(make)


def stream(dataset: grain.MapDataset, *, start: int = 0, threads: int = 2, workers: int = 0) -> Iterator[Batch]:
    """Read batches ahead, in order.

    Args:
        dataset: of `batches` or `clip_batches`.
        start: number of the first batch.
        threads: batches made side by side in each process; 0 makes each one when it is asked for. Twice as many
            wait ready.
        workers: processes to make them in; 0 is this one. Each holds its own copy of the source.
    """
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    data = dataset.slice(slice(start, None)).to_iter_dataset(options)
    if workers:
        flags.FLAGS.mark_as_parsed()  # grain hands absl's flags on to its processes
        data = data.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2))
    return iter(data)


def to_batch(items: Sequence[Item]) -> Batch:
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
    bad = BadClips(max_share=max_bad, what="clips")
    for index in range(len(source)):
        try:
            yield fixed_clip(source, sampling, index, buckets=buckets, seed=seed)
        except UserError as error:
            bad.skip(index, error)
            bad.judge(len(source))


def fixed_clip(
    source: ClipSource,
    sampling: ClipSampling,
    index: int,
    *,
    buckets: MotionBuckets | None = None,
    seed: int = 0,
) -> Item:
    """The clip of one video in `fixed_clips`.

    Raises:
        UserError: the video cannot be used.
    """
    rng = np.random.default_rng((seed, index))
    return _item(sampling, buckets or source.buckets, source.has_pictures, source[index], rng)


@dataclass(frozen=True, kw_only=True)
class _MakeBatch:
    """Number of a batch -> batch."""

    source: Source
    order: Order
    seed: int
    batch_size: int
    rows: tuple[int, ...]
    cut: Cut | None
    bad: BadClips | None

    def __call__(self, step: int) -> Batch:
        order = self.order.of_batch(step)
        return to_batch([self._row(order, step * self.batch_size + row) for row in self.rows])

    def _row(self, order: grain.MapDataset, position: int) -> Item:
        for attempt in range(_ATTEMPTS):
            rng = np.random.default_rng((self.seed, _ROW, position, attempt))
            index = order[int(rng.integers(_STEPS)) if attempt else position]
            try:
                element = self.source[index]
                item = self.cut(element, rng) if self.cut else element
            except UserError as error:
                if self.bad is None:
                    raise
                self.bad.skip(index, error)
                self.bad.judge(len(self.source))
            else:
                return item if self.bad is None else {**item, "replaced": np.int32(attempt)}
        raise UserError(f"{_ATTEMPTS} clips in a row cannot be used: see the log for their names, and mend them")


def clip_groups(source: ClipSource, sampling: ClipSampling) -> list[Group]:
    """The clips of each shape and part of a mixture; a shape comes as often as its clips are drawn."""
    mixed = isinstance(source, Mixture)
    parts, weights = (source.parts, source.weights) if mixed else ([np.arange(len(source))], (1.0,))
    shape_of = sampling.nearest(source.geometry()) if sampling.buckets else np.zeros(len(source), int)
    return [
        Group(shape=sampling.shapes[shape], indices=alike, weight=weight * len(alike) / len(part))
        for part, weight in zip(parts, weights, strict=True)
        for shape in np.unique(shape_of[part])
        for alike in [part[shape_of[part] == shape]]
    ]


def _item(
    sampling: ClipSampling, buckets: MotionBuckets, mark: bool, record: ClipRecord, rng: np.random.Generator
) -> Item:
    """What `clip_batches` says of a row; ``mark`` is whether to say if it is a picture."""
    video, fps, times = cut_clip(record, sampling, rng)
    bucket = buckets.bucket(record.annotations["motion_score"])
    item = {"video": video, "fps": np.float32(fps), "motion_bucket": np.float32(bucket)}
    if mark:
        item["image_only"] = np.bool_(record.is_picture)
    if sampling.captions:
        item["caption"] = caption_of(record, rng)
    if sampling.views:
        item |= views_of(record, times)
    return item


def to_unit(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Pixels 0..255 as float32 in [-1, 1], on the device: batches travel there as bytes."""
    return video.astype(jnp.float32) / 127.5 - 1.0
