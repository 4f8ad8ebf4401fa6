"""Single-file checkpoints in the original naming: SVD, its image-decoder variants, SV3D, and SD 2.1 (LDM).

Where the networks are in such a file:

* ``model.diffusion_model.``: the UNet
* ``first_stage_model.``: the decoder; SD 2.1 has its whole autoencoder here
* ``conditioner.embedders.0.``: CLIP's image tower (``open_clip.model.visual.``), or a text tower (``model.``)
* ``conditioner.embedders.N.encoder.``: a complete image autoencoder, whose encoder makes the conditioning latents
* ``cond_stage_model.model.``: SD 2.1's text tower

The model has one autoencoder: the conditioner's encoder with the first stage's decoder. What remains of either is
kept verbatim as extras, as are the parts of CLIP's text tower that these files carry without use.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from svdjax.conversion.checkpoint import (
    CONFIG_KEY,
    Checkpoint,
    Options,
    check_has_counterpart,
    check_params,
    check_said,
    summary,
)
from svdjax.conversion.clip import clip_text_table, clip_vision_table
from svdjax.conversion.infer import Shapes, infer_clip_text, infer_clip_vision, infer_unet, infer_vae
from svdjax.conversion.lora import speak_of_lora
from svdjax.conversion.mapping import Entry, prefixed, to_ours, to_theirs
from svdjax.conversion.tensors import Tensor
from svdjax.conversion.unet import unet_table
from svdjax.conversion.vae import decoder_table, encoder_table, quant_table, vae_table
from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
VISION = "conditioner.embedders.0.open_clip.model."
LDM_TEXT = "cond_stage_model.model."
SGM_TEXT = "conditioner.embedders.0.model."
_XT = re.compile(r"(^|[_-])xt([_-]|$)", re.IGNORECASE)  # svd_xt, svd_xt_1_1, svd_xt_image_decoder

# Keys of the original files that are no weights: constants of the noise schedule, buffers, and averaged copies of
# weights (which hold the same parameters a second time under mangled names).
NOT_WEIGHTS = (
    r"model_ema\.",
    r"(betas|logvar|scale_factor|global_step|lvlb_weights)$",
    r"(log_one_minus_|sqrt_|sqrt_one_minus_|sqrt_recip_|sqrt_recipm1_)?alphas_cumprod(_prev)?$",
    r"posterior_(variance|log_variance_clipped|mean_coef1|mean_coef2)$",
    r"denoiser\.sigmas$",
    r".*\.(position_ids|attn_mask)$",
)


@dataclass(frozen=True)
class Layout:
    """Prefixes of the parts of one file: of the text tower, and of the encoder that makes conditioning latents."""

    text: str = SGM_TEXT
    encoder: str = FIRST_STAGE

    @classmethod
    def of(cls, config: SVDConfig) -> "Layout":
        """Where the original code would put this model: embedders are numbered in the order of its config files."""
        if not config.unet.temporal:
            return cls(text=LDM_TEXT)
        names = [name for name, _ in config.scalars]
        if config.image_encoder is None or "noise_aug" not in names:
            return cls()
        # CLIP is number 0; the latents' embedder comes right before the one of their noise augmentation.
        return cls(encoder=f"conditioner.embedders.{1 + names.index('noise_aug')}.encoder.")

    @classmethod
    def found(cls, keys: Iterable[str]) -> "Layout":
        """Where this file has them."""
        keys = list(keys)
        encoders = [
            re.match(r"(conditioner\.embedders\.\d+\.encoder\.)encoder\.conv_in\.weight$", key) for key in keys
        ]
        encoder = next((match[1] for match in encoders if match), FIRST_STAGE)
        return cls(LDM_TEXT if any(key.startswith(LDM_TEXT) for key in keys) else SGM_TEXT, encoder)


def sgm_table(config: SVDConfig, layout: Layout) -> list[Entry]:
    """Every parameter of a model, with full paths and full keys."""
    if layout.encoder == FIRST_STAGE:
        vae = prefixed(vae_table(config.vae, "sgm"), theirs=FIRST_STAGE)
    else:
        encoder = [*encoder_table(config.vae, "sgm"), *quant_table(config.vae)]
        vae = prefixed(encoder, theirs=layout.encoder)
        vae += prefixed(decoder_table(config.vae, "sgm"), theirs=FIRST_STAGE)
    table = prefixed(unet_table(config.unet, "sgm"), ours="unet.", theirs=UNET) + prefixed(vae, ours="vae.")
    if config.image_encoder:
        table += prefixed(clip_vision_table(config.image_encoder, "sgm"), ours="image_encoder.", theirs=VISION)
    if config.text_encoder:
        table += prefixed(clip_text_table(config.text_encoder, "sgm"), ours="text_encoder.", theirs=layout.text)
    return table


def extra_keys(config: SVDConfig, layout: Layout) -> list[list[str]]:
    """Keys that the original files have beyond the model's parameters: groups, each there whole or not at all."""
    groups = []
    if layout.encoder != FIRST_STAGE:
        image_vae = replace(config.vae, temporal_decoder=False, post_quant_conv=True)
        encoder = {key for row in [*encoder_table(image_vae, "sgm"), *quant_table(image_vae)] for key in row.theirs}
        whole = [key for row in vae_table(image_vae, "sgm") for key in row.theirs]
        groups.append([layout.encoder + key for key in whole if key not in encoder])
        if config.task != "multi_view":  # whose first stage has no encoder
            groups.append([FIRST_STAGE + key for key in whole if key.startswith("encoder.")])
    if config.image_encoder:
        with_text = clip_vision_table(replace(config.image_encoder, leftover_text=(1, 1, 1)), "sgm")
        unused = [key for row in with_text for key in row.theirs if not key.startswith("visual.")]
        groups.append([VISION + key for key in unused])
    return groups


def read_sgm(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], options: Options, what: str) -> Checkpoint:
    """Read a single file.

    Args:
        tensors: all of the file's.
        metadata: the file's; one that we wrote holds its configuration.
        options: head widths, and what SD 2.1 predicts.
        what: the file's path, for messages.

    Raises:
        UserError: the file is of another architecture, or a key is missing, left over or of a wrong shape.
    """
    weights = {key: tensor for key, tensor in tensors.items() if not re.match("|".join(NOT_WEIGHTS), key)}
    dropped = tensors.keys() - weights.keys()
    notices = [summary("left out, no weights of the model", dropped)] if dropped else []
    _refuse_others(weights, what)
    layout = Layout.found(weights)
    if CONFIG_KEY in metadata:
        config = SVDConfig.from_json(metadata[CONFIG_KEY], where=what)
        check_said(what, config, options)
    else:
        config = _infer({key: tensor.shape for key, tensor in weights.items()}, layout, options, what)
        notices += _assumptions(config, options)
    extras = {key: weights[key] for group in extra_keys(config, layout) for key in _present(group, weights, what)}
    rest = {key: tensor for key, tensor in weights.items() if key not in extras}
    params = to_ours(sgm_table(config, layout), rest, what=what)
    check_params(what, config, params)
    return Checkpoint(what=what, config=config, params=params, extras=extras, notices=tuple(notices))


def _present(group: list[str], tensors: Mapping[str, Tensor], what: str) -> list[str]:
    absent = [key for key in group if key not in tensors]
    if absent and len(absent) < len(group):
        raise UserError(f"{what}: {len(absent)} missing: {', '.join(absent[:8])}")
    return [] if absent else group


def _refuse_others(keys: Iterable[str], what: str) -> None:
    keys = list(keys)
    unet = [key.removeprefix(UNET) for key in keys if key.startswith(UNET)]
    temporal = any("time_stack." in key for key in unet)
    if speak_of_lora(keys):
        raise UserError(f"{what}: a LoRA, not a whole checkpoint: give the checkpoint that it belongs to")
    if not unet:
        raise UserError(f"{what}: no checkpoint of SVD, SV3D or SD 2.1: no key begins with {UNET}")
    if not temporal and any(re.search(r"label_emb|transformer_blocks\.1\.", key) for key in unet):
        raise UserError(f"{what}: looks like Stable Diffusion XL; only SVD, SV3D and SD 2.1 are supported")
    if any(key.startswith("cond_stage_model.transformer.") for key in keys):
        raise UserError(f"{what}: looks like Stable Diffusion 1; only SVD, SV3D and SD 2.1 are supported")


def _infer(shapes: Shapes, layout: Layout, options: Options, what: str) -> SVDConfig:
    unet = infer_unet(shapes, UNET, options, what)
    vae = infer_vae(shapes, layout.encoder, FIRST_STAGE, what)
    vision = any(key.startswith(VISION + "visual.") for key in shapes)
    text = any(key.startswith(layout.text) for key in shapes)
    preset = _preset(unet.temporal, unet.vector_dim, layout, options, what)
    return replace(
        preset,
        unet=unet,
        vae=vae,
        image_encoder=infer_clip_vision(shapes, VISION, options, what) if vision else None,
        text_encoder=infer_clip_text(shapes, layout.text, options, what) if text else None,
        scalars=_scalars(preset, unet.vector_dim, what),
    )


def _preset(temporal: bool, vector_dim: int, layout: Layout, options: Options, what: str) -> SVDConfig:
    """The released model that this file resembles, for its task, its scalars' proportions and its defaults."""
    if not temporal:
        eps = options.prediction == "eps"
        sd21 = SVDConfig.sd21()
        defaults = replace(sd21.defaults, height=512, width=512) if eps else sd21.defaults
        return replace(sd21, preconditioning="discrete_eps" if eps else "discrete_v", defaults=defaults)
    for preset in (SVDConfig.svd(), SVDConfig.sv3d_p(), SVDConfig.sv3d_u()):
        whole = sum(width for _, width in preset.scalars) // 256  # widths are multiples of the first one
        if Layout.of(preset) == layout and vector_dim and vector_dim % whole == 0:
            return SVDConfig.svd_xt() if preset == SVDConfig.svd() and _XT.search(Path(what).stem) else preset
    if layout.encoder == FIRST_STAGE:
        return SVDConfig.text_to_video()
    raise UserError(f"{what}: {vector_dim} channels of vector conditioning with {layout.encoder} fit no known task")


def _scalars(preset: SVDConfig, vector_dim: int, what: str) -> tuple[tuple[str, int], ...]:
    """The preset's scalars, with widths in the same proportions that add up to ``vector_dim``."""
    total = sum(width for _, width in preset.scalars)
    if vector_dim == 0:
        return ()
    if total == 0 or any(width * vector_dim % total for _, width in preset.scalars):
        raise UserError(f"{what}: {vector_dim} channels of vector conditioning fit no known task")
    return tuple((name, width * vector_dim // total) for name, width in preset.scalars)


def _assumptions(config: SVDConfig, options: Options) -> list[str]:
    notes = []
    if options.head_dim is None and config.unet.channels != SVDConfig.svd().unet.channels:
        notes.append(f"assumed heads of {config.unet.head_dim} channels in the UNet; --head-dim says otherwise")
    if config.task == "image_to_video":
        frames = config.defaults.frames
        found = "has" if frames == SVDConfig.svd_xt().defaults.frames else "lacks"
        notes.append(
            f"assumed {frames} frames, for the file's name {found} xt: SVD's and SVD-XT's networks are the same"
        )
    if not config.unet.temporal and options.prediction is None:
        notes.append("assumed v-prediction (the 768 px model); convert the 512 px base model with --prediction eps")
    return notes


def write_sgm(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a single file.

    Extras that the checkpoint carries are written as they were. For others, the first stage's encoder is the
    conditioner's with ``quant_conv`` folded in; the image decoder and the unused text weights are left out.

    Returns:
        Keys and tensors, and a notice if something was left out.

    Raises:
        UserError: tensors that the format joins have different dtypes, or the model has other group norms.
    """
    check_has_counterpart(checkpoint)
    config, layout = checkpoint.config, Layout.of(checkpoint.config)
    tensors = to_theirs(sgm_table(config, layout), checkpoint.params, what=checkpoint.what)
    absent: list[str] = []
    for group in extra_keys(config, layout):
        if all(key in checkpoint.extras for key in group):
            tensors.update((key, checkpoint.extras[key]) for key in group)
        elif group[0].startswith(FIRST_STAGE):
            tensors.update(_folded_encoder(tensors, layout))
        else:
            absent += group
    notice = summary("left out, the source does not have them (and nothing computes with them)", absent)
    return tensors, (notice,) if absent else ()


def _folded_encoder(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The encoder followed by ``quant_conv`` (1x1) as one: quant(conv(x)) is a convolution with their product."""
    start = layout.encoder + "encoder."
    folded = {
        FIRST_STAGE + "encoder." + key[len(start) :]: tensors[key] for key in tensors if key.startswith(start)
    }
    conv, quant = f"{start}conv_out", f"{layout.encoder}quant_conv"

    def part(name: str) -> Tensor:
        def load() -> np.ndarray:
            matrix = tensors[f"{quant}.weight"].load()[:, :, 0, 0].astype(np.float64)
            inner = tensors[f"{conv}.{name}"].load().astype(np.float64)
            product = np.tensordot(matrix, inner, axes=1)
            if name == "bias":
                product += tensors[f"{quant}.bias"].load().astype(np.float64)
            return product.astype(tensors[f"{conv}.{name}"].dtype)

        return replace(tensors[f"{conv}.{name}"], load=load)

    return folded | {f"{FIRST_STAGE}encoder.conv_out.{name}": part(name) for name in ("weight", "bias")}
