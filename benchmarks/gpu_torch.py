"""The peer of `benchmarks.gpu`, which calls this: diffusers' SVD on the first GPU, sampling and training.

Sampling is `StableVideoDiffusionPipeline` in float16, as its page shows it. diffusers has no training of SVD: the
step here is made of its networks in the usual way, the UNet in float32 under autocast to bfloat16, with gradient
checkpointing, gradient clipping, fused AdamW and an average of the weights; the frozen networks are in bfloat16.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from PIL import Image
from transformers import CLIPVisionModelWithProjection

from benchmarks.gpu import PHOTO, TIMED_STEPS, XT, Result, noise_clip, recipe
from benchmarks.timing import seconds

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DECODED_AT_ONCE = 8
EMA_DECAY = 0.9999


def finished() -> None:
    """Wait until the GPU has done what it was asked for."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def sampling(folder: Path) -> Result:
    """Make SVD-XT's video twice."""
    start = time.perf_counter()
    pipeline = StableVideoDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float16).to(DEVICE)
    pipeline.set_progress_bar_config(disable=True)
    load = time.perf_counter() - start
    picture = Image.open(PHOTO).convert("RGB").resize((XT.width, XT.height))

    def sample(output: str) -> torch.Tensor:
        return pipeline(
            picture,
            height=XT.height,
            width=XT.width,
            num_frames=XT.frames,
            num_inference_steps=XT.steps,
            decode_chunk_size=DECODED_AT_ONCE,
            output_type=output,
        ).frames

    first = seconds(lambda: sample("np"), finished)
    second = seconds(lambda: sample("np"), finished)
    latents: list[torch.Tensor] = []
    without = seconds(lambda: latents.append(sample("latent")), finished)
    with torch.no_grad():
        decode = seconds(lambda: pipeline.decode_latents(latents[0], XT.frames, DECODED_AT_ONCE), finished)
    return {
        "load s": load,
        "first video s": first,
        "video s": second,
        "a step s": without / XT.steps,
        "decode s": decode,
        "peak GiB": _peak_memory(),
    }


def training(folder: Path) -> Result:
    """Take some finetuning steps."""
    unet = UNetSpatioTemporalConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    unet = unet.to(DEVICE).train()
    unet.enable_gradient_checkpointing()
    frozen = torch.bfloat16
    vae = AutoencoderKLTemporalDecoder.from_pretrained(folder, subfolder="vae", torch_dtype=frozen).to(DEVICE)
    tower = CLIPVisionModelWithProjection.from_pretrained(folder, subfolder="image_encoder", torch_dtype=frozen)
    tower = tower.to(DEVICE)
    params = list(unet.parameters())
    average = [param.detach().clone() for param in params]
    optimizer = torch.optim.AdamW(params, lr=1e-5, fused=True)
    clip = (
        torch.from_numpy(noise_clip(*recipe().data.sampling.shapes[0])).to(DEVICE)[0].permute(0, 3, 1, 2).to(frozen)
        / 127.5
        - 1
    )

    def take() -> None:
        with torch.no_grad():
            latents, picture, context = encode(vae, tower, clip)
        loss = denoising_loss(unet, latents, picture, context)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [param.detach() for param in params], 1 - EMA_DECAY)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss is {loss}")

    first, *others = [seconds(take, finished) for _ in range(1 + TIMED_STEPS)]
    return {"first step s": first, "a step s": statistics.median(others), "peak GiB": _peak_memory()}


def encode(
    vae: AutoencoderKLTemporalDecoder, tower: CLIPVisionModelWithProjection, clip: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents of the clip, those of its noisy first frame, and that frame's embedding."""
    latents = vae.encode(clip).latent_dist.sample() * vae.config.scaling_factor
    picture = vae.encode(clip[:1] + 0.02 * torch.randn_like(clip[:1])).latent_dist.mode()
    small = torch.nn.functional.interpolate(clip[:1].float(), (224, 224), mode="bicubic", antialias=True)
    return latents[None].float(), picture[None].float(), tower(small.to(clip.dtype)).image_embeds[:, None]


def denoising_loss(
    unet: UNetSpatioTemporalConditionModel, latents: torch.Tensor, picture: torch.Tensor, context: torch.Tensor
) -> torch.Tensor:
    """The weighted loss at a random noise level, with EDM's preconditioning for v."""
    sigma = torch.exp(0.7 + 1.6 * torch.randn((), device=latents.device))
    noised = latents + sigma * torch.randn_like(latents)
    x = torch.cat([noised * (sigma**2 + 1).rsqrt(), picture.expand(-1, latents.shape[1], -1, -1, -1)], 2)
    ids = torch.tensor([[6.0, 127.0, 0.02]], device=latents.device)
    with torch.autocast(DEVICE, torch.bfloat16):
        out = unet(x, 0.25 * sigma.log(), context, ids, return_dict=False)[0]
    denoised = -out.float() * sigma * (sigma**2 + 1).rsqrt() + noised / (sigma**2 + 1)
    return ((denoised - latents) ** 2).mean() * (1 + sigma**-2)


def _peak_memory() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if DEVICE == "cuda" else 0.0


def main() -> None:
    """Print one measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["sampling", "training"], required=True)
    parser.add_argument("--folder", type=Path, required=True)
    args = parser.parse_args()
    if DEVICE == "cpu":
        raise SystemExit("PyTorch finds no GPU here")
    print(json.dumps({"sampling": sampling, "training": training}[args.only](args.folder)))


if __name__ == "__main__":
    main()
