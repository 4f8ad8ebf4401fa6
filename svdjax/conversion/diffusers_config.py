"""The JSON files of a diffusers folder, read into and written from our configuration.

Every field that changes what a network computes is either read or checked; diffusers' own cosmetic fields are not.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from svdjax.conversion.clip import diffusers_text_config
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.svd import SVDConfig
from svdjax.models.unet import UNetConfig
from svdjax.models.vae import VAEConfig

VERSION = "0.42.1"  # of diffusers, whose fields these are
VIDEO_UNET, IMAGE_UNET = "UNetSpatioTemporalConditionModel", "UNet2DConditionModel"
VIDEO_VAE, IMAGE_VAE = "AutoencoderKLTemporalDecoder", "AutoencoderKL"
Json = dict[str, Any]


class Fields:
    """One ``config.json``; whatever is wrong with a field is an error that names file and field."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        try:
            self.values = json.loads(text)
        except ValueError as error:
            raise UserError(f"{where}: no valid JSON ({error})") from None
        if not isinstance(self.values, dict):
            raise UserError(f"{where}: should be a JSON object")

    def get(self, name: str, kind: type = int, default: Any = None) -> Any:
        """A field of the given type; a missing one without default is an error."""
        value = self.values.get(name, default)
        if (isinstance(value, bool) and kind is not bool) or not isinstance(
            value, (kind, int) if kind is float else kind
        ):
            raise UserError(f"{self.where}: {name} should be of type {kind.__name__}, not {value!r}")
        return value

    def integers(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """A list of integers; one integer stands for ``count`` equal ones."""
        value = self.values.get(name)
        if count is not None and type(value) is int:
            return (value,) * count
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise UserError(f"{self.where}: {name} should be a list of integers, not {value!r}")
        return tuple(value)

    def require(self, name: str, *accepted: Any, default: Any = None) -> Any:
        """A field that has to have one of the accepted values."""
        value = self.values.get(name, default)
        if value not in accepted:
            raise UserError(
                f"{self.where}: {name} is {value!r}; only {' or '.join(map(repr, accepted))} is supported"
            )
        return value


def read_config(files: Mapping[str, str], where: str) -> SVDConfig:
    """The configuration of a whole folder.

    Args:
        files: texts by relative path, ``unet/config.json`` among them.
        where: the folder, for messages.

    Raises:
        UserError: a file is broken, of another class, or describes an architecture that is not supported.
    """

    def fields(name: str) -> Fields | None:
        return Fields(files[name], f"{where}/{name}") if name in files else None

    unet, vae = fields("unet/config.json"), fields("vae/config.json")
    if unet is None or vae is None:
        raise UserError(f"{where}: no diffusers folder: unet/config.json or vae/config.json is missing")
    vision, text = fields("image_encoder/config.json"), fields("text_encoder/config.json")
    preset = _preset(unet, fields("scheduler/scheduler_config.json"), text is not None)
    return replace(
        preset,
        unet=_unet(unet, preset.unet.temporal),
        vae=_vae(vae),
        image_encoder=_vision(vision) if vision else None,
        text_encoder=_text(text) if text else None,
    )


def _preset(unet: Fields, scheduler: Fields | None, text: bool) -> SVDConfig:
    """Task, scalars and defaults of the released model that this UNet resembles."""
    if unet.require("_class_name", VIDEO_UNET, IMAGE_UNET) == IMAGE_UNET:
        prediction = (
            scheduler.require("prediction_type", "v_prediction", "epsilon") if scheduler else "v_prediction"
        )
        eps = prediction == "epsilon"
        return replace(SVDConfig.sd21(), preconditioning="discrete_eps" if eps else "discrete_v")
    width, total = unet.get("addition_time_embed_dim"), unet.get("projection_class_embeddings_input_dim")
    presets = {768: SVDConfig.svd(), 256: SVDConfig.sv3d_u(), 1280: SVDConfig.sv3d_p()}
    preset = SVDConfig.text_to_video() if text else presets.get(total * 256 // width)
    if preset is None or total % width:
        raise UserError(f"{unet.where}: {total} channels of vector conditioning, {width} each, fit no known task")
    if not text and preset.task == "image_to_video" and unet.get("num_frames") == 25:
        preset = SVDConfig.svd_xt()
    scalars = tuple((name, size * width // 256) for name, size in preset.scalars)
    if sum(size for _, size in scalars) != total:
        raise UserError(f"{unet.where}: {total} channels of vector conditioning fit no known task")
    levels = {
        name: float(scheduler.get(name, float))
        for name in ("sigma_min", "sigma_max")
        if scheduler is not None and scheduler.values.get(name) is not None
    }
    defaults = replace(preset.defaults, frames=unet.get("num_frames"), **levels)
    return replace(preset, scalars=scalars, defaults=defaults)


def _unet(config: Fields, temporal: bool) -> UNetConfig:
    channels = config.integers("block_out_channels")
    suffix = "BlockSpatioTemporal" if temporal else "Block2D"
    blocks = config.get("down_block_types", list)
    for block in blocks:
        if block not in (f"CrossAttnDown{suffix}", f"Down{suffix}"):
            raise UserError(f"{config.where}: {block} is not a block of SVD or SD 2.1")
    config.require("norm_num_groups", 32, default=32)
    config.require("transformer_layers_per_block", 1, [1] * len(channels), default=1)
    layers = config.integers("layers_per_block", len(channels))
    if len(set(layers)) != 1:
        raise UserError(f"{config.where}: layers_per_block differs between levels, which is not supported")
    if not temporal:
        config.require("use_linear_projection", True)
        config.require("class_embed_type", None)
        config.require("addition_embed_type", None)
    # SD's configurations name the number of heads attention_head_dim.
    heads_field = (
        "num_attention_heads" if temporal or config.values.get("num_attention_heads") else "attention_head_dim"
    )
    heads = config.integers(heads_field, len(channels))
    widths = {width / count if count else 0 for width, count in zip(channels, heads, strict=False)}
    if len(widths) != 1 or len(heads) != len(channels) or not min(widths).is_integer():
        raise UserError(
            f"{config.where}: {heads_field} {list(heads)} does not divide {list(channels)} into equal heads"
        )
    return UNetConfig(
        in_channels=config.get("in_channels"),
        out_channels=config.get("out_channels"),
        channels=channels,
        num_res_blocks=layers[0],
        attention=tuple(block.startswith("CrossAttn") for block in blocks),
        head_dim=int(min(widths)),
        context_dim=config.integers("cross_attention_dim", 1)[0],
        vector_dim=config.get("projection_class_embeddings_input_dim") if temporal else 0,
        temporal=temporal,
        norm_eps="diffusers" if temporal else "sgm",
    )


def _vae(config: Fields) -> VAEConfig:
    temporal = config.require("_class_name", VIDEO_VAE, IMAGE_VAE) == VIDEO_VAE
    config.require("norm_num_groups", 32, default=32)
    if not temporal:
        config.require("use_quant_conv", True, default=True)
        config.require("mid_block_add_attention", True, default=True)
    return VAEConfig(
        channels=config.integers("block_out_channels"),
        num_res_blocks=config.get("layers_per_block"),
        latent_channels=config.get("latent_channels"),
        scaling_factor=config.get("scaling_factor", float, 0.18215),
        temporal_decoder=temporal,
        post_quant_conv=not temporal and config.get("use_post_quant_conv", bool, True),
    )


def _vision(config: Fields) -> CLIPVisionConfig:
    config.require("model_type", "clip_vision_model")
    config.require("hidden_act", "gelu", default="quick_gelu")
    return CLIPVisionConfig(
        width=config.get("hidden_size"),
        layers=config.get("num_hidden_layers"),
        heads=config.get("num_attention_heads"),
        mlp_dim=config.get("intermediate_size"),
        patch_size=config.get("patch_size"),
        image_size=config.get("image_size", int, 224),
        projection_dim=config.get("projection_dim"),
    )


def _text(config: Fields) -> CLIPTextConfig:
    config.require("model_type", "clip_text_model")
    config.require("hidden_act", "gelu", default="quick_gelu")
    whole = CLIPTextConfig(
        width=config.get("hidden_size"),
        layers=config.get("num_hidden_layers") + 1,  # the folder leaves out the last one, which has no effect
        heads=config.get("num_attention_heads"),
        mlp_dim=config.get("intermediate_size"),
        context_length=config.get("max_position_embeddings", int, 77),
        vocab_size=config.get("vocab_size"),
    )
    return diffusers_text_config(whole)


def write_configs(config: SVDConfig) -> dict[str, str]:
    """The texts of a folder for this model, by relative path."""
    files: dict[str, Json] = {
        "model_index.json": _model_index(config),
        "unet/config.json": _unet_json(config),
        "vae/config.json": _vae_json(config.vae),
        "scheduler/scheduler_config.json": _scheduler_json(config),
    }
    if config.image_encoder:
        files["image_encoder/config.json"] = _vision_json(config.image_encoder)
        files["feature_extractor/preprocessor_config.json"] = _preprocessor_json(config.image_encoder)
    if config.text_encoder:
        files["text_encoder/config.json"] = _text_json(config.text_encoder)
    return {name: json.dumps(values, indent=2, sort_keys=True) + "\n" for name, values in files.items()}


def _model_index(config: SVDConfig) -> Json:
    temporal, vae = config.unet.temporal, VIDEO_VAE if config.vae.temporal_decoder else IMAGE_VAE
    index: Json = {
        "_class_name": "StableVideoDiffusionPipeline" if temporal else "StableDiffusionPipeline",
        "_diffusers_version": VERSION,
        "unet": ["diffusers", VIDEO_UNET if temporal else IMAGE_UNET],
        "vae": ["diffusers", vae],
        "scheduler": ["diffusers", "EulerDiscreteScheduler" if temporal else "DDIMScheduler"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"] if config.image_encoder else [None, None],
    }
    if config.image_encoder:
        index["image_encoder"] = ["transformers", "CLIPVisionModelWithProjection"]
    if config.text_encoder:
        index["text_encoder"] = ["transformers", "CLIPTextModel"]
    if not temporal:
        index |= {"tokenizer": [None, None], "safety_checker": [None, None], "requires_safety_checker": False}
    return index


def _unet_json(config: SVDConfig) -> Json:
    unet = config.unet
    suffix = "BlockSpatioTemporal" if unet.temporal else "Block2D"
    heads = [width // unet.head_dim for width in unet.channels]
    values: Json = {
        "_class_name": VIDEO_UNET if unet.temporal else IMAGE_UNET,
        "_diffusers_version": VERSION,
        "sample_size": 96 if unet.temporal else config.defaults.height // config.vae.factor,
        "in_channels": unet.in_channels,
        "out_channels": unet.out_channels,
        "block_out_channels": list(unet.channels),
        "layers_per_block": unet.num_res_blocks,
        "cross_attention_dim": unet.context_dim,
        "transformer_layers_per_block": 1,
        "down_block_types": [f"{'CrossAttn' * attends}Down{suffix}" for attends in unet.attention],
        "up_block_types": [f"{'CrossAttn' * attends}Up{suffix}" for attends in unet.attention[::-1]],
    }
    if not unet.temporal:
        return values | {"attention_head_dim": heads, "use_linear_projection": True}
    return values | {
        "num_attention_heads": heads,
        "num_frames": config.defaults.frames,
        "addition_time_embed_dim": min((width for _, width in config.scalars), default=256),
        "projection_class_embeddings_input_dim": unet.vector_dim,
    }


def _vae_json(vae: VAEConfig) -> Json:
    values: Json = {
        "_class_name": VIDEO_VAE if vae.temporal_decoder else IMAGE_VAE,
        "_diffusers_version": VERSION,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": list(vae.channels),
        "layers_per_block": vae.num_res_blocks,
        "latent_channels": vae.latent_channels,
        "scaling_factor": vae.scaling_factor,
        "sample_size": 768,
        "force_upcast": True,
        "down_block_types": ["DownEncoderBlock2D"] * len(vae.channels),
    }
    if vae.temporal_decoder:
        return values
    return values | {
        "up_block_types": ["UpDecoderBlock2D"] * len(vae.channels),
        "use_post_quant_conv": vae.post_quant_conv,
    }


def _scheduler_json(config: SVDConfig) -> Json:
    video, eps = config.unet.temporal, config.preconditioning == "discrete_eps"
    values: Json = {
        "_class_name": "EulerDiscreteScheduler" if video else "DDIMScheduler",
        "_diffusers_version": VERSION,
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon" if eps else "v_prediction",
        "timestep_spacing": "leading",
        "steps_offset": 1,
    }
    if not video:
        return values | {"clip_sample": False, "set_alpha_to_one": False}
    return values | {
        "use_karras_sigmas": True,
        "sigma_min": config.defaults.sigma_min,
        "sigma_max": config.defaults.sigma_max,
        "interpolation_type": "linear",
        "timestep_type": "continuous",
    }


def _vision_json(vision: CLIPVisionConfig) -> Json:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": vision.width,
        "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.heads,
        "intermediate_size": vision.mlp_dim,
        "patch_size": vision.patch_size,
        "image_size": vision.image_size,
        "num_channels": 3,
        "projection_dim": vision.projection_dim,
        "layer_norm_eps": 1e-5,
    }


def _text_json(text: CLIPTextConfig) -> Json:
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu",
        "hidden_size": text.width,
        "num_hidden_layers": text.layers - 1,
        "num_attention_heads": text.heads,
        "intermediate_size": text.mlp_dim,
        "max_position_embeddings": text.context_length,
        "vocab_size": text.vocab_size,
        "layer_norm_eps": 1e-5,
        "bos_token_id": 0,
        "eos_token_id": 2,  # the value with which transformers looks for the highest token id, as OpenCLIP does
        "pad_token_id": 1,
    }


def _preprocessor_json(vision: CLIPVisionConfig) -> Json:
    size = vision.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"shortest_edge": size},
        "crop_size": {"height": size, "width": size},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
