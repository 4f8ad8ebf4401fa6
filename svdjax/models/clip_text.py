"""OpenCLIP ViT-H/14 text tower: the 77 context tokens of SD 2.1 and of text-to-video."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.clip_layers import Block, layer_norm, table
from svdjax.typing import Array, Float, Int, ndarray


@dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of the text tower; the defaults are OpenCLIP ViT-H/14, 354,032,641 parameters.

    Attributes:
        layers: blocks of the tower as it was trained, whether or not the last one is held.
        last_block: False for files that leave out the last block, which the penultimate output never needs:
            the diffusers folder of SD 2.1 holds 23 of 24.
        projection_dim: width of the contrastive projection that open_clip files carry, with ``logit_scale``,
            although nothing here computes with them; None where the file has neither.
    """

    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_dim: int = 4096
    context_length: int = 77
    vocab_size: int = 49408
    last_block: bool = True
    projection_dim: int | None = 1024

    @classmethod
    def vit_h(cls) -> "CLIPTextConfig":
        """The tower of SD 2.1's single-file checkpoints."""
        return cls()

    @classmethod
    def sd21_diffusers(cls) -> "CLIPTextConfig":
        """The tower of SD 2.1's diffusers folder: no last block, no projection."""
        return cls(last_block=False, projection_dim=None)

    @classmethod
    def tiny(cls) -> "CLIPTextConfig":
        """Four layers of width 64, for tests."""
        return cls(width=64, layers=4, heads=4, mlp_dim=256, projection_dim=64)

    @property
    def held_layers(self) -> int:
        """Number of blocks that the module holds."""
        return self.layers if self.last_block else self.layers - 1


class CLIPText(nnx.Module):
    """The text tower: a causal pre-norm transformer over BPE tokens."""

    def __init__(self, config: CLIPTextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.token_embed = nnx.Embed(config.vocab_size, config.width, rngs=rngs)
        self.position_embed = table((config.context_length, config.width), rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(config.width, config.heads, config.mlp_dim, causal=True, rngs=rngs)
                for _ in range(config.held_layers)
            ]
        )
        self.norm_final = layer_norm(config.width, rngs=rngs)
        if config.projection_dim is not None:
            self.text_projection = table((config.width, config.projection_dim), rngs=rngs)
            self.logit_scale = nnx.Param(jnp.zeros(()))

    def __call__(
        self,
        tokens: Int[Array, "b s"] | Int[ndarray, "b s"],
        *,
        layer: Literal["penultimate", "last"] = "penultimate",
    ) -> Float[Array, "b s c"]:
        """Embed token sequences.

        Args:
            tokens: ids of :func:`svdjax.models.tokenizer.tokenize`, at most ``context_length`` a row.
            layer: ``"penultimate"`` skips the last block (what SD 2.1 is conditioned on), ``"last"`` runs it.

        Returns:
            The chosen layer after the final layer norm, one vector a token, not projected.

        Raises:
            UserError: the rows are too long, or the last block is asked of a checkpoint without it.
        """
        if tokens.shape[1] > self.config.context_length:
            raise UserError(
                f"the text tower takes at most {self.config.context_length} tokens, not {tokens.shape[1]}"
            )
        if layer == "last" and not self.config.last_block:
            raise UserError("this checkpoint leaves out the text tower's last block: use layer='penultimate'")
        # Indexed by hand: nnx.Embed would cast to the dtype that it was made with.
        x = self.token_embed.embedding[...][jnp.asarray(tokens)] + self.position_embed[...][: tokens.shape[1]]
        for i in range(self.config.layers - (layer == "penultimate")):
            x = self.blocks[i](x)
        return self.norm_final(x)
