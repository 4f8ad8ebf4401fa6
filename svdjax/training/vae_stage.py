"""First stage: the autoencoder, with its temporal decoder, on clips."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import grain
import jax
import jax.numpy as jnp
from einops import rearrange

from svdjax.data.pipeline import to_unit
from svdjax.models.svd import SVD, SVDConfig
from svdjax.models.vae import VAE
from svdjax.training.data import Clips
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.typing import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Trains encoder and decoder together.

    The loss is l1 |e| + l2 e^2 on the reconstruction error e, averaged over values, plus ``kl`` times the
    divergence of the posterior from a standard normal, averaged over latent values. ``frames`` are cut from each
    clip, all of them by default: a decoder that has only seen 3 frames loses 8 dB in the middle of 8.
    """

    name: ClassVar[str] = "vae"
    frames: int | None = None
    l1: float = 1.0
    l2: float = 1.0
    kl: float = 1e-4

    def iterator(self, model: SVD, clips: Clips, *, seed: int) -> grain.DatasetIterator:
        """Training batches of short clips."""
        return clips.iterator(batch=self.batch, seed=seed, frames=self.frames)

    def trains(self, path: str) -> bool:
        return path.startswith("vae.")

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        video = batch["video"]
        posterior = model.vae.encode(rearrange(video, "b t h w c -> (b t) h w c"))
        latents = rearrange(posterior.sample(key), "(b t) h w c -> b t h w c", b=video.shape[0])
        error = (model.vae.decode(latents) - video).astype(jnp.float32)
        mean, logvar = posterior.mean.astype(jnp.float32), posterior.logvar.astype(jnp.float32)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
        mse = jnp.mean(error**2)
        loss = self.l1 * jnp.mean(jnp.abs(error)) + self.l2 * mse + self.kl * kl
        # Values span 2, so the peak signal-to-noise ratio is 10 log10(2^2 / mse).
        return loss, {"psnr": 10 * jnp.log10(4 / mse), "kl": kl}

    def finish(self, model: SVD, batches: Sequence[Batch]) -> SVDConfig:
        """Set the scaling factor so that the scaled latents of the held-out clips have unit variance."""
        encode = jax.jit(lambda video: encode_video(model.vae, to_unit(video)))
        deviation = jnp.std(jnp.concatenate([encode(batch["video"]) for batch in batches]))
        vae = dataclasses.replace(model.config.vae, scaling_factor=round(1 / float(deviation), 5))
        return dataclasses.replace(model.config, vae=vae)


def encode_video(vae: VAE, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h2 w2 c"]:
    """Mode of each frame's latent, not multiplied by the scaling factor."""
    frames = vae.encode(rearrange(video, "b t h w c -> (b t) h w c")).mode()
    return rearrange(frames, "(b t) h w c -> b t h w c", b=video.shape[0])
