"""Reference cases of the original code as recordings: a folder with ``case.json`` and ``golden/*.npz``."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.conversion.recording import Recording
from svdjax.errors import UserError
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig
from svdjax.sampling.images import from_uint8

SCALARS = {
    "i2v": ("image_to_video", ("fps", "motion_bucket", "noise_aug")),
    "sv3d_p": ("multi_view", ("noise_aug", "polar", "azimuth")),
}


def is_golden(path: Path) -> bool:
    """Whether a path is such a folder."""
    return path.is_dir() and (path / "case.json").is_file()


def load_golden(folder: Path) -> Recording:
    """Read a case as if ``svdjax record`` had made it; what it does not hold (the UNet's blocks) stays empty.

    Raises:
        UserError: a file is missing or damaged, or the case is not one of a video model.
    """
    try:
        case = json.loads((folder / "case.json").read_text())
        given, run = (_arrays(folder / "golden" / f"{name}.npz") for name in ("conditioner", "sampler"))
        return _recording(case, given, run, folder)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{folder}: not a complete reference case of a video model ({error!r})") from None


def _arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _recording(case: dict[str, Any], given: dict, run: dict, folder: Path) -> Recording:
    scale = run["guider_scale"][0]
    frames = len(scale)
    uncond, cond = np.split(_channels_last(run["denoised"]), 2, axis=1)
    return Recording(
        config=_config(case, scale, run["image"].shape[:2], len(run["sigmas"]) - 1),
        about={"folder": str(folder), "seed": case["seed"]},
        image=from_uint8(run["image"]),
        image_noise=_channels_last(run["cond_noise"])[0],
        noise=_channels_last(run["noise"]),
        sigmas=run["sigmas"],
        chunk=frames,
        scale=scale,
        clip_pixels=_channels_last(given["pixel_values"])[0],
        embedding=given["c_crossattn"][0, 0],
        image_latent=_channels_last(given["c_concat"])[0],
        vector=given["c_vector"],
        denoised=uncond + scale[:, None, None, None] * (cond - uncond),
        latents=_channels_last(run["latents"]),
        frames=_channels_last(run["frames"]) * 2 - 1,
        clipped=True,
    )


def _config(case: dict[str, Any], scale: np.ndarray, size: tuple[int, int], steps: int) -> SVDConfig:
    sizes, clip = case["config"], case["config"]["clip"]
    task, scalars = SCALARS[case["task"]]
    # Angles are embedded twice as wide as other scalars. fps and motion bucket, which the case does not state, are
    # the released defaults.
    widths = {name: sizes["add_dim"] * (2 if name in ("polar", "azimuth") else 1) for name in scalars}
    triangle = task == "multi_view"
    return SVDConfig(
        unet=UNetConfig(
            channels=tuple(sizes["channels"]),
            num_res_blocks=sizes["layers"],
            attention=(True,) * (len(sizes["channels"]) - 1) + (False,),
            head_dim=sizes["head_dim"],
            context_dim=sizes["context"],
            vector_dim=sum(widths.values()),
        ),
        vae=VAEConfig(
            channels=tuple(sizes["vae_channels"]),
            num_res_blocks=sizes["vae_layers"],
            temporal_decoder=case["video_decoder"],
        ),
        image_encoder=CLIPVisionConfig(
            width=clip["hidden_size"],
            layers=clip["num_hidden_layers"],
            heads=clip["num_attention_heads"],
            mlp_dim=clip["intermediate_size"],
            patch_size=clip["patch_size"],
            projection_dim=sizes["context"],
        ),
        task=task,
        scalars=tuple(widths.items()),
        defaults=SamplingDefaults(
            frames=len(scale),
            height=size[0],
            width=size[1],
            steps=steps,
            guidance=(float(scale.min()), float(scale.max())),
            guidance_shape="triangle" if triangle else "linear",
            noise_aug=case["cond_aug"],
        ),
    )


def _channels_last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, -3, -1)
