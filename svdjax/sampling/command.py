"""The command ``svdjax sample``: photos or texts in, video files out."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.console import Console

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.video import check_replaceable, write_video
from svdjax.diffusion.guidance import NoGuidance
from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig
from svdjax.models.tokenizer import encode
from svdjax.progress import step_bar
from svdjax.sampling.bundled import bundled_checkpoint
from svdjax.sampling.inputs import reader_of
from svdjax.sampling.loras import apply_loras
from svdjax.sampling.options import Sample, resolve
from svdjax.sampling.pipeline import Pipeline, Settings, check_context, guidance_of, own_schedule, schedule_of
from svdjax.tasks import task_of

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def output_paths(names: Sequence[str], args: Sample, ending: str) -> list[Path]:
    """One path per video: a name each, numbered where one entry or one name gives several.

    Args:
        names: of the entries. args: where to write, and how many videos of each entry.
        ending: suffix of the files, with its dot; "" for folders of frames.

    Raises:
        UserError: two videos would get one name, or a video's name is that of its own input or of something else.
    """
    paths, read = [], {path.resolve() for path in (*args.photos, args.prompts) if path is not None}
    for index, name in enumerate(names):
        unique = name if names.count(name) == 1 else f"{name}-{index}"
        for number in range(args.num_videos):
            paths.append(args.out / f"{unique}{f'-{number}' if args.num_videos > 1 else ''}{ending}")
    for path in paths:
        if paths.count(path) > 1:
            raise UserError(f"{path}: two videos would have this name: give other names, or make them one by one")
        if path.resolve() in read:
            raise UserError(f"{path}: would take the place of what it is made of: choose another folder by --out")
        check_replaceable(path, folder=not ending)
    return paths


def ending_of(args: Sample, frames: int) -> str:
    """Suffix of the files: a single frame is a picture unless the format says otherwise, many pngs are a folder."""
    if frames == 1:
        return f".{args.format or 'png'}"
    return "" if args.format == "png" else f".{args.format or 'mp4'}"


def run(args: Sample) -> list[Path]:
    """Make the videos and write them; prints progress, timings and the paths.

    Raises:
        UserError: an option, an input, the checkpoint or the output folder is unusable.
    """
    console = Console(stderr=True)
    dtype = args.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    # Everything that can be wrong is looked at before the weights are read, which may take minutes.
    args = dataclasses.replace(args, checkpoint=args.checkpoint or str(bundled_checkpoint(args)))
    options = Options(variant=args.variant, head_dim=args.head_dim, clip_heads=args.clip_heads)
    checkpoint = apply_loras(open_checkpoint(args.checkpoint, options), args.lora)
    for notice in checkpoint.notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    config = checkpoint.config
    reader = reader_of(args, config.task)
    args = dataclasses.replace(args, task=args.task or config.task)
    frames = config.defaults.frames if args.task == config.task else reader.frames or config.defaults.frames
    settings = resolve(args, dataclasses.replace(config.defaults, frames=frames))
    check_asked(args, config, settings)
    defaults = settings.defaults
    if any(side % config.size_multiple for side in (defaults.height, defaults.width)):
        size = f"{defaults.height}x{defaults.width}"
        console.print(f"[yellow]{size} is no multiple of {config.size_multiple}: padded, then cropped back")
    given = reader.read(dataclasses.replace(args, photos=args.photos or reader.photos), defaults)
    texts = [given.inputs[name] for name in ("temporal_prompt", "negative_prompt") if name in given.inputs]
    for prompt in [*given.inputs.get("prompts", ()), *texts]:
        if notice := cut_prompt(prompt, config):
            console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)
    rows = given.rows(args.num_videos)
    task_of(config).request(defaults, **given.some(rows[:1]))
    _make_folder(args.out)
    ending = ending_of(args, defaults.frames)
    paths = output_paths(given.names, args, ending)
    model = load_model(checkpoint, dtype=DTYPES[dtype])
    with step_bar(console) as bar:
        progress = bar.add_task("sampling", total=None)
        pipeline = Pipeline(model, settings, on_step=lambda step: bar.advance(progress))
        bar.update(progress, total=pipeline.step_calls(len(rows)))
        metadata = {"checkpoint": args.checkpoint, "lora": args.lora, "dtype": dtype, **_flat(pipeline.settings)}
        videos = pipeline.videos_of(lambda some: pipeline.request(**given.some(rows[some])), len(rows))
        files = given.files(videos, args.num_videos)
        for index, (path, frames) in enumerate(zip(paths, files, strict=True)):
            entry = index // args.num_videos
            about = {**metadata, **given.notes[entry], "video": index}
            fps = given.rates[entry] if given.rates else defaults.fps
            write_video(path, frames, fps, metadata=about, ending=ending)
    for path in paths:
        print(path)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in pipeline.timings.seconds.items())
    device = jax.local_devices()[0].device_kind
    console.print(f"{len(paths)} video(s) on {jax.local_device_count()} x {device}: {stages} (with compiling)")
    return paths


def check_asked(args: Sample, config: SVDConfig, settings: Settings) -> None:
    """See that a model can make what is asked for, and heeds what not all models or settings do.

    Raises:
        UserError: it cannot, or does not.
    """
    defaults = settings.defaults
    check_context(config, settings, jax.local_device_count())
    schedule_of(settings.schedule or own_schedule(config), defaults)(defaults.steps)
    if not config.unet.temporal and defaults.frames != 1:
        raise UserError(
            f"--frames {defaults.frames}: {args.checkpoint} makes single pictures: leave it out; --num-videos "
            "makes several"
        )
    if args.motion_bucket is not None and "motion_bucket" not in dict(config.scalars):
        raise UserError(f"--motion-bucket: means nothing to {args.checkpoint}: leave it out")
    if args.overlap is not None and args.windows == 1 and args.task != "video_prediction":
        raise UserError("--overlap: a single window shares no frames with another: give --windows, or leave it out")
    if args.negative_prompt is not None and isinstance(guidance_of(defaults), NoGuidance):
        raise UserError("--negative-prompt: has no effect without guidance: leave it out, or --guidance 1 1")


def cut_prompt(prompt: str, config: SVDConfig) -> str:
    """What a model does not read of a prompt, as a line; empty if it reads all of it."""
    most, count = config.text_encoder.context_length - 2, len(encode(prompt))  # two are the start and the end
    return f'the model reads the first {most} of {count} tokens of "{prompt}"' if count > most else ""


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
