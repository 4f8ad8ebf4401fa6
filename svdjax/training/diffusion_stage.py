"""The diffusion stage: the image-to-video UNet, in the latent space of the frozen autoencoder."""

from dataclasses import dataclass, field
from typing import ClassVar

import grain
import jax
import jax.numpy as jnp

from svdjax.data.pipeline import batches
from svdjax.diffusion.denoiser import PRECONDITIONINGS, Denoiser
from svdjax.diffusion.loss import EpsWeighting, VWeighting, denoising_loss
from svdjax.diffusion.noise import LogNormal
from svdjax.models.svd import SVD
from svdjax.tasks import ImageToVideo, network_of
from svdjax.tasks.image_to_video import DropRates
from svdjax.training.data import Clips
from svdjax.training.latents import with_latents
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.training.vae_stage import encode_video
from svdjax.typing import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class DiffusionStage(Stage):
    """Train the UNet to remove noise from clips, given their first frame and their scalars.

    Attributes:
        sigma: noise levels, one per clip: ln(sigma) ~ N(mean, std^2).
        drop: how often conditions are left out, for classifier-free guidance.
        cache_latents: encode the whole data set once, into memory, instead of each clip each time.
    """

    name: ClassVar[str] = "unet"
    sigma: LogNormal = field(default_factory=lambda: LogNormal(mean=0.7, std=1.6))
    drop: DropRates = field(default_factory=DropRates)
    cache_latents: bool = False

    def trains(self, path: str) -> bool:
        return path.startswith("unet.")

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        request_key, drop_key, sigma_key, noise_key = jax.random.split(key, 4)
        task = ImageToVideo(config=model.config)
        x0 = latents_of(model, batch)
        request = task.request_from_batch(batch, request_key)
        cond = task.drop(task.condition(model, request, x0.shape[1]), drop_key, self.drop)
        sigma = self.sigma.sample(sigma_key, (x0.shape[0],))
        noise = jax.random.normal(noise_key, x0.shape)
        denoiser = Denoiser(network_of(model.unet), PRECONDITIONINGS[model.config.preconditioning])
        eps = model.config.preconditioning == "discrete_eps"
        weighting = EpsWeighting() if eps else VWeighting()  # the squared error of what the network says
        return jnp.mean(denoising_loss(denoiser, x0, noise, sigma, cond, weighting)), {}

    def batches(self, model, clips, *, seed, rows):
        """Training batches, with their latents if these are to be cached."""
        if not self.cache_latents:
            return super().batches(model, clips, seed=seed, rows=rows)
        return iter(batches(with_latents(model.vae, clips.fixed_train()), batch_size=self.batch, seed=seed))


def latents_of(model: SVD, batch: Batch) -> Float[Array, "b t h w c"]:
    """Scaled latents of a batch: the cached ones, or those of its frames."""
    latents = batch["latents"] if "latents" in batch else encode_video(model.vae, batch["video"])
    return latents.astype(jnp.float32) * model.config.vae.scaling_factor
