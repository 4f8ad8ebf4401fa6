"""The clips of a run: a data set on disk, drawn from the built-in world if it is not there yet."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import grain
import numpy as np
from rich.console import Console

from svdjax.data.cache import LatentCache
from svdjax.data.opening import open_mixture, open_source
from svdjax.data.pipeline import Item, clip_batches, fixed_clips, to_batch
from svdjax.data.records import check_sprites, write_sprites
from svdjax.data.sampling import ClipSampling
from svdjax.data.sources import ClipSource
from svdjax.data.sprites import World
from svdjax.data.tfds import PREFIX
from svdjax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the clips are and what is cut out of them.

    Attributes:
        train: a folder of videos or of pictures, or of shards written by this package, or a latent cache of
            ``svdjax precompute``; ``tfds:NAME`` is a data set of TensorFlow Datasets.
        validation: likewise, but no latent cache.
        also: more such folders to draw training clips from.
        weights: how often clips of ``train`` and of each of ``also`` are drawn, up to a common factor.
        sampling: size, frames and frame rate of the clips.
        in_memory: decode each video once and keep its frames, for data that fits (see `sources.InMemory`).
        max_bad: share of the videos that may turn out to be unusable before the run stops.
        threads: batches that are made side by side in each process that reads.
        workers: processes that read on each host; 0 reads in threads of the training process.
        sprites: training clips to draw from the built-in world where a folder is missing; 0 never draws. A folder
            that says it was drawn with other settings is refused.
        sprites_validation: validation clips to draw with them, of another seed.
        world: the built-in world.
    """

    train: Path = Path("data/sprites/train")
    validation: Path = Path("data/sprites/validation")
    also: tuple[Path, ...] = ()
    weights: tuple[float, ...] = ()
    sampling: ClipSampling = field(default_factory=ClipSampling)
    in_memory: bool = False
    max_bad: float = 0.1
    threads: int = 2
    workers: int = 0
    sprites: int = 0
    sprites_validation: int = 256
    world: World = field(default_factory=World)


@dataclass(frozen=True)
class Clips:
    """The opened data set of a run."""

    config: DataConfig
    train: ClipSource | LatentCache
    validation: ClipSource

    def batches(
        self, *, batch: int, seed: int, rows: Sequence[int] | None = None, frames: int | None = None
    ) -> grain.MapDataset:
        """The training batches: element i is batch i, a function of the seed and i alone.

        Args:
            batch: clips per batch. seed: of the order and of what is cut out.
            rows: those of each batch to make; None for all.
            frames: frames per clip, if not those of the configuration.

        Raises:
            UserError: the training data is a latent cache, which has no pixels.
        """
        if isinstance(self.train, LatentCache):
            raise no_pixels(self.config.train)
        return clip_batches(
            self.train,
            self._sampling(frames),
            batch_size=batch,
            seed=seed,
            rows=rows,
            in_memory=self.config.in_memory,
            max_bad=self.config.max_bad,
        )

    def fixed_train(self) -> Iterator[Item]:
        """One clip of each training video, always the same."""
        return fixed_clips(self.train, self.config.sampling, max_bad=self.config.max_bad)

    def _sampling(self, frames: int | None) -> ClipSampling:
        sampling = self.config.sampling
        if frames is None:
            return sampling
        return replace(sampling, frames=frames, buckets=tuple((frames, *size) for _, *size in sampling.buckets))

    def held_out(self, *, batch: int, count: int, frames: int | None = None) -> Sequence[dict[str, np.ndarray]]:
        """At most ``count`` batches of validation clips of each shape, always the same; of few clips a smaller one.

        Their motion buckets are on the training clips' map.
        """
        clips = fixed_clips(
            self.validation,
            self._sampling(frames),
            buckets=self.train.buckets,
            max_bad=self.config.max_bad,
        )
        alike: dict[tuple[int, ...], list[Item]] = {}
        for item in islice(clips, batch * count * len(self.config.sampling.shapes)):
            alike.setdefault(item["video"].shape, []).append(item)
        return [
            to_batch(items[start : start + batch])
            for items in alike.values()
            for start in range(0, max(len(items) - batch, 0) + 1, batch)[:count]
        ]


def no_pixels(cache: Path) -> UserError:
    """What is wrong where a stage needs the pixels of the training clips, and these are a latent cache."""
    return UserError(
        f"--data.train {cache}: a latent cache trains the unet only: leave the other stages out, or name clips"
    )


def open_clips(config: DataConfig, console: Console) -> Clips:
    """Open the data set, drawing it first if the configuration says so.

    Raises:
        UserError: a folder is missing, holds no clips, or was drawn with other settings.
    """
    for seed, (directory, count) in enumerate(
        ((config.train, config.sprites), (config.validation, config.sprites_validation))
    ):
        if config.sprites and directory.exists():
            check_sprites(config.world, directory, seed=seed, count=count)
        elif config.sprites:
            console.print(f"drawing {count:,} clips of the built-in world into {directory}")
            write_sprites(config.world, directory, seed=seed, count=count)
    # Before the clips of the first one are measured, which may take hours.
    named = [("train", config.train), *(("also", also) for also in config.also), ("validation", config.validation)]
    for option, directory in named:
        if not str(directory).startswith(PREFIX) and not directory.is_dir():
            raise UserError(f"--data.{option} {directory} is not a folder: give one of clips, or a data set")
    train = open_mixture([config.train, *config.also], config.weights, max_bad=config.max_bad)
    validation = open_source(config.validation, max_bad=config.max_bad)
    if isinstance(validation, LatentCache):
        raise UserError(
            f"--data.validation {config.validation}: a latent cache has no clips: name a folder of clips"
        )
    return Clips(config, train, validation)
