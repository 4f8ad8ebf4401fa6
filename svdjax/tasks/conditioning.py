"""What the UNet is conditioned on, and how the UNet receives it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from einops import repeat

from svdjax.models.layers import sinusoidal_embedding
from svdjax.models.params import cast_floating
from svdjax.models.svd import Scalars
from svdjax.models.unet import UNet, Watch
from svdjax.typing import Array, Float


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Everything that a UNet is conditioned on beside the noise level.

    Attributes:
        context: tokens for the cross-attention (CLIP image embedding, or text).
        concat: latents joined to the noisy latent on the channels, or None.
        vector: embedded scalars (fps, motion bucket, ...), added to the time embedding, or None.
        temporal_context: other tokens for the temporal cross-attention, or None for the same ones.
    """

    context: Float[Array, "b s d"]
    concat: Float[Array, "b t h w c"] | None = None
    vector: Float[Array, "b t v"] | None = None
    temporal_context: Float[Array, "b s d"] | None = None


def embed_scalars(
    scalars: Scalars, values: Mapping[str, Float[Array, " b"] | Float[Array, "b t"]], frames: int
) -> Float[Array, "b t v"]:
    """Embed each scalar in sinusoids and join them in order (svd.md: the raw value, without scaling).

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
        extra = {"temporal_context": cond.temporal_context, "watch": watch}
        out = unet(inputs, c_noise, cond.context, cond.vector, **extra)
        return out.astype(x.dtype)

    return network
