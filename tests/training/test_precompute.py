"""The latent cache: losses as from the clips, finished by the same command, refused where it does not fit."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from svdjax.data import cache
from svdjax.data.cache import LatentCache
from svdjax.data.opening import open_mixture, open_source
from svdjax.data.pipeline import fixed_clips, to_batch, to_unit
from svdjax.data.sampling import ClipSampling
from svdjax.diffusion.noise import row_keys
from svdjax.errors import UserError
from svdjax.models.clip_text import CLIPTextConfig
from svdjax.models.params import abstract, flat_params, load_flat
from svdjax.models.svd import SVD
from svdjax.tasks import task_of
from svdjax.training.cache_settings import check_cache
from svdjax.training.data import open_clips
from svdjax.training.initial import encoder_marks
from svdjax.training.lora_stage import LoRAStage
from svdjax.training.model_file import save_model
from svdjax.training.precompute import Precompute, main, precompute
from svdjax.training.run import run
from svdjax.training.step import make_loss
from tests.training.tiny import KNOWN_FRAMES, MODEL, tiny_run
from tests.weights import random_model

QUIET = Console(quiet=True)
TEXT = dataclasses.replace(
    MODEL,
    image_encoder=None,
    text_encoder=CLIPTextConfig(width=8, layers=1, heads=1, mlp_dim=8, projection_dim=8),
    task="text_to_video",
    scalars=(("fps", 6), ("motion_bucket", 6)),
    unet=dataclasses.replace(MODEL.unet, in_channels=4),
)


def config_for(root, model=MODEL, **data):
    """A run of the unet alone from random weights in a file; runs under one root share data and weights."""
    weights = root / f"{model.task}.safetensors"
    if not weights.exists():
        save_model(random_model(SVD, model), weights)
    config = tiny_run(root)
    stage = dataclasses.replace(config.unet, cache_latents=False)
    return dataclasses.replace(
        config,
        model=model,
        vae=None,
        decoder=None,
        unet=stage,
        init_from=str(weights),
        data=dataclasses.replace(config.data, **data),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model():
    """What `config_for` writes into its file."""
    return random_model(SVD, MODEL)


@pytest.fixture(scope="module")
def made(root):
    """A cache with the first frames' pixels, in float32."""
    options = Precompute(out=root / "made", dtype="float32", batch=3, shard_clips=10)
    assert precompute(options, config_for(root), QUIET)
    return open_source(root / "made")


def clips_of(config):
    return list(fixed_clips(open_clips(config.data, QUIET).train, config.data.sampling))


def rows(source, count):
    return to_batch([source[i] for i in range(count)])


@pytest.mark.slow  # compiles the loss twice
def test_losses_from_the_cache_are_those_from_the_clips(root, model, made):
    items = clips_of(config_for(root))
    assert len(made) == len(items) == 24
    assert made[5]["latents"].shape == (2, 8, 8, 4) and made[5]["image_embedding"].shape == (8,)
    np.testing.assert_array_equal(made[5]["video"], items[5]["video"][:1])
    params, loss = flat_params(model), jax.jit(make_loss(config_for(root).unet, model))
    one, other = (float(loss(params, {}, rows(source, 4), jax.random.key(7))[0]) for source in (items, made))
    assert one == pytest.approx(other, rel=1e-5)


def test_captions_and_pictures_are_cached_for_a_model_of_texts(root):
    captioned = ClipSampling(frames=2, size=(16, 16), captions=True)
    (root / "pictures").mkdir()
    Image.new("RGB", (20, 20), "red").save(root / "pictures/red.png")
    config = config_for(root, TEXT, sampling=captioned, also=(root / "pictures",), weights=(1.0, 1.0))
    precompute(Precompute(out=root / "text", dtype="float32"), config, QUIET)
    items, cached = clips_of(config), open_source(root / "text")
    assert set(cached[0]) == {"latents", "text_embedding", "fps", "motion_bucket", "image_only"}
    assert [bool(cached[i]["image_only"]) for i in range(25)] == [False] * 24 + [True]
    model, kept, clips = random_model(SVD, TEXT), rows(cached, 4), rows(items, 4)
    tokens = task_of(TEXT).prepare(clips)["tokens"]
    assert len(np.unique(tokens, axis=0)) > 1
    wanted = jax.jit(model.text_encoder)(tokens)
    np.testing.assert_allclose(kept["text_embedding"], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="--draws 2: a model for text_to_video"):
        precompute(Precompute(out=root / "text2", draws=2), config, QUIET)


def test_cached_draws_are_noised_first_frames(root, model):
    config = config_for(root)
    precompute(Precompute(out=root / "draws", draws=3), config, QUIET)
    cached, items = open_source(root / "draws"), clips_of(config)
    assert "video" not in cached[0] and cached[0]["cond_latents"].shape == (3, 8, 8, 4)
    levels = np.stack([cached[i]["cond_noise_aug"] for i in range(24)])
    assert len(np.unique(levels)) == 72 and abs(np.log(levels).mean() + 3) < 0.3  # ln(level) ~ N(-3, 0.5^2)
    task = task_of(MODEL)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2))(row_keys(jax.random.key(0), jnp.array([6])))
    request = task.request_from_batch(
        {**jax.tree.map(jnp.asarray, to_batch([items[6]])), "video": to_unit(jnp.asarray(items[6]["video"])[None])},
        keys,
    )
    noised = request.image + request.noise_aug[:, None, None, None] * request.noise
    wanted = jax.jit(lambda picture: model.vae.encode(picture).mode())(noised)
    np.testing.assert_allclose(cached[6]["cond_latents"][2], wanted[0], rtol=2e-3, atol=2e-3)  # kept in float16


def test_the_unet_trains_from_a_cache(root, model, made):
    config = config_for(root, train=root / "made", sprites=0)
    clips = open_clips(config.data, QUIET)
    batches = config.unet.batches(model, clips, seed=0)
    assert batches[0]["latents"].shape == (8, 2, 8, 8, 4)
    seen = np.concatenate([batches[i]["motion_bucket"] for i in range(3)])
    np.testing.assert_array_equal(np.sort(seen), np.sort([made[i]["motion_bucket"] for i in range(24)]))
    some = config.unet.batches(model, clips, seed=0, rows=[2])
    np.testing.assert_array_equal(some[3]["latents"], batches[3]["latents"][2:3])


def test_a_cache_is_refused_where_pixels_are_needed(root, made):
    config = config_for(root, train=root / "made", sprites=0)
    with pytest.raises(UserError, match="a latent cache trains the unet only"):
        open_clips(config.data, QUIET).batches(batch=2, seed=0)
    with pytest.raises(UserError, match="a latent cache has no clips"):
        open_clips(dataclasses.replace(config.data, validation=root / "made"), QUIET)
    with pytest.raises(UserError, match="cannot be mixed"):
        open_mixture([root / "made", root / "train"], (1.0, 1.0))


def from_cache(root, name="made", **changes):
    """A run from a cache under ``root``."""
    return dataclasses.replace(config_for(root, train=root / name, sprites=0), **changes)


def test_a_run_from_a_cache_may_differ_in_all_that_comes_after_the_encoders(root, model, made, tmp_path):
    check_cache(config_for(root))  # clips
    check_cache(from_cache(root, seed=7, unet=LoRAStage(batch=2, compute_dtype="bfloat16")))
    elsewhere = tmp_path / "same.safetensors"
    save_model(model, elsewhere, dtype="bfloat16")
    vae = dataclasses.replace(MODEL.vae, remat=True)
    check_cache(from_cache(root, init_from=str(elsewhere), model=dataclasses.replace(MODEL, vae=vae)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"size": (8, 16)},
            r"made with data\.sampling\.size \[16, 16\], where this run has \[8, 16\]: give the run",
        ),
        ({"fps": (3.0, 3.0)}, r"data\.sampling\.fps \[7\.0, 7\.0\], where this run has \[3\.0, 3\.0\]"),
        ({"buckets": ((2, 8, 16),)}, r"data\.sampling\.buckets \[\], where this run has \[\[2, 8, 16\]\]"),
    ],
)
def test_a_run_that_would_cut_other_clips_than_its_cache_is_refused(root, made, data, message):
    config = from_cache(root)
    sampling = dataclasses.replace(config.data.sampling, **data)
    with pytest.raises(UserError, match=rf"^--data\.train {root / 'made'}: a latent cache .*{message}"):
        check_cache(dataclasses.replace(config, data=dataclasses.replace(config.data, sampling=sampling)))


def test_a_run_with_other_encoders_than_its_cache_is_refused(root, model, made, tmp_path):
    text = config_for(root, TEXT)
    with pytest.raises(UserError, match="task ImageToVideo, where this run has TextToVideo"):
        check_cache(from_cache(root, model=TEXT, init_from=text.init_from))
    deeper = dataclasses.replace(MODEL, vae=dataclasses.replace(MODEL.vae, num_res_blocks=2))
    save_model(random_model(SVD, deeper), tmp_path / "deeper.safetensors")
    with pytest.raises(UserError, match=r"model\.vae\.num_res_blocks 1, where this run has 2"):
        check_cache(from_cache(root, model=deeper, init_from=str(tmp_path / "deeper.safetensors")))
    marks, params = encoder_marks(config_for(root)), flat_params(model)
    assert [path.split(".")[:2] for path in marks] == [
        ["vae", "encoder"],
        ["vae", "quant_conv"],
        ["image_encoder", "position_embed"],
    ]
    for path in marks:
        tuned = load_flat(abstract(SVD, MODEL), params | {path: 1.05 * params[path]}, what="tuned")
        save_model(tuned, tmp_path / "tuned.safetensors")
        with pytest.raises(UserError, match=rf"made with weights\.{path} \[.*, where this run has \["):
            check_cache(from_cache(root, init_from=str(tmp_path / "tuned.safetensors")))
    with pytest.raises(UserError, match="encoders are new"):
        check_cache(from_cache(root, init_from=None))
    with pytest.raises(UserError, match=r"stage vae trains vae\.encoder\.\S+: train something else"):
        check_cache(from_cache(root, vae=tiny_run(root).vae))


def test_tasks_of_one_kind_share_a_cache(root):
    config = config_for(root, KNOWN_FRAMES)
    precompute(Precompute(out=root / "known"), config, QUIET)
    ends = dataclasses.replace(KNOWN_FRAMES, task="first_last")
    check_cache(from_cache(root, "known", model=ends, init_from=config.init_from))


def test_a_cache_that_does_not_say_what_it_is_made_of_is_refused(root, made, tmp_path):
    config = dataclasses.replace(from_cache(root), data=dataclasses.replace(tiny_run(root).data, train=tmp_path))
    (tmp_path / "cache.json").write_text('{"task": "image_to_video"}')
    with pytest.raises(UserError, match=r"of an earlier version .* make the cache again"):
        check_cache(config)
    (tmp_path / "cache.json").write_text('{"task": "ImageToVideo", "weights": {}}')
    with pytest.raises(UserError, match="made with picture not recorded, where this run has 0"):
        check_cache(config)


def test_a_run_holds_its_cache_against_itself_before_it_reads_weights(root, made, monkeypatch):
    monkeypatch.setattr(
        sys.modules["svdjax.training.run"], "initial", lambda *args: pytest.fail("weights were read")
    )
    sampling = ClipSampling(frames=2, size=(8, 8))
    with pytest.raises(UserError, match=r"a latent cache made with data\.sampling\.size"):
        run(
            dataclasses.replace(
                config_for(root, train=root / "made", sprites=0, sampling=sampling), out=root / "no"
            )
        )


def test_an_interrupted_cache_goes_on_where_it_stopped(root, made, monkeypatch):
    options = Precompute(out=root / "again", dtype="float32", batch=3, shard_clips=10)
    write, finished = cache.write_shard, []

    def interrupted(directory, number, items, index):
        if number == 1:
            items = (item for i, item in enumerate(items) if i < 4 or cut())
        write(directory, number, items, index)
        finished.append(number)

    def cut():
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        precompute(options, config_for(root), QUIET)
    with pytest.raises(UserError, match="no finished latent cache: run svdjax precompute again"):
        open_source(root / "again")
    monkeypatch.setattr(cache, "write_shard", lambda *args: (finished.append(args[1]), write(*args)))
    precompute(options, config_for(root), QUIET)
    assert finished == [0, 1, 2]
    once, again = made, open_source(root / "again")
    for index in range(24):
        assert all(np.array_equal(once[index][name], again[index][name]) for name in once[index])


def test_several_machines_make_a_cache_together(root, made):
    (root / "parts").mkdir()
    (root / "parts/.cache.json.partial-other-1").touch()  # they start at the same time
    options = Precompute(out=root / "parts", dtype="float32", batch=3, shard_clips=10, part=(1, 2))
    assert not precompute(options, config_for(root), QUIET)
    assert precompute(dataclasses.replace(options, part=(0, 2)), config_for(root), QUIET)
    np.testing.assert_array_equal(open_source(root / "parts")[23]["latents"], made[23]["latents"])


def test_a_directory_of_another_configuration_is_refused(root, made, tmp_path):
    options = Precompute(out=root / "made", dtype="float32", batch=3, shard_clips=10)
    with pytest.raises(UserError, match=r"holds a latent cache of another configuration \(draws 0 -> 2\)"):
        precompute(dataclasses.replace(options, draws=2), config_for(root), QUIET)
    other = config_for(root, sampling=ClipSampling(frames=2, size=(8, 8)))
    with pytest.raises(UserError, match=r"another configuration \(data\.sampling\.size"):
        precompute(options, other, QUIET)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="is not empty"):
        precompute(Precompute(out=tmp_path), config_for(root), QUIET)
    with pytest.raises(UserError, match=r"encoders are new .* name a checkpoint with --init-from"):
        precompute(Precompute(out=root / "random"), dataclasses.replace(config_for(root), init_from=None), QUIET)
    # Nothing was encoded, so that the mended command may use the same directory.
    with pytest.raises(UserError, match="nowhere: no such file"):
        precompute(
            Precompute(out=root / "random"), dataclasses.replace(config_for(root), init_from="nowhere"), QUIET
        )
    with pytest.raises(UserError, match="is a latent cache already"):
        precompute(Precompute(out=root / "twice"), config_for(root, train=root / "made", sprites=0), QUIET)


def test_clips_of_several_shapes_keep_them_in_the_cache(root):
    shapes = ClipSampling(buckets=((2, 16, 16), (2, 8, 16)))
    config = config_for(root, sampling=shapes, also=(root / "validation",), weights=(1.0, 1.0))
    precompute(Precompute(out=root / "mixed", batch=3, shard_clips=10), config, QUIET)
    cached = open_source(root / "mixed")
    shares = sorted((group.shape, len(group.indices), round(group.weight, 6)) for group in cached.groups)
    assert shares == [((2, 16, 16), 8, 1.0), ((2, 16, 16), 24, 1.0)]


def test_bad_clips_are_left_out_of_the_cache(root, monkeypatch, caplog):
    from svdjax.training import precompute as module

    read = module.fixed_clip

    def some_bad(source, sampling, index):
        if index % 12 == 5:
            raise UserError(f"clip {index} is rotten")
        return read(source, sampling, index)

    monkeypatch.setattr(module, "fixed_clip", some_bad)
    options = Precompute(out=root / "bad", batch=3, shard_clips=10)
    assert precompute(options, config_for(root), QUIET)
    assert len(open_source(root / "bad")) == 22 and "clip 17 is rotten" in caplog.text
    with pytest.raises(UserError, match="1 of 24 clips cannot be used, more than the 1%"):
        precompute(dataclasses.replace(options, out=root / "worse"), config_for(root, max_bad=0.01), QUIET)


def test_a_damaged_cache_is_refused(root, made, tmp_path):
    for path in (root / "made").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "latents-00001.array_record").write_bytes((root / "made/latents-00002.array_record").read_bytes())
    with pytest.raises(UserError, match="holds 18 clips, not 24"):
        LatentCache(tmp_path)
    (tmp_path / "latents-00001.array_record").unlink()
    with pytest.raises(UserError, match=r"lacks latents-00001\.array_record"):
        LatentCache(tmp_path)


def test_the_command_takes_its_options_beside_those_of_the_run(root, made, monkeypatch, tmp_path, capsys):
    called = []
    monkeypatch.setattr("svdjax.training.precompute.precompute", lambda *args: called.append(args))
    file = tmp_path / "config.py"
    file.write_text(
        '"""Tiny."""\nfrom pathlib import Path\nfrom tests.training.tiny import tiny_run\n\n\n'
        f"def config():\n    return tiny_run(Path({str(root)!r}))\n"
    )
    main([str(file), "--out", str(tmp_path), "--draws", "4", "--seed", "3", "--part", "1", "2"])
    ((options, config, _),) = called
    assert (options.out, options.draws, options.part, config.seed) == (tmp_path, 4, (1, 2), 3)
    assert config.out == root / "run"
    with pytest.raises(SystemExit):
        main([str(file)])
    said = "".join(capsys.readouterr().err.split())  # wrapped wherever the path is too long for the line
    assert f"svdjaxprecompute{file}" in said and "Unrecognized" not in said
    with pytest.raises(UserError, match="--part 2 2: give I and N"):
        Precompute(out=tmp_path, part=(2, 2))
    with pytest.raises(UserError, match="--shard-clips 0: must be at least 1"):
        Precompute(out=tmp_path, shard_clips=0)
    assert json.loads((root / "made" / "cache.json").read_text())["draws"] == 0
