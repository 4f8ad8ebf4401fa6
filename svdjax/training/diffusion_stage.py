"""The diffusion stage: a UNet, conditioned by its task, in the latent space of the frozen autoencoder."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import grain
import jax
import jax.numpy as jnp
from einops import repeat

from svdjax.data.cache import LatentCache
from svdjax.data.pipeline import batches
from svdjax.diffusion.denoiser import PRECONDITIONINGS, Denoiser
from svdjax.diffusion.loss import EpsWeighting, VWeighting, denoising_loss
from svdjax.diffusion.noise import DiscreteLevels, LogNormal, row_keys, video_noise, with_offset
from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.tasks import Conditioning, DropRates, Task, drop, network_of, task_of
from svdjax.training.data import Clips, DataConfig
from svdjax.training.latents import with_latents
from svdjax.training.metrics import sigma_bands
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.vae_stage import encode_video
from svdjax.typing import Array, Bool, Float, Key

# Which parameters train: patterns of dotted paths. The temporal ones are those that an image model lacks.
PARTS = MappingProxyType(
    {
        "all": re.compile(r"unet\..*|missing_frame"),
        "with_text": re.compile(r"(unet|text_encoder)\..*|missing_frame"),
        "temporal": re.compile(r"unet\..*\.(temporal\..*|frame_embed\..*|mix_factor)"),
        "time_embed": re.compile(r"unet\.time_embed\..*"),
    }
)


@dataclass(frozen=True, kw_only=True)
class DiffusionStage(Stage):
    """Train the UNet to remove noise from clips, given what its task conditions it on.

    Attributes:
        part: which parameters train: all of the UNet, those and the text tower, the UNet's temporal layers only, or
            its time embedding only.
        sigma: noise levels, one per clip: ln(sigma) ~ N(mean, std^2).
        discrete: draw them from the 1000 levels of SD 2.1 instead, as the paper's ablations do.
        offset_noise: strength of noise that all pixels of a clip have in common, see `with_offset`.
        drop: how often conditions are left out, for classifier-free guidance.
        image_share: share of the clips whose frames are taken as images by themselves, without temporal layers.
            Clips that the batch marks as ``image_only`` are so in any case.
        cache_latents: encode the whole data set once, into memory, instead of each clip each time.
    """

    name: ClassVar[str] = "unet"
    part: Literal["all", "with_text", "temporal", "time_embed"] = "all"
    sigma: LogNormal = field(default_factory=lambda: LogNormal(mean=0.7, std=1.6))
    discrete: bool = False
    offset_noise: float = 0.0
    drop: DropRates = field(default_factory=DropRates)
    image_share: float = 0.0
    cache_latents: bool = False

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range.
        """
        super().__post_init__()
        if not 0 <= self.image_share <= 1:
            raise UserError(f"--{self.name}.image-share {self.image_share}: must be between 0 and 1")
        if not 0 <= self.offset_noise < math.inf:
            raise UserError(f"--{self.name}.offset-noise {self.offset_noise}: must be 0 or more (0.1 is usual)")

    def trains(self, path: str) -> bool:
        return PARTS[self.part].fullmatch(path) is not None

    def for_validation(self) -> "DiffusionStage":
        """The stage without dropout: its loss can be compared with that of a run with other rates."""
        return dataclasses.replace(self, drop=DropRates(context=0.0, concat=0.0, both=0.0))

    def prepare(self, config: SVDConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
        return task_of(config).prepare(batch)

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        cond_key, sigma_key, noise_key, offset_key = jax.random.split(key, 4)
        rows = batch["row"]
        batch = {**batch, "latents": latents_of(model, batch)}  # which the task may want, too
        x0 = batch["latents"].astype(jnp.float32) * model.config.vae.scaling_factor
        cond, dropped = self._conditioning(task_of(model.config), model, batch, x0.shape[1], cond_key)
        levels = DiscreteLevels() if self.discrete else self.sigma
        sigma = jax.vmap(lambda key: levels.sample(key, ()))(row_keys(sigma_key, rows))
        noise = video_noise(noise_key, rows, x0.shape[1:])
        if self.offset_noise:
            noise = with_offset(noise, offset_key, rows, self.offset_noise)
        denoiser = Denoiser(network_of(model.unet), PRECONDITIONINGS[model.config.preconditioning])
        eps = model.config.preconditioning == "discrete_eps"
        weighting = EpsWeighting() if eps else VWeighting()  # the squared error of what the network says
        losses = denoising_loss(denoiser, x0, noise, sigma, cond, weighting)
        return jnp.mean(losses), sigma_bands(losses, sigma) | dropped

    def _conditioning(
        self, task: Task, model: SVD, batch: Batch, frames: int, key: Key[Array, ""]
    ) -> tuple[Conditioning, Metrics]:
        """Conditioning of a batch, thinned out at random, and how often it was if it may be."""
        request_keys, drop_keys, image_keys = (row_keys(k, batch["row"]) for k in jax.random.split(key, 3))
        cond = task.condition(model, task.request_from_batch(batch, request_keys), frames)
        dropped: Metrics = {}
        if any(dataclasses.astuple(self.drop)):
            cond, dropped = drop(cond, task.unconditional(model, cond), drop_keys, self.drop)
        images = self._images(batch, image_keys)
        if images is not None:
            cond = dataclasses.replace(cond, image_only=repeat(images, "b -> b t", t=frames))
        return cond, dropped

    def _images(self, batch: Batch, keys: Key[Array, " b"]) -> Bool[Array, " b"] | None:
        """Which clips are images; None where none can be, so that the network need not ask."""
        marked = batch.get("image_only")
        if not self.image_share:
            return marked
        drawn = jax.vmap(jax.random.uniform)(keys) < self.image_share
        return drawn if marked is None else drawn | marked

    def batches(
        self, model: SVD, clips: Clips, *, seed: int, rows: Sequence[int] | None = None
    ) -> grain.MapDataset:
        """Training batches, with their latents if these are cached or to be cached.

        Raises:
            UserError: clips of several shapes or sources are to be cached in memory.
        """
        if isinstance(clips.train, LatentCache):
            return batches(clips.train, batch_size=self.batch, seed=seed, rows=rows, groups=clips.train.groups)
        if not self.cache_latents:
            return super().batches(model, clips, seed=seed, rows=rows)
        check_alike(clips.config)
        source = with_latents(model.vae, clips.fixed_train(), picture=task_of(model.config).picture)
        return batches(source, batch_size=self.batch, seed=seed, rows=rows)


def check_alike(data: DataConfig) -> None:
    """Check that clips can be cached in memory.

    Raises:
        UserError: they are of several shapes or sources.
    """
    if data.sampling.buckets or data.also:
        raise UserError("--unet.cache-latents: takes clips of one shape and source: use svdjax precompute")


def latents_of(model: SVD, batch: Batch) -> Float[Array, "b t h w c"]:
    """Latents of a batch, not scaled: the cached ones, or those of its frames."""
    return batch["latents"] if "latents" in batch else encode_video(model.vae, batch["video"])
