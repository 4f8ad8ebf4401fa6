"""The file that ``svdjax record`` writes and ``svdjax compare`` reads: a reference run's inputs and results."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from svdjax.conversion.output import finished
from svdjax.errors import UserError, check_keys
from svdjax.models.svd import SVDConfig
from svdjax.typing import Float, ndarray

FORMAT = "svdjax-recording"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One run of a reference implementation on one picture. Arrays are in the reference's own precision.

    Attributes:
        config: the checkpoint's configuration, with the sampling settings of the run as its ``defaults``.
        about: where the run came from: checkpoint, libraries, photo, seed.
        image: the picture that both the CLIP tower and the VAE were given, in [-1, 1].
        image_noise: standard normal noise on the picture, to be scaled by ``defaults.noise_aug``.
        noise: standard normal noise that the sampler starts from, to be scaled by ``sqrt(1 + sigmas[0]^2)``.
        sigmas: noise levels, descending, ending with 0.
        chunk: frames that the reference decoded at once; chunks were decoded alone, with seams.
        scale: guidance scale of each frame.
        clip_pixels: the picture as the CLIP tower saw it, resized and normalised.
        embedding: the CLIP embedding.
        image_latent: mode of the noised picture's latent, not scaled.
        vector: the embedded scalars, as the UNet received them.
        denoised: the guided denoiser's output in each step.
        latents: the sampler's state after each step.
        frames: the decoded video, about [-1, 1].
        clipped: whether ``frames`` were clipped to [-1, 1].
        blocks: mean, standard deviation and largest magnitude of each UNet block's output in the first step, over
            the batch of the unconditional and the conditional branch; empty if they were not recorded.
    """

    config: SVDConfig
    about: Mapping[str, str | int | float] = field(default_factory=dict)
    image: Float[ndarray, "H W 3"]
    image_noise: Float[ndarray, "H W 3"]
    noise: Float[ndarray, "t h w c"]
    sigmas: Float[ndarray, " n_plus_1"]
    chunk: int
    scale: Float[ndarray, " t"]
    clip_pixels: Float[ndarray, "size size 3"]
    embedding: Float[ndarray, " d"]
    image_latent: Float[ndarray, "h w c"]
    vector: Float[ndarray, "t v"]
    denoised: Float[ndarray, "n t h w c"]
    latents: Float[ndarray, "n t h w c"]
    frames: Float[ndarray, "t H W 3"]
    clipped: bool = False
    blocks: Mapping[str, Float[ndarray, "3"]] = field(default_factory=dict)

    @property
    def dtype(self) -> np.dtype:
        """The reference's precision."""
        return self.latents.dtype

    @property
    def guided(self) -> bool:
        """Whether the reference also ran the unconditional branch."""
        return bool((self.scale > 1).any())

    def save(self, path: Path) -> None:
        """Write the file; an existing one is replaced only by a complete one.

        Raises:
            UserError: the path cannot be written to.
        """
        header = {
            "format": FORMAT,
            "version": VERSION,
            "config": json.loads(self.config.to_json()),
            "about": dict(self.about),
            "chunk": self.chunk,
            "clipped": self.clipped,
        }
        arrays = {name: getattr(self, name) for name in ARRAYS}
        arrays |= {f"blocks/{name}": values for name, values in self.blocks.items()}
        with finished(path, overwrite=True) as partial, open(partial, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """Read :meth:`save`'s file.

        Raises:
            UserError: there is no such file, it is not a recording, or it is of another version.
        """
        try:
            # NumPy leaves a damaged file open when it opened it itself.
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            header = json.loads(str(arrays.pop("header")))
        except FileNotFoundError:
            raise UserError(f"{path}: no such recording; make one with `svdjax record`") from None
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, AttributeError):
            raise UserError(f"{path}: not a recording of `svdjax record`, or a damaged one") from None
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise UserError(f"{path}: not a recording of `svdjax record`")
        if header.get("version") != VERSION:
            raise UserError(
                f"{path}: a recording of version {header.get('version')}, this svdjax reads version {VERSION}; "
                "record it again"
            )
        prefix = "blocks/"
        blocks = {name[len(prefix) :]: arrays.pop(name) for name in list(arrays) if name.startswith(prefix)}
        check_keys(str(path), arrays, ARRAYS)
        return cls(
            config=SVDConfig.from_json(json.dumps(header["config"]), where=str(path)),
            about=header["about"],
            chunk=header["chunk"],
            clipped=header["clipped"],
            blocks=blocks,
            **arrays,
        )


ARRAYS = tuple(
    f.name for f in dataclasses.fields(Recording) if f.name not in ("config", "about", "chunk", "clipped", "blocks")
)
