"""OpenCLIP ViT-H/14 image tower: a picture becomes the one token that image-to-video is conditioned on."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx

from svdjax.models.clip_layers import Block, layer_norm, table
from svdjax.typing import Array, Float


@dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of the image tower; the defaults are ViT-H/14 (laion2B-s32B-b79K), 632,076,800 parameters.

    Attributes:
        patch_size, image_size: pixels; the tower sees ``(image_size / patch_size) ** 2`` patches.
        projection_dim: width of the embedding, equal to the UNet's context width.
        leftover_text: ``(vocab_size, context_length, width)`` of the text weights that the sgm files carry
            beside this tower without using them, or None. They are kept so that such a file can be written
            back whole.
    """

    width: int = 1280
    layers: int = 32
    heads: int = 16
    mlp_dim: int = 5120
    patch_size: int = 14
    image_size: int = 224
    projection_dim: int = 1024
    leftover_text: tuple[int, int, int] | None = None

    @classmethod
    def vit_h(cls) -> "CLIPVisionConfig":
        """The tower of SVD, SVD-XT and SV3D."""
        return cls()

    @classmethod
    def tiny(cls) -> "CLIPVisionConfig":
        """Three layers of width 64 on 65 tokens, for tests."""
        return cls(width=64, layers=3, heads=4, mlp_dim=160, patch_size=28, projection_dim=64)

    @property
    def tokens(self) -> int:
        """Length of the sequence: the patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


class LeftoverText(nnx.Module):
    """Weights of the text tower's ends that sgm files keep beside the image tower; never computed with."""

    def __init__(self, sizes: tuple[int, int, int], projection_dim: int, *, rngs: nnx.Rngs) -> None:
        vocab_size, context_length, width = sizes
        self.token_embed = nnx.Embed(vocab_size, width, rngs=rngs)
        self.position_embed = table((context_length, width), rngs=rngs)
        self.norm_final = layer_norm(width, rngs=rngs)
        self.text_projection = table((width, projection_dim), rngs=rngs)
        self.logit_scale = nnx.Param(jnp.zeros(()))


class CLIPVision(nnx.Module):
    """The image tower: class token of a pre-norm vision transformer, normalised and projected."""

    def __init__(self, config: CLIPVisionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        patch = (config.patch_size, config.patch_size)
        self.patch_embed = nnx.Conv(
            3, config.width, patch, strides=patch, padding="VALID", use_bias=False, rngs=rngs
        )
        self.class_embed = table((config.width,), rngs=rngs)
        self.position_embed = table((config.tokens, config.width), rngs=rngs)
        self.norm_pre = layer_norm(config.width, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(config.width, config.heads, config.mlp_dim, causal=False, rngs=rngs)
                for _ in range(config.layers)
            ]
        )
        self.norm_post = layer_norm(config.width, rngs=rngs)
        self.projection = nnx.Linear(config.width, config.projection_dim, use_bias=False, rngs=rngs)
        if config.leftover_text is not None:
            self.leftover_text = LeftoverText(config.leftover_text, config.projection_dim, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
        """Embed pictures.

        Args:
            images: ``image_size`` square, normalised by :func:`svdjax.models.clip_preprocess.preprocess`; cast
                to the dtype of the parameters, in which the tower computes.

        Returns:
            Pooled and projected embeddings, not normalised, ``c = projection_dim``: both references condition
            on these, not on the patch tokens.
        """
        patches = self.patch_embed(images.astype(self.position_embed.dtype))
        b, _, _, c = patches.shape
        class_token = jnp.broadcast_to(self.class_embed[...], (b, 1, c))
        x = jnp.concatenate([class_token, patches.reshape(b, -1, c)], axis=1) + self.position_embed[...]
        x = self.norm_pre(x)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_post(x[:, 0]))
