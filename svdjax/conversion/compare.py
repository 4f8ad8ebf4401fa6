"""The command ``svdjax compare``: a converted model against a recorded run of the reference. Needs no PyTorch."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

from svdjax.conversion.checkpoint import Options
from svdjax.conversion.golden import is_golden, load_golden
from svdjax.conversion.recording import Recording
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.data.video import write_video
from svdjax.diffusion import PRECONDITIONINGS, SAMPLERS, Denoise, Denoiser, Move, Run, advance, guided, moves_of
from svdjax.errors import UserError
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.svd import SVD, SVDConfig
from svdjax.progress import step_bar
from svdjax.sampling.decode import decode_frames
from svdjax.sampling.images import to_uint8
from svdjax.sampling.pipeline import decoder_dtype, guidance_of, schedule_of
from svdjax.tasks import Conditioning, ImageRequest, ImageToVideo, network_of
from svdjax.typing import Array, Float, ndarray

Dtype = Literal["float64", "float32", "bfloat16", "float16"]
# Largest relative error that passes, by the coarser of the run's and the recording's precision. The float32 figure
# is the sampler's: steps from sigma 700 down magnify what a single network call gets wrong (2e-5 at most).
TOLERANCES: dict[str, float] = {"float64": 1e-9, "float32": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Run a checkpoint on the inputs of a recorded reference run and measure the differences.

    Prints a table of relative errors and writes a video: reference, svdjax, difference. Exits with 1 if an error
    is above the tolerance.

    Attributes:
        checkpoint: a diffusers folder, a .safetensors or .ckpt file, an svdjax checkpoint, or a Hub repo id.
        recording: what `svdjax record` wrote, or a folder with case.json and golden/*.npz.
        dtype: numbers to compute with.
        tolerance: largest relative error that passes; left out: 1e-9 in float64, 1e-3 in float32, 0.05 in float16,
            0.3 in bfloat16, or the recording's if that is coarser.
        out: folder for the video.
        head_dim: UNet head width, where neither checkpoint nor recording can tell.
        clip_heads: attention heads of the CLIP tower, likewise.
    """

    checkpoint: Annotated[str, tyro.conf.Positional]
    recording: Annotated[Path, tyro.conf.Positional]
    dtype: Dtype = "float32"
    tolerance: float | None = None
    out: Path = Path("outputs")
    head_dim: int | None = None
    clip_heads: int | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: the part, and ``max |ours - theirs| / max |theirs|``."""

    part: str
    error: float


def relative_error(ours: Any, theirs: Any) -> float:
    """``max |ours - theirs| / max |theirs|``; infinite if either is not finite or the shapes differ."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape or not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        return float("inf")
    largest = np.abs(theirs).max()
    return float(np.abs(ours - theirs).max() / (largest if largest > 0 else 1))


def statistics(x: Float[Array, "*any"]) -> Float[Array, "3"]:
    """Mean, standard deviation and largest magnitude; at least float32."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.stack([x.mean(), x.std(), jnp.abs(x).max()])


def statistics_error(ours: Float[ndarray, "3"], theirs: Float[ndarray, "3"]) -> float:
    """The largest difference of two :func:`statistics`: of mean and deviation in units of the root mean square."""
    rms = np.hypot(theirs[0], theirs[1])
    errors = np.abs(np.asarray(ours, np.float64) - theirs) / np.array([rms, rms, theirs[2]])
    return float(errors.max()) if np.isfinite(errors).all() else float("inf")


class Comparison:
    """A model and a recording, and each part of the one held against the other.

    ``conditioning``, ``unet`` and ``decoder`` give every network the reference's own inputs, so that an error shows
    where it is made; ``video`` goes the whole way from the picture, as sampling does.
    """

    def __init__(self, model: SVD, recording: Recording) -> None:
        self.config, self.recording = model.config, recording
        self.defaults = recording.config.defaults
        self._graph, self._state = nnx.split(model)
        wide = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
        self._array = partial(jnp.asarray, dtype=wide)
        self._sigmas = self._array(recording.sigmas)
        self._condition = self._compiled(self._conditioning_of)
        self._decode = self._compiled(self._frames_of)

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function(model, *inputs)`` as a compiled function of the inputs."""
        graph = self._graph
        run = jax.jit(lambda state, *inputs: function(nnx.merge(graph, state), *inputs))
        return lambda *inputs: run(self._state, *inputs)

    def conditioning(self) -> Iterator[Row]:
        """Errors of what the picture, the noise levels and the scalars turn into."""
        recording = self.recording
        schedule = schedule_of("karras", self.defaults)
        yield Row("sigmas", relative_error(schedule(self.defaults.steps), recording.sigmas))
        if recording.guided:
            scales = guidance_of(self.defaults).scales(self.defaults.frames)
            yield Row("guidance scale", relative_error(scales, recording.scale))
        size = self.config.image_encoder.image_size
        pixels = preprocess(self._array(recording.image)[None], size=size)
        yield Row("CLIP pixels", relative_error(pixels[0], recording.clip_pixels))
        request = dataclasses.replace(self._request(), clip_image=self._array(recording.clip_pixels)[None])
        cond = self._condition(request)
        yield Row("CLIP embedding", relative_error(cond.context[0, 0], recording.embedding))
        yield Row("image latent", relative_error(cond.concat[0, 0], recording.image_latent))
        if self.config.task == "image_to_video":
            yield Row("scalars", relative_error(cond.vector[0], recording.vector))

    def unet(self) -> Iterator[Row]:
        """Errors of each block's statistics in the first step."""
        if not self.recording.blocks:
            return
        given = Conditioning(
            context=self._array(self.recording.embedding)[None, None],
            concat=self._per_frame(self.recording.image_latent),
            vector=self._array(self.recording.vector)[None],
        )
        ours = self._compiled(self._block_statistics)(self._noise(), given)
        if ours.keys() != self.recording.blocks.keys():
            raise UserError(f"the recording has blocks {', '.join(self.recording.blocks)}: of another UNet")
        for name, theirs in self.recording.blocks.items():
            yield Row(f"UNet {name}", statistics_error(np.asarray(ours[name]), theirs))

    def decoder(self) -> Iterator[Row]:
        """Error of the frames that the reference's final latents decode to."""
        frames = self._decode(self._array(self.recording.latents[-1])[None])[0]
        yield Row("VAE decoder", relative_error(self._clipped(frames), self.recording.frames))

    def video(self, on_step: Callable[[int], None]) -> tuple[list[Row], Float[ndarray, "t H W 3"]]:
        """Errors of every sampler step and of the frames, and the frames."""
        recording = self.recording
        cond = self._condition(self._request())
        step, moves, run = self._compiled(self._step), moves_of(self._sigmas), Run.start(self._noise())
        rows = []
        for i in range(self.defaults.steps):
            run = step(jax.tree.map(itemgetter(i), moves), run, cond)
            rows.append(Row(f"step {i + 1} denoised", relative_error(run.x0[0], recording.denoised[i])))
            rows.append(Row(f"step {i + 1} latents", relative_error(run.x[0], recording.latents[i])))
            on_step(i + 1)
        frames = self._clipped(self._decode(run.x)[0])
        return [*rows, Row("frames", relative_error(frames, recording.frames))], np.asarray(frames)

    def _request(self) -> ImageRequest:
        values = self.defaults
        return ImageRequest(
            image=self._array(self.recording.image)[None],
            fps=self._array([values.fps]),
            motion_bucket=self._array([values.motion_bucket]),
            noise_aug=self._array([values.noise_aug]),
            noise=self._array(self.recording.image_noise)[None],
        )

    def _conditioning_of(self, model: SVD, request: ImageRequest) -> Conditioning:
        task = ImageToVideo(config=self.config)
        if self.config.task == "image_to_video":
            return task.condition(model, request, self.defaults.frames)
        # Multi-view: the same picture conditioning; the camera poses are known only as the recorded vector.
        cond = task.condition_on_picture(model, request, self.defaults.frames)
        return dataclasses.replace(cond, vector=self._array(self.recording.vector)[None])

    def _denoise(self, model: SVD, cond: Conditioning, **watch: Callable[[str, Array], None]) -> Denoise:
        denoiser = Denoiser(network_of(model.unet, **watch), PRECONDITIONINGS[model.config.preconditioning])
        uncond = ImageToVideo(config=self.config).unconditional(model, cond)
        return guided(denoiser, guidance_of(self.defaults), cond, uncond)

    def _block_statistics(self, model: SVD, noise: Array, cond: Conditioning) -> dict[str, Array]:
        seen = {}

        def watch(name: str, x: Array) -> None:
            seen[name] = statistics(x)

        self._denoise(model, cond, watch=watch)(noise, self._sigmas[:1])
        return seen

    def _step(self, model: SVD, move: Move, run: Run, cond: Conditioning) -> Run:
        return advance(self._denoise(model, cond), run, move, SAMPLERS["euler"], jax.random.key(0))

    def _frames_of(self, model: SVD, latents: Array) -> Array:
        z = (latents / self.config.vae.scaling_factor).astype(decoder_dtype(model.vae))
        return decode_frames(model.vae, z, chunk=self.recording.chunk, mode="reference")

    def _noise(self) -> Float[Array, "b t h w c"]:
        return self._array(self.recording.noise)[None] * jnp.sqrt(1 + self._sigmas[0] ** 2)

    def _per_frame(self, x: ndarray) -> Array:
        return self._array(np.broadcast_to(x, (1, self.defaults.frames, *x.shape)))

    def _clipped(self, frames: Array) -> Array:
        return jnp.clip(frames, -1, 1) if self.recording.clipped else frames


def check_architecture(model: SVDConfig, recorded: SVDConfig, what: str) -> None:
    """Compare two configurations in everything that decides parameters' shapes and meaning.

    Raises:
        UserError: they differ; the message names the first difference.
    """
    if (model.task, model.preconditioning) != (recorded.task, recorded.preconditioning):
        raise UserError(f"{what}: for {model.task}, but the recording is of a model for {recorded.task}")
    if model.image_encoder is None:
        raise UserError(f"{what}: has no image encoder: give the whole checkpoint, not a part of it")
    for part in ("unet", "vae", "image_encoder"):
        ours, theirs = (dataclasses.asdict(getattr(c, part)) for c in (model, recorded))
        for name in ours.keys() - {"norm_eps", "remat"}:
            if ours[name] != theirs[name]:
                raise UserError(
                    f"{what}: {part} has {name} {ours[name]}, but the recording is of a model with {theirs[name]}"
                )


def side_by_side(theirs: Float[ndarray, "t h w 3"], ours: Float[ndarray, "t h w 3"]) -> tuple[np.ndarray, float]:
    """Reference, ours and their difference next to each other, as pixels.

    Returns:
        The frames [t h 3w 3], and the power of ten that the difference was multiplied by to be seen.
    """
    difference = np.abs(np.asarray(ours, np.float64) - theirs)
    gain = 10.0 ** np.clip(np.floor(-np.log10(max(difference.max(), 1e-12))), 0, 12)
    return np.concatenate([to_uint8(theirs), to_uint8(ours), to_uint8(difference * gain - 1)], axis=2), gain


def run(args: Compare) -> int:
    """Compare, print the table, and write the video.

    Returns:
        0 if every error is within the tolerance, else 1.

    Raises:
        UserError: checkpoint, recording or output is unusable, or they do not belong together.
    """
    console = Console()
    recording = load_golden(args.recording) if is_golden(args.recording) else Recording.load(args.recording)
    coarser = max(args.dtype, recording.dtype.name, key=lambda name: TOLERANCES[name])
    tolerance = TOLERANCES[coarser] if args.tolerance is None else args.tolerance
    if not 0 < tolerance < float("inf"):
        raise UserError(f"--tolerance {tolerance}: must be a number above 0")
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.enable_x64(args.dtype == "float64"))
        # Accelerators would otherwise round the factors of float32 products to half their digits.
        stack.enter_context(jax.default_matmul_precision("highest"))
        rows, frames = _measure(args, recording, console)
    _print(rows, tolerance, args, recording, console)
    video, gain = side_by_side(recording.frames, frames)
    path = args.out / f"{args.recording.stem}-compare.mp4"
    settings = {"checkpoint": args.checkpoint, "recording": str(args.recording), "dtype": args.dtype}
    _write(path, video, recording.config.defaults.fps, {**settings, "gain": gain})
    console.print(f"{path}: reference | svdjax | difference x {gain:g}", highlight=False, soft_wrap=True)
    return int(any(row.error > tolerance for row in rows))


def _measure(args: Compare, recording: Recording, console: Console) -> tuple[list[Row], np.ndarray]:
    known, options = recording.config, _options(args, recording.config)
    model = load_model(args.checkpoint, dtype=jnp.dtype(args.dtype), options=options)
    check_architecture(model.config, known, args.checkpoint)
    if model.config.unet.norm_eps != known.unet.norm_eps:
        console.print(
            f"[yellow]group-norm epsilons as in {model.config.unet.norm_eps}, recorded with those of "
            f"{known.unet.norm_eps}: expect differences around 1e-4"
        )
    comparison = Comparison(model, recording)
    rows: list[Row] = []
    with step_bar(Console(stderr=True)) as progress:
        parts = progress.add_task("parts", total=3)
        for part in (comparison.conditioning, comparison.unet, comparison.decoder):
            rows += part()
            progress.advance(parts)
        steps = progress.add_task("sampling", total=recording.config.defaults.steps)
        path_rows, frames = comparison.video(lambda step: progress.advance(steps))
    return rows + path_rows, frames


def _options(args: Compare, known: SVDConfig) -> Options:
    """What was given on the command line, and what the recording knows about heads where nothing was."""
    given = Options(head_dim=args.head_dim, clip_heads=args.clip_heads)
    heads = Options(
        head_dim=args.head_dim or known.unet.head_dim, clip_heads=args.clip_heads or known.image_encoder.heads
    )
    try:
        open_checkpoint(args.checkpoint, heads)
    except UserError:  # its own configuration says otherwise: then the architectures differ, to be reported so
        return given
    return heads


def _print(rows: list[Row], tolerance: float, args: Compare, recording: Recording, console: Console) -> None:
    title = f"{args.checkpoint}, {args.dtype}, against {args.recording} ({recording.dtype.name})"
    table = Table("part", "relative error", "", title=title)
    for row in rows:
        verdict = "[green]ok" if row.error <= tolerance else "[red]above the tolerance"
        table.add_row(row.part, f"{row.error:.1e}", verdict)
    console.print(table)
    worst = max(rows, key=lambda row: row.error)
    console.print(f"largest: {worst.error:.1e} ({worst.part}); tolerance {tolerance:g}", highlight=False)


def _write(path: Path, video: np.ndarray, fps: float, metadata: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, video, fps, metadata=metadata)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
