"""Latents of a small data set, computed once and kept in memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from flax import nnx

from svdjax.data.pipeline import Source, to_batch, to_unit
from svdjax.models.vae import VAE
from svdjax.training.vae_stage import encode_video


@dataclass(frozen=True)
class LatentSource:
    """Clips with their latents; only the first frame of the pixels is kept.

    The first frame stays because its noise augmentation happens before the encoder, anew in each step.
    """

    clips: Sequence[Mapping[str, np.ndarray]]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Mapping[str, np.ndarray]:
        return self.clips[index]


def with_latents(vae: VAE, source: Source, *, batch: int = 32) -> LatentSource:
    """Encode every clip of a source (mode of the posterior, not scaled).

    Memory: one frame of uint8 pixels and t latents of float32 per clip.
    """
    graph, state = nnx.split(vae)
    encode = jax.jit(lambda state, video: encode_video(nnx.merge(graph, state), to_unit(video)))
    clips: list[Mapping[str, np.ndarray]] = []
    for start in range(0, len(source), batch):
        records = [source[index] for index in range(start, min(start + batch, len(source)))]
        padded = records + [records[-1]] * (batch - len(records))
        latents = np.asarray(encode(state, to_batch(padded)["video"]))
        clips += [
            {**record, "video": record["video"][:1].copy(), "latents": latent}
            for record, latent in zip(records, latents[: len(records)], strict=True)
        ]
    return LatentSource(clips)
