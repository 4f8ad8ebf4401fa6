"""``svdjax precompute``: encode the training clips of a configuration once, so that training needs no encoders."""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import grain
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from svdjax.data import cache
from svdjax.data.measuring import BadClips
from svdjax.data.pipeline import Item, clip_groups, fixed_clip, to_batch, to_unit
from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError, check_local
from svdjax.models.params import abstract, cast_floating, load_flat
from svdjax.models.svd import SVD, SVDConfig
from svdjax.progress import step_bar
from svdjax.tasks import Task, task_of
from svdjax.training import processes
from svdjax.training.cache_settings import cache_settings
from svdjax.training.config import RunConfig, load_with
from svdjax.training.data import Clips, open_clips
from svdjax.training.directory import check_same
from svdjax.training.initial import ENCODERS, initial
from svdjax.training.mesh import MeshConfig, make_mesh
from svdjax.training.run import DEMO
from svdjax.training.sharding import gather, on_mesh, place, place_whole
from svdjax.training.stage import Batch
from svdjax.training.vae_stage import encode_video
from svdjax.typing import Array, Float, ndarray

_COMPACT = ("latents", "embedding")  # what is large; scalars stay float32


@dataclass(frozen=True, kw_only=True)
class Precompute:
    """Encode the training clips of a configuration: ``svdjax precompute CONFIG.py --out DIR [--option value ...]``.

    All other options are those of the configuration, as for ``svdjax train``, but ``--distributed`` and
    ``--mesh...``: one process does it, on its own devices. The same command goes on where an interrupted one
    stopped.

    Attributes:
        out: directory of the cache; ``--data.train`` of the training names it.
        draws: noised first frames to keep of each clip, of which each training step takes one; 0 keeps the pixels
            of the first frame instead, which each step noises anew and encodes.
        dtype: of latents and embeddings on disk.
        batch: clips that are encoded at once on each device.
        shard_clips: clips per file.
        part: make every Nth shard from the Ith: ``--part 1 4`` on the second of four machines.
    """

    out: Path
    draws: int = 0
    dtype: Literal["float16", "float32"] = "float16"
    batch: int = 1
    shard_clips: int = 256
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: ``out`` is an address, or a number is out of range.
        """
        check_local("out", self.out)
        for name, least in (("draws", 0), ("batch", 1), ("shard_clips", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be at least {least}")
        if not 0 <= self.part[0] < self.part[1]:
            raise UserError(f"--part {self.part[0]} {self.part[1]}: give I and N with 0 <= I < N")


def main(argv: Sequence[str]) -> None:
    """``svdjax precompute [CONFIG.py] --out DIR [--option value ...]``."""
    options, config = load_with(Precompute, argv, command="precompute", default=DEMO)
    precompute(options, config, processes.console())


def precompute(options: Precompute, config: RunConfig, console: Console) -> bool:
    """Make the shards of a cache that are not there yet.

    Returns:
        Whether the cache is finished; not so while other machines still make their parts.

    Raises:
        UserError: the directory holds something else, the encoders have no weights, or the data is unusable.
    """
    clips = open_clips(config.data, console)
    if isinstance(clips.train, cache.LatentCache):
        raise UserError(f"--data.train {config.data.train}: is a latent cache already: name clips")
    _claim(options, config, len(clips.train))
    encoder = _Encoder(options, config, console)
    shards = _Shards(options, clips, encoder)
    mine = range(options.part[0], shards.count, options.part[1])
    with step_bar(console) as bar:
        task = bar.add_task("encoding", total=sum(len(shards.indices(number)) for number in mine))
        for number in mine:
            shards.make(number, advance=partial(bar.advance, task))
    finished = cache.finish(options.out, shards.count, clips.train.buckets, clips.train.motion_measure)
    console.print(f"{options.out}: {'finished' if finished else 'this part is finished, others are not'}")
    return finished


def _claim(options: Precompute, config: RunConfig, count: int) -> None:
    """Write down what the cache is made from, or check that it is the same.

    Raises:
        UserError: the directory is of another configuration, holds something else, or cannot be written; or an
            encoder would have random weights.
    """
    run = json.loads(config.to_json())
    settings = cache_settings(config)
    data = {name: run["data"][name] for name in ("train", "also", "weights")} | settings["data"]
    made_from = {
        "clips": count,
        "seed": config.seed,
        "init_from": config.init_from,
        "init": run["init"],
        "data": data,
    }
    compute_dtype = config.unet.compute_dtype if config.unet else "float32"
    kept = {
        "compute_dtype": compute_dtype,
        "draws": options.draws,
        "dtype": options.dtype,
        "shard_clips": options.shard_clips,
    }
    settings |= made_from | kept
    path = options.out / cache.SETTINGS
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        if any(cache.shard_files(options.out)):
            check_same(path, settings, what="a latent cache")
        # Another machine, which makes another part, may just be writing the file under a name with a dot.
        elif any(other.name != path.name and not other.name.startswith(".") for other in options.out.iterdir()):
            raise UserError(f"--out {options.out}: is not empty: choose another directory or remove it")
        cache.write_json(path, settings)
    except OSError as error:
        raise UserError(
            f"--out {options.out}: cannot be written ({error.strerror}): choose another place"
        ) from None


class _Encoder:
    """Batches of clips -> what is kept of them; the clips are spread over the devices of this process."""

    def __init__(self, options: Precompute, config: RunConfig, console: Console) -> None:
        """
        Raises:
            UserError: the weights cannot be read, or draws are asked for that no step would take.
        """
        start = initial(config, console)
        self.task = task_of(start.config)
        if options.draws and start.config.task != "image_to_video":
            raise UserError(f"--draws {options.draws}: a model for {start.config.task} sees none: leave it out")
        devices = jax.local_devices()
        self._mesh = make_mesh(MeshConfig(fsdp=1), devices)
        self.batch = options.batch * len(devices)
        dtype = jnp.dtype(config.unet.compute_dtype if config.unet else "float32")
        encoders = {path: value for path, value in start.loaded.items() if path.startswith(ENCODERS)}
        self._model = load_flat(
            _without_unet(start.config), cast_floating(place(encoders, self._mesh), dtype), what="the encoders"
        )
        self._dtype = np.dtype(options.dtype)
        self._encode = on_mesh(self._mesh, partial(_encode, task=self.task, seed=config.seed, draws=options.draws))

    def __call__(self, items: Sequence[Item], indices: Sequence[int]) -> list[dict[str, ndarray]]:
        """What is kept of each of at most `batch` clips of one shape; ``indices`` are their places in the data."""
        missing = self.batch - len(items)
        rows = np.array([*indices, *[indices[-1]] * missing], np.int32)
        batch = self.task.prepare(to_batch([*items, *[items[-1]] * missing]))
        made = self._encode(self._model, place_whole({**batch, "row": rows}, self._mesh))
        made = {name: self._stored(name, gather(value)) for name, value in made.items()}
        scalars = {"fps", "motion_bucket", "image_only", "azimuths", "elevation"} & set(items[0])
        return [
            {name: value[i] for name, value in made.items()} | {name: np.asarray(item[name]) for name in scalars}
            for i, item in enumerate(items)
        ]

    def _stored(self, name: str, value: ndarray) -> ndarray:
        return value.astype(self._dtype) if name.endswith(_COMPACT) else value


@partial(jax.jit, static_argnames=("task", "seed", "draws"))
def _encode(model: SVD, batch: Batch, *, task: Task, seed: int, draws: int) -> dict[str, Array]:
    """What is kept of the clips of a prepared batch of bytes."""
    video = to_unit(batch["video"])
    made = task.encoded(model, {**batch, "video": video}, row_keys(jax.random.key(seed), batch["row"]), draws)
    if "video" in made:  # as bytes again
        made["video"] = jnp.round((made["video"] + 1) * 127.5).astype(jnp.uint8)
    return {**made, "latents": _frame_by_frame(model, video)}


def _without_unet(config: SVDConfig) -> SVD:
    model = abstract(SVD, config)
    model.unet = model.missing_frame = None
    return model


def _frame_by_frame(model: SVD, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h2 w2 c"]:
    """What `encode_video` gives, in the memory of one frame of each clip."""
    frames = jnp.moveaxis(video, 1, 0)[:, :, None]
    return jnp.moveaxis(jax.lax.map(lambda frame: encode_video(model.vae, frame)[:, 0], frames), 0, 1)


class _Shards:
    """The shards of a cache: which clips each holds, and how one is made."""

    def __init__(self, options: Precompute, clips: Clips, encoder: _Encoder) -> None:
        self._options, self._clips, self._encoder = options, clips, encoder
        self.count = math.ceil(len(clips.train) / options.shard_clips)
        self._rows: dict[int, list[float]] = {}  # of ``clips.npy``, by place in the source
        for group in clip_groups(clips.train, clips.config.sampling):
            for index in group.indices.tolist():
                self._rows[index] = [*group.shape, group.weight / len(group.indices)]
        self._bad = BadClips(max_share=clips.config.max_bad, what="clips")

    def indices(self, number: int) -> range:
        """The places in the source of the clips of a shard."""
        start = number * self._options.shard_clips
        return range(start, min(start + self._options.shard_clips, len(self._clips.train)))

    def make(self, number: int, advance: Callable[[int], None]) -> None:
        """Make a shard unless it is there, and call ``advance`` with the numbers of clips that are dealt with.

        Raises:
            UserError: too many clips are bad, or the disk is full.
        """
        index = cache.read_shard_index(self._options.out, number)
        if index is None:
            index = {"clips": [], "bad": {}}
            items = self._encoded(self.indices(number), index, advance)
            try:
                cache.write_shard(self._options.out, number, items, index)
            except OSError as error:
                raise UserError(f"--out {self._options.out}: cannot be written ({error.strerror})") from None
        else:
            advance(len(index["clips"]))
        advance(len(index["bad"]))
        for place_in_source, message in index["bad"].items():
            self._bad.skip(int(place_in_source), UserError(message))
        self._bad.judge(len(self._clips.train))

    def _encoded(
        self, indices: Iterable[int], index: dict[str, Any], advance: Callable[[int], None]
    ) -> Iterator[dict[str, ndarray]]:
        """The items of some clips, shape by shape; ``index`` takes note of each, and of the bad ones."""
        by_shape: dict[tuple[float, ...], list[int]] = {}
        for each in indices:
            by_shape.setdefault(tuple(self._rows[each][:3]), []).append(each)
        for alike in by_shape.values():
            clips = self._read(alike, index["bad"])
            while some := list(islice(clips, self._encoder.batch)):
                places, items = zip(*some, strict=True)
                index["clips"] += [self._rows[each] for each in places]
                yield from self._encoder(items, places)
                advance(len(items))

    def _read(self, indices: Sequence[int], bad: dict[str, str]) -> Iterator[tuple[int, Item]]:
        """The clips that can be used, read ahead in order."""

        def clip(index: int) -> tuple[int, Item] | None:
            try:
                return index, fixed_clip(self._clips.train, self._clips.config.sampling, index)
            except UserError as error:
                bad[str(index)] = str(error)
                return None

        threads = self._clips.config.threads
        ahead = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * max(threads, self._encoder.batch))
        return iter(grain.MapDataset.source(indices).map(clip).to_iter_dataset(ahead))
