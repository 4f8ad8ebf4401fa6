"""Text to video: the text-conditioned stages, of single images (one frame) and of videos."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from svdjax.errors import UserError
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.tokenizer import tokenize
from svdjax.tasks.conditioning import Conditioning, embed_scalars, same_for_all
from svdjax.typing import AnyArray, Array, Float, Int, Key, ndarray


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """What a user asks for, and what a captioned training clip answers.

    Attributes:
        tokens: ids of :func:`svdjax.models.tokenizer.tokenize`; None where ``embedding`` is given.
        embedding: the text tower's penultimate output, if it was computed before.
        temporal_tokens: another text for the temporal cross-attention, to prompt the motion apart from what is seen
            (the paper's temporal prompting); None for the same one.
        negative_tokens: a text to move away from, in place of the empty one.
        fps: frames per second of the video. motion_bucket: 1 (still) to 255 (most motion). Neither is read by a
            model without scalars.
    """

    tokens: Int[AnyArray, "b s"] | None = None
    embedding: Float[Array, "b s d"] | None = None
    temporal_tokens: Int[AnyArray, "b s"] | None = None
    negative_tokens: Int[AnyArray, "b s"] | None = None
    fps: Float[AnyArray, " b"] | None = None
    motion_bucket: Float[AnyArray, " b"] | None = None


@dataclass(frozen=True, kw_only=True)
class TextToVideo:
    """The text-conditioned task of one model configuration."""

    config: SVDConfig
    picture: int = 0  # of which nothing is read
    per_frame: bool = False

    def request(
        self,
        defaults: SamplingDefaults,
        *,
        prompts: Sequence[str],
        negative_prompt: str | None = None,
        temporal_prompt: str | None = None,
    ) -> TextRequest:
        """Ask for videos of texts.

        Args:
            defaults: the scalars of all videos.
            prompts: one for each video.
            negative_prompt: what guidance moves away from in all videos; None is the empty text.
            temporal_prompt: what the temporal layers are told in all videos; None is each video's own prompt.

        Raises:
            UserError: the model has no text encoder.
        """
        if self.config.text_encoder is None:
            raise UserError("the checkpoint has no text encoder: give the whole checkpoint, not a part of it")

        def tokens(text: str | None) -> Int[ndarray, "b s"] | None:
            return None if text is None else self._tokens([text] * len(prompts))

        return TextRequest(
            tokens=self._tokens(prompts),
            temporal_tokens=tokens(temporal_prompt),
            negative_tokens=tokens(negative_prompt),
            **same_for_all(defaults, dict(self.config.scalars), len(prompts)),
        )

    def inputs_from_batch(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``prompts``: the captions.

        Raises:
            UserError: the batch has none.
        """
        if "caption" not in batch:
            raise UserError("samples of texts need held-out clips with captions: set --data.sampling.captions")
        return {"prompts": batch["caption"]}

    def complete(self, request: TextRequest, keys: Key[Array, " b"]) -> TextRequest:
        """The request as it is: nothing in it is random."""
        del keys
        return request

    def finish(self, request: TextRequest, frames: Float[ndarray, "b t h w 3"]) -> Float[ndarray, "b t h w 3"]:
        """The frames as they are: a text shows none."""
        del request
        return frames

    def following(self, request: TextRequest, frames: Float[ndarray, "b k h w 3"]) -> TextRequest:
        """The same text."""
        del frames
        return request

    def _tokens(self, texts: Sequence[str]) -> Int[ndarray, "b s"]:
        return tokenize(texts, context_length=self.config.text_encoder.context_length)

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
        return rest | {"tokens": self._tokens(batch["caption"])}

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
        temporal = request.temporal_tokens
        return Conditioning(
            context=context,
            vector=vector,
            temporal_context=None if temporal is None else model.text_encoder(temporal),
        )

    def unconditional(self, model: SVD, cond: Conditioning, request: TextRequest | None = None) -> Conditioning:
        """The embedding of the negative text, or else of the empty one, with the same scalars."""
        tokens = request.negative_tokens if request is not None else None
        if tokens is None:
            tokens = tokenize([""], context_length=cond.context.shape[1])
        context = model.text_encoder(tokens).astype(cond.context.dtype)
        context = jnp.broadcast_to(context, cond.context.shape)
        temporal = None if cond.temporal_context is None else context
        return dataclasses.replace(cond, context=context, temporal_context=temporal)
