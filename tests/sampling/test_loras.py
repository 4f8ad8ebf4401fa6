"""LoRAs of ``svdjax sample``: merged in float32 before the cast, with a scale, several at once; mistakes named."""

import jax.numpy as jnp
import numpy as np
import pytest

from svdjax.conversion.lora import write_lora
from svdjax.conversion.source import load_model
from svdjax.errors import UserError
from svdjax.models.lora import LoRA, LoRAConfig, lora_shapes
from svdjax.models.params import flat_params
from svdjax.sampling.loras import apply_loras
from tests.conversion.tiny import tiny_checkpoint

KERNEL = "unet.mid.attn.0.temporal.attn1.q.kernel"


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint("svd", 0)


@pytest.fixture(scope="module")
def files(checkpoint, tmp_path_factory):
    folder, shapes = tmp_path_factory.mktemp("loras"), lora_shapes(checkpoint.params, LoRAConfig(rank=2))
    paths = [folder / "pan.safetensors", folder / "a:b.safetensors"]
    for seed, path in enumerate(paths):
        rng = np.random.default_rng(seed)
        params = {name: rng.normal(0, 0.05, x.shape).astype(np.float32) for name, x in shapes.items()}
        write_lora(path, LoRA(params=params, alpha=2.0), checkpoint.config.unet)
    return paths


def difference(checkpoint, files, *specs):
    """What the specs add to a kernel."""
    merged = apply_loras(checkpoint, [spec.format(*files) for spec in specs])
    return merged.params[KERNEL].load() - checkpoint.params[KERNEL].load()


def test_scales_and_sums(checkpoint, files):
    one, two = (difference(checkpoint, files, spec) for spec in ("{0}", "{1}"))
    assert np.abs(one).max() > 0.01 and not np.allclose(one, two)
    both = difference(checkpoint, files, "{0}:0.5", "{1}:-2")
    np.testing.assert_allclose(both, 0.5 * one - 2 * two, atol=1e-5)
    assert not difference(checkpoint, files).any()


def test_only_the_adapted_layers_change_and_are_cast_at_the_end(checkpoint, files):
    merged = apply_loras(checkpoint, [str(files[0])])
    model = flat_params(load_model(merged, dtype=jnp.bfloat16))
    plain = flat_params(load_model(checkpoint, dtype=jnp.bfloat16))
    changed = {path for path in plain if not np.array_equal(plain[path], model[path])}
    assert changed == {path for path in plain if ".temporal.attn" in path and path.endswith("kernel")}
    np.testing.assert_array_equal(model[KERNEL], merged.params[KERNEL].load().astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.safetensors", "nowhere.safetensors: no such LoRA file"),
        ("{0}:strong", "--lora .*pan.safetensors:strong: no such file, and strong is no scale"),
        ("{0}:inf", "--lora .*pan.safetensors:inf: the scale must be a finite number"),
    ],
)
def test_mistakes_are_named(checkpoint, files, spec, message):
    with pytest.raises(UserError, match=message):
        apply_loras(checkpoint, [spec.format(*files)])


def test_a_lora_of_a_wider_model_is_refused(checkpoint, files):
    narrow = tiny_checkpoint("text_to_video", 0)
    apply_loras(narrow, [str(files[0])])  # another task with the same layers
    params = {path: x for path, x in checkpoint.params.items() if path != KERNEL}
    wide = {**params, KERNEL: checkpoint.params["unet.mid.attn.0.temporal.ff.proj_in.kernel"]}
    with pytest.raises(UserError, match=r"pan.safetensors: its update of unet.* it belongs to another model"):
        apply_loras(type(checkpoint)(what="wide", config=checkpoint.config, params=wide), [str(files[0])])
