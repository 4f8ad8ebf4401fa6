"""The command ``svdjax sample``: photos in, video files out."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.video import check_replaceable, write_video
from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.progress import step_bar
from svdjax.sampling.images import Fit, read_image
from svdjax.sampling.loras import apply_loras
from svdjax.sampling.pipeline import Pipeline, SamplerName, ScheduleName, Settings, size_multiple

ASSETS = Path(__file__).parents[1] / "assets"
DEMO_CHECKPOINT = ASSETS / "demo.safetensors"
DEMO_PHOTO = ASSETS / "demo_photo.png"
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Animate photos. Without arguments: the bundled picture with the bundled demo checkpoint.

    Options left out take the checkpoint's own defaults.

    Attributes:
        photos: pictures to animate.
        checkpoint: a diffusers folder, a .safetensors or .ckpt file, an svdjax checkpoint, or a Hub repo id.
        lora: LoRA files to merge into the UNet, each FILE or FILE:SCALE; several add up.
        out: folder for the videos.
        format: kind of file; png writes a folder of frames.
        frames: number of frames.
        height: pixels. width: pixels.
        fit: crop fills the frame; letterbox shows the whole photo between bars.
        steps: sampler steps.
        sampler: how the noise is integrated away. schedule: through which noise levels.
        guidance: scale at the first and at the last frame.
        fps: frames per second, to condition on and to play at.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: noise on the photo before the encoder; more lets the video depart from it.
        seed: the same seed gives the same video.
        num_videos: videos per photo.
        per_device: videos that a device works on at once.
        chunk: frames to decode at once; fewer need less memory. If left out, exact decoding takes large videos
            a few frames at a time.
        decode: exact equals decoding all frames at once; reference decodes chunks alone, as PyTorch does.
        variant: which files of a diffusers folder, for example fp16.
        dtype: numbers to compute with; bfloat16 on accelerators and float32 on CPUs if left out.
        head_dim: UNet head width, where a single-file checkpoint cannot tell. clip_heads: likewise for CLIP.
    """

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    checkpoint: str = str(DEMO_CHECKPOINT)
    lora: tuple[str, ...] = ()
    out: Path = Path("outputs")
    format: Literal["mp4", "gif", "webp", "png"] = "mp4"
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fit: Fit = "crop"
    steps: int | None = None
    sampler: SamplerName = "euler"
    schedule: ScheduleName = "karras"
    guidance: tuple[float, float] | None = None
    fps: float | None = None
    motion_bucket: float | None = None
    noise_aug: float | None = None
    seed: int = 23
    num_videos: int = 1
    per_device: int = 1
    chunk: int | None = None
    decode: Literal["exact", "reference"] = "exact"
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    variant: str | None = None
    head_dim: int | None = None
    clip_heads: int | None = None


def resolve(args: Sample, defaults: SamplingDefaults) -> Settings:
    """Lay the options over the checkpoint's defaults and check them.

    Raises:
        UserError: a value is out of range; the message names the option.
    """
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(SamplingDefaults)}
    values = dataclasses.replace(defaults, **{k: v for k, v in given.items() if v is not None})
    at_least_one = {
        "frames": values.frames,
        "height": values.height,
        "width": values.width,
        "steps": values.steps,
    }
    counts = {"num-videos": args.num_videos, "per-device": args.per_device, "chunk": args.chunk}
    for name, value in {**at_least_one, **counts}.items():
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: must be at least 1")
    if not 0 <= values.noise_aug < float("inf"):
        raise UserError(f"--noise-aug {values.noise_aug}: must be a number from 0 up (0.02 is usual)")
    if not 0 < values.fps <= 240:
        raise UserError(f"--fps {values.fps}: must be above 0 and at most 240 (5 to 30 is usual)")
    if not 0 <= values.motion_bucket <= 255:
        raise UserError(f"--motion-bucket {values.motion_bucket}: must be from 0 to 255 (127 is usual)")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: must be from 0 to 2^63 - 1")
    if not all(np.isfinite(values.guidance)):
        raise UserError(f"--guidance {values.guidance}: must be two numbers")
    return Settings(
        defaults=values,
        sampler=args.sampler,
        schedule=args.schedule,
        seed=args.seed,
        per_device=args.per_device,
        chunk=args.chunk,
        decode=args.decode,
    )


def output_paths(photos: Sequence[Path], args: Sample) -> list[Path]:
    """One path per video: the photo's name, numbered where one photo or one name gives several.

    Raises:
        UserError: two videos would get one name, or a video's name is that of something else.
    """
    suffix = "" if args.format == "png" else f".{args.format}"
    stems = [photo.stem for photo in photos]
    paths = []
    for index, stem in enumerate(stems):
        unique = stem if stems.count(stem) == 1 else f"{stem}-{index}"
        for number in range(args.num_videos):
            paths.append(args.out / f"{unique}{f'-{number}' if args.num_videos > 1 else ''}{suffix}")
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: two videos would have this name: rename a photo, or animate them one by one")
        check_replaceable(path, folder=args.format == "png")
    return paths


def run(args: Sample) -> list[Path]:
    """Animate the photos and write the videos; prints progress, timings and the paths.

    Raises:
        UserError: an option, a photo, the checkpoint or the output folder is unusable.
    """
    console = Console(stderr=True)
    photos = args.photos or (DEMO_PHOTO,)
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    # Everything that can be wrong is looked at before the weights are read, which may take minutes.
    options = Options(variant=args.variant, head_dim=args.head_dim, clip_heads=args.clip_heads)
    checkpoint = apply_loras(open_checkpoint(args.checkpoint, options), args.lora)
    for notice in checkpoint.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    config = checkpoint.config
    if config.task != "image_to_video":
        raise UserError(f"{args.checkpoint}: a checkpoint for {config.task}, not for image_to_video")
    if config.image_encoder is None:
        raise UserError(f"{args.checkpoint}: has no image encoder: give the whole checkpoint, not a part of it")
    settings = resolve(args, config.defaults)
    size = settings.defaults.height, settings.defaults.width
    multiple = size_multiple(config)
    if any(side % multiple for side in size):
        console.print(f"[yellow]{size[0]}x{size[1]} is no multiple of {multiple}: padded, then cropped back")
    images = np.stack([read_image(photo, *size, args.fit) for photo in photos])
    images = np.repeat(images, args.num_videos, axis=0)
    _make_folder(args.out)
    paths = output_paths(photos, args)
    model = load_model(checkpoint, dtype=DTYPES[dtype])
    metadata = {"checkpoint": args.checkpoint, "lora": args.lora, "dtype": dtype, **_flat(settings)}
    ending = "" if args.format == "png" else f".{args.format}"
    with step_bar(console) as bar:
        task = bar.add_task("sampling", total=None)
        pipeline = Pipeline(model, settings, on_step=lambda step: bar.advance(task))
        bar.update(task, total=pipeline.step_calls(len(images)))
        for index, (path, frames) in enumerate(zip(paths, pipeline.videos(images), strict=True)):
            about = {**metadata, "video": index}
            write_video(path, frames, settings.defaults.fps, metadata=about, ending=ending)
    for path in paths:
        print(path)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in pipeline.timings.seconds.items())
    console.print(f"{len(paths)} video(s): {stages} (compilation included)")
    return paths


def _flat(settings: Settings) -> dict[str, object]:
    values = dataclasses.asdict(settings)
    return json.loads(json.dumps({**values.pop("defaults"), **values}))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".svdjax-write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"--out {path}: cannot write there ({error.strerror})") from None
