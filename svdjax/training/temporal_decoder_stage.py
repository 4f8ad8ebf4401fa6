"""Finetunes the temporal decoder against a discriminator, which asks for the detail that reconstruction loses."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from svdjax.conversion.lpips import read_lpips
from svdjax.models.discriminator import Discriminator, DiscriminatorConfig
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.models.params import abstract, draw_params
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training.model import Model, svd_shapes
from svdjax.training.sharding import param_shardings, place
from svdjax.training.stage import Batch, Metrics
from svdjax.training.vae_stage import DecoderStage, encode_video
from svdjax.typing import Array, Float, Key

_CRITICS = ("discriminator.", "lpips.")  # in the stage's model only: they are not part of what it leaves


@dataclass(frozen=True, kw_only=True)
class TemporalDecoderStage(DecoderStage):
    """Reconstruction, perceptual distance and a patch-wise temporal discriminator, the encoder being frozen.

    The paper finetunes the decoder "following" Video LDM (arXiv 2304.08818, section 3.1.1), which names these
    parts and no weights. Decoder and discriminator take their steps at once, each on its own loss: the hinge loss
    of the discriminator's logits D, mean max(0, 1 - D(real)) + mean max(0, 1 + D(made)), and for the decoder
    -mean D(made).

    Attributes:
        perceptual: file of LPIPS weights (see `conversion.lpips.read_lpips`); None leaves LPIPS out.
        perceptual_weight: of LPIPS in the loss.
        adversary: the discriminator's sizes.
        adversary_weight: of the decoder's adversarial loss; at 0 there is no discriminator's loss either.
    """

    perceptual: Path | None = None
    perceptual_weight: float = 1.0
    adversary: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    adversary_weight: float = 0.05

    def shapes(self, config: SVDConfig) -> SVD:
        model = super().shapes(config)
        model.discriminator = abstract(Discriminator, self.adversary)
        if self.perceptual is not None:
            model.lpips = abstract(LPIPS, LPIPSConfig())
        return model

    def trains(self, path: str) -> bool:
        return super().trains(path) or path.startswith("discriminator.")

    def begin(self, model: Model, *, seed: int, mesh: Mesh) -> Model:
        """
        Raises:
            UserError: the LPIPS weights cannot be read.
        """

        def draw(key: Array) -> dict[str, Array]:
            drawn = draw_params(Discriminator, self.adversary, key)
            return {f"discriminator.{path}": value for path, value in drawn.items()}

        key = jax.random.key(seed)
        new = jax.jit(draw, out_shardings=param_shardings(jax.eval_shape(draw, key), mesh))(key)
        if self.perceptual is not None:
            weights = read_lpips(self.perceptual)
            new |= place({f"lpips.{path}": value for path, value in weights.items()}, mesh)
        return replace(model, params={**model.params, **new}, structure=self.shapes)

    def save(self, model: Model, path: Path, *, dtype: str = "float32") -> None:
        params = {name: value for name, value in model.params.items() if not name.startswith(_CRITICS)}
        super().save(replace(model, params=params, structure=svd_shapes), path, dtype=dtype)

    def for_validation(self) -> "TemporalDecoderStage":
        """Without the discriminator, against which a loss says little."""
        return replace(self, adversary_weight=0.0)

    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        video = batch["video"]
        made = model.vae.decode(encode_video(model.vae, video))
        loss, psnr = self.reconstruction(made, video)
        metrics = {"psnr": psnr}
        if self.perceptual is not None:
            frames = (x.reshape(-1, *x.shape[2:]).astype(made.dtype) for x in (made, video))
            metrics["lpips"] = jnp.mean(model.lpips(*frames).astype(jnp.float32))
            loss += self.perceptual_weight * metrics["lpips"]
        if self.adversary_weight:
            fools, mistakes = hinge(model.discriminator, made, video.astype(made.dtype))
            metrics |= {"adversarial": fools, "discriminator": mistakes}
            loss += self.adversary_weight * fools + mistakes
        return loss, metrics


def hinge(
    discriminator: Discriminator, made: Float[Array, "b t h w 3"], real: Float[Array, "b t h w 3"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The decoder's loss, with a gradient for ``made`` alone, and the discriminator's, with one for it alone."""
    graph, state = nnx.split(discriminator)
    fixed = nnx.merge(graph, jax.lax.stop_gradient(state))
    fools = -jnp.mean(fixed(made).astype(jnp.float32))
    on_made, on_real = (discriminator(x).astype(jnp.float32) for x in (jax.lax.stop_gradient(made), real))
    return fools, jnp.mean(jax.nn.relu(1 + on_made)) + jnp.mean(jax.nn.relu(1 - on_real))
