"""Latents of a small data set, computed once and kept in memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import jax

from svdjax.data.pipeline import Item, to_batch, to_unit
from svdjax.models.vae import VAE
from svdjax.training import processes
from svdjax.training.sharding import gather
from svdjax.training.vae_stage import encode_video


@dataclass(frozen=True)
class LatentSource:
    """Clips with their latents; of the pixels only those are kept that condition the clip.

    They stay because their noise augmentation may happen before the encoder, anew in each step.
    """

    clips: Sequence[Item]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Item:
        return self.clips[index]


def with_latents(vae: VAE, items: Iterable[Item], *, picture: int | None = 0, batch: int = 32) -> LatentSource:
    """Encode every clip (mode of the posterior, not scaled).

    Memory: one frame of uint8 pixels, or all, and t latents of float32 per clip.

    Args:
        vae: the autoencoder.
        items: the clips.
        picture: index of the frame whose pixels are kept; None for all.
        batch: clips to encode at once.
    """
    kept = slice(None) if picture is None else [picture]
    encode = jax.jit(lambda vae, video: encode_video(vae, to_unit(video)))
    encode = processes.compiled_together(encode, "encoder")
    clips: list[Item] = []
    items = iter(items)
    while records := list(islice(items, batch)):
        padded = records + [records[-1]] * (batch - len(records))
        latents = gather(encode(vae, to_batch(padded)["video"]))
        clips += [
            {**record, "video": record["video"][kept].copy(), "latents": latent}
            for record, latent in zip(records, latents[: len(records)], strict=True)
        ]
    return LatentSource(clips)
