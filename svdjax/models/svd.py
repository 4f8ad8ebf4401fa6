"""The whole model: the networks of one checkpoint, and the configuration that travels with the weights."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field

import jax
from flax import nnx

from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPText, CLIPTextConfig
from svdjax.models.clip_vision import CLIPVision, CLIPVisionConfig
from svdjax.models.remat import BLOCKS
from svdjax.models.unet import UNet, UNetConfig
from svdjax.models.vae import VAE, VAEConfig


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How a checkpoint is meant to be sampled; every field can be overridden on the command line.

    Attributes:
        frames: frames that the model was trained on.
        height: pixels that it was trained on.
        width: pixels that it was trained on.
        steps: sampler steps; sigmas follow the Karras schedule from ``sigma_max`` to ``sigma_min``.
        guidance: scale at the first and at the last frame (linear), or lowest and highest (triangle).
        guidance_shape: how the scale runs over the frames.
        fps: frames per second to condition on.
        motion_bucket: 1 (still) to 255 (most motion).
        noise_aug: standard deviation of the noise added to the picture, in units of its [-1, 1] range.
        sigma_min: noise level of the last step.
        sigma_max: noise level of the first step.
    """

    frames: int = 14
    height: int = 576
    width: int = 1024
    steps: int = 25
    guidance: tuple[float, float] = (1.0, 2.5)
    guidance_shape: typing.Literal["linear", "triangle", "constant"] = "linear"
    fps: float = 7.0
    motion_bucket: float = 127.0
    noise_aug: float = 0.02
    sigma_min: float = 0.002
    sigma_max: float = 700.0


Scalars = tuple[tuple[str, int], ...]


@dataclass(frozen=True, kw_only=True)
class SVDConfig:
    """Sizes of every network in a checkpoint; a network that the checkpoint lacks is None.

    Attributes:
        task: name of the task that the UNet was trained for (see ``svdjax.tasks``).
        scalars: name and embedding width of each scalar of the vector conditioning, in order.
        preconditioning: what the UNet's output means, and over which noise levels (see ``svdjax.diffusion``).
        missing_frame: rows, columns and channels of the learned latent that stands for a frame which is not known,
            of models that are given frames of the clip (see ``svdjax.tasks.known_frames``); None for others.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    image_encoder: CLIPVisionConfig | None = field(default_factory=CLIPVisionConfig)
    text_encoder: CLIPTextConfig | None = None
    task: str = "image_to_video"
    scalars: Scalars = (("fps", 256), ("motion_bucket", 256), ("noise_aug", 256))
    preconditioning: typing.Literal["v", "discrete_eps", "discrete_v"] = "v"
    missing_frame: tuple[int, int, int] | None = None
    defaults: SamplingDefaults = field(default_factory=SamplingDefaults)

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: the VAE's factor times the UNet's (64 for SVD)."""
        return self.vae.factor * 2 ** (len(self.unet.channels) - 1)

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Rows, columns and channels of the latent of a picture, padded to multiples of :attr:`size_multiple`."""
        rows, columns = (side + -side % self.size_multiple for side in (height, width))
        return rows // self.vae.factor, columns // self.vae.factor, self.vae.latent_channels

    @classmethod
    def svd(cls) -> "SVDConfig":
        """Image to video, 14 frames of 576x1024 (SVD)."""
        return cls()

    @classmethod
    def svd_xt(cls) -> "SVDConfig":
        """Image to video, 25 frames of 576x1024 (SVD-XT): the same network with other sampling defaults."""
        return cls(defaults=SamplingDefaults(frames=25, steps=30, guidance=(1.5, 3.0)))

    @classmethod
    def sv3d_u(cls) -> "SVDConfig":
        """21 views on a level orbit from one picture (SV3D_u)."""
        return cls(
            unet=UNetConfig.sv3d_u(),
            vae=VAEConfig.svd_image_decoder(),
            task="multi_view",
            scalars=(("noise_aug", 256),),
            defaults=SV3D_DEFAULTS,
        )

    @classmethod
    def sv3d_p(cls) -> "SVDConfig":
        """21 views on a given orbit from one picture (SV3D_p)."""
        return dataclasses.replace(
            cls.sv3d_u(),
            unet=UNetConfig.sv3d_p(),
            scalars=(("noise_aug", 256), ("polar", 512), ("azimuth", 512)),
        )

    @classmethod
    def text_to_video(cls) -> "SVDConfig":
        """Text to video, 14 frames of 576x1024; the two scalars are fps and motion bucket.

        Guidance of 7 is the paper's for its text-to-video evaluation.
        """
        scalars = (("fps", 256), ("motion_bucket", 256))
        return cls(
            unet=UNetConfig.text_to_video(vector_dim=512),
            image_encoder=None,
            text_encoder=CLIPTextConfig(),
            task="text_to_video",
            scalars=scalars,
            defaults=SamplingDefaults(steps=50, guidance=(7.0, 7.0), guidance_shape="constant"),
        )

    @classmethod
    def frame_interpolation(cls) -> "SVDConfig":
        """Three frames between two, 576x1024 (paper, section 4.4): how it is sampled is not published."""
        return cls(
            unet=UNetConfig.interpolation(),
            task="frame_interpolation",
            scalars=(("fps", 256), ("motion_bucket", 256)),
            missing_frame=(72, 128, 4),
            defaults=SamplingDefaults(frames=5, guidance=(1.0, 1.0), guidance_shape="constant"),
        )

    @classmethod
    def sd21(cls) -> "SVDConfig":
        """Stable Diffusion 2.1 (768, v-prediction): the image model that training starts from."""
        return cls(
            unet=UNetConfig.sd21(),
            vae=VAEConfig.sd21(),
            image_encoder=None,
            text_encoder=CLIPTextConfig(),
            task="text_to_image",
            scalars=(),
            preconditioning="discrete_v",
            defaults=SamplingDefaults(
                frames=1,
                height=768,
                width=768,
                steps=50,
                guidance=(7.5, 7.5),
                guidance_shape="constant",
                sigma_min=0.0292,  # of the 1000 levels
                sigma_max=14.61,
            ),
        )

    def to_json(self) -> str:
        """The configuration as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str, *, where: str = "config") -> "SVDConfig":
        """Read :meth:`to_json`'s text.

        Raises:
            UserError: the text is no JSON object, or a field is unknown or of another type.
        """
        try:
            return _from_dict(cls, _updated(json.loads(text)), where)
        except (json.JSONDecodeError, TypeError, ValueError, UserError) as error:
            raise UserError(f"{where}: not a configuration of svdjax: {error}") from None


SV3D_DEFAULTS = SamplingDefaults(
    frames=21,
    height=576,
    width=576,
    steps=50,
    guidance=(1.0, 2.5),
    guidance_shape="triangle",
    noise_aug=1e-5,
)


def _updated(config: typing.Any) -> typing.Any:
    """A configuration in which ``remat`` said only whether the UNet's blocks are recomputed, in today's words."""
    unet = config.get("unet") if isinstance(config, dict) else None
    if not isinstance(unet, dict) or not isinstance(unet.get("remat"), bool):
        return config
    return {**config, "unet": {**unet, "remat": list(BLOCKS) if unet["remat"] else []}}


def _from_dict(cls: type, values: object, where: str) -> typing.Any:
    if not isinstance(values, dict):
        raise TypeError(f"{cls.__name__} should be an object")
    hints = typing.get_type_hints(cls)
    if unknown := sorted(set(values) - set(hints)):
        raise TypeError(f"unknown fields {', '.join(unknown)}")
    return cls(**{name: _coerce(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _coerce(hint: typing.Any, value: object, where: str) -> typing.Any:
    """JSON has no tuples and no dataclasses: rebuild them after the field's type."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        if value is None:
            return None
        (hint,) = [option for option in typing.get_args(hint) if option is not types.NoneType]
    if dataclasses.is_dataclass(hint):
        return _from_dict(hint, value, where)
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        raise TypeError(f"{where} should be one of {', '.join(typing.get_args(hint))}, not {value!r}")
    if isinstance(value, list):
        return _tuples(value)
    if isinstance(hint, type) and not isinstance(value, (hint, int) if hint is float else hint):
        raise TypeError(f"{where} should be of type {hint.__name__}, not {value!r}")
    return value


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


class SVD(nnx.Module):
    """The networks of one checkpoint: ``unet``, ``vae``, ``image_encoder`` and ``text_encoder`` (or None).

    ``missing_frame`` is the learned latent of that name in the configuration, or None.
    """

    def __init__(self, config: SVDConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.unet = UNet(config.unet, rngs=rngs)
        self.vae = VAE(config.vae, rngs=rngs)
        self.image_encoder = CLIPVision(config.image_encoder, rngs=rngs) if config.image_encoder else None
        self.text_encoder = CLIPText(config.text_encoder, rngs=rngs) if config.text_encoder else None
        shape = config.missing_frame
        self.missing_frame = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape)) if shape else None
