"""Image to video: a picture becomes the first frame of a clip (SVD, SVD-XT)."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import repeat

from svdjax.diffusion.noise import LogNormal
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.svd import SVD, SVDConfig
from svdjax.tasks.conditioning import Conditioning, embed_scalars
from svdjax.typing import Array, Float, Key

# Noise on the conditioning picture during training: ln(sigma) ~ N(-3, 0.5^2) (paper, appendix D).
NOISE_AUG = LogNormal(mean=-3.0, std=0.5)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What a user asks for, and what a training clip answers.

    Attributes:
        image: first frame, in [-1, 1].
        fps: frames per second of the video.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: standard deviation of the noise on the image that the VAE sees; CLIP sees the clean image.
        noise: standard normal, scaled by ``noise_aug``.
        clip_image: a picture to show CLIP instead of ``image``, already preprocessed, or None.
    """

    image: Float[Array, "b h w 3"]
    fps: Float[Array, " b"]
    motion_bucket: Float[Array, " b"]
    noise_aug: Float[Array, " b"]
    noise: Float[Array, "b h w 3"]
    clip_image: Float[Array, "b size size 3"] | None = None


@dataclass(frozen=True, kw_only=True)
class DropRates:
    """Probability that training replaces a condition by zeros, drawn for each video.

    The paper does not give its rates; ours are 10 % for each alone and 10 % for both together.

    Attributes:
        context: the CLIP token only. concat: the conditioning latent only. both: both at once.
    """

    context: float = 0.1
    concat: float = 0.1
    both: float = 0.1


@dataclass(frozen=True, kw_only=True)
class ImageToVideo:
    """The image-to-video task of one model configuration."""

    config: SVDConfig

    def condition(self, model: SVD, request: ImageRequest, frames: int) -> Conditioning:
        """Turn a request into conditioning (paper, appendix D; the same for training and sampling).

        Args:
            model: holds the image encoder and the VAE.
            request: a batch of pictures and scalars.
            frames: number of frames t of the video.

        Returns:
            What :meth:`condition_on_picture` makes, and the embedded scalars. ``fps`` enters as fps - 1.
        """
        scalars = {
            "fps": request.fps - 1,
            "motion_bucket": request.motion_bucket,
            "noise_aug": request.noise_aug,
        }
        return dataclasses.replace(
            self.condition_on_picture(model, request, frames),
            vector=embed_scalars(self.config.scalars, scalars, frames),
        )

    def condition_on_picture(self, model: SVD, request: ImageRequest, frames: int) -> Conditioning:
        """The part of the conditioning that every model animating a picture shares.

        Returns:
            One CLIP token, and the mode of the noised picture's latent (not multiplied by the scaling factor, as
            the released weights expect) repeated over the frames.
        """
        clip_image = request.clip_image
        if clip_image is None:
            clip_image = preprocess(request.image, size=self.config.image_encoder.image_size)
        noised = request.image + request.noise_aug[:, None, None, None] * request.noise
        latent = model.vae.encode(noised).mode()
        return Conditioning(
            context=model.image_encoder(clip_image)[:, None],
            concat=repeat(latent, "b h w c -> b t h w c", t=frames),
        )

    def unconditional(self, cond: Conditioning) -> Conditioning:
        """The branch that guidance moves away from: zero token, zero latent, the same scalars."""
        return dataclasses.replace(cond, context=jnp.zeros_like(cond.context), concat=jnp.zeros_like(cond.concat))

    def request_from_batch(self, batch: dict[str, Array], key: Key[Array, ""]) -> ImageRequest:
        """The request that a training clip answers: its first frame, with noise of a random level.

        Args:
            batch: ``video`` [b t h w 3] in [-1, 1], ``fps`` [b], ``motion_bucket`` [b].
            key: randomness of the noise and of its level.
        """
        level_key, noise_key = jax.random.split(key)
        image = batch["video"][:, 0]
        return ImageRequest(
            image=image,
            fps=batch["fps"],
            motion_bucket=batch["motion_bucket"],
            noise_aug=NOISE_AUG.sample(level_key, (image.shape[0],)),
            noise=jax.random.normal(noise_key, image.shape, image.dtype),
        )

    def drop(self, cond: Conditioning, key: Key[Array, ""], rates: DropRates) -> Conditioning:
        """Replace conditions by zeros at random, so that the model also learns the unconditional branch."""
        u = jax.random.uniform(key, (cond.context.shape[0],))
        only_context = u < rates.context
        only_concat = (u >= rates.context) & (u < rates.context + rates.concat)
        both = (u >= rates.context + rates.concat) & (u < rates.context + rates.concat + rates.both)
        keep_context = ~(only_context | both)
        keep_concat = ~(only_concat | both)
        return dataclasses.replace(
            cond,
            context=cond.context * keep_context[:, None, None],
            concat=cond.concat * keep_concat[:, None, None, None, None],
        )
