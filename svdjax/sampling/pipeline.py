"""From pictures to frames: conditioning, the sampler, and the decoder, on every device there is."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from svdjax.diffusion.denoiser import PRECONDITIONINGS, Denoiser
from svdjax.diffusion.guidance import (
    ConstantGuidance,
    Guidance,
    LinearGuidance,
    NoGuidance,
    TriangleGuidance,
    guided,
)
from svdjax.diffusion.noise import AlignYourSteps, Karras, LogLinear, Schedule, initial_noise, video_noise
from svdjax.diffusion.samplers import SAMPLERS, sample
from svdjax.models.clip_preprocess import preprocess
from svdjax.models.svd import SVD, SamplingDefaults, SVDConfig
from svdjax.models.vae import VAE
from svdjax.sampling.decode import decode_frames, default_chunk
from svdjax.sampling.images import pad_to_multiple, to_uint8
from svdjax.tasks import Conditioning, ImageRequest, ImageToVideo, network_of
from svdjax.typing import Array, Float, Int, Key, PyTree, UInt8, ndarray

SamplerName = Literal["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "euler_ancestral", "ddim"]
ScheduleName = Literal["karras", "align_your_steps", "log_linear"]
SCHEDULES = {"karras": Karras, "align_your_steps": AlignYourSteps, "log_linear": LogLinear}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    Attributes:
        defaults: sizes, steps, guidance and conditioning values.
        sampler, schedule: names of the sampler and of the noise levels that it steps through.
        seed: video i of a seed is the same whatever the number of devices and of other videos.
        per_device: videos that a device works on at once.
        chunk: frames decoded at once. None is :func:`default_chunk` where the result does not depend on it
            (``exact``), else all.
        decode: ``exact`` equals decoding all frames at once; ``reference`` decodes chunks alone, with seams.
    """

    defaults: SamplingDefaults
    sampler: SamplerName = "euler"
    schedule: ScheduleName = "karras"
    seed: int = 23
    per_device: int = 1
    chunk: int | None = None
    decode: Literal["exact", "reference"] = "exact"


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


def size_multiple(config: SVDConfig) -> int:
    """Height and width must be multiples of this: the VAE's factor times the UNet's (64 for SVD)."""
    return config.vae.factor * 2 ** (len(config.unet.channels) - 1)


def schedule_of(name: ScheduleName, defaults: SamplingDefaults) -> Schedule:
    """The noise levels to step through, over the checkpoint's range."""
    return SCHEDULES[name](sigma_min=defaults.sigma_min, sigma_max=defaults.sigma_max)


def decoder_dtype(vae: VAE) -> np.dtype:
    """The type to decode in: the parameters' own, but never float16, which SVD's decoder overflows."""
    dtype = vae.decoder.conv_in.kernel[...].dtype
    return jnp.dtype(jnp.float32) if dtype == jnp.float16 else dtype


class Pipeline:
    """A loaded model made ready to sample: three stages, compiled once, each device with videos of its own.

    Attributes:
        timings: seconds spent per stage so far.
    """

    def __init__(self, model: SVD, settings: Settings, *, on_step: Callable[[int], None] | None = None) -> None:
        """Nothing is computed yet.

        Args:
            model: its parameters' type is the type to compute in.
            settings: how to sample.
            on_step: called on the host after each sampler step of each device.
        """
        self.timings = Timings()
        self._settings = settings
        self._on_step = on_step
        self._task = ImageToVideo(config=model.config)
        self._config = model.config
        self._graph, self._state = nnx.split(model)
        self._stages_on: dict[tuple[jax.Device, ...], Sequence[Callable[..., Any]]] = {}

    def __call__(
        self, images: Float[ndarray, "b h w 3"], motion_buckets: Float[ndarray, " b"] | None = None
    ) -> UInt8[ndarray, "b t h w 3"]:
        """Animate pictures.

        Args:
            images: float32 in [-1, 1]; sizes that are no multiple of :func:`size_multiple` are padded for the
                networks and cropped back.
            motion_buckets: 1 (still) to 255 of each video, if not the settings' for all.

        Returns:
            The frames of each video.
        """
        return np.stack(list(self.videos(images, motion_buckets)))

    def videos(
        self, images: Float[ndarray, "b h w 3"], motion_buckets: Float[ndarray, " b"] | None = None
    ) -> Iterator[UInt8[ndarray, "t h w 3"]]:
        """The same videos one after the other, as soon as each is finished."""
        count = len(images)
        if motion_buckets is None:
            motion_buckets = np.full(count, self._settings.defaults.motion_bucket, np.float32)
        devices, groups = self._layout(count)
        stages = self._stages(devices)
        for group in groups:
            frames = self._group(images[group % count], motion_buckets[group % count], group, stages)
            yield from frames[: count - group[0]]

    def step_calls(self, count: int) -> int:
        """How often ``on_step`` is called for ``count`` videos."""
        devices, groups = self._layout(count)
        return len(devices) * len(groups) * self._settings.defaults.steps

    def _layout(self, count: int) -> tuple[tuple[jax.Device, ...], Int[ndarray, "groups n"]]:
        """The devices to use, and the numbers of the videos that they work on at once, group by group.

        The last group is filled up with the first pictures again, so that every group has the same shapes.
        """
        per_device = min(self._settings.per_device, count)
        devices = tuple(jax.devices()[: -(-count // per_device)])
        at_once = len(devices) * per_device
        return devices, np.arange(-(-count // at_once) * at_once).reshape(-1, at_once)

    def _stages(self, devices: tuple[jax.Device, ...]) -> Sequence[Callable[..., Any]]:
        """The three stages on these devices, which share one copy of the weights on each."""
        if devices not in self._stages_on:
            mesh = Mesh(np.array(devices), ("data",))
            state = jax.device_put(self._state, NamedSharding(mesh, P()))
            self._stages_on[devices] = [
                self._on_each_device(stage, mesh, state) for stage in (self.condition, self.sample, self.decode)
            ]
        return self._stages_on[devices]

    def _on_each_device(self, stage: Callable[..., Any], mesh: Mesh, state: PyTree) -> Callable[..., Any]:
        """Compile a stage to run on every device alone: no stage needs to communicate."""

        @jax.jit
        def run(state: PyTree, *batch: PyTree) -> Any:
            def local(state: PyTree, *batch: PyTree) -> Any:
                return stage(nnx.merge(self._graph, state), *batch)

            specs = (P(), *[P("data")] * len(batch))
            return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)(
                state, *batch
            )

        return lambda *batch: self.timings.measure(stage.__name__, lambda: run(state, *batch))

    def _group(
        self, images: ndarray, motion_buckets: ndarray, videos: ndarray, stages: Sequence[Callable[..., Any]]
    ) -> ndarray:
        """Sample one group of videos on all devices."""
        condition, sample, decode = stages
        height, width = images.shape[1:3]
        padded = np.stack([pad_to_multiple(image, size_multiple(self._config)) for image in images])
        frames = decode(sample(condition(images, padded, motion_buckets, videos), videos))
        return to_uint8(np.asarray(frames[:, :, :height, :width]))

    def condition(
        self,
        model: SVD,
        images: Float[Array, "b h w 3"],
        padded: Float[Array, "b h2 w2 3"],
        motion_buckets: Float[Array, " b"],
        videos: Int[Array, " b"],
    ) -> Conditioning:
        """First stage: pictures to conditioning. CLIP sees the picture without its padding."""
        defaults = self._settings.defaults
        noise_key, _ = self._keys()

        def full(value: float) -> Float[Array, " b"]:
            return jnp.full((images.shape[0],), value, images.dtype)

        request = ImageRequest(
            image=padded,
            clip_image=preprocess(images, size=self._config.image_encoder.image_size),
            fps=full(defaults.fps),
            motion_bucket=motion_buckets,
            noise_aug=full(defaults.noise_aug),
            noise=video_noise(noise_key, videos, padded.shape[1:]),
        )
        return self._task.condition(model, request, defaults.frames)

    def sample(self, model: SVD, cond: Conditioning, videos: Int[Array, " b"]) -> Float[Array, "b t h w c"]:
        """Second stage: noise to scaled latents, through the guided denoiser."""
        settings, defaults = self._settings, self._settings.defaults
        _, key = self._keys()
        sigmas = schedule_of(settings.schedule, defaults)(defaults.steps)
        denoiser = Denoiser(network_of(model.unet), PRECONDITIONINGS[self._config.preconditioning])
        denoise = guided(denoiser, guidance_of(defaults), cond, self._task.unconditional(model, cond))
        shape = (*cond.concat.shape[1:4], self._config.vae.latent_channels)
        noise = initial_noise(key, videos, shape, sigmas[0])
        sampler = SAMPLERS[settings.sampler]
        return sample(denoise, noise, sigmas, sampler, key, index=videos, on_step=self._on_step)

    def decode(self, model: SVD, latents: Float[Array, "b t h w c"]) -> Float[Array, "b t h2 w2 3"]:
        """Third stage: scaled latents to frames in about [-1, 1]."""
        settings = self._settings
        z = (latents / self._config.vae.scaling_factor).astype(decoder_dtype(model.vae))
        chunk = settings.chunk
        if chunk is None and settings.decode == "exact":
            chunk = default_chunk(*z.shape[:4])
        return decode_frames(model.vae, z, chunk=chunk, mode=settings.decode)

    def _keys(self) -> Key[Array, "2"]:
        """Randomness of the noise augmentation, and of the sampler."""
        return jax.random.split(jax.random.key(self._settings.seed))
