"""CLIP embeddings of a clip's stills and captions, their cosines, and how pleasing the stills look (paper, 3.1).

Both towers are OpenCLIP ViT-H/14, trained together: the image tower of an SVD or SV3D checkpoint, the text tower of
a single-file checkpoint of SD 2.1. Pictures are squashed to the tower's square, as SVD's conditioning does.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.conversion.source import open_checkpoint, read_arrays
from svdjax.curation.clip import ClipFrames
from svdjax.errors import UserError, check_keys
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.clip_text import CLIPText
from svdjax.models.clip_vision import CLIPVision
from svdjax.models.params import abstract, load_flat
from svdjax.models.tokenizer import END, tokenize
from svdjax.typing import Array, Float, Int, UInt8, ndarray

Tower = TypeVar("Tower", CLIPVision, CLIPText)
# The modules of LAION's head that have weights; between them it has only dropout, and no activation.
HEAD_LAYERS = (0, 2, 4, 6, 7)


@dataclass(frozen=True, kw_only=True)
class AestheticHead:
    """LAION's predictor "sac+logos+ava1-l14-linearMSE": about 1 to 10, from an embedding of unit length.

    Attributes:
        layers: weight [out, in] and bias [out] of each linear layer, the last with one output.
    """

    layers: tuple[tuple[Float[ndarray, "..."], Float[ndarray, "..."]], ...]

    @property
    def width(self) -> int:
        """Width of the embeddings that it was trained on: 768 for CLIP ViT-L/14, 1024 for ViT-H/14."""
        return self.layers[0][0].shape[1]

    def __call__(self, embeddings: Float[ndarray, "b c"]) -> Float[ndarray, " b"]:
        """Scores of embeddings of unit length."""
        x = embeddings
        for weight, bias in self.layers:
            x = x @ weight.T + bias
        return x[:, 0]


@dataclass(frozen=True, kw_only=True)
class ImageEmbedder:
    """The stage ``clip_embedding``, of unit length, of each still; with a head also ``aesthetic``, a mean score."""

    tower: CLIPVision
    head: AestheticHead | None = None

    def __call__(self, clip: ClipFrames) -> dict[str, Any]:
        embeddings = self.embed(clip.stills)
        found: dict[str, Any] = {"clip_embedding": embeddings.tolist()}
        return found if self.head is None else found | {"aesthetic": float(self.head(embeddings).mean())}

    def embed(self, pictures: UInt8[ndarray, "b h w 3"]) -> Float[ndarray, "b c"]:
        """Embeddings of unit length."""
        pixels = preprocess(jnp.asarray(pictures, jnp.float32) / 127.5 - 1, size=self.tower.config.image_size)
        return _unit(np.asarray(_embed_pictures(self.tower, pixels), np.float32))


@dataclass(frozen=True, kw_only=True)
class TextEmbedder:
    """Embeddings of captions in the space of the pictures'."""

    tower: CLIPText

    def embed(self, texts: Sequence[str]) -> Float[ndarray, "b c"]:
        """Embeddings of unit length; of a text longer than 77 tokens, of its beginning."""
        tokens = tokenize(texts, context_length=self.tower.config.context_length)
        return _unit(np.asarray(_embed_tokens(self.tower, tokens), np.float32))


def clip_scores(
    embedder: TextEmbedder, clip_embedding: Sequence[Sequence[float]], captions: Mapping[str, str]
) -> dict[str, float]:
    """How well each caption fits a clip: the cosine with it, averaged over the stills.

    Args:
        clip_embedding: of `ImageEmbedder`. captions: by column, as of `captions.Captions`.

    Returns:
        ``clip_score`` of ``caption``, ``clip_score_image`` of ``caption_image``, and so on, for those given.
    """
    if not captions:
        return {}
    texts, pictures = embedder.embed(list(captions.values())), np.asarray(clip_embedding, np.float32)
    scores = (texts @ pictures.T).mean(1)
    return {name.replace("caption", "clip_score", 1): float(x) for name, x in zip(captions, scores, strict=True)}


def check_towers(images: ImageEmbedder, texts: TextEmbedder) -> None:
    """Check that pictures and texts are embedded into one space, as far as its width tells.

    Raises:
        UserError: they are not.
    """
    of_pictures, of_texts = images.tower.config.projection_dim, texts.tower.config.projection_dim
    if of_pictures != of_texts:
        raise UserError(
            f"texts are embedded into {of_texts} numbers and pictures into {of_pictures}: give both towers of one "
            "CLIP"
        )


def open_image_embedder(weights: str | Path, head: Path | None = None) -> ImageEmbedder:
    """Read the image tower of a checkpoint.

    Args:
        weights: any checkpoint that has one, such as SVD's. head: of `read_head`.

    Raises:
        UserError: no such tower, or the head was trained on another one.
    """
    embedder = ImageEmbedder(
        tower=_read_tower(weights, "image_encoder", CLIPVision), head=None if head is None else read_head(head)
    )
    width = embedder.tower.config.projection_dim
    if embedder.head is not None and embedder.head.width != width:
        raise UserError(
            f"{head}: rates embeddings of {embedder.head.width} numbers, but the image tower of {weights} gives "
            f"{width}: give a head that was trained on this tower"
        )
    return embedder


def open_text_embedder(weights: str | Path) -> TextEmbedder:
    """Read the text tower of a checkpoint, such as the single file of SD 2.1.

    Raises:
        UserError: it has none, or one without the last block, like the diffusers folder of SD 2.1.
    """
    tower = _read_tower(weights, "text_encoder", CLIPText)
    if tower.config.projection_dim is None or not tower.config.last_block:
        raise UserError(
            f"{weights}: its text tower lacks the last block or the projection, which scores need: give the "
            "single-file checkpoint of SD 2.1"
        )
    return TextEmbedder(tower=tower)


def read_head(path: Path) -> AestheticHead:
    """Read an aesthetics head from a .safetensors file with the keys ``layers.0.weight``, ``layers.0.bias``, ...

    Raises:
        UserError: no such file, or other layers are in it.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file: give the aesthetics head as .safetensors")
    tensors, _ = read_safetensors(path)
    names = [(f"layers.{layer}.weight", f"layers.{layer}.bias") for layer in HEAD_LAYERS]
    check_keys(f"{path}: not an aesthetics head", tensors, [name for both in names for name in both])
    layers = tuple(
        (tensors[weight].load().astype(np.float32), tensors[bias].load().astype(np.float32))
        for weight, bias in names
    )
    shapes = [weight.shape for weight, _ in layers]
    fit = all(len(weight.shape) == 2 and bias.shape == weight.shape[:1] for weight, bias in layers)
    if not fit or shapes[-1][0] != 1 or any(a[0] != b[1] for a, b in itertools.pairwise(shapes)):
        raise UserError(f"{path}: not an aesthetics head: its layers {shapes} do not follow one another")
    return AestheticHead(layers=layers)


def _read_tower(weights: str | Path, name: str, make: type[Tower]) -> Tower:
    checkpoint = open_checkpoint(weights).cast(np.dtype(np.float32))
    config = getattr(checkpoint.config, name)
    if config is None:
        raise UserError(f"{weights}: has no {name.replace('_', ' ')}: give a checkpoint with one")
    params = {
        path.removeprefix(f"{name}."): tensor
        for path, tensor in checkpoint.params.items()
        if path.startswith(f"{name}.")
    }
    arrays = {path: jax.device_put(array) for path, array in read_arrays(params)}
    return load_flat(abstract(make, config), arrays, what=f"{checkpoint.what}, {name}")


@jax.jit
def _embed_pictures(tower: CLIPVision, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b c"]:
    return tower(pixels)


@jax.jit
def _embed_tokens(tower: CLIPText, tokens: Int[Array, "b s"]) -> Float[Array, "b c"]:
    """The last layer at the end token, projected, as CLIP was trained."""
    last = tower(tokens, layer="last")
    ends = last[jnp.arange(len(tokens)), jnp.argmax(tokens == END, axis=1)]
    return ends @ tower.text_projection[...]


def _unit(x: Float[ndarray, "b c"]) -> Float[ndarray, "b c"]:
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
