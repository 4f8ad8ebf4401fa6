"""From requests to frames: conditioning, the sampler, and the decoder, on every device there is."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from svdjax.diffusion.denoiser import PRECONDITIONINGS, Denoise, Denoiser
from svdjax.diffusion.guidance import (
    ConstantGuidance,
    Guidance,
    LinearGuidance,
    NoGuidance,
    TriangleGuidance,
    guided,
)
from svdjax.diffusion.noise import (
    AlignYourSteps,
    DiscreteSchedule,
    Karras,
    LogLinear,
    Schedule,
    initial_noise,
    row_keys,
)
from svdjax.diffusion.samplers import SAMPLERS, Move, Run, advance, moves_of, sample
from svdjax.errors import UserError
from svdjax.models.sharding import constrain
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.vae import VAE
from svdjax.sampling.decode import decode_frames, default_chunk
from svdjax.sampling.images import to_uint8
from svdjax.sampling.windows import Before
from svdjax.tasks import Conditioning, network_of, task_of
from svdjax.typing import Array, Float, Int, Key, PyTree, UInt8, UInt32, ndarray

SamplerName = Literal["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "ddim"]
ScheduleName = Literal["karras", "align_your_steps", "log_linear", "leading", "trailing"]
SCHEDULES = {"karras": Karras, "align_your_steps": AlignYourSteps, "log_linear": LogLinear}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    Attributes:
        defaults: sizes, steps, guidance and conditioning values.
        sampler, schedule: names of the sampler and of the noise levels that it steps through; ``leading`` and
            ``trailing`` are subsets of SD 2.1's 1000 levels. No schedule is :func:`own_schedule`.
        seed: video i of a seed is the same whatever the number of devices and of other videos.
        per_device: videos that a device, or a row of devices that share them, works on at once.
        context: devices that share one video, each with some of its columns, for videos too large for one.
        chunk: frames decoded at once. None is :func:`default_chunk` where the result does not depend on it
            (``exact``), else all.
        decode: ``exact`` equals decoding all frames at once; ``reference`` decodes chunks alone, with seams.
        windows: runs of frames to make one after the other, for videos longer than the model makes at once.
        overlap: frames that a window begins with, the last ones of the window before (see `windows.Before`).
    """

    defaults: SamplingDefaults
    sampler: SamplerName = "euler"
    schedule: ScheduleName | None = None
    seed: int = 23
    per_device: int = 1
    context: int = 1
    chunk: int | None = None
    decode: Literal["exact", "reference"] = "exact"
    windows: int = 1
    overlap: int = 1


@dataclass
class Timings:
    """Seconds spent per stage; the first call of a stage includes compiling it."""

    seconds: dict[str, float] = field(default_factory=dict)

    def measure(self, stage: str, call: Callable[[], PyTree]) -> PyTree:
        """Run a stage to its end and add its time."""
        start = time.perf_counter()
        result = jax.block_until_ready(call())
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
        return result


def guidance_of(defaults: SamplingDefaults) -> Guidance:
    """The guidance that a checkpoint's defaults describe."""
    first, last = defaults.guidance
    if defaults.guidance_shape == "triangle":
        return TriangleGuidance(first, last)
    if defaults.guidance_shape == "constant" or first == last:
        return NoGuidance() if last == 1 else ConstantGuidance(last)
    return LinearGuidance(first, last)


def own_schedule(config: SVDConfig) -> ScheduleName:
    """The schedule that a model is meant to be sampled with: SVD's, or for SD 2.1 that of its released pipeline."""
    return "karras" if config.preconditioning == "v" else "leading"


def schedule_of(name: ScheduleName, defaults: SamplingDefaults) -> Schedule:
    """The noise levels to step through, over the checkpoint's range."""
    if name in ("leading", "trailing"):
        return DiscreteSchedule(spacing=name)
    return SCHEDULES[name](sigma_min=defaults.sigma_min, sigma_max=defaults.sigma_max)


def keys_of(seed: UInt32[Array, ""]) -> Key[Array, "3"]:
    """Randomness of the requests, of what the sampler starts from, and of its steps."""
    return jax.random.split(jax.random.key(seed), 3)


def decoder_dtype(vae: VAE) -> np.dtype:
    """The type to decode in: the parameters' own, but never float16, which SVD's decoder overflows."""
    dtype = vae.decoder.conv_in.kernel[...].dtype
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


def check_context(config: SVDConfig, settings: Settings, devices: int) -> None:
    """See that so many devices can share a video of these settings.

    Raises:
        UserError: there are not as many, or its columns do not divide among them at every level of the networks.
    """
    context, width = settings.context, settings.defaults.width
    if not 1 <= context <= devices:
        raise UserError(f"--context {context}: must be from 1 to {devices}, the number of devices here")
    multiple = config.size_multiple * context
    if (width + -width % config.size_multiple) % multiple:
        raise UserError(
            f"--context {context}: videos {width} pixels wide do not divide among so many devices at every "
            f"level: make the width a multiple of {multiple}, or let fewer devices share a video"
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Branches:
    """What the two branches of guidance are conditioned on.

    Attributes:
        cond: of the videos that are asked for.
        uncond: of what guidance moves away from; None where there is no guidance.
    """

    cond: Conditioning
    uncond: Conditioning | None


class Pipeline:
    """A loaded model made ready to sample, each device with videos of its own.

    Or each row of ``settings.context`` devices, which share them; devices that are left over stay idle. Its stages
    are compiled once. The sampler's steps are calls of one program, which knows neither the seed nor the noise
    levels: so it is kept for the next start (`svdjax.compilation`) and serves any of them.

    Attributes:
        task: what the model is conditioned on.
        settings: how it samples, with the schedule spelled out.
        timings: seconds spent per stage so far.
    """

    def __init__(self, model: SVD, settings: Settings, *, on_step: Callable[[int], None] | None = None) -> None:
        """Nothing is computed yet.

        Args:
            model: its parameters' type is the type to compute in.
            settings: how to sample. Sizes that are no multiple of the model's ``size_multiple`` are rounded up for
                the networks, and the videos cropped.
            on_step: called after each sampler step with its number, from 1, which begins anew with each group of
                videos and each window.

        Raises:
            UserError: no task is known that the model is conditioned by.
        """
        self.task = task_of(model.config)
        self.settings = dataclasses.replace(settings, schedule=settings.schedule or own_schedule(model.config))
        self.timings = Timings()
        self._on_step = on_step
        self._config = model.config
        graph, state = nnx.split(model)
        # A list: the thousands of parameters of a tree would be looked at in Python at every call, that is, step.
        self._weights, tree = jax.tree.flatten(state)
        self._model_of = lambda weights: nnx.merge(graph, tree.unflatten(weights))
        self._stages_on: dict[int, Sequence[Callable[..., Any]]] = {}

    def __call__(self, **inputs: Any) -> UInt8[ndarray, "b t h w 3"]:
        """Make the videos that a user asks for.

        Args:
            inputs: those of the task's ``request``: ``images`` to animate, or ``prompts``.

        Returns:
            The frames of each video.

        Raises:
            UserError: an input does not fit the model or the settings.
        """
        return np.stack(list(self.videos(self.request(**inputs))))

    def request(self, **inputs: Any) -> PyTree:
        """The request for videos of these settings, see :meth:`svdjax.tasks.Task.request`."""
        return self.task.request(self.settings.defaults, **inputs)

    def videos(self, request: PyTree) -> Iterator[UInt8[ndarray, "t h w 3"]]:
        """The videos of a request of NumPy arrays, one after the other, as soon as each is finished.

        Raises:
            UserError: see :func:`check_context`.
        """
        count = len(jax.tree.leaves(request)[0])
        return self.videos_of(lambda which: jax.tree.map(lambda x: x[which], request), count)

    def videos_of(
        self, request: Callable[[Int[ndarray, " n"]], PyTree], count: int
    ) -> Iterator[UInt8[ndarray, "t h w 3"]]:
        """So many videos; each time ``request`` makes what is asked of those that are next, given their numbers.

        Raises:
            UserError: see :func:`check_context`.
        """
        rows, groups = self._layout(count)
        stages = self._stages(rows)
        for group in groups:
            yield from self._group(request(group % count), group, stages)[: count - group[0]]

    def step_calls(self, count: int) -> int:
        """How often ``on_step`` is called for ``count`` videos."""
        _, groups = self._layout(count)
        return len(groups) * self.settings.defaults.steps * self.settings.windows

    def _layout(self, count: int) -> tuple[int, Int[ndarray, "groups n"]]:
        """How many rows of devices to use, each with videos of its own, and the numbers of those made at once.

        The last group is filled up with the first requests again, so that every group has the same shapes.
        """
        check_context(self._config, self.settings, jax.local_device_count())
        per_row = min(self.settings.per_device, count)
        rows = min(jax.local_device_count() // self.settings.context, -(-count // per_row))
        at_once = rows * per_row
        return rows, np.arange(-(-count // at_once) * at_once).reshape(-1, at_once)

    def _stages(self, rows: int) -> Sequence[Callable[..., Any]]:
        """The stages on so many rows of devices, which share one copy of the weights on each device."""
        if rows not in self._stages_on:
            context = self.settings.context
            devices = np.array(jax.local_devices()[: rows * context]).reshape(rows, context)
            mesh = Mesh(devices, ("data", "context"))
            weights = jax.device_put(self._weights, NamedSharding(mesh, P()))
            self._stages_on[rows] = [
                self._on_each_row(name, stage, mesh, weights)
                for name, stage in (
                    ("condition", self.condition),
                    ("sample", self.start),
                    ("sample", self.step),
                    ("decode", self.decode),
                )
            ]
        return self._stages_on[rows]

    def _on_each_row(
        self, name: str, stage: Callable[..., Any], mesh: Mesh, weights: Sequence[Array]
    ) -> Callable[..., Any]:
        """Compile a stage to run on every row of devices alone: only the devices of one row communicate.

        Args:
            name: what its time counts as.
            stage: of the model, what all videos share, and arrays with an entry for each video.
        """
        # No axis of length one is left to the compiler: it would want each kernel wrapped for nothing.
        own = {"data"} if mesh.shape["context"] > 1 else set(mesh.axis_names)

        @jax.jit
        def run(weights: Sequence[Array], shared: PyTree, *batch: PyTree) -> Any:
            def local(weights: Sequence[Array], shared: PyTree, *batch: PyTree) -> Any:
                return stage(self._model_of(weights), shared, *batch)

            specs = (P(), P(), *[P("data")] * len(batch))
            return jax.shard_map(
                local, mesh=mesh, in_specs=specs, out_specs=P("data"), axis_names=own, check_vma=False
            )(weights, shared, *batch)

        return lambda *inputs: self.timings.measure(name, lambda: run(weights, *inputs))

    def _group(self, request: PyTree, videos: ndarray, stages: Sequence[Callable[..., Any]]) -> ndarray:
        """Sample one group of videos on all devices, window after window."""
        condition, start, step, decode = stages
        seed, moves = np.uint32(self.settings.seed), moves_of(self._sigmas())
        height, width = self.settings.defaults.height, self.settings.defaults.width
        windows, overlap = self.settings.windows, self.settings.overlap
        before = Before.nothing(len(videos), self._latent_shape(), overlap) if windows > 1 else None
        made: list[ndarray] = []
        for number in range(windows):
            branches = condition(seed, request, videos)
            run = start((seed, moves.sigma[0]), videos, before)
            for turn in range(self.settings.defaults.steps):
                run = step((seed, jax.tree.map(itemgetter(turn), moves)), run, branches, videos, before)
                if self._on_step is not None:
                    self._on_step(turn + 1)
            frames = self.task.finish(request, np.asarray(decode((), run.x)[:, :, :height, :width]))
            made.append(to_uint8(frames[:, overlap:] if number else frames))
            if number + 1 < windows:
                request = self.task.following(request, frames[:, -overlap:])
                # From the host, as the first one was: else the same programs would be compiled for where it lies.
                before = before.after(np.asarray(run.x))
        return np.concatenate(made, axis=1)

    def condition(self, model: SVD, seed: UInt32[Array, ""], request: PyTree, videos: Int[Array, " b"]) -> Branches:
        """First stage: a request to conditioning."""
        key, _, _ = keys_of(seed)
        request = self.task.complete(request, row_keys(key, videos))
        cond = self.task.condition(model, request, self.settings.defaults.frames)
        alone = isinstance(guidance_of(self.settings.defaults), NoGuidance)
        return Branches(cond=cond, uncond=None if alone else self.task.unconditional(model, cond, request))

    def start(
        self,
        model: SVD | None,
        shared: tuple[UInt32[Array, ""], Float[Array, ""]],
        videos: Int[Array, " b"],
        before: Before | None = None,
    ) -> Run:
        """What the sampler starts from: noise of a seed at a noise level; ``before`` is of longer videos."""
        del model
        seed, sigma = shared
        _, key, _ = keys_of(seed)
        key = key if before is None else before.key(key)
        noise = initial_noise(key, videos, self._latent_shape(), sigma)
        return _laid_out(Run.start(noise if before is None else before.start(noise, sigma)))

    def step(
        self,
        model: SVD,
        shared: tuple[UInt32[Array, ""], Move],
        run: Run,
        branches: Branches,
        videos: Int[Array, " b"],
        before: Before | None = None,
    ) -> Run:
        """One step of the sampler, of a seed, from latents to less noisy ones, through the guided denoiser."""
        seed, move = shared
        denoise, key = self._denoise(model, branches, before), self._noise_key(seed, before)
        return _laid_out(advance(denoise, run, move, SAMPLERS[self.settings.sampler], key, index=videos))

    def sample(
        self,
        model: SVD,
        seed: UInt32[Array, ""],
        branches: Branches,
        videos: Int[Array, " b"],
        before: Before | None = None,
    ) -> Float[Array, "b t h w c"]:
        """Second stage, noise to scaled latents: :meth:`start` and all steps, where they are to be one program."""
        sigmas = self._sigmas()
        start = self.start(model, (seed, sigmas[0]), videos, before).x
        denoise, key = self._denoise(model, branches, before), self._noise_key(seed, before)
        return sample(denoise, start, sigmas, SAMPLERS[self.settings.sampler], key, index=videos)

    def _denoise(self, model: SVD, branches: Branches, before: Before | None) -> Denoise:
        denoiser = Denoiser(network_of(model.unet), PRECONDITIONINGS[self._config.preconditioning])
        guidance = guidance_of(self.settings.defaults)
        denoise = guided(denoiser, guidance, branches.cond, branches.uncond)
        return denoise if before is None else before.hold(denoise)

    def _noise_key(self, seed: UInt32[Array, ""], before: Before | None) -> Key[Array, ""]:
        """Randomness of the steps."""
        _, _, key = keys_of(seed)
        return key if before is None else before.key(key)

    def _sigmas(self) -> Float[Array, " n"]:
        """The noise levels of the sampler's steps."""
        return schedule_of(self.settings.schedule, self.settings.defaults)(self.settings.defaults.steps)

    def _latent_shape(self) -> tuple[int, ...]:
        """Frames, rows, columns and channels of the latents of one video."""
        defaults = self.settings.defaults
        return defaults.frames, *self._config.latent_shape(defaults.height, defaults.width)

    def decode(
        self, model: SVD, shared: tuple[()], latents: Float[Array, "b t h w c"]
    ) -> Float[Array, "b t h2 w2 3"]:
        """Third stage: scaled latents to frames in about [-1, 1]. No seed nor anything else is shared."""
        del shared
        settings = self.settings
        z = (latents / self._config.vae.scaling_factor).astype(decoder_dtype(model.vae))
        chunk = settings.chunk
        if chunk is None and settings.decode == "exact":
            chunk = default_chunk(*z.shape[:4])
        return decode_frames(model.vae, z, chunk=chunk, mode=settings.decode)


def _laid_out(run: Run) -> Run:
    """A run where each step has it: else a step would be compiled for each place where it finds one."""
    return jax.tree.map(constrain, run)
