"""The command ``svdjax record``: run the PyTorch reference on a photo and store what it computes."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import tyro
from rich.console import Console

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.convert import convert
from svdjax.conversion.recording import Recording
from svdjax.conversion.source import open_checkpoint
from svdjax.errors import UserError, require
from svdjax.models.svd import SamplingDefaults, SVDConfig
from svdjax.progress import step_bar
from svdjax.sampling.images import Fit, read_image

DEMO_PHOTO = Path(__file__).parents[1] / "assets" / "demo_photo.png"


@dataclass(frozen=True, kw_only=True)
class Record:
    """Run the PyTorch reference on a photo and store inputs, intermediate results and frames.

    Needs the torch extra. The file can then be compared with anywhere, without PyTorch: `svdjax compare`. Options
    left out take the checkpoint's own defaults.

    Attributes:
        checkpoint: a diffusers folder, a .safetensors or .ckpt file, an svdjax checkpoint, or a Hub repo id.
        out: the .npz file to write.
        image: photo to animate; the bundled one if left out.
        frames: number of frames.
        height: pixels.
        width: pixels.
        fit: crop fills the frame; letterbox shows the whole photo between bars.
        steps: sampler steps.
        guidance: scale at the first and at the last frame.
        fps: frames per second to condition on.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: noise on the photo before the encoder.
        chunk: frames to decode at once; all if left out.
        seed: of the noise.
        dtype: numbers that the reference computes with.
        head_dim: UNet head width, where a single-file checkpoint cannot tell.
        clip_heads: attention heads of the CLIP tower, likewise.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    image: Path = DEMO_PHOTO
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    fit: Fit = "crop"
    steps: int | None = None
    guidance: tuple[float, float] | None = None
    fps: float | None = None
    motion_bucket: float | None = None
    noise_aug: float | None = None
    chunk: int | None = None
    seed: int = 23
    dtype: Literal["float32", "float64"] = "float32"
    head_dim: int | None = None
    clip_heads: int | None = None


def resolve(args: Record, config: SVDConfig) -> SamplingDefaults:
    """Lay the options over the checkpoint's defaults and check them.

    Raises:
        UserError: the reference cannot run this model, or not with these values; the message names the option.
    """
    if config.task != "image_to_video":
        raise UserError(f"{args.checkpoint}: a model for {config.task}; diffusers runs only image-to-video ones")
    if not config.vae.temporal_decoder:
        raise UserError(f"{args.checkpoint}: has an image decoder, which diffusers' video pipeline cannot run")
    given = {f.name: getattr(args, f.name, None) for f in dataclasses.fields(SamplingDefaults)}
    values = dataclasses.replace(config.defaults, **{k: v for k, v in given.items() if v is not None})
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    for name in ("frames", "steps"):
        if getattr(values, name) < 1:
            raise UserError(f"--{name} {getattr(values, name)}: must be at least 1")
    if args.chunk is not None and args.chunk < 1:
        raise UserError(f"--chunk {args.chunk}: must be at least 1")
    for name in ("height", "width"):
        size = getattr(values, name)
        if size < 1 or size % config.vae.factor:
            raise UserError(f"--{name} {size}: must be a multiple of {config.vae.factor}")
    if not all(np.isfinite([*values.guidance, values.fps, values.motion_bucket, values.noise_aug])):
        raise UserError("--guidance, --fps, --motion-bucket and --noise-aug: must be finite numbers")
    if values.guidance[1] <= 1 and values.guidance != (1.0, 1.0):
        raise UserError(f"--guidance {values.guidance}: diffusers needs a last scale above 1, or 1 1 for none")
    return values


def run(args: Record) -> None:
    """Record one run of the reference.

    Raises:
        UserError: PyTorch is not installed, or the checkpoint, the photo, an option or the output is unusable.
    """
    for module in ("torch", "diffusers", "transformers"):
        require(module, "torch")
    from svdjax.conversion import reference  # imports torch

    console = Console(stderr=True)
    options = Options(head_dim=args.head_dim, clip_heads=args.clip_heads)
    config = open_checkpoint(args.checkpoint, options).config
    values = resolve(args, config)
    picture = read_image(args.image, values.height, values.width, args.fit)
    _check_output(args.out)
    rng = np.random.default_rng(args.seed)
    latent = (values.height // config.vae.factor, values.width // config.vae.factor, config.vae.latent_channels)
    inputs = reference.Inputs(
        image=picture,
        image_noise=rng.standard_normal(picture.shape),
        noise=rng.standard_normal((values.frames, *latent)),
        settings=values,
        chunk=args.chunk or values.frames,
    )
    with _diffusers_folder(args.checkpoint, options, console) as folder:
        pipe = reference.open_pipeline(folder, args.dtype, sgm_eps=config.unet.norm_eps == "sgm")
    with step_bar(console) as progress:
        steps = progress.add_task("reference", total=values.steps)
        results = reference.run_reference(pipe, inputs, on_step=lambda step: progress.advance(steps))
    about = {
        "checkpoint": args.checkpoint,
        "image": str(args.image),
        "seed": args.seed,
        "libraries": reference.LIBRARIES,
    }
    recorded = dataclasses.replace(config, defaults=values)
    Recording(config=recorded, about=about, chunk=inputs.chunk, **results).save(args.out)
    print(args.out)


def _check_output(path: Path) -> None:
    """Find out before the long run that the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the name of an .npz file")


@contextlib.contextmanager
def _diffusers_folder(checkpoint: str, options: Options, console: Console) -> Iterator[Path]:
    """The checkpoint as a diffusers folder: itself if it is one, else converted into a temporary one."""
    if (Path(checkpoint) / "model_index.json").is_file():
        yield Path(checkpoint)
        return
    with tempfile.TemporaryDirectory(prefix="svdjax-record-") as temporary:
        console.print(f"converting {checkpoint} to a diffusers folder in {temporary}", soft_wrap=True)
        folder = Path(temporary) / "pipeline"
        convert(checkpoint, folder, to="diffusers", options=options)
        yield folder
