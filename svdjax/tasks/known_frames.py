"""Some frames of a clip are known, the others are made: interpolation, first and last frame, prediction."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat

from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.tasks.conditioning import Conditioning, embed_scalars, same_for_all, without_captions
from svdjax.tasks.image_to_video import NOISE_AUG
from svdjax.typing import AnyArray, Array, Bool, Float, Key, ndarray

# Which of ``frames`` frames a training clip shows, drawn with a key.
Pattern = Callable[[Key[Array, ""], int], Bool[Array, " t"]]


def ends(key: Key[Array, ""], frames: int) -> Bool[Array, " t"]:
    """The first and the last frame (paper, section 4.4)."""
    del key
    index = jnp.arange(frames)
    return (index == 0) | (index == frames - 1)


def beginning(key: Key[Array, ""], frames: int) -> Bool[Array, " t"]:
    """The first 1 to ``frames // 2`` frames, each number as often."""
    return jnp.arange(frames) < jax.random.randint(key, (), 1, max(frames // 2, 1) + 1)


def scattered(key: Key[Array, ""], frames: int) -> Bool[Array, " t"]:
    """Each frame with a probability of 1/2, and one in any case."""
    draws = jax.random.uniform(key, (frames,))
    return (draws < 0.5) | (draws == jnp.min(draws))


# How often a clip shows which of its frames to a model that is to do with any set of them. Ours.
MIX = MappingProxyType({ends: 0.4, beginning: 0.4, scattered: 0.2})


def mixed(key: Key[Array, ""], frames: int) -> Bool[Array, " t"]:
    """One of the patterns of `MIX`."""
    which, inner = jax.random.split(key)
    choice = jax.random.choice(which, len(MIX), p=jnp.asarray(list(MIX.values())))
    return jnp.stack([pattern(inner, frames) for pattern in MIX])[choice]


# By the name of the task in a model's configuration. The tasks differ in what training shows, and in nothing else.
PATTERNS: Mapping[str, Pattern] = MappingProxyType(
    {"frame_interpolation": ends, "first_last": ends, "video_prediction": beginning, "known_frames": mixed}
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class KnownFramesRequest:
    """What a user asks for, and what a training clip answers.

    Attributes:
        known: which frames are given, at least one of each video.
        video: pixels of the given frames in [-1, 1]; of the others nothing is read. None where ``latents`` and
            ``embeddings`` are given.
        fps: frames per second of the video.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: standard deviation of the noise on the latents of the given frames, which have about unit
            variance.
        noise: standard normal, scaled by ``noise_aug``.
        latents: of the frames if they were computed before, not multiplied by the scaling factor.
        embeddings: CLIP's of each frame, likewise.
    """

    known: Bool[AnyArray, "b t"]
    video: Float[AnyArray, "b t h w 3"] | None = None
    fps: Float[AnyArray, " b"]
    motion_bucket: Float[AnyArray, " b"]
    noise_aug: Float[AnyArray, " b"]
    noise: Float[Array, "b t h2 w2 c"] | None = None
    latents: Float[Array, "b t h2 w2 c"] | None = None
    embeddings: Float[Array, "b t d"] | None = None


@dataclass(frozen=True, kw_only=True)
class KnownFrames:
    """The task of one model configuration, whose name says which frames training shows (see `PATTERNS`)."""

    config: SVDConfig
    picture: None = None  # any frame may be a known one
    per_frame: bool = True

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: the model has no learned latent for missing frames, or not of the VAE's channels.
        """
        channels = self.config.vae.latent_channels
        if self.config.missing_frame is None or self.config.missing_frame[-1] != channels:
            raise UserError(
                f"a model for {self.config.task} needs a latent for missing frames: set model.missing_frame to "
                f"rows, columns and {channels} channels"
            )

    def request(
        self,
        defaults: SamplingDefaults,
        *,
        video: Float[ndarray, "b t h w 3"],
        known: Bool[ndarray, "b t"],
        fps: Float[ndarray, " b"] | None = None,
    ) -> KnownFramesRequest:
        """Ask for videos of which some frames are given.

        Args:
            defaults: their size, and the scalars of all of them.
            video: float32 in [-1, 1]; anything where a frame is not given.
            known: which frames are given.
            fps: frames per second of each, if not those of ``defaults``.

        Raises:
            UserError: the model has no image encoder, the videos are of another size, or one gives no frame.
        """
        if self.config.image_encoder is None:
            raise UserError("the checkpoint has no image encoder: give the whole checkpoint, not a part of it")
        wanted = (defaults.frames, defaults.height, defaults.width)
        if video.shape[1:4] != wanted:
            found, needed = ("x".join(map(str, shape)) for shape in (video.shape[1:4], wanted))
            raise UserError(f"frames of {found} (frames, height, width) for videos of {needed}: make them the same")
        if not known.any(axis=1).all():
            raise UserError("a video of which no frame is given: give one at least")
        scalars = same_for_all(defaults, ("fps", "motion_bucket", "noise_aug"), len(video))
        scalars |= {} if fps is None else {"fps": fps.astype(np.float32)}
        return KnownFramesRequest(known=known, video=video, **scalars)

    def inputs_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``video``, and as ``known`` the frames that training could have shown of it, always the same."""
        count, frames = batch["video"].shape[:2]
        pattern, keys = PATTERNS[self.config.task], jax.random.split(jax.random.key(0), count)
        return {"video": batch["video"], "known": np.stack([pattern(key, frames) for key in keys])}

    def complete(self, request: KnownFramesRequest, keys: Key[Array, " b"]) -> KnownFramesRequest:
        """Add the noise on the latents."""
        if request.latents is None:
            _, frames, height, width, _ = request.video.shape
            shape = (frames, *self.config.latent_shape(height, width))
        else:
            shape = request.latents.shape[1:]
        return dataclasses.replace(request, noise=jax.vmap(lambda key: jax.random.normal(key, shape))(keys))

    def finish(
        self, request: KnownFramesRequest, frames: Float[ndarray, "b t h w 3"]
    ) -> Float[ndarray, "b t h w 3"]:
        """The given frames as they were given, between those that were made."""
        return np.where(np.asarray(request.known)[..., None, None, None], request.video, frames)

    def following(self, request: KnownFramesRequest, frames: Float[ndarray, "b k h w 3"]) -> KnownFramesRequest:
        """Videos that begin with these frames, and of which no other is given."""
        count = frames.shape[1]
        known, video = np.zeros_like(request.known), np.zeros_like(request.video)
        known[:, :count], video[:, :count] = True, frames
        return dataclasses.replace(request, known=known, video=video)

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch without its captions, which nothing here reads.

        Raises:
            UserError: the batch has neither pixels nor all that the encoders would make of them.
        """
        return without_captions(batch, ("latents", "frame_embedding"))

    def request_from_batch(self, batch: Mapping[str, Array], keys: Key[Array, " b"]) -> KnownFramesRequest:
        """The request that a training clip answers: some of its frames, with noise of a random level.

        Args:
            batch: ``video`` [b t h w 3] in [-1, 1], ``fps`` [b], ``motion_bucket`` [b]; and as far as they were
                computed before, ``latents`` [b t h2 w2 c] and ``frame_embedding`` [b t d].
            keys: of each clip.
        """
        pattern_keys, level_keys, noise_keys = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
        frames = batch["latents" if "latents" in batch else "video"].shape[1]
        request = KnownFramesRequest(
            known=jax.vmap(lambda key: PATTERNS[self.config.task](key, frames))(pattern_keys),
            video=batch.get("video"),
            fps=batch["fps"],
            motion_bucket=batch["motion_bucket"],
            # The paper says that these latents are noised, not how much: as the picture of image to video.
            noise_aug=jax.vmap(lambda key: NOISE_AUG.sample(key, ()))(level_keys),
            latents=batch.get("latents"),
            embeddings=batch.get("frame_embedding"),
        )
        return self.complete(request, noise_keys)

    def encoded(
        self, model: SVD, batch: Mapping[str, Array], keys: Key[Array, " b"], draws: int
    ) -> dict[str, Array]:
        """``frame_embedding`` [b t d]: CLIP's of every frame. The latents are those that training has anyway."""
        del keys, draws
        frames = jnp.moveaxis(batch["video"], 1, 0)
        embedded = jax.lax.map(lambda images: self._clip(model, images), frames)
        return {"frame_embedding": jnp.moveaxis(embedded, 0, 1)}

    def condition(self, model: SVD, request: KnownFramesRequest, frames: int) -> Conditioning:
        """Turn a request into conditioning (paper, section 4.4; the same for training and sampling).

        Args:
            model: holds the image encoder, the VAE and the latent for missing frames.
            request: a batch of videos of ``frames`` frames, some of them given.
            frames: number of frames t.

        Returns:
            Two CLIP tokens, of the first and of the last given frame; on the channels, for each frame its noised
            latent and 1, or where it is not given the latent for missing frames and 0; and the scalars that the
            model has, of which ``fps`` enters as fps - 1.
        """
        known = request.known[..., None, None, None]
        latents = self._latents(model, request)
        noised = latents + request.noise_aug[:, None, None, None, None] * request.noise
        scalars = {
            "fps": request.fps - 1,
            "motion_bucket": request.motion_bucket,
            "noise_aug": request.noise_aug,
        }
        return Conditioning(
            context=self._tokens(model, request),
            concat=_with_mask(jnp.where(known, noised, _missing(model, latents.shape)), known),
            vector=embed_scalars(self.config.scalars, scalars, frames),
        )

    def _latents(self, model: SVD, request: KnownFramesRequest) -> Float[Array, "b t h2 w2 c"]:
        """Of every frame, as the noisy latents are: multiplied by the scaling factor."""
        latents = request.latents
        if latents is None:
            more = [(0, -side % self.config.size_multiple) for side in request.video.shape[2:4]]
            video = jnp.pad(request.video, [(0, 0), (0, 0), *more, (0, 0)], mode="edge")
            latents = model.vae.encode(video.astype(model.vae.encoder.conv_in.kernel[...].dtype)).mode()
        return latents.astype(jnp.float32) * self.config.vae.scaling_factor

    def _tokens(self, model: SVD, request: KnownFramesRequest) -> Float[Array, "b 2 d"]:
        """CLIP's embeddings of the first and of the last given frame."""
        known = request.known
        last = known.shape[1] - 1 - jnp.argmax(known[:, ::-1], axis=1)
        index = jnp.stack([jnp.argmax(known, axis=1), last], axis=1)
        if request.embeddings is not None:
            return jnp.take_along_axis(request.embeddings, index[..., None], axis=1)
        images = jnp.take_along_axis(jnp.asarray(request.video), index[..., None, None, None], axis=1)
        tokens = self._clip(model, rearrange(images, "b s h w c -> (b s) h w c"))
        return rearrange(tokens, "(b s) d -> b s d", s=2)

    def _clip(self, model: SVD, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        return model.image_encoder(preprocess(images, size=self.config.image_encoder.image_size))

    def unconditional(
        self, model: SVD, cond: Conditioning, request: KnownFramesRequest | None = None
    ) -> Conditioning:
        """Zero tokens and no frame given; the same scalars."""
        del request
        shape = (*cond.concat.shape[:-1], cond.concat.shape[-1] - 1)
        nothing = jnp.broadcast_to(_missing(model, shape), shape).astype(cond.concat.dtype)
        none = jnp.zeros((*shape[:2], 1, 1, 1), bool)
        return dataclasses.replace(cond, context=jnp.zeros_like(cond.context), concat=_with_mask(nothing, none))


def _missing(model: SVD, shape: tuple[int, ...]) -> Float[Array, "h w c"]:
    """The latent for missing frames, for latents [b t h w c]; resized if it was learned for another size."""
    learned = model.missing_frame[...].astype(jnp.float32)
    return learned if learned.shape == shape[2:] else jax.image.resize(learned, shape[2:], "linear")


def _with_mask(latents: Float[Array, "b t h w c"], known: Bool[AnyArray, "b t 1 1 1"]) -> Float[Array, "b t h w d"]:
    """The latents, and one channel of ones where a frame is given and of zeros where not."""
    _, _, h, w, _ = latents.shape
    mask = repeat(jnp.asarray(known).astype(latents.dtype), "b t 1 1 1 -> b t h w 1", h=h, w=w)
    return jnp.concatenate([latents, mask], axis=-1)
