"""The options of ``svdjax sample``, laid over a checkpoint's defaults."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro

from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import Fit
from svdjax.sampling.pipeline import SamplerName, ScheduleName, Settings

ASSETS = Path(__file__).parents[1] / "assets"
DEMO_CHECKPOINT = ASSETS / "demo.safetensors"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Make videos of photos or of texts. Without arguments: the bundled picture with the bundled demo checkpoint.

    Without a checkpoint a bundled one is taken that does what is asked for, and without pictures the bundled ones.
    Other options left out take the checkpoint's own defaults.

    Attributes:
        photos: pictures to animate, or clips for the tasks that go on from some or fill in between their frames.
        prompt: a text to make a video or a picture of.
        prompts: a file with one such text a line.
        negative_prompt: what to move away from.
        temporal_prompt: what the temporal layers are told instead.
        elevation: degrees of the camera above the object, one number or one for each view; 10 if left out.
        azimuths: degrees of the camera around the object, rising to that of the picture; equal steps if left out.
        image_frame_ratio: how much of the frame an object on a transparent background takes.
        task: what to ask for; if left out, what the checkpoint does.
        checkpoint: a diffusers folder, a .safetensors or .ckpt file, an svdjax checkpoint, or a Hub repo id; the
            bundled one for the task, the prompt or the LoRA if left out.
        lora: LoRA files (or names of bundled ones) to merge into the UNet, each FILE or FILE:SCALE; several add up.
        out: folder for the videos.
        format: kind of file; png writes a folder of frames. If left out, png for a single frame, else mp4.
        frames: number of frames that are made at once.
        windows: runs of so many frames, made one after the other into a longer video.
        overlap: frames with which a run begins, the last ones of the run (or the clip) before.
        at: which frames of the video the pictures are, from 0.
        height: pixels.
        width: pixels.
        fit: crop fills the frame; letterbox shows the whole photo between bars.
        steps: sampler steps.
        sampler: how the noise is integrated away.
        schedule: through which noise levels; leading and trailing are
            those of SD 2.1.
        guidance: scale at the first and at the last frame (SV3D: at the given and at the opposite view; text to
            video and SD 2.1: twice the same).
        fps: frames per second, to condition on and to play at.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: noise on the photo before the encoder; more lets the video depart from it.
        seed: the same seed gives the same video.
        num_videos: videos per photo or prompt.
        per_device: videos that a device works on at once.
        context: devices that share one video, each with some of its columns, for videos too large for one.
        chunk: frames to decode at once; fewer need less memory. If left out, exact decoding takes large videos
            a few frames at a time.
        decode: exact equals decoding all frames at once; reference decodes chunks alone, as PyTorch does.
        variant: which files of a diffusers folder, for example fp16.
        dtype: numbers to compute with; bfloat16 on accelerators and float32 on CPUs if left out.
        head_dim: UNet head width, where a single-file checkpoint cannot tell.
        clip_heads: likewise for CLIP.
    """

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    prompt: str | None = None
    prompts: Path | None = None
    negative_prompt: str | None = None
    temporal_prompt: str | None = None
    elevation: tuple[float, ...] = ()
    azimuths: tuple[float, ...] = ()
    image_frame_ratio: float = 0.917
    task: str | None = None
    checkpoint: str | None = None
    lora: tuple[str, ...] = ()
    out: Path = Path("outputs")
    format: Literal["mp4", "gif", "webp", "png"] | None = None
    frames: int | None = None
    windows: int = 1
    overlap: int | None = None
    at: tuple[int, ...] = ()
    height: int | None = None
    width: int | None = None
    fit: Fit = "crop"
    steps: int | None = None
    sampler: SamplerName = "euler"
    schedule: ScheduleName | None = None
    guidance: tuple[float, float] | None = None
    fps: float | None = None
    motion_bucket: float | None = None
    noise_aug: float | None = None
    seed: int = 23
    num_videos: int = 1
    per_device: int = 1
    context: int = 1
    chunk: int | None = None
    decode: Literal["exact", "reference"] = "exact"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    variant: str | None = None
    head_dim: int | None = None
    clip_heads: int | None = None


def overlap_of(args: Sample, frames: int) -> int:
    """Frames that a window of so many shares with what is before it.

    If nobody says, a quarter of them where they are known frames of the model, half of them where a text says
    nothing of what was seen; else one, the picture that it goes on from (seams: docs/frame_interpolation.md).

    Raises:
        UserError: there would be none, or no new one.
    """
    if frames < 2:
        raise UserError(f"--frames {frames}: with one that is given none is left to make: ask for at least 2")
    share = {"video_prediction": 4, "text_to_video": 2}.get(args.task, frames)
    overlap = max(1, frames // share) if args.overlap is None else args.overlap
    if not 1 <= overlap < frames:
        raise UserError(f"--overlap {overlap}: of {frames} frames, give at least 1 and at most {frames - 1}")
    return overlap


def resolve(args: Sample, defaults: SamplingDefaults) -> Settings:
    """Lay the options over the checkpoint's defaults and check them.

    Raises:
        UserError: a value is out of range; the message names the option.
    """
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(SamplingDefaults)}
    values = dataclasses.replace(defaults, **{k: v for k, v in given.items() if v is not None})
    at_least_one = {
        "windows": args.windows,
        "frames": values.frames,
        "height": values.height,
        "width": values.width,
        "steps": values.steps,
    }
    counts = {
        "windows": args.windows,
        "num-videos": args.num_videos,
        "per-device": args.per_device,
        "chunk": args.chunk,
    }
    for name, value in {**at_least_one, **counts}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 <= values.noise_aug < float("inf"):
        raise UserError(f"--noise-aug {values.noise_aug}: must be a number from 0 up (0.02 is usual)")
    if not 0 < values.fps <= 240:
        raise UserError(f"--fps {values.fps}: must be above 0 and at most 240 (5 to 30 is usual)")
    if not 0 <= values.motion_bucket <= 255:
        raise UserError(f"--motion-bucket {values.motion_bucket}: must be from 0 to 255 (127 is usual)")
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: must be from 0 to 2^32 - 1")
    first, last = values.guidance
    if not (np.isfinite(first) and np.isfinite(last)):
        raise UserError(f"--guidance {first} {last}: must be two numbers")
    if values.guidance_shape == "constant" and first != last:
        raise UserError(f"--guidance {first} {last}: this model's is the same for all frames: give {last} {last}")
    return Settings(
        defaults=values,
        sampler=args.sampler,
        schedule=args.schedule,
        seed=args.seed,
        per_device=args.per_device,
        context=args.context,
        chunk=args.chunk,
        decode=args.decode,
        windows=args.windows,
        overlap=overlap_of(args, values.frames) if args.windows > 1 else 1,
    )
