"""The autoencoder's stages: encoder and decoder on images or short clips, then the decoder alone on whole clips."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import grain
import jax
import jax.numpy as jnp

from svdjax.data.pipeline import to_unit
from svdjax.diffusion.noise import row_keys
from svdjax.models.svd import SVD, SVDConfig
from svdjax.models.vae import VAE
from svdjax.training.data import Clips
from svdjax.training.stage import Batch, Metrics, Stage
from svdjax.typing import Array, Float, Key


@dataclass(frozen=True, kw_only=True)
class ReconstructionLoss:
    """l1 |e| + l2 e^2 of the reconstruction's error e, averaged over values."""

    l1: float = 1.0
    l2: float = 1.0

    def __call__(
        self, made: Float[Array, "b t h w 3"], video: Float[Array, "b t h w 3"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The loss, and the clips' mean peak signal-to-noise ratio in dB; computed in float32."""
        error = (made - video).astype(jnp.float32)
        mse = jnp.mean(error**2, axis=(1, 2, 3, 4))
        # Values span 2, so the peak signal-to-noise ratio is 10 log10(2^2 / mse).
        return self.l1 * jnp.mean(jnp.abs(error)) + self.l2 * jnp.mean(mse), jnp.mean(10 * jnp.log10(4 / mse))


@dataclass(frozen=True, kw_only=True)
class VAEStage(Stage):
    """Trains encoder and decoder together.

    Attributes:
        frames: of each clip; None for all. A batch of many short clips is more varied than one of few long clips,
            and costs the same.
        reconstruction: how far decoded frames are from the clip's.
        kl: weight of the divergence of the posterior from a standard normal, averaged over latent values.
    """

    name: ClassVar[str] = "vae"
    frames: int | None = None
    reconstruction: ReconstructionLoss = ReconstructionLoss()
    kl: float = 1e-4

    def batches(
        self, model: SVD, clips: Clips, *, seed: int, rows: Sequence[int] | None = None
    ) -> grain.MapDataset:
        """Training batches of short clips."""
        return clips.batches(batch=self.batch, seed=seed, rows=rows, frames=self.frames)

    def held_out(self, clips: Clips, *, batch: int, count: int) -> Sequence[Batch]:
        """Validation batches, of short clips too."""
        return clips.held_out(batch=batch, count=count, frames=self.frames)

    def trains(self, path: str) -> bool:
        return path.startswith("vae.")

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        video = batch["video"]
        posterior = model.vae.encode(_in_dtype_of(model.vae, video))
        latents = jax.vmap(lambda clip, key: clip.sample(key))(posterior, row_keys(key, batch["row"]))
        loss, psnr = self.reconstruction(model.vae.decode(latents), video)
        mean, logvar = posterior.mean.astype(jnp.float32), posterior.logvar.astype(jnp.float32)
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
        return loss + self.kl * kl, {"psnr": psnr, "kl": kl}

    def finish(self, model: SVD, batches: Sequence[Batch]) -> SVDConfig:
        """Set the scaling factor so that the scaled latents of the held-out clips have unit variance."""
        encode = jax.jit(lambda vae, video: encode_video(vae, to_unit(video)))
        deviation = jnp.std(jnp.concatenate([encode(model.vae, batch["video"]).ravel() for batch in batches]))
        vae = dataclasses.replace(model.config.vae, scaling_factor=round(1 / float(deviation), 5))
        return dataclasses.replace(model.config, vae=vae)


@dataclass(frozen=True, kw_only=True)
class DecoderStage(Stage):
    """Finetunes the decoder on whole clips; the encoder, and so the latent space, stays (arXiv 2304.08818, 3.1.1).

    A decoder that has seen only shorter clips does badly on the frames in the middle of longer ones: 8 dB worse on
    8 frames after a training on 3.

    Attributes:
        reconstruction: how far decoded frames are from the clip's.
    """

    name: ClassVar[str] = "decoder"
    reconstruction: ReconstructionLoss = ReconstructionLoss()

    def trains(self, path: str) -> bool:
        return path.startswith("vae.decoder.")

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        video = batch["video"]
        loss, psnr = self.reconstruction(model.vae.decode(encode_video(model.vae, video)), video)
        return loss, {"psnr": psnr}


def encode_video(vae: VAE, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h2 w2 c"]:
    """Mode of each frame's latent, not multiplied by the scaling factor."""
    return vae.encode(_in_dtype_of(vae, video)).mode()


def _in_dtype_of(vae: VAE, video: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
    """A video in the type in which the autoencoder is to compute; in float32 it would compute in float32."""
    return video.astype(vae.encoder.conv_in.kernel[...].dtype)
