"""Small layers that every network shares: embeddings, norms, convolutions, resampling and blending."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from svdjax.errors import UserError
from svdjax.typing import Array, Bool, Float


def sinusoidal_embedding(
    values: Float[Array, "*lead"], dim: int, max_period: float = 10000.0
) -> Float[Array, "*lead {dim}"]:
    """Embed numbers as ``[cos | sin]`` of ``dim / 2`` geometrically spaced frequencies.

    The transformer's position code (arXiv 1706.03762, section 3.5) for any real number, neither scaled nor
    rounded.

    Args:
        values: numbers to embed, in their own unit (a timestep index, ``c_noise``, frames per second, ...).
        dim: even width of the embedding.
        max_period: the longest wavelength is 2 pi times this.

    Returns:
        Values in [-1, 1], float64 for float64 input and float32 otherwise.
    """
    dtype = jnp.promote_types(values.dtype, jnp.float32)
    frequencies = jnp.exp(-jnp.log(jnp.asarray(max_period, dtype)) * jnp.arange(dim // 2, dtype=dtype) / (dim // 2))
    angles = values.astype(dtype)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class EmbeddingMLP(nnx.Module):
    """Linear, SiLU, linear: turns a sinusoidal embedding into one that blocks can use."""

    def __init__(self, in_dim: int, hidden: int, out_dim: int, *, rngs: nnx.Rngs) -> None:
        self.linear1 = nnx.Linear(in_dim, hidden, rngs=rngs)
        self.linear2 = nnx.Linear(hidden, out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "*lead c"]) -> Float[Array, "*lead e"]:
        """Embed; computed in the parameters' dtype."""
        return self.linear2(jax.nn.silu(self.linear1(x.astype(self.linear1.kernel.dtype))))


class GroupNorm(nnx.Module):
    """Normalises over groups of channels and every axis between the first and the channels (arXiv 1803.08494).

    Fold frames into the batch for a norm per image; give ``[b, t, h, w, c]`` for statistics over a video.
    """

    def __init__(self, channels: int, *, groups: int, eps: float, rngs: nnx.Rngs) -> None:
        del rngs  # no random start; taken so that every layer is built alike
        self.groups = groups
        self.eps = eps
        self.scale = nnx.Param(jnp.ones((channels,)))
        self.bias = nnx.Param(jnp.zeros((channels,)))

    def __call__(self, x: Float[Array, "b *sites c"]) -> Float[Array, "b *sites c"]:
        """Normalise, scale and shift; computed in at least float32."""
        scale, shift = self.affine(x)
        return (x * scale + shift).astype(x.dtype)

    def affine(self, x: Float[Array, "b *sites c"]) -> tuple[Float[Array, "b *ones c"], Float[Array, "b *ones c"]]:
        """What to multiply ``x`` by and to add to it, with the statistics of all of ``x``; at least float32.

        Sums run over sites first and over the few channels of a group last: on a CPU that takes half the time of
        one sum over both, and rounds ten times less.
        """
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        sites = range(1, x.ndim - 1)

        def over_group(values: Array) -> Array:
            groups = values.mean(sites).reshape(len(x), self.groups, -1).mean(-1, keepdims=True)
            channels = jnp.broadcast_to(groups, (*groups.shape[:2], x.shape[-1] // self.groups))
            return channels.reshape(len(x), *[1] * len(sites), x.shape[-1])

        mean = over_group(wide)
        scale = lax.rsqrt(over_group(jnp.square(wide - mean)) + self.eps) * self.scale[...]
        return scale, self.bias[...] - mean * scale


def check_norm_groups(what: str, channels: tuple[int, ...], groups: int) -> None:
    """Check that group norms can divide the widths of a network.

    Raises:
        UserError: they cannot.
    """
    for width in channels:
        if groups < 1 or width % groups:
            raise UserError(
                f"{what}: {width} channels do not divide into norm_groups {groups}: change channels or norm_groups"
            )


def conv3x3(
    in_channels: int, out_channels: int, *, stride: int = 1, zero_init: bool = False, rngs: nnx.Rngs
) -> nnx.Conv:
    """A 3x3 convolution padded by 1 on every side, as PyTorch pads; leading axes count as batch."""
    init = nnx.initializers.zeros if zero_init else nnx.initializers.lecun_normal()
    return nnx.Conv(in_channels, out_channels, (3, 3), strides=stride, padding=1, kernel_init=init, rngs=rngs)


class TemporalConv(nnx.Module):
    """A convolution over three frames, zero-padded at both ends; kernel ``(3, 1, 1, in, out)``.

    A new one sees only its own frame, so that a network trained on single frames starts well on whole videos; with
    ``identity`` it gives that frame as it is.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        zero_init: bool = False,
        identity: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        init = nnx.initializers.zeros if zero_init else nnx.initializers.lecun_normal()
        own_frame = init(rngs.params(), (1, 1, 1, in_channels, out_channels), jnp.float32)
        if identity:
            own_frame = jnp.eye(in_channels, out_channels)[None, None, None]
        self.kernel = nnx.Param(jnp.pad(own_frame, ((1, 1), *[(0, 0)] * 4)))
        self.bias = nnx.Param(jnp.zeros((out_channels,)))

    def __call__(self, x: Float[Array, "b t h w c"], *, padded: bool = True) -> Float[Array, "b t_out h w c_out"]:
        """Convolve over ``t``; any number of frames.

        Args:
            x: features.
            padded: False leaves out the first and the last frame of the result, which would see the padding.
        """
        kernel = self.kernel[...].astype(x.dtype)
        pad = int(padded)
        out = lax.platform_dependent(
            x,
            kernel,
            cpu=lambda x, kernel: _conv2d(x, kernel, pad),
            default=lambda x, kernel: _conv3d(x, kernel, pad),
        )
        return out + self.bias[...].astype(x.dtype)


def _conv3d(x: Array, kernel: Array, pad: int) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1, 1), ((pad, pad), (0, 0), (0, 0)), dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv2d(x: Array, kernel: Array, pad: int) -> Array:
    # On a CPU: frames as the rows and sites as the columns of an image. XLA's 3-D convolution is a naive loop
    # there, its 2-D one takes a third of the time of matrix products. Only its own gradient for the kernel is
    # slow, hence the one below.
    b, t, h, w, c = x.shape
    out = lax.conv_general_dilated(
        x.reshape(b, t, h * w, c),
        kernel[:, :, 0],
        (1, 1),
        ((pad, pad), (0, 0)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return out.reshape(b, -1, h, w, out.shape[-1])


def _conv2d_forward(x: Array, kernel: Array, pad: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv2d(x, kernel, pad), (x, kernel)


def _conv2d_backward(pad: int, inputs: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, kernel = inputs
    grad_x = _conv2d(grad, kernel[::-1].swapaxes(-1, -2), 2 - pad)
    x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0), (0, 0)))
    joined = jnp.concatenate([x[:, :-2], x[:, 1:-1], x[:, 2:]], axis=-1)
    grad_kernel = joined.reshape(-1, joined.shape[-1]).T @ grad.reshape(-1, grad.shape[-1])
    return grad_x, grad_kernel.reshape(kernel.shape)


_conv2d.defvjp(_conv2d_forward, _conv2d_backward)


class Downsample(nnx.Module):
    """The UNet's halving: a stride-2 convolution padded by 1 on both sides (the VAE pads only the end)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv = conv3x3(channels, channels, stride=2, rngs=rngs)

    def __call__(self, x: Float[Array, "*lead h w c"]) -> Float[Array, "*lead h2 w2 c"]:
        """Halve rows and columns, rounding up."""
        return self.conv(x)


class Upsample(nnx.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs) -> None:
        self.conv = conv3x3(channels, channels, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*lead h w c"], size: tuple[int, int] | None = None
    ) -> Float[Array, "*lead h2 w2 c"]:
        """Double rows and columns.

        Args:
            x: features.
            size: rows and columns wanted, ``2n`` or ``2n - 1`` of each, where the level above is odd. Nearest
                interpolation to an odd size equals doubling and dropping the last row.
        """
        x = jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)
        return self.conv(x if size is None else x[..., : size[0], : size[1], :])


def alpha_blend(
    mix_factor: Float[Array, "1"],
    first: Float[Array, "*x"],
    second: Float[Array, "*x"],
    keep_first: Bool[Array, "*x_or_ones"] | None = None,
) -> Float[Array, "*x"]:
    """``alpha * first + (1 - alpha) * second`` with ``alpha = sigmoid(mix_factor)``.

    Args:
        mix_factor: the learned number before the sigmoid.
        first: one stream; the UNet's spatial one, but the VAE decoder's *temporal* one.
        second: the other stream.
        keep_first: broadcastable to ``first``; where true, alpha is 1.
    """
    alpha = jax.nn.sigmoid(mix_factor).astype(first.dtype)
    if keep_first is not None:
        alpha = jnp.where(keep_first, jnp.ones((), first.dtype), alpha)
    return alpha * first + (1 - alpha) * second
