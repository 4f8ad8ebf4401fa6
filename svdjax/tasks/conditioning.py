"""What the UNet is conditioned on, how conditions are left out in training, and how the UNet receives them."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import repeat

from svdjax.errors import UserError
from svdjax.models.layers import sinusoidal_embedding
from svdjax.models.params import cast_floating
from svdjax.models.svd import SamplingDefaults, Scalars
from svdjax.models.unet import UNet, Watch
from svdjax.typing import Array, Bool, Float, Key, ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything that a UNet is conditioned on beside the noise level.

    Attributes:
        context: tokens for the cross-attention (CLIP image embedding, or text).
        concat: latents joined to the noisy latent on the channels, or None.
        vector: embedded scalars (fps, motion bucket, ...), added to the time embedding, or None.
        temporal_context: other tokens for the temporal cross-attention, or None for the same ones.
        image_only: frames that are images by themselves, which no temporal layer reaches; None for none.
    """

    context: Float[Array, "b s d"]
    concat: Float[Array, "b t h w c"] | None = None
    vector: Float[Array, "b t v"] | None = None
    temporal_context: Float[Array, "b s d"] | None = None
    image_only: Bool[Array, "b t"] | None = None


@dataclass(frozen=True, kw_only=True)
class DropRates:
    """Probability that training takes a condition away, drawn for each video.

    The image-to-video paper does not give its rates; ours are 10 % for each condition alone and 10 % for both
    together. Text-to-video drops its text, the ``context``, in 15 % of the videos.

    Attributes:
        context: the tokens only.
        concat: the conditioning latent only.
        both: both at once.
    """

    context: float = 0.1
    concat: float = 0.1
    both: float = 0.1

    def __post_init__(self) -> None:
        """Check that they are probabilities of events that exclude each other.

        Raises:
            UserError: they are not.
        """
        rates = dataclasses.astuple(self)
        if min(rates) < 0 or sum(rates) > 1:
            raise UserError(f"dropout rates {rates} (context, concat, both): each at least 0, together at most 1")


def drop(
    cond: Conditioning, unconditional: Conditioning, keys: Key[Array, " b"], rates: DropRates
) -> tuple[Conditioning, dict[str, Float[Array, "2"]]]:
    """Take conditions away at random, so that the model also learns the branch that guidance moves away from.

    Args:
        cond: of the batch.
        unconditional: what stands in for a condition that is taken away: the task's unconditional branch.
        keys: of each video.
        rates: how often.

    Returns:
        The conditioning, and for each kind of condition how many videos lost it, with the number of videos.
    """
    u = jax.vmap(jax.random.uniform)(keys)
    one = rates.context + rates.concat  # below it one condition alone is lost, and right above it both
    both = (u >= one) & (u < one + rates.both)
    context = (u < rates.context) | both
    concat = ((u >= rates.context) & (u < one)) | both
    lost = {"context": context} | ({"concat": concat} if cond.concat is not None else {})

    def without(name: str) -> Array:
        value = getattr(cond, name)
        there = lost[name].reshape(-1, *[1] * (value.ndim - 1))
        return jnp.where(there, getattr(unconditional, name).astype(value.dtype), value)

    counts = {
        f"dropped_{name}": jnp.stack([jnp.sum(mask), jnp.asarray(mask.size)]).astype(jnp.float32)
        for name, mask in lost.items()
    }
    return dataclasses.replace(cond, **{name: without(name) for name in lost}), counts


def embed_scalars(
    scalars: Scalars, values: Mapping[str, Float[Array, " b"] | Float[Array, "b t"]], frames: int
) -> Float[Array, "b t v"]:
    """Embed each scalar in sinusoids and join them in order (the raw value, without scaling).

    Args:
        scalars: name and embedding width of each scalar.
        values: one number per video, or one per frame (camera poses).
        frames: number of frames t.
    """

    def per_frame(value: Array) -> Array:
        return repeat(value, "b -> b t", t=frames) if value.ndim == 1 else value

    return jnp.concatenate(
        [sinusoidal_embedding(per_frame(values[name]), width) for name, width in scalars], axis=-1
    )


def same_for_all(defaults: SamplingDefaults, names: Iterable[str], videos: int) -> dict[str, Float[ndarray, " b"]]:
    """On the host: the scalars of a request that every video takes from the defaults."""
    return {name: np.full(videos, getattr(defaults, name), np.float32) for name in names}


def without_captions(batch: Mapping[str, Any], encoded: Iterable[str]) -> dict[str, Any]:
    """On the host: a batch for a task that reads no captions.

    Args:
        batch: of clips, or of what is kept of them.
        encoded: what the encoders would make of the pixels, all that is needed in their place.

    Raises:
        UserError: the batch has neither.
    """
    if "video" not in batch and (missing := sorted(set(encoded) - set(batch))):
        raise UserError(f"a batch without pixels lacks {', '.join(missing)}: compute the cache with them")
    return {name: value for name, value in batch.items() if name != "caption"}


def pad_to_multiple(images: Float[ndarray, "*n h w c"], multiple: int) -> Float[ndarray, "*n h2 w2 c"]:
    """On the host: repeat the last row and column until both sides are multiples of a number."""
    height, width = images.shape[-3:-1]
    sides = (0, -height % multiple), (0, -width % multiple)
    return np.pad(images, [(0, 0)] * (images.ndim - 3) + [*sides, (0, 0)], mode="edge")


Network = Callable[[Float[Array, "b t h w c"], Float[Array, " b"], Conditioning], Float[Array, "b t h w c"]]


def network_of(unet: UNet, *, watch: Watch | None = None) -> Network:
    """The UNet as the denoiser sees it: scaled latent, noise embedding and conditioning to output.

    The conditioning latent joins *after* the latent was scaled by c_in, and is not scaled itself. The UNet
    computes in the type of its parameters; the output returns in the type of ``x``. ``watch`` is handed to it.
    """
    dtype = unet.conv_in.kernel[...].dtype

    def network(
        x: Float[Array, "b t h w c"], c_noise: Float[Array, " b"], cond: Conditioning
    ) -> Float[Array, "b t h w c"]:
        inputs = x.astype(dtype)
        cond = cast_floating(cond, dtype)
        if cond.concat is not None:
            inputs = jnp.concatenate([inputs, cond.concat], axis=-1)
        extra = {"image_only": cond.image_only, "temporal_context": cond.temporal_context, "watch": watch}
        out = unet(inputs, c_noise, cond.context, cond.vector, **extra)
        return out.astype(x.dtype)

    return network
