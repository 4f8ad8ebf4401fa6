"""What the full-size recipes in ``configs/`` have in common: the models of the three stages, data, and optimizer.

The paper (arXiv 2311.15127, section 4 and appendix D) gives steps, batches, learning rates, noise levels and the
rate of text dropout. What it leaves open is chosen here, once, with the reason beside it; ``docs/recipes.md`` lists
both.
"""

import dataclasses
from pathlib import Path
from types import MappingProxyType
from typing import Any

from svdjax.data.sampling import ClipSampling
from svdjax.models.remat import BLOCKS
from svdjax.models.svd import SVDConfig
from svdjax.models.vae import VAEConfig
from svdjax.tasks import DropRates
from svdjax.training.data import DataConfig
from svdjax.training.optim import OptimConfig

# The paper's 15 %.
TEXT_DROP = DropRates(context=0.15, concat=0.0, both=0.0)
# Unpublished. 10 % each, and 10 % both: InstructPix2Pix's scheme, which open finetunes of SVD use.
IMAGE_DROP = DropRates(context=0.1, concat=0.1, both=0.1)
# Unpublished. The released code takes an fps_id of 5 to 30 without a warning, and fps_id is fps - 1.
FPS = (6.0, 31.0)
# Unpublished. Matrix products in bfloat16 are what accelerators are fast at; parameters, moments, loss and noise
# stay float32. The rest is when to look: seldom, for a step takes seconds.
FULL_SIZE: MappingProxyType[str, Any] = MappingProxyType(
    {"compute_dtype": "bfloat16", "log_every": 50, "validate_every": 1000, "checkpoint_every": 1000}
)


# The ablations' (appendix E). The paper names no strength of the offset noise: 0.1 is its author's.
ABLATION: MappingProxyType[str, Any] = MappingProxyType(
    {
        **FULL_SIZE,
        "discrete": True,
        "offset_noise": 0.1,
        "drop": DropRates(context=0.1, concat=0.0, both=0.0),
        "ema_decay": 0.9999,
    }
)


def adamw(rate: float, *, warmup: int = 1000) -> OptimConfig:
    """AdamW at a constant rate, as the paper says; the rest is unpublished.

    Betas, epsilon and decay are those of PyTorch's AdamW, which the original was trained with and whose defaults
    nobody says to have changed. 1,000 steps of warm-up and clipping at norm 1 cost little, and keep the first steps
    of new layers, and rare batches, from undoing what was loaded.
    """
    return OptimConfig(rate=rate, warmup=warmup, final=1.0, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0)


def clips(frames: int, height: int, width: int, *, captions: bool = False) -> DataConfig:
    """Clips of ``data/train`` and ``data/validation``: folders of videos, or shards written by this package."""
    rates = FPS if frames > 1 else (0.01, FPS[1])  # one frame can come out of a video of any rate
    sampling = ClipSampling(frames=frames, size=(height, width), fps=rates, captions=captions)
    return DataConfig(train=Path("data/train"), validation=Path("data/validation"), sampling=sampling)


def image_model(height: int, width: int) -> SVDConfig:
    """Stable Diffusion 2.1 under SVD's preconditioning: output v, and ln(sigma) / 4 instead of a timestep."""
    sd21 = SVDConfig.sd21()
    defaults = dataclasses.replace(sd21.defaults, height=height, width=width)
    return _memory_saving(dataclasses.replace(sd21, preconditioning="v", defaults=defaults))


def text_to_video_model(height: int, width: int) -> SVDConfig:
    """SVD's text-to-video network, with the autoencoder that it inherits from SD 2.1."""
    model = SVDConfig.text_to_video()
    defaults = dataclasses.replace(model.defaults, height=height, width=width)
    return _memory_saving(dataclasses.replace(model, vae=VAEConfig.sd21(), defaults=defaults))


def ablation_model(size: int) -> SVDConfig:
    """The network of the paper's ablations (appendix E): text only, 8 frames, and SD 2.1's 1000 noise levels."""
    sd21 = SVDConfig.sd21()
    defaults = dataclasses.replace(sd21.defaults, frames=8, height=size, width=size, guidance=(12.0, 12.0))
    unet = dataclasses.replace(sd21.unet, temporal=True)
    return _memory_saving(dataclasses.replace(sd21, unet=unet, task="text_to_video", defaults=defaults))


def image_to_video_model(frames: int, height: int, width: int) -> SVDConfig:
    """SVD's network (or, with 25 frames, SVD-XT's), with the autoencoder that it inherits from SD 2.1.

    The temporal decoder of the released checkpoints is trained on its own and fits any of these models.
    """
    released = SVDConfig.svd_xt() if frames == 25 else SVDConfig.svd()
    defaults = dataclasses.replace(released.defaults, frames=frames, height=height, width=width)
    return _memory_saving(dataclasses.replace(released, vae=VAEConfig.sd21(), defaults=defaults))


def frame_interpolation_model() -> SVDConfig:
    """The interpolation network, with the autoencoder that it inherits from SD 2.1."""
    return _memory_saving(dataclasses.replace(SVDConfig.frame_interpolation(), vae=VAEConfig.sd21()))


def finetuned_model() -> SVDConfig:
    """SVD as released, with its temporal decoder."""
    return _memory_saving(SVDConfig.svd())


def multi_view_model() -> SVDConfig:
    """SVD-XT as released, told the elevation too: 21 views of 576x576, around objects (SVD-MV, which never was).

    The paper does not say how elevation is embedded; here as wide as the other scalars.
    """
    xt = SVDConfig.svd_xt()
    scalars = (*xt.scalars, ("elevation", 256))
    unet = dataclasses.replace(xt.unet, vector_dim=sum(width for _, width in scalars))
    defaults = dataclasses.replace(xt.defaults, frames=21, width=576)
    return _memory_saving(dataclasses.replace(xt, unet=unet, task="multi_view", scalars=scalars, defaults=defaults))


def sv3d_model() -> SVDConfig:
    """SV3D_p."""
    return _memory_saving(SVDConfig.sv3d_p())


def orbits(frames: int, height: int, width: int) -> DataConfig:
    """Orbits around objects, whole: shards whose annotations say where the camera stood (docs/multi_view.md)."""
    data = clips(frames, height, width)
    return dataclasses.replace(data, sampling=dataclasses.replace(data.sampling, views=True))


def _memory_saving(model: SVDConfig) -> SVDConfig:
    """Activations are recomputed in the backward pass, as in the released configurations."""
    return dataclasses.replace(model, unet=dataclasses.replace(model.unet, remat=BLOCKS))
