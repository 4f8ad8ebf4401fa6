"""The PyTorch side of ``svdjax record``: diffusers' pipeline, run on given noise and watched. Imports torch."""

import contextlib
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import diffusers
import numpy as np
import torch
import transformers
from diffusers import StableVideoDiffusionPipeline, image_processor
from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion
from diffusers.schedulers import scheduling_euler_discrete
from PIL import Image

from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import to_uint8
from svdjax.typing import Float, ndarray

Dtype = Literal["float32", "float64"]
LIBRARIES = f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"


def open_pipeline(folder: Path, dtype: Dtype, *, sgm_eps: bool) -> StableVideoDiffusionPipeline:
    """Load a diffusers folder.

    Args:
        folder: as ``StableVideoDiffusionPipeline.save_pretrained`` writes it; one with fp16 files alone will do.
        dtype: what to compute in.
        sgm_eps: give the UNet's residual blocks the group-norm epsilon of the code that trained the weights.

    Raises:
        UserError: diffusers cannot load the folder.
    """
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    files = [path.name for path in (folder / "unet").glob("*.safetensors")]
    variant = "fp16" if files and all(".fp16" in name for name in files) else None
    try:
        pipe = StableVideoDiffusionPipeline.from_pretrained(
            folder, dtype=getattr(torch, dtype), variant=variant, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{folder}: diffusers cannot load it ({error})") from error
    pipe.set_progress_bar_config(disable=True)
    if sgm_eps:
        set_sgm_eps(pipe.unet)
    return pipe


def set_sgm_eps(unet: torch.nn.Module) -> None:
    """Give every group norm of the UNet's residual blocks epsilon 1e-5, as the original code has it.

    diffusers has 1e-6 in some of them (1e-6 in transformers is right in both).
    """
    for module in unet.modules():
        if type(module).__name__ in ("ResnetBlock2D", "TemporalResnetBlock"):
            module.norm1.eps = module.norm2.eps = 1e-5


@contextlib.contextmanager
def float64_throughout() -> Iterator[None]:
    """Let diffusers compute in float64 what it computes in float32 whatever the model's dtype.

    These are pixel values, the scheduler's sigmas, time steps and update, and every sinusoidal embedding (noise
    level, scalars, frame positions). Left in float32 they would hide errors of another implementation below
    1e-7. The code that runs is diffusers' own; only the name float32 means float64 to it for a while.
    """
    wide_numpy = types.ModuleType("numpy")
    wide_numpy.__dict__.update(np.__dict__, float32=np.float64)
    before = torch.get_default_dtype()
    with (
        mock.patch.object(torch, "float32", torch.float64),
        mock.patch.object(torch.Tensor, "float", torch.Tensor.double),
        mock.patch.object(scheduling_euler_discrete, "np", wide_numpy),
        mock.patch.object(image_processor, "np", wide_numpy),
    ):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the pipeline is given. Noises are standard normal; ``image`` is in [-1, 1], made of 8-bit pixels."""

    image: Float[ndarray, "H W 3"]
    image_noise: Float[ndarray, "H W 3"]
    noise: Float[ndarray, "t h w c"]
    settings: SamplingDefaults
    chunk: int


@dataclass
class Watch:
    """Collects what passes through a pipeline: what the hooks see, channels last, as NumPy arrays."""

    seen: dict[str, np.ndarray] = field(default_factory=dict)
    blocks: dict[str, np.ndarray] = field(default_factory=dict)
    denoised: list[np.ndarray] = field(default_factory=list)
    latents: list[np.ndarray] = field(default_factory=list)

    def block(self, name: str) -> Callable[..., None]:
        """A forward hook that keeps the statistics of a module's first output."""

        def hook(module: torch.nn.Module, args: tuple, output: Any) -> None:
            x = output[0] if isinstance(output, tuple) else output
            if name not in self.blocks:
                self.blocks[name] = np.array([x.mean(), x.std(correction=0), x.abs().max()])

        return hook

    def output(self, name: str, pick: Callable[[Any], torch.Tensor]) -> Callable[..., None]:
        """A forward hook that keeps an array of a module's first output."""

        def hook(module: torch.nn.Module, args: tuple, output: Any) -> None:
            self.seen.setdefault(name, _array(pick(output)))

        return hook

    def input(self, name: str) -> Callable[..., None]:
        """A forward hook that keeps a module's first input."""

        def hook(module: torch.nn.Module, args: tuple) -> None:
            self.seen.setdefault(name, _array(args[0]))

        return hook

    def step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the scheduler's step to keep what the denoiser gave and where the step led."""

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.denoised.append(_channels_last(result.pred_original_sample)[0])
            self.latents.append(_channels_last(result.prev_sample)[0])
            return result

        return watched


def _array(x: torch.Tensor) -> np.ndarray:
    return x.detach().numpy()


def _channels_last(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(_array(x), -3, -1))


def _channels_first(x: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, -3))[None]).to(dtype)


@contextlib.contextmanager
def _watching(pipe: StableVideoDiffusionPipeline, watch: Watch) -> Iterator[None]:
    unet, clip = pipe.unet, pipe.image_encoder
    blocks = {
        "conv_in": unet.conv_in,
        **{f"down.{i}": block for i, block in enumerate(unet.down_blocks)},
        "mid": unet.mid_block,
        **{f"up.{i}": block for i, block in enumerate(unet.up_blocks)},
        "conv_out": unet.conv_out,
    }
    hooks = [block.register_forward_hook(watch.block(name)) for name, block in blocks.items()]
    hooks += [
        clip.register_forward_pre_hook(watch.input("clip_pixels")),
        clip.register_forward_hook(watch.output("embedding", lambda output: output.image_embeds)),
        # The mean half of mean and log-variance: the mode.
        pipe.vae.quant_conv.register_forward_hook(watch.output("image_latent", lambda x: x.chunk(2, 1)[0])),
        unet.add_embedding.register_forward_pre_hook(watch.input("vector")),
    ]
    with mock.patch.object(pipe.scheduler, "step", watch.step(pipe.scheduler.step)):
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@torch.no_grad()
def run_reference(
    pipe: StableVideoDiffusionPipeline, inputs: Inputs, *, on_step: Callable[[int], None] = lambda step: None
) -> dict[str, Any]:
    """Run the pipeline on one picture.

    The picture is handed over at the size of the video: given a larger one, diffusers shows CLIP the original and
    the VAE a resized copy, where the original code shows both the same.

    Args:
        pipe: the pipeline; its dtype is that of the results.
        inputs: picture, noises and settings.
        on_step: called with the number of finished sampler steps.

    Returns:
        The array fields of :class:`svdjax.conversion.recording.Recording`, and ``blocks``.
    """
    dtype, settings, watch = pipe.unet.dtype, inputs.settings, Watch()
    picture = Image.fromarray(to_uint8(inputs.image))
    image_noise = _channels_first(inputs.image_noise, dtype)
    exact = float64_throughout() if dtype == torch.float64 else contextlib.nullcontext()
    with exact, _watching(pipe, watch):
        given_noise = mock.patch.object(
            pipeline_stable_video_diffusion, "randn_tensor", lambda shape, **kwargs: image_noise
        )
        with given_noise:
            latents = pipe(
                picture,
                height=settings.height,
                width=settings.width,
                num_frames=settings.frames,
                num_inference_steps=settings.steps,
                min_guidance_scale=settings.guidance[0],
                max_guidance_scale=settings.guidance[1],
                fps=settings.fps,
                motion_bucket_id=settings.motion_bucket,
                noise_aug_strength=settings.noise_aug,
                latents=_channels_first(inputs.noise, dtype),
                output_type="latent",
                callback_on_step_end=lambda pipe, step, t, tensors: (on_step(step + 1), {})[1],
            ).frames
        frames = pipe.decode_latents(latents, settings.frames, inputs.chunk)
        image = pipe.video_processor.preprocess(picture, settings.height, settings.width)
        guidance_scale = pipe.guidance_scale.flatten()
    return {
        "image": _channels_last(image)[0],
        "image_noise": _channels_last(image_noise)[0],
        "noise": inputs.noise.astype(watch.latents[0].dtype),
        "sigmas": _array(pipe.scheduler.sigmas),
        "scale": _array(guidance_scale),
        "clip_pixels": np.moveaxis(watch.seen["clip_pixels"][0], 0, -1),
        "embedding": watch.seen["embedding"][0],
        "image_latent": np.moveaxis(watch.seen["image_latent"][0], 0, -1),
        "vector": np.repeat(watch.seen["vector"][-1:], settings.frames, 0),
        "denoised": np.stack(watch.denoised),
        "latents": np.stack(watch.latents),
        "frames": _array(frames[0].permute(1, 2, 3, 0)),
        "blocks": watch.blocks,
    }
