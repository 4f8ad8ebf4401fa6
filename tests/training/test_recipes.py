"""Every recipe builds at its full size and trains what it says; the loss of a video depends on no other video."""

import dataclasses
import json
import math
import re
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from svdjax.conversion.checkpoint import shapes_of
from svdjax.conversion.source import load_model
from svdjax.diffusion.noise import STAGES
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.params import flat_params, load_flat
from svdjax.models.svd import SVD, SVDConfig
from svdjax.tasks import DropRates
from svdjax.training import run
from svdjax.training.config import load_config
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.initial import initial
from svdjax.training.model_file import save_model
from svdjax.training.step import make_loss
from svdjax.training.transfer import resolve
from svdjax.training.vae_stage import encode_video
from tests.training.tiny import MODEL, tiny_run
from tests.weights import random_model, random_start

CONFIGS = Path(__file__).parents[2] / "configs"
TEMPORAL = 656_076_838
SD21, TEXT, IMAGE, BETWEEN = 865_910_724, 1_524_283_882, 1_524_623_082, 1_524_298_282
VIEWS, SV3D = IMAGE + 256 * 1280, 1_525_278_442  # with 256 more inputs of the scalars' MLP
MISSING_FRAME = 72 * 128 * 4

# The tables of the recipes: frames, size, steps, batch, rate, sigma, and parameters of the UNet and of what trains.
TIME_EMBED = 320 * 1280 + 1280 + 1280 * 1280 + 1280
STAGE_TABLE = {
    "image_time_embed": (1, (512, 512), 1_000, None, None, "image", SD21, TIME_EMBED),
    "image": (1, (256, 384), 30_000, None, None, "image", SD21, SD21),
    "video_256x384": (14, (256, 384), 150_000, 1536, 1e-4, "video_256x384", TEXT, TEXT),
    "video_320x576": (14, (320, 576), 100_000, 768, 1e-4, "video_320x576", TEXT, TEXT),
    "image_to_video_320x576": (14, (320, 576), 50_000, 768, 3e-5, "image_to_video_320x576", IMAGE, IMAGE),
    "text_to_video_576x1024": (14, (576, 1024), 50_000, 768, 3e-5, "text_to_video_576x1024", TEXT, TEXT),
    "svd": (14, (576, 1024), 50_000, 768, 3e-5, "image_to_video_576x1024", IMAGE, IMAGE),
    "svd_xt": (25, (576, 1024), 50_000, 768, 3e-5, "image_to_video_576x1024", IMAGE, IMAGE),
    "frame_interpolation": (5, (576, 1024), 10_000, 256, 1e-4, "interpolation", BETWEEN, BETWEEN + MISSING_FRAME),
    "finetune_svd": (14, (576, 1024), None, None, None, "image_to_video_576x1024", IMAGE, IMAGE),
    "multi_view": (21, (576, 576), 12_000, 16, 1e-5, "image_to_video_576x1024", VIEWS, VIEWS),
    "sv3d": (21, (576, 576), 50_000, 64, None, "image_to_video_576x1024", SV3D, SV3D),
}


def recipe(name, *options):
    return load_config([str(CONFIGS / f"{name}.py"), *options], default=CONFIGS / "demo.py")


def size(params):
    return sum(x.size for x in params.values())


def split(config):
    """Shapes of the parameters that train, and of the others."""
    flat = flat_params(shapes_of(config.model))
    trained = {path: x for path, x in flat.items() if config.unet.trains(path)}
    return trained, {path: x for path, x in flat.items() if path not in trained}


@pytest.mark.parametrize("name", STAGE_TABLE)
def test_a_recipe_is_what_the_paper_says(name):
    frames, pixels, steps, batch, rate, sigma, total, trains = STAGE_TABLE[name]
    config = recipe(name)
    stage, sampling = config.unet, config.data.sampling
    assert (sampling.frames, sampling.size, stage.sigma) == (frames, pixels, STAGES[sigma])
    defaults = config.model.defaults
    assert (defaults.frames, defaults.height, defaults.width) == (frames, *pixels)
    for said, found in ((steps, stage.steps), (batch, stage.batch), (rate, stage.optim.rate)):
        assert said in (None, found)
    trained, frozen = split(config)
    unet = {path: x for path, x in (trained | frozen).items() if path.startswith("unet.")}
    assert (size(unet), size(trained)) == (total, trains)
    if sampling.captions:
        assert stage.drop == DropRates(context=0.15, concat=0.0, both=0.0)


@pytest.mark.parametrize("name", STAGE_TABLE)
def test_the_loss_of_a_recipe_can_be_traced_at_full_size(name):
    config = recipe(name)
    sampling, shape = config.data.sampling, jax.ShapeDtypeStruct
    batch = {
        "video": shape((2, sampling.frames, *sampling.size, 3), jnp.uint8),
        "fps": shape((2,), jnp.float32),
        "motion_bucket": shape((2,), jnp.float32),
        "image_only": shape((2,), jnp.bool_),
    }
    if sampling.captions:
        batch["tokens"] = shape((2, 77), jnp.int32)
    if sampling.views:
        batch |= {name: shape((2, sampling.frames), jnp.float32) for name in ("azimuths", "elevation")}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, metrics = jax.eval_shape(make_loss(config.unet, shapes_of(config.model)), *split(config), batch, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    dropped = {name for name in metrics if name.startswith("dropped")}
    assert dropped == ({"dropped_context"} if sampling.captions else {"dropped_context", "dropped_concat"})


@pytest.mark.parametrize("name", ["demo_known_frames", "frame_interpolation", "multi_view", "sv3d"])
def test_clips_are_as_long_as_samples_that_need_them_so(name):
    """Else only the samples would say so, after the whole training."""
    frames = recipe(name).model.defaults.frames
    says = f"--data.sampling.frames: clips of 6 frames, .* --model.defaults.frames, {frames}: make the two the same"
    with pytest.raises(UserError, match=says):
        recipe(name, "--data.sampling.frames", "6")
    both = recipe(name, "--data.sampling.frames", "6", "--model.defaults.frames", "6")
    assert both.model.defaults.frames == both.data.sampling.frames == 6
    buckets = [*map(str, (6, 64, 64, frames, 64, 64))]
    assert len(recipe(name, "--data.sampling.buckets", *buckets).data.sampling.shapes) == 2
    with pytest.raises(UserError, match=r"--data.sampling.buckets: clips of 3 or 6 frames"):
        recipe(name, "--data.sampling.buckets", *buckets[:3], "3", "64", "64")


def test_a_picture_asks_for_samples_of_any_length():
    assert recipe("svd_xt", "--data.sampling.frames", "14").model.defaults.frames == 25


@pytest.mark.parametrize(("pixels", "steps"), [(256, 40_000), (512, 50_000)])
def test_the_ablations_are_the_papers_where_it_says_something(pixels, steps):
    config = recipe(f"ablation_{pixels}x{pixels}")
    stage, sampling, defaults = config.unet, config.data.sampling, config.model.defaults
    assert (sampling.frames, sampling.size, stage.steps) == (8, (pixels, pixels), steps)
    assert (stage.batch, stage.optim.rate, stage.discrete, stage.drop.context) == (256, 1e-4, True, 0.1)
    assert (stage.offset_noise, stage.ema_decay, sampling.captions) == (0.1, 0.9999, True)
    assert (config.model.preconditioning, defaults.steps, defaults.guidance) == ("discrete_v", 50, (12.0, 12.0))
    assert (defaults.frames, defaults.height, defaults.width, defaults.sigma_max) == (8, pixels, pixels, 14.61)
    trained, frozen = split(config)
    assert size(trained) == 1_521_987_562 and not any(path.startswith("unet.") for path in frozen)
    shape = jax.ShapeDtypeStruct
    batch = {"video": shape((1, 8, pixels, pixels, 3), jnp.uint8), "tokens": shape((1, 77), jnp.int32)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, _ = jax.eval_shape(make_loss(stage, shapes_of(config.model)), trained, frozen, batch, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_an_ablation_starts_from_sd21():
    config = recipe("ablation_256x256")
    ours, theirs = (
        {path: tuple(x.shape) for path, x in flat_params(shapes_of(model)).items()}
        for model in (config.model, SVDConfig.sd21())
    )
    transfer = resolve(config.init, ours, theirs, what="SD 2.1")
    assert sum(math.prod(ours[path]) for path in transfer.new) == TEMPORAL and not transfer.dropped


def test_temporal_finetuning_trains_exactly_the_temporal_layers():
    trained, frozen = split(recipe("finetune_svd", "--unet.part", "temporal"))
    assert (size(trained), len(trained)) == (TEMPORAL, 738)
    assert not any(part in path for path in frozen if path.startswith("unet.") for part in ("temporal", "mix_"))


def test_the_text_demo_learns_its_words_from_pictures_on_the_shipped_autoencoder():
    config = recipe("demo_text_to_image")
    trained, frozen = split(config)
    start = initial(config, Console(quiet=True))
    assert {path.split(".")[0] for path in trained} == {"unet", "text_encoder"}
    assert set(start.new) == set(trained) and set(start.loaded) == set(frozen)
    shipped = load_model(config.init_from, dtype=np.float32)
    kernel = shipped.vae.decoder.conv_in.kernel[...]
    np.testing.assert_array_equal(start.loaded["vae.decoder.conv_in.kernel"], kernel)


def test_the_text_demo_adds_to_its_image_model_what_videos_need(tmp_path):
    pictures = tmp_path / "pictures.safetensors"
    save_model(random_model(SVD, recipe("demo_text_to_image").model), pictures)
    config = recipe("demo_text_to_video", "--init-from", str(pictures))
    trained, frozen = split(config)
    start = initial(config, Console(quiet=True))
    of_videos = re.compile(r"unet\..*\b(temporal|frame_embed|mix_factor|vector_embed)\b.*")
    zero = {path for path in trained if path.startswith("unet.vector_embed.linear2.")}
    assert set(start.new) == {path for path in trained if of_videos.fullmatch(path)} - zero
    assert len(zero) == 2 and not any(start.loaded[path].any() for path in zero)
    assert set(frozen) <= set(start.loaded)
    assert any(path.startswith("text_encoder.") for path in start.loaded)


def test_the_demo_of_known_frames_adds_attention_to_that_of_interpolation(tmp_path):
    pairs = tmp_path / "pairs.safetensors"
    save_model(random_model(SVD, recipe("demo_frame_interpolation").model), pairs)
    config = recipe("demo_known_frames", "--init-from", str(pairs))
    start = initial(config, Console(quiet=True))
    assert {".".join(path.split(".")[:4]) for path in start.new} == {"unet.down.1.attn", "unet.up.1.attn"}
    assert start.loaded.keys() | set(start.new) == flat_params(shapes_of(config.model)).keys()


def test_the_stages_of_the_text_demo_differ_in_what_videos_need():
    pictures, videos = recipe("demo_text_to_image"), recipe("demo_text_to_video")
    unet = dataclasses.replace(pictures.model.unet, temporal=True, vector_dim=128)
    names = {"task": "text_to_video", "scalars": videos.model.scalars}
    frames = dataclasses.replace(pictures.model.defaults, frames=8)
    assert dataclasses.replace(pictures.model, unet=unet, defaults=frames, **names) == videos.model
    step = videos.data.world.sprite_step
    assert dataclasses.replace(pictures.data.world, frames=8, sprite_step=step) == videos.data.world


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_can_be_read(path):
    stages = load_config([str(path)], default=path).stages()
    assert stages and all(stage.steps > 0 for stage in stages)


def test_the_temporal_decoder_starts_from_the_published_image_decoder():
    """All is loaded but the temporal layers, and decoder and discriminator train, on whole clips at full size."""
    config = recipe("temporal_decoder")
    stage, sampling = config.decoder, config.data.sampling
    vae = dataclasses.replace(config.model.vae, temporal_decoder=False)
    theirs, ours = (
        {path: tuple(x.shape) for path, x in flat_params(shapes_of(model)).items()}
        for model in (dataclasses.replace(config.model, vae=vae), config.model)
    )
    new = resolve(config.init, ours, theirs, what="the image decoder").new
    assert sum(math.prod(ours[path]) for path in new) == 14_089_004  # the temporal part
    flat = flat_params(stage.shapes(config.model))
    trained = {path: x for path, x in flat.items() if stage.trains(path)}
    frozen = {path: x for path, x in flat.items() if path not in trained}
    assert size({path: x for path, x in trained.items() if path.startswith("vae.")}) == 63_579_183
    assert {path.split(".")[0] for path in trained} == {"vae", "discriminator"}
    batch = {"video": jax.ShapeDtypeStruct((2, sampling.frames, *sampling.size, 3), jnp.uint8)}
    key = jax.eval_shape(lambda: jax.random.key(0))
    loss, metrics = jax.eval_shape(make_loss(stage, stage.shapes(config.model)), trained, frozen, batch, key)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert set(metrics) == {"psnr", "adversarial", "discriminator"}


def test_impossible_settings_are_refused():
    with pytest.raises(UserError, match="image-share 2"):
        DiffusionStage(image_share=2.0)
    with pytest.raises(UserError, match="offset-noise -1"):
        DiffusionStage(offset_noise=-1.0)


@pytest.fixture(scope="module")
def model():
    return random_model(SVD, MODEL)


@pytest.fixture(scope="module")
def clips():
    video = np.random.default_rng(0).uniform(-1, 1, (4, 2, 16, 16, 3))
    return {
        "video": jnp.asarray(video, jnp.float32),
        "fps": jnp.asarray([7.0, 8.0, 9.0, 10.0]),
        "motion_bucket": jnp.asarray([1.0, 50.0, 100.0, 255.0]),
        "row": jnp.arange(4, dtype=jnp.int32),
    }


@pytest.fixture(scope="module")
def batch(clips, model):
    """The clips from a cache of latents, with the pixels of their first frames."""
    return clips | {"video": clips["video"][:, :1], "latents": jax.jit(encode_video)(model.vae, clips["video"])}


@pytest.fixture(scope="module")
def loss(model, tmp_path_factory):
    """The loss of a stage on the tiny model, with chosen settings and a few other parameters, and its metrics."""
    stage, flat = tiny_run(tmp_path_factory.mktemp("stage")).unet, flat_params(model)

    @cache
    def compiled(settings):
        chosen = dataclasses.replace(stage, **dict(settings))
        return jax.jit(lambda params, *args: chosen.loss(load_flat(shapes_of(MODEL), params, what="a test"), *args))

    def run(batch, params=None, seed=3, **settings):
        return compiled(tuple(settings.items()))({**flat, **(params or {})}, batch, jax.random.key(seed))

    return run


@pytest.mark.parametrize("levels", [{}, {"offset_noise": 0.1, "discrete": True}])
def test_what_a_video_draws_depends_on_its_row_alone(loss, batch, levels):
    settings = {"drop": DropRates(context=0.3, concat=0.3, both=0.2), "image_share": 0.5, **levels}
    whole, _ = loss(batch, **settings)
    half = [jax.tree.map(lambda x, rows=rows: x[jnp.asarray(rows)], batch) for rows in ([3, 1], [0, 2])]
    parts = [float(loss(part, **settings)[0]) for part in half]
    assert float(whole) == pytest.approx(np.mean(parts), rel=1e-5)
    other = batch | {"row": batch["row"] + 4}
    assert abs(float(loss(other, **settings)[0]) - float(whole)) > 1e-3


def test_offset_noise_and_discrete_levels_change_what_is_drawn(loss, batch):
    plain, offset, discrete = (
        float(loss(batch, **settings)[0]) for settings in ({}, {"offset_noise": 0.5}, {"discrete": True})
    )
    assert min(abs(plain - offset), abs(plain - discrete)) > 1e-4
    counts = [loss(batch, seed=seed, discrete=True)[1]["loss/sigma_25-inf"][1] for seed in range(8)]
    assert sum(counts) == 0, "the largest of SD 2.1's levels is 14.61"


def test_the_bands_and_counts_add_up(loss, batch):
    whole, metrics = loss(batch, drop=DropRates(context=1.0, concat=0.0, both=0.0))
    bands = np.sum([metrics[name] for name in metrics if name.startswith("loss/sigma")], axis=0)
    np.testing.assert_allclose(bands, [4 * float(whole), 4], rtol=1e-5)
    np.testing.assert_array_equal(metrics["dropped_context"], [4, 4])
    np.testing.assert_array_equal(metrics["dropped_concat"], [0, 4])


def test_validation_leaves_nothing_out(model, batch):
    stage = DiffusionStage(drop=DropRates(context=0.5, concat=0.25, both=0.25), image_share=0.5).for_validation()
    assert stage.image_share == 0.5
    _, metrics = jax.eval_shape(lambda batch: stage.loss(model, batch, jax.random.key(0)), batch)
    assert metrics and not any(name.startswith("dropped") for name in metrics)


def test_cached_latents_are_what_the_encoder_makes(loss, clips, batch):
    assert float(loss(batch)[0]) == pytest.approx(float(loss(clips)[0]), rel=1e-5)


def test_images_do_not_reach_the_temporal_layers(loss, model, batch):
    other = {path: 2 * x + 1 for path, x in flat_params(model).items() if ".temporal." in path}
    marked = batch | {"image_only": jnp.asarray([True] * 4)}
    images = float(loss(marked)[0])
    assert float(loss(marked, other)[0]) == images
    assert float(loss(batch, other, image_share=1.0)[0]) == pytest.approx(images, rel=1e-6)
    assert abs(float(loss(batch, other)[0]) - float(loss(batch)[0])) > 1e-4
    mixed = batch | {"image_only": jnp.asarray([True, False, True, True])}
    assert abs(float(loss(mixed, other)[0]) - float(loss(mixed)[0])) > 1e-4


@pytest.mark.long
def test_a_run_on_captioned_clips_and_pictures_trains_the_text_conditioned_model(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["svdjax.training.run"], "drawn", random_start)
    text = CLIPTextConfig(width=8, layers=2, heads=1, mlp_dim=8, context_length=12, projection_dim=None)
    unet = dataclasses.replace(MODEL.unet, in_channels=4, vector_dim=8)
    config = tiny_run(tmp_path)
    model = dataclasses.replace(
        MODEL, unet=unet, image_encoder=None, text_encoder=text, task="text_to_video", scalars=MODEL.scalars[:2]
    )
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20), "red").save(tmp_path / "pictures/red.png")
    sampling = dataclasses.replace(config.data.sampling, captions=True)
    data = dataclasses.replace(config.data, sampling=sampling, also=(tmp_path / "pictures",), weights=(1.0, 1.0))
    stage = dataclasses.replace(config.unet, part="temporal", steps=2, cache_latents=False)
    parts = {"vae": None, "decoder": None, "unet": stage, "model": model, "data": data}
    trained = flat_params(load_model(run(dataclasses.replace(config, export_dtype="float32", **parts))))
    before = flat_params(random_model(SVD, model))
    changed = {path for path in before if not jnp.array_equal(before[path], trained[path])}
    assert changed and all(stage.trains(path) for path in changed)
    rows = [json.loads(line) for line in (config.out / "unet/metrics.jsonl").read_text().splitlines()]
    assert all(0 <= row["dropped_context"] <= 1 for row in rows if "loss" in row)
    assert any("val_loss" in row for row in rows)
    assert not any("val_dropped_context" in row for row in rows)  # validation leaves nothing out
    assert (config.out / "samples.png").is_file(), "made of the held-out clips' captions"
