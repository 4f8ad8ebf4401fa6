"""Text to video: the text-conditioned stages, of single images (one frame) and of videos."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.models.tokenizer import tokenize
from svdjax.tasks.conditioning import Conditioning, embed_scalars
from svdjax.typing import Array, Float, Int, Key


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What a user asks for, and what a captioned training clip answers.

    Attributes:
        tokens: ids of :func:`svdjax.models.tokenizer.tokenize`; None where ``embedding`` is given.
        embedding: the text tower's penultimate output, if it was computed before.
        fps: frames per second of the video. motion_bucket: 1 (still) to 255 (most motion). Neither is read by a
            model without scalars.
    """

    tokens: Int[Array, "b s"] | None = None
    embedding: Float[Array, "b s d"] | None = None
    fps: Float[Array, " b"] | None = None
    motion_bucket: Float[Array, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """The text-conditioned task of one model configuration."""

    config: SVDConfig

    def prepare(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Replace ``caption`` (b strings) by ``tokens`` (int32 [b s]), unless the batch has ``text_embedding``.

        Raises:
            UserError: the batch has neither captions, nor tokens, nor embeddings.
        """
        rest = {name: value for name, value in batch.items() if name != "caption"}
        if "text_embedding" in batch or "tokens" in batch:
            return rest
        if "caption" not in batch:
            raise UserError(
                "a text-conditioned model needs captions: give clips with captions, or cache text embeddings"
            )
        length = self.config.text_encoder.context_length
        return rest | {"tokens": tokenize(batch["caption"], context_length=length)}

    def request_from_batch(self, batch: Mapping[str, Array], keys: Key[Array, " b"]) -> TextRequest:
        """The request that a training clip answers: its caption, frame rate and motion. Nothing in it is random."""
        del keys
        fields = {"tokens": "tokens", "embedding": "text_embedding", "fps": "fps", "motion_bucket": "motion_bucket"}
        return TextRequest(**{field: batch.get(name) for field, name in fields.items()})

    def encoded(
        self, model: SVD, batch: Mapping[str, Array], keys: Key[Array, " b"], draws: int
    ) -> dict[str, Array]:
        """``text_embedding`` [b s d] of the captions. Nothing in it is random."""
        del keys, draws
        return {"text_embedding": model.text_encoder(batch["tokens"])}

    def condition(self, model: SVD, request: TextRequest, frames: int) -> Conditioning:
        """Text tokens, and the embedded scalars of a model that has them; ``fps`` enters as fps - 1.

        Args:
            model: holds the text encoder.
            request: a batch of texts and scalars.
            frames: number of frames t of the video.
        """
        context = request.embedding
        if context is None:
            context = model.text_encoder(request.tokens)
        vector = None
        if self.config.scalars:
            values = {"fps": request.fps - 1, "motion_bucket": request.motion_bucket}
            vector = embed_scalars(self.config.scalars, values, frames)
        return Conditioning(context=context, vector=vector)

    def unconditional(self, model: SVD, cond: Conditioning) -> Conditioning:
        """The embedding of the empty text, with the same scalars."""
        (length,) = cond.context.shape[1:2]
        empty = model.text_encoder(tokenize([""], context_length=length)).astype(cond.context.dtype)
        return dataclasses.replace(cond, context=jnp.broadcast_to(empty, cond.context.shape))
