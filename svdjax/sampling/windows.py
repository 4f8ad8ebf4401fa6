"""Longer videos: windows that overlap, each held to the last frames of the one before while it is sampled."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.diffusion.denoiser import Denoise
from svdjax.typing import AnyArray, Array, Bool, Float, Int, Key

Video = Float[Array, "b t h w c"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Before:
    """What a window knows of the one before it.

    Attributes:
        latents: clean and scaled, of the frames that it begins with.
        window: its number, the same for each video; the first one, 0, has none before it.
    """

    latents: Float[AnyArray, "b k h w c"]
    window: Int[AnyArray, " b"]

    @classmethod
    def nothing(cls, videos: int, shape: tuple[int, ...], overlap: int) -> "Before":
        """Of the first window, so that one program serves all; ``shape`` is (t, h, w, c) of a window."""
        return cls(latents=np.zeros((videos, overlap, *shape[1:]), np.float32), window=np.zeros(videos, np.int32))

    def after(self, latents: Float[AnyArray, "b t h w c"]) -> "Before":
        """Of the next window, where this one came out as ``latents``."""
        return Before(latents=latents[:, -self.latents.shape[1] :], window=self.window + 1)

    def key(self, key: Key[Array, ""]) -> Key[Array, ""]:
        """Randomness of the window; of the first one that of a video which has no other."""
        window = jnp.asarray(self.window)[0]
        return jax.lax.cond(window > 0, lambda: jax.random.fold_in(key, window), lambda: key)

    def start(self, x: Video, sigma: Float[Array, ""]) -> Video:
        """What a sampler that `hold` leads starts from, where it would else be ``x`` at the first noise level."""
        given, is_given = self._of(x)
        return jnp.where(is_given, given + x * sigma / jnp.sqrt(1 + jnp.square(sigma)), x)

    def hold(self, denoise: Denoise) -> Denoise:
        """Let the window begin with the given latents, as in-painting does.

        At every noise level the frames are the given ones with noise, and what the denoiser says of them is
        overruled. That leads there whatever the sampler, for each goes from x towards D.

        Args:
            denoise: D(x, sigma) of the window.
        """

        def held(x: Video, sigma: Float[Array, " b"]) -> Video:
            given, is_given = self._of(x)
            return jnp.where(is_given, given, denoise(x, sigma))

        return held

    def _of(self, x: Video) -> tuple[Video, Bool[Array, "b t 1 1 1"]]:
        """The given latents and zeros, as many frames as ``x`` has, and which of them are given."""
        frames, known = x.shape[1], self.latents.shape[1]
        given = jnp.pad(self.latents.astype(x.dtype), ((0, 0), (0, frames - known), (0, 0), (0, 0), (0, 0)))
        is_given = (jnp.arange(frames) < known) & (jnp.asarray(self.window)[:, None] > 0)
        return given, is_given[..., None, None, None]
