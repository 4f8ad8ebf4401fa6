"""The weights to start from: the whole chain of recipes at a tiny size, on real files; and wrong declarations."""

import io
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from svdjax.conversion.checkpoint import shapes_of
from svdjax.conversion.native import save_native
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.sgm import write_sgm
from svdjax.conversion.source import load_model, open_checkpoint
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.clip_vision import CLIPVisionConfig
from svdjax.models.params import flat_params, load_flat, with_dtype
from svdjax.models.svd import SVD, SVDConfig
from svdjax.tasks import embed_scalars
from svdjax.training.config import RunConfig, load_config
from svdjax.training.initial import initial
from svdjax.training.transfer import Init, resolve, widen
from tests.weights import random_checkpoint, random_model

CONFIGS = Path(__file__).parents[2] / "configs"
CHAIN = (
    "image_time_embed",
    "image",
    "video_256x384",
    "video_320x576",
    "image_to_video_320x576",
    "svd",
    "svd_xt",
)


def tiny(model):
    """The same kind of model with a few thin layers, whose heads are as wide as a single file implies."""
    scalars = tuple((name, width // 32) for name, width in model.scalars)
    unet = {"channels": (64,), "num_res_blocks": 1, "attention": (True,), "context_dim": 64, "remat": ()}
    text = CLIPTextConfig(
        width=64, layers=2, heads=1, mlp_dim=32, context_length=9, vocab_size=40, projection_dim=16
    )
    vision = CLIPVisionConfig(width=32, layers=1, heads=2, mlp_dim=32, patch_size=56, projection_dim=64)
    return replace(
        model,
        unet=replace(model.unet, **unet, vector_dim=sum(width for _, width in scalars)),
        vae=replace(model.vae, channels=(32, 32), num_res_blocks=1),
        scalars=scalars,
        text_encoder=text if model.text_encoder else None,
        image_encoder=vision if model.image_encoder else None,
    )


def tiny_recipe(name, init_from, **init):
    config = load_config([str(CONFIGS / f"{name}.py")], default=CONFIGS / "demo.py")
    return replace(config, model=tiny(config.model), init_from=str(init_from), init=replace(config.init, **init))


def start_of(config):
    """What `initial` makes of a configuration, and the whole model with random numbers for what is new."""
    printed = io.StringIO()
    start = initial(config, Console(file=printed, width=200))
    drawn = flat_params(random_model(SVD, start.config, seed=9)) if start.new else {}
    params = start.loaded | {path: drawn[path] for path in start.new}
    return start, load_flat(shapes_of(start.config), params, what="the start"), printed.getvalue()


@pytest.fixture(scope="module")
def sd21(tmp_path_factory):
    """Stable Diffusion 2.1 as the file that its authors would have saved."""
    path = tmp_path_factory.mktemp("sd21") / "v2-1.safetensors"
    write_safetensors(path, write_sgm(random_checkpoint(tiny(SVDConfig.sd21()), seed=1))[0], {})
    return path


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """SVD as it was released."""
    path = tmp_path_factory.mktemp("released") / "svd.safetensors"
    save_native(random_model(SVD, tiny(SVDConfig.svd()), seed=2), path)
    return path


@pytest.fixture(scope="module")
def chain(sd21, released, tmp_path_factory):
    """Each recipe's start, from the file of the one before."""
    folder, links, path = tmp_path_factory.mktemp("chain"), {}, sd21
    for name in CHAIN:
        init = {"image_encoder": str(released)} if name == "image_to_video_320x576" else {}
        links[name] = start_of(tiny_recipe(name, path, **init))
        path = folder / f"{name}.safetensors"
        save_native(links[name][1], path)
    return links


def assert_all_loaded(before, after):
    old, new = flat_params(before), flat_params(after)
    assert old.keys() == new.keys()
    assert all(jnp.array_equal(old[path], new[path]) for path in old)


def test_the_image_model_starts_as_stable_diffusion(chain):
    start, _, printed = chain["image_time_embed"]
    wanted = random_checkpoint(tiny(SVDConfig.sd21()), seed=1).params
    assert start.new == () and start.loaded.keys() == wanted.keys()
    for path, array in start.loaded.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted[path].load())
    assert (start.config.preconditioning, start.config.task) == ("v", "text_to_image")
    unet = sum(x.size for path, x in start.loaded.items() if path.startswith("unet."))
    assert any("unet" in line and f"{unet:,}" in line for line in printed.splitlines())


def test_the_text_tower_is_as_the_file_has_it(tmp_path):
    """The diffusers folder of SD 2.1 holds neither the last block nor the projection."""
    model, path = tiny(SVDConfig.sd21()), tmp_path / "shorter.safetensors"
    shorter = replace(model.text_encoder, last_block=False, projection_dim=None)
    save_native(random_model(SVD, replace(model, text_encoder=shorter)), path)
    start, _, _ = start_of(tiny_recipe("image_time_embed", path))
    assert start.config.text_encoder == shorter and start.new == ()
    assert not any("text_projection" in name for name in start.loaded)


def test_with_images_the_video_model_is_exactly_the_image_model(chain, x64):
    (_, image, _), (start, video, _) = chain["image"], chain["video_256x384"]
    temporal = (".temporal.", ".frame_embed.", ".mix_factor", "vector_embed.linear1")
    assert start.new and all(any(part in path for part in temporal) for path in start.new)
    assert all(path in start.new for path in flat_params(video) if ".temporal." in path)
    rng = np.random.default_rng(0)
    shapes = ((1, 2, 8, 8, 4), (1, 9, 64), (1, 2, 16))
    x, context, vector = (jnp.asarray(rng.normal(size=shape)) for shape in shapes)
    noise = jnp.zeros(1)
    only = jnp.asarray([[True, True]])
    before, after = (with_dtype(model.unet, jnp.float64) for model in (image, video))
    want = jax.jit(before)(x, noise, context)
    got = jax.jit(lambda only: after(x, noise, context, vector, image_only=only))
    np.testing.assert_allclose(got(only), want, atol=1e-13)
    assert np.abs(got(~only) - want).max() > 1e-3


def test_the_ablations_start_from_sd21_and_from_each_other(sd21, chain, tmp_path):
    def path_of(model, name):
        save_native(model, tmp_path / name)
        return tmp_path / name

    declared = tiny_recipe("ablation_256x256", sd21).init.new
    small, model, _ = start_of(tiny_recipe("ablation_256x256", sd21))
    assert small.loaded.keys() == random_checkpoint(tiny(SVDConfig.sd21()), seed=1).params.keys()
    before = path_of(model, "ablation_256x256.safetensors")
    assert_all_loaded(model, start_of(tiny_recipe("ablation_512x512", before))[1])
    image = path_of(chain["image"][1], "image.safetensors")
    with pytest.raises(UserError, match=r"179 missing: unet\.down\.0\.attn\.0\.frame_embed"):
        start_of(tiny_recipe("ablation_512x512", image))
    large, _, _ = start_of(tiny_recipe("ablation_512x512", image, new=declared))
    assert large.new == small.new and large.loaded.keys() == small.loaded.keys()


@pytest.mark.parametrize(("before", "after"), [("video_256x384", "video_320x576"), ("svd", "svd_xt")])
def test_later_sizes_load_everything(chain, before, after):
    assert_all_loaded(chain[before][1], chain[after][1])


def test_animating_pictures_starts_as_the_pretrained_model(chain, released, x64):
    (_, text, _), (start, animated, printed) = chain["video_320x576"], chain["image_to_video_320x576"]
    assert start.new == () and not any(path.startswith("text_encoder.") for path in start.loaded)
    rng = np.random.default_rng(1)
    x, context = (jnp.asarray(rng.normal(size=shape)) for shape in ((1, 2, 8, 8, 8), (1, 1, 64)))
    scalars = {"fps": jnp.full(1, 6.0), "motion_bucket": jnp.full(1, 127.0), "noise_aug": jnp.full(1, 0.5)}
    vectors = [embed_scalars(model.config.scalars, scalars, 2) for model in (text, animated)]
    before, after = (with_dtype(model.unet, jnp.float64) for model in (text, animated))
    want = jax.jit(before)(x[..., :4], jnp.zeros(1), context, vectors[0])
    got = jax.jit(after)(x, jnp.zeros(1), context, vectors[1])
    np.testing.assert_allclose(got, want, atol=1e-13)
    theirs = flat_params(random_model(SVD, tiny(SVDConfig.svd()), seed=2))
    towers = [path for path in start.loaded if path.startswith("image_encoder.")]
    assert towers and all(jnp.array_equal(start.loaded[path], theirs[path]) for path in towers)
    dropped = sum(x.size for path, x in flat_params(text).items() if path.startswith("text_encoder."))
    assert any("text_encoder" in line and f"{dropped:,}" in line for line in printed.splitlines())


def test_interpolation_starts_as_the_pretrained_model(chain, released, x64):
    """Its input layer has zeros for the known frames and the mask; the latent for missing ones is new."""
    _, text, _ = chain["video_320x576"]
    path = released.with_name("text.safetensors")
    save_native(text, path)
    start, between, _ = start_of(tiny_recipe("frame_interpolation", path, image_encoder=str(released)))
    assert start.new == ("missing_frame",)
    rng = np.random.default_rng(1)
    x, context, vector = (
        jnp.asarray(rng.normal(size=shape)) for shape in ((1, 2, 8, 8, 9), (1, 2, 64), (1, 2, 16))
    )
    before, after = (with_dtype(model.unet, jnp.float64) for model in (text, between))
    want = jax.jit(before)(x[..., :4], jnp.zeros(1), context, vector)
    np.testing.assert_allclose(jax.jit(after)(x, jnp.zeros(1), context, vector), want, atol=1e-13)


def test_finetuning_starts_as_the_released_model(released):
    _, model, _ = start_of(tiny_recipe("finetune_svd", released))
    assert_all_loaded(random_model(SVD, tiny(SVDConfig.svd()), seed=2), model)


def test_multi_view_starts_as_the_video_model_whatever_the_elevation(released):
    """The inputs that fps, motion bucket and noise_aug have are kept, those of elevation are zero."""
    old = flat_params(random_model(SVD, tiny(SVDConfig.svd()), seed=2))
    start, _, _ = start_of(tiny_recipe("multi_view", released))
    wide = "unet.vector_embed.linear1.kernel"
    assert start.new == () and start.loaded.keys() == old.keys()
    assert all(np.array_equal(start.loaded[path], old[path]) for path in old if path != wide)
    np.testing.assert_array_equal(start.loaded[wide][:24], old[wide])
    assert start.loaded[wide].shape[0] == 32 and not start.loaded[wide][24:].any()


def test_text_to_video_loads_the_pretrained_model(chain, tmp_path):
    before = chain["video_320x576"][1]
    save_native(before, tmp_path / "before.safetensors")
    start, after, _ = start_of(tiny_recipe("text_to_video_576x1024", tmp_path / "before.safetensors"))
    assert start.new == ()
    assert_all_loaded(before, after)


def test_a_lora_is_trained_on_all_of_the_released_model(released):
    start, after, _ = start_of(tiny_recipe("camera_lora", released))
    assert start.new == ()
    assert_all_loaded(load_model(released), after)


def test_the_path_of_the_camera_is_new_to_sv3d_u_and_counts_nothing_at_first(tmp_path):
    path, kernel = tmp_path / "sv3d_u.safetensors", "unet.vector_embed.linear1.kernel"
    before = random_model(SVD, tiny(SVDConfig.sv3d_u()), seed=2)
    save_native(before, path)
    start, after, _ = start_of(tiny_recipe("sv3d", path))
    old, new = flat_params(before), flat_params(after)
    assert start.new == () and old.keys() == new.keys()
    assert all(jnp.array_equal(old[name], new[name]) for name in old if name != kernel)
    rows = len(old[kernel])
    assert len(new[kernel]) > rows and sum(bool(jnp.any(row)) for row in new[kernel]) == rows


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("demo_camera", {"unet.down.1.attn", "unet.up.1.attn"}),
        ("demo_camera_lora", set()),
        ("demo_frame_interpolation", {"missing_frame"}),
        ("demo_multi_view", set()),
    ],
)
def test_demos_start_from_the_bundled_files_as_they_declare(name, new):
    config = load_config([str(CONFIGS / f"{name}.py")], default=CONFIGS / "demo.py")
    start = initial(config, Console(file=io.StringIO()))
    assert start.loaded.keys() | set(start.new) == flat_params(shapes_of(config.model)).keys()
    assert {".".join(path.split(".")[:4]) for path in start.new} == new


def test_scalars_are_matched_by_name():
    old = replace(SVDConfig.svd(), scalars=(("motion_bucket", 1), ("fps", 2)))
    new = replace(SVDConfig.svd(), scalars=(("fps", 2), ("noise_aug", 1), ("motion_bucket", 1)))
    kernel = np.float32([[1], [2], [3]])
    wide = widen("unet.vector_embed.linear1.kernel", kernel, 4, new, old)
    np.testing.assert_array_equal(wide, [[2], [3], [0], [1]])
    with pytest.raises(UserError, match="has motion_bucket of width 1"):
        widen("unet.vector_embed.linear1.kernel", kernel, 4, replace(new, scalars=(("fps", 2),)), old)


OURS = {"a.kernel": (2, 3), "b.kernel": (4, 3), "c.bias": (3,)}


@pytest.mark.parametrize(
    ("init", "theirs", "message"),
    [
        (Init(), {"a.kernel": (2, 3), "b.kernel": (4, 3)}, "1 missing: c.bias"),
        (Init(), {**OURS, "d.bias": (1,)}, "1 unexpected: d.bias"),
        (Init(new=("c.*",)), OURS, "1 unexpected: c.bias"),
        (Init(zero=("z.*",)), OURS, r"init.zero names z.\*, but the model has no such parameter"),
        (Init(dropped=("d.*",)), OURS, r"init.dropped names d.\*, but a file has no such parameter"),
        (Init(new=("c.*",), zero=("*.bias",)), {}, "c.bias: declared both init.new and init.zero"),
        (Init(), {**OURS, "b.kernel": (3, 3)}, r"b.kernel has shape \(3, 3\), the model needs \(4, 3\)"),
        (Init(widened=("b.*",)), OURS, "init.widened is for more inputs and nothing else"),
        (Init(widened=("b.*",)), {**OURS, "b.kernel": (3, 2)}, "init.widened is for more inputs"),
        (Init(widened=("c.*",)), {**OURS, "c.bias": (2,)}, "init.widened is for more inputs"),
    ],
)
def test_a_declaration_that_is_not_what_is_found_is_refused(init, theirs, message):
    with pytest.raises(UserError, match=message):
        resolve(init, OURS, theirs, what="a file")


def test_a_declaration_that_is_what_is_found_is_spelled_out():
    init = Init(new=("a.*",), zero=("c.*",), widened=("b.*",), dropped=("d.*", "a.*"))
    theirs = {"a.kernel": (9, 9), "b.kernel": (3, 3), "d.bias": (1,)}
    transfer = resolve(init, OURS, theirs, what="a file")
    assert (transfer.loaded, transfer.widened, transfer.new) == ((), ("b.kernel",), ("a.kernel",))
    assert (transfer.zero, transfer.dropped) == (("c.bias",), ("a.kernel", "d.bias"))


def test_a_start_that_computes_something_else_is_refused(sd21, released, tmp_path):
    eps = tmp_path / "eps.safetensors"
    save_native(random_model(SVD, replace(tiny(SVDConfig.sd21()), preconditioning="discrete_eps")), eps)
    with pytest.raises(UserError, match="its output is discrete_eps, this run's v"):
        start_of(tiny_recipe("image_time_embed", eps))
    config = tiny_recipe("finetune_svd", released)
    heads = replace(config.model, unet=replace(config.model.unet, head_dim=32))
    with pytest.raises(UserError, match="its unet has head_dim 64, the model of this run 32"):
        start_of(replace(config, model=heads))
    with pytest.raises(UserError, match="missing"):
        start_of(tiny_recipe("video_320x576", sd21))
    with pytest.raises(UserError, match="has an image encoder already"):
        start_of(tiny_recipe("finetune_svd", released, image_encoder=str(released)))
    with pytest.raises(UserError, match="this checkpoint has no image encoder"):
        start_of(tiny_recipe("image_to_video_320x576", sd21, image_encoder=str(sd21)))


def test_without_a_checkpoint_everything_is_new_unless_one_is_declared():
    model = tiny(SVDConfig.svd())
    start = initial(RunConfig(model=model), Console(file=io.StringIO()))
    assert start.loaded == {} and set(start.new) == set(flat_params(shapes_of(model)))
    with pytest.raises(UserError, match="name its file with --init-from"):
        initial(RunConfig(model=model, init=Init(new=("unet.*",))), Console(file=io.StringIO()))


def test_levels_with_attention_can_be_added_if_they_are_declared_new(released):
    before = open_checkpoint(released).config
    unet = replace(before.unet, channels=(64, 64), attention=(False, True))
    path = released.with_name("less_attention.safetensors")
    save_native(random_model(SVD, replace(before, unet=unet), seed=3), path)
    more = replace(before, unet=replace(unet, attention=(True, True)))
    added = Init(new=("unet.down.0.attn.*", "unet.up.1.attn.*"))
    start, _, _ = start_of(RunConfig(model=more, init_from=str(path), init=added))
    assert start.loaded.keys() == open_checkpoint(path).params.keys()
    assert start.new and all(".attn." in name for name in start.new)
    with pytest.raises(UserError, match="missing"):
        initial(RunConfig(model=more, init_from=str(path)), Console(file=io.StringIO()))
