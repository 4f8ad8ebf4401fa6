"""LoRA files against diffusers and PEFT: what either side writes, the other computes with."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model

from svdjax.conversion.lora import read_lora, write_lora
from svdjax.models.layers import sinusoidal_embedding
from svdjax.models.lora import LoRA, LoRAConfig, lora_shapes, merge
from svdjax.models.params import flat_params, load_flat
from svdjax.models.unet import UNet
from tests.parity.reference import float64_sinusoids, relative
from tests.parity.test_unet import VIDEO, call, load, video_reference

# A LoRA is added to its kernels in float32; all else here is in float64.
MERGED = 1e-7
FILE = "pytorch_lora_weights.safetensors"
TEMPORAL = r".*temporal_transformer_blocks.*attn\d\.(to_q|to_k|to_v|to_out\.0)"
EVERYWHERE = r".*(attn\d\.(to_q|to_k|to_v|to_out\.0)|proj_in|proj_out|ff(_in)?\.net\.(0\.proj|2))"


def inputs() -> tuple[np.ndarray, ...]:
    """Noisy latents, c_noise, context and scalars of two videos."""
    draw = np.random.default_rng(0)
    x, context = draw.normal(size=(2, 3, 6, 8, VIDEO.in_channels)), draw.normal(size=(2, 1, VIDEO.context_dim))
    return x, np.array([-1.3, 1.6]), context, np.array([[6.0, 127.0, 0.02], [11.0, 40.0, 0.3]])


def theirs(reference: torch.nn.Module) -> np.ndarray:
    x, *others = map(torch.from_numpy, inputs())
    with torch.no_grad(), float64_sinusoids():
        return reference(x.permute(0, 1, 4, 2, 3), *others).sample.permute(0, 1, 3, 4, 2).numpy()


def ours(unet: UNet) -> np.ndarray:
    x, c_noise, context, ids = inputs()
    vector = sinusoidal_embedding(jnp.asarray(ids), VIDEO.vector_dim // 3).reshape(2, 1, -1)
    return np.asarray(call(unet, x, c_noise, context, np.broadcast_to(vector, (2, 3, VIDEO.vector_dim))))


def with_lora(unet: UNet, lora: LoRA) -> UNet:
    """The network with a LoRA merged into its kernels."""
    flat = {f"unet.{path}": np.asarray(x) for path, x in flat_params(unet).items()}
    merged = merge(flat, lora, scale=1.0)
    return load_flat(unet, {path.removeprefix("unet."): x for path, x in merged.items()}, what="merged")


def test_diffusers_computes_with_our_file(tmp_path, x64):
    reference = video_reference(VIDEO, 3).double()
    unet, before = load(VIDEO, reference), theirs(reference)
    shapes = lora_shapes({f"unet.{path}": x for path, x in flat_params(unet).items()}, LoRAConfig(rank=4))
    draw = np.random.default_rng(1)
    lora = LoRA(params={path: draw.normal(size=x.shape) / 8 for path, x in shapes.items()}, alpha=6.0)
    write_lora(tmp_path / FILE, lora, VIDEO)
    # Of diffusers' UNets SVD's alone lacks the methods for LoRAs.
    reference.__class__ = type("WithAdapters", (type(reference), PeftAdapterMixin), {})
    reference.load_lora_adapter(tmp_path, prefix="unet", weight_name=FILE)
    assert relative(ours(unet), before) < 1e-9
    assert relative(theirs(reference), before) > 1e-2
    assert relative(ours(with_lora(unet, lora)), theirs(reference)) < MERGED


def saved(reference: torch.nn.Module, folder: Path, settings: LoraConfig, how: str) -> Path:
    """The file of a random LoRA that is put into a network, as PEFT itself or a mixin of diffusers writes it."""
    if how == "PEFT":
        get_peft_model(reference, settings).double().save_pretrained(folder)
        return folder / "adapter_model.safetensors"
    inject_adapter_in_model(settings, reference).double()
    reference.peft_config = {"default": settings}
    if how == "a network":
        PeftAdapterMixin.save_lora_adapter(reference, folder, weight_name=FILE)
    else:
        layers, about = get_peft_model_state_dict(reference), settings.to_dict()
        StableDiffusionLoraLoaderMixin.save_lora_weights(
            folder, unet_lora_layers=layers, unet_lora_adapter_metadata=about
        )
    return folder / FILE


@pytest.mark.parametrize("targets", [TEMPORAL, EVERYWHERE], ids=["temporal", "everywhere"])
@pytest.mark.parametrize("how", ["PEFT", "a network", "a pipeline"])
def test_we_compute_with_what_peft_made(tmp_path, x64, how, targets):
    reference = video_reference(VIDEO, 4).double()
    unet, before = load(VIDEO, reference), theirs(reference)
    torch.manual_seed(0)
    settings = LoraConfig(r=4, lora_alpha=3, target_modules=targets, init_lora_weights=False)
    lora = read_lora(saved(reference, tmp_path, settings, how), VIDEO)
    assert (lora.rank, lora.alpha) == (4, 3.0)
    assert relative(theirs(reference), before) > 1e-2
    assert relative(ours(with_lora(unet, lora)), theirs(reference)) < MERGED
