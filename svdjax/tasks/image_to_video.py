"""Image to video: a picture becomes the first frame of a clip (SVD, SVD-XT)."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from einops import repeat

from svdjax.diffusion.noise import LogNormal
from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.tasks.conditioning import Conditioning, embed_scalars, pad_to_multiple, same_for_all, without_captions
from svdjax.typing import AnyArray, Array, Float, Int, Key, ndarray

# Noise on the conditioning picture during training: ln(sigma) ~ N(-3, 0.5^2) (paper, appendix D).
NOISE_AUG = LogNormal(mean=-3.0, std=0.5)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """What a user asks for, and what a training clip answers.

    Attributes:
        image: first frame, in [-1, 1]; None where ``embedding`` and ``latent`` are given.
        fps: frames per second of the video.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: standard deviation of the noise on the image that the VAE sees; CLIP sees the clean image.
        noise: standard normal, scaled by ``noise_aug``; None where ``latent`` is given.
        unpadded: ``image`` before its sides were made multiples of the networks', which is what CLIP sees; None
            where that is the same.
        clip_image: a picture to show CLIP instead, already preprocessed, or None.
        embedding: CLIP's embedding of the image, if it was computed before.
        latent: mode of the noised image's latent, if it was computed before (not multiplied by the scaling factor).
    """

    image: Float[AnyArray, "b h w 3"] | None = None
    fps: Float[AnyArray, " b"]
    motion_bucket: Float[AnyArray, " b"]
    noise_aug: Float[AnyArray, " b"]
    noise: Float[Array, "b h w 3"] | None = None
    unpadded: Float[AnyArray, "b h2 w2 3"] | None = None
    clip_image: Float[Array, "b size size 3"] | None = None
    embedding: Float[Array, "b d"] | None = None
    latent: Float[Array, "b h3 w3 c"] | None = None


@dataclass(frozen=True, kw_only=True)
class ImageToVideo:
    """The image-to-video task of one model configuration.

    Attributes:
        picture: index of the frame that a training clip is asked by.
        noise_aug: levels of the noise on that picture in training.
    """

    config: SVDConfig
    picture: int = 0
    per_frame: bool = False
    noise_aug: LogNormal = NOISE_AUG

    def request(self, defaults: SamplingDefaults, *, images: Float[ndarray, "b h w 3"]) -> ImageRequest:
        """Ask for videos that begin with pictures.

        Args:
            defaults: their size, and the scalars of all of them.
            images: float32 in [-1, 1].

        Raises:
            UserError: the model has no image encoder, or the pictures are of another size.
        """
        if self.config.image_encoder is None:
            raise UserError("the checkpoint has no image encoder: give the whole checkpoint, not a part of it")
        if images.shape[1:3] != (defaults.height, defaults.width):
            raise UserError(
                f"pictures of {images.shape[1]}x{images.shape[2]} pixels for videos of {defaults.height}x"
                f"{defaults.width}: read them in the size of the videos"
            )
        scalars = same_for_all(defaults, ("fps", "motion_bucket", "noise_aug"), len(images))
        padded = pad_to_multiple(images, self.config.size_multiple)
        unpadded = None if padded.shape == images.shape else images
        return ImageRequest(image=padded, unpadded=unpadded, **scalars)

    def inputs_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``images``: the first frames."""
        return {"images": batch["video"][:, self.picture]}

    def complete(self, request: ImageRequest, keys: Key[Array, " b"]) -> ImageRequest:
        """Add the noise on the picture."""
        shape, dtype = request.image.shape[1:], request.image.dtype
        return dataclasses.replace(request, noise=jax.vmap(lambda key: jax.random.normal(key, shape, dtype))(keys))

    def finish(self, request: ImageRequest, frames: Float[ndarray, "b t h w 3"]) -> Float[ndarray, "b t h w 3"]:
        """The frames as they are: the first one was generated to lie before the second."""
        del request
        return frames

    def following(self, request: ImageRequest, frames: Float[ndarray, "b k h w 3"]) -> ImageRequest:
        """The first of the frames becomes the picture."""
        images = frames[:, 0]
        unpadded = None if request.unpadded is None else images
        return dataclasses.replace(
            request, image=pad_to_multiple(images, self.config.size_multiple), unpadded=unpadded
        )

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch without its captions, which nothing here reads.

        Raises:
            UserError: the batch has neither pixels nor all that the encoders would make of them.
        """
        return without_captions(batch, ("latents", "image_embedding", "cond_latents", "cond_noise_aug"))

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
        return Conditioning(
            context=self._embedding(model, request)[:, None],
            concat=repeat(self._latent(model, request), "b h w c -> b t h w c", t=frames),
        )

    def _embedding(self, model: SVD, request: ImageRequest) -> Float[Array, "b d"]:
        if request.embedding is not None:
            return request.embedding
        clip_image = request.clip_image
        if clip_image is None:
            whole = request.image if request.unpadded is None else request.unpadded
            clip_image = preprocess(whole, size=self.config.image_encoder.image_size)
        return model.image_encoder(clip_image)

    def _latent(self, model: SVD, request: ImageRequest) -> Float[Array, "b h2 w2 c"]:
        if request.latent is not None:
            return request.latent
        noised = request.image + request.noise_aug[:, None, None, None] * request.noise
        return model.vae.encode(noised).mode()

    def unconditional(self, model: SVD, cond: Conditioning, request: ImageRequest | None = None) -> Conditioning:
        """Zero token, zero latent, the same scalars."""
        del model, request
        return dataclasses.replace(cond, context=jnp.zeros_like(cond.context), concat=jnp.zeros_like(cond.concat))

    def request_from_batch(self, batch: Mapping[str, Array], keys: Key[Array, " b"]) -> ImageRequest:
        """The request that a training clip answers: its first frame, with noise of a random level.

        Args:
            batch: ``video`` [b t h w 3] in [-1, 1], ``fps`` [b], ``motion_bucket`` [b]; and as far as they were
                computed before, ``image_embedding`` [b d], and ``cond_latents`` [b k h2 w2 c] of k noised first
                frames with their levels ``cond_noise_aug`` [b k], of which one is drawn.
            keys: randomness of each video's noise and of its level.
        """
        level_keys, noise_keys = jax.vmap(jax.random.split, out_axes=1)(keys)
        image = batch["video"][:, self.picture] if "video" in batch else None
        scalars = {name: batch[name] for name in ("fps", "motion_bucket")}
        known = {"image": image, "embedding": batch.get("image_embedding"), **scalars}
        if "cond_latents" in batch:
            draws = batch["cond_noise_aug"].shape[1]
            choice = jax.vmap(lambda key: jax.random.randint(key, (), 0, draws))(level_keys)
            latent, noise_aug = jax.vmap(lambda latents, levels, i: (latents[i], levels[i]))(
                batch["cond_latents"], batch["cond_noise_aug"], choice
            )
            return ImageRequest(**known, latent=latent, noise_aug=noise_aug)
        return ImageRequest(
            **known,
            noise_aug=jax.vmap(lambda key: self.noise_aug.sample(key, ()))(level_keys),
            noise=jax.vmap(lambda key: jax.random.normal(key, image.shape[1:], image.dtype))(noise_keys),
        )

    def encoded(
        self, model: SVD, batch: Mapping[str, Array], keys: Key[Array, " b"], draws: int
    ) -> dict[str, Array]:
        """``image_embedding`` [b d] of the first frames, and what the conditioning latent needs.

        Returns:
            With it ``video``, the first frames alone [b 1 h w 3], to be noised in each step; or with ``draws`` = k,
            ``cond_latents`` [b k h2 w2 c] of k noised first frames and their levels ``cond_noise_aug`` [b k].
        """
        embedding = self._embedding(model, self.request_from_batch(batch, keys))
        if not draws:
            return {"image_embedding": embedding, "video": batch["video"][:, self.picture][:, None]}

        def draw(number: Int[Array, ""]) -> tuple[Float[Array, "b h2 w2 c"], Float[Array, " b"]]:
            request = self.request_from_batch(batch, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys))
            return self._latent(model, request), request.noise_aug

        latents, levels = jax.lax.map(draw, jnp.arange(draws))
        return {
            "image_embedding": embedding,
            "cond_latents": jnp.moveaxis(latents, 0, 1),
            "cond_noise_aug": levels.T,
        }
