"""The planner: what it counts in a program, and a real compile for a TPU slice that is not there."""

import dataclasses
import json
import re
import sys

import jax
import numpy as np
import pytest

from svdjax.cli import main
from svdjax.data import cache
from svdjax.data.motion import MotionBuckets
from svdjax.data.sampling import ClipSampling
from svdjax.errors import UserError
from svdjax.models.params import abstract, flat_params
from svdjax.models.svd import SVD
from svdjax.planning.buffers import NoRoom, Placement, gib_in, place, reason
from svdjax.planning.chips import CHIPS, chip_of, topology_devices
from svdjax.planning.collectives import Collective, collectives_of
from svdjax.planning.plan import GIB, WORKING, Plan, out_of_memory, table
from svdjax.planning.sampling import sampling_programs
from svdjax.planning.training import outline_training, plan_training, shardings
from svdjax.sampling.pipeline import Settings
from svdjax.training.flops import clip_shapes, sampling_flops, stage_flops
from svdjax.training.mesh import MeshConfig, make_mesh
from tests.training.tiny import MODEL, tiny_run

HLO = """HloModule step
%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}
%body.2 (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %gathered = bf16[4,8]{1,0} all-gather(bf16[1,8]{1,0} %x), dimensions={0}
}
%cond.3 (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
%fused.5 (p: u8[3]) -> u8[12] {
  ROOT %one = u8[12]{0} all-gather(u8[3]{0} %p), channel_id=7
}
%async_collective_fusion.6 (p: u8[3]) -> u8[12] {
  ROOT %again = u8[12]{0} all-gather(u8[3]{0} %p), channel_id=7
}
%fused.7 (p: u8[12]) -> u8[12] {
  ROOT %last = u8[12]{0} all-gather(u8[3]{0} %p), channel_id=7
}
%all-reduce-scatter.8 (p: f32[8]) -> f32[2] {
  %whole = f32[8]{0} all-reduce(f32[8]{0} %p), channel_id=9, to_apply=%add.1
}
%limit.9 (p: (s32[], f32[2])) -> pred[] {
  %four = s32[]{:T(128)} constant(4)
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %four), direction=LT
}
%part.10 (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %sum = f32[2]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.8
}
ENTRY %main.4 (x: f32[16]) -> f32[16] {
  %start = (f32[16]{0}, bf16[8]{0}) all-reduce-start(f32[16]{0} %x, bf16[8]{0} %z), to_apply=%add.1
  %done = (f32[16]{0}, bf16[8]{0}) all-reduce-done(%start)
  %async-collective-start.1 = (u8[3]{0}, u8[12]{0}) fusion(%a), kind=kCustom, calls=%fused.5
  %beside = (u8[3]{0}, u8[12]{0}) fusion(%async-collective-start.1), kind=kCustom, calls=%async_collective_fusion.6
  %async-collective-done.1 = u8[12]{0} fusion(%beside), kind=kCustom, calls=%fused.7
  %mapped = f32[4]{0} all-reduce(f32[4]{0} %v), channel_id=1, to_apply=%add.1
  %mapped.1 = f32[8]{0} all-reduce(f32[8]{0} %w), channel_id=1, to_apply=%add.1
  %two = ((u8[3]{0}, u8[3]{0}), (u8[12]{0}, u8[12]{0})) all-gather-start(%a, %b), channel_id=8
  %loop = (s32[], u8[4]) while(%t), condition=%cond.3, body=%body.2, backend_config={"known_trip_count":{"n":"5"}}
  %parts = (s32[], f32[2]) while(%u), condition=%limit.9, body=%part.10
  %first = f32[2]{0} reduce-scatter(%x), channel_id=3, replica_groups={{0,1,2},{3,4,5}}, to_apply=%add.1
  %second = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['axis_0'=5,'axis_1'=2] {'axis_0'}, to_apply=%add.1
  %third = f32[2]{0} reduce-scatter(%x), channel_id=5, replica_groups=[3,7]<=[21], to_apply=%add.1
  ROOT %moved = u8[3,2]{1,0} collective-permute(u8[3,2]{1,0} %y), source_target_pairs={{0,1}}
}
"""


def test_collectives_are_counted_by_kind_and_loops_by_their_length():
    gather, reduce, scatter, permute = collectives_of(HLO)
    assert gather == Collective(kind="all-gather", count=5 + 2, bytes=5 * 4 * 8 * 2 + 3 * 12)
    assert reduce == Collective(kind="all-reduce", count=3, bytes=(16 + 4 + 8) * 4 + 8 * 2)
    assert scatter == Collective(kind="reduce-scatter", count=4 + 3, bytes=4 * 8 * 4 + (3 + 5 + 7) * 2 * 4)
    assert permute == Collective(kind="collective-permute", count=1, bytes=6)
    assert (gather.sent, reduce.sent, scatter.sent) == (gather.bytes, 2 * reduce.bytes, scatter.bytes)


def test_an_estimate_is_compute_and_transfers():
    mesh = make_mesh(MeshConfig(), topology_devices("v5e:2x2"))
    numbers = {"flops": 197 * 10**12, "executed": 2 * 197 * 10**12, "roofline": 0.1, "seconds": {"compile": 1.0}}
    sent = [Collective(kind="all-gather", count=1, bytes=100 * 10**9)]
    made = Plan(
        name="unet",
        topology="v5e:2x2",
        mesh=mesh,
        batch=4,
        memory={"parameters": 9.0, "program": 7.0},
        collectives=sent,
        **numbers,
    )
    assert (made.chips, made.total, made.peak) == (4, 16.0, 4 * 197e12)
    assert made.step == pytest.approx(0.5 + 0.5)  # FLOPs at the peak, and 100 GB over 200 GB/s
    assert made.mfu == pytest.approx(0.25)
    assert "does NOT fit" in "".join(table(made).columns[1]._cells)
    placed = dataclasses.replace(made, roofline=None, memory={"parameters": 9.0})
    assert placed.mfu is None and placed.mfu_bounds == pytest.approx((0.5, 0.25))
    assert "at most 50%, 25% if transfers are not hidden" in "".join(table(placed).columns[1]._cells)
    assert dataclasses.replace(placed, collectives=None).mfu_bounds is None
    assert CHIPS["v5e"].hbm_gib == 15.75


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        (
            "RESOURCE_EXHAUSTED: Used 22.34G of 15.75G hbm. Exceeded by 6.59G.",
            "does not fit (needs 22.34G of 15.75G)",
        ),
        (
            "Ran out of memory on HBM, the total memory required for HLO temporaries (17.93G) exceeds available "
            "HBM (15.75G).",
            "does not fit (needs 17.93G of 15.75G)",
        ),
        ("INTERNAL: Mosaic failed\nat page 1 of 30", "does not compile (INTERNAL: Mosaic failed)"),
    ],
)
def test_a_verdict_is_the_compilers_in_short(said, verdict):
    assert out_of_memory(RuntimeError(said)) == verdict


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9:4x4"], "--topology v9:4x4: give a kind of chip"),
        (["--topology", "v5e:3x5"], "--topology v5e:3x5: libtpu knows no such slice"),
        (["--stage", "dance"], "--stage dance: the configuration has vae, decoder, unet"),
    ],
)
def test_what_is_not_there_is_named(arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/demo.py", *arguments])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_the_table_of_shardings_lists_every_parameter_and_what_lies_beside_it(tmp_path):
    config = tiny_run(tmp_path)
    mesh = make_mesh(config.mesh, topology_devices("v5e:2x2"))
    rows = zip(*(column.cells for column in shardings(config, config.unet, mesh).columns), strict=True)
    kept = {path: (how, int(size.replace(",", ""))) for path, _, _, how, size in rows}
    assert kept.keys() - {"all"} == flat_params(abstract(SVD, MODEL)).keys()
    assert kept["unet.conv_in.bias"] == ("float32, moments, average", 4 * 4 * 32)
    assert kept["vae.encoder.conv_in.bias"] == ("frozen, float32", 4 * 8)
    memory = outline_training(config, config.unet, mesh, "v5e:2x2").memory
    resting = sum(memory[name] for name in ("parameters", "moments", "average", "frozen"))
    assert kept["all"][1] / GIB == pytest.approx(resting, rel=1e-3)


def test_the_table_of_shardings_shows_whole_names_in_a_narrow_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit):
        main(["plan", str(_file(tmp_path)), "--shardings", "--topology", "v5e:2x2"])
    said = capsys.readouterr().out
    assert all(path in said for path in flat_params(abstract(SVD, MODEL))) and "…" not in said


def _file(tmp_path):
    """A configuration file of `tiny_run`."""
    config = tmp_path / "tiny.py"
    config.write_text(
        "from pathlib import Path\nfrom tests.training.tiny import tiny_run\n"
        f"def config():\n    return tiny_run(Path({str(tmp_path)!r}))\n"
    )
    return config


def test_an_outline_has_what_stays_on_a_chip_and_the_floor(tmp_path):
    config = tiny_run(tmp_path)
    stage = dataclasses.replace(config.vae, batch=8)
    whole = outline_training(config, stage, make_mesh(MeshConfig(), topology_devices("v5e:1")), "v5e:1")
    mesh = make_mesh(MeshConfig(fsdp=4), topology_devices("v5e:2x2"))
    cut = outline_training(config, stage, mesh, "v5e:2x2")
    params = {path: x for path, x in flat_params(abstract(SVD, MODEL)).items() if stage.trains(path)}
    assert whole.memory["parameters"] * GIB == 4 * sum(x.size for x in params.values())
    assert whole.total / 4 < cut.total < whole.total  # small parameters stay whole
    assert cut.floor == pytest.approx(whole.floor / 4) and cut.executed == whole.executed >= whole.flops
    assert "beside activations of 2 clips" in "".join(table(cut).columns[1]._cells)
    halves = outline_training(config, dataclasses.replace(stage, accumulate=2), mesh, "v5e:2x2")
    assert "beside activations of 1 clip" in table(halves).columns[1]._cells[-3]
    assert json.loads(json.dumps(cut.to_dict()))["floor"] == cut.floor


def outlined(config, stage="unet", **data):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, **data))
    mesh = make_mesh(config.mesh, topology_devices("v5e:1"))
    return outline_training(config, getattr(config, stage), mesh, "v5e:1")


def test_of_several_shapes_the_one_with_most_pixels_is_planned(tmp_path):
    config = tiny_run(tmp_path)
    config = dataclasses.replace(config, unet=dataclasses.replace(config.unet, cache_latents=False))
    shapes = {
        name: ClipSampling(frames=9, size=(64, 64), buckets=buckets)
        for name, buckets in {
            "both": ((3, 16, 16), (1, 32, 16)),
            "long": ((3, 16, 16),),
            "wide": ((1, 32, 16),),
        }.items()
    }
    both, long = (outlined(config, sampling=shapes[name]) for name in ("both", "long"))
    assert both.executed == long.executed and both.memory == long.memory
    assert both.name == "unet (clips of 3 x 16 x 16, the largest bucket)"
    assert table(both).title.startswith(f"{both.name} on v5e:1")
    # This stage takes one frame of each: then the widest is the largest.
    both, wide = (outlined(config, "vae", sampling=shapes[name]) for name in ("both", "wide"))
    assert both.executed == wide.executed and both.name == "vae (clips of 1 x 32 x 16, the largest bucket)"
    assert outlined(config).name == "unet"


def test_a_latent_cache_is_planned_as_it_is(tmp_path):
    """In the shape of its largest clips, and without the encoders."""
    config = tiny_run(tmp_path)
    item = {
        "latents": np.zeros((2, 8, 8, 4), np.float16),
        "image_embedding": np.zeros(8, np.float16),
        "cond_latents": np.zeros((1, 8, 8, 4), np.float16),
        "cond_noise_aug": np.zeros(1, np.float32),
        "fps": np.float32(7),
        "motion_bucket": np.float32(1),
    }
    small = item | {
        "latents": np.zeros((1, 4, 4, 4), np.float16),
        "cond_latents": np.zeros((1, 4, 4, 4), np.float16),
    }
    directory = tmp_path / "cache"
    directory.mkdir()
    cache.write_json(directory / cache.SETTINGS, {})
    cache.write_shard(directory, 0, [small, item], {"clips": [[1, 8, 8, 1], [2, 16, 16, 1]], "bad": {}})
    with pytest.raises(UserError, match="no finished latent cache"):
        outlined(config, train=directory)
    assert cache.finish(directory, 1, MotionBuckets(thresholds=tuple(map(float, range(254)))), "test")
    pixels, made = outlined(config), outlined(config, train=directory)
    assert made.name == "unet (cached clips of 2 x 16 x 16)" and pixels.name == "unet"
    assert 0 < made.executed < pixels.executed  # that keeps latents, too, but encodes the picture
    with pytest.raises(UserError, match="a latent cache trains the unet only"):
        outlined(config, "vae", train=directory)


def test_clips_that_cannot_be_cached_in_memory_are_not_planned_so(tmp_path):
    with pytest.raises(UserError, match=r"--unet\.cache-latents: takes clips of one shape"):
        outlined(tiny_run(tmp_path), sampling=ClipSampling(buckets=((2, 16, 16),)))


def test_an_outline_comes_instead_of_something_else(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/demo.py", "--outline", "--buffers"])
    assert stop.value.code == 2 and "not allowed with" in capsys.readouterr().err


def test_sampling_has_an_outline_without_compiling(tmp_path, capsys):
    argv = ["plan", str(_file(tmp_path)), "--topology", "v5e:2x2", "--sampling", "--videos", "3"]
    with pytest.raises(SystemExit) as stop:
        main([*argv, "--outline"])
    said = capsys.readouterr().out
    assert not stop.value.code and all(f"{name} on v5e:2x2" in said for name in ("condition", "sample", "decode"))
    assert said.count("batch 3") == said.count("beside activations of 3 clips") == 3 and "compiler" not in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sampling", "--shardings"], "each chip has all weights"),
        (["--sampling", "--stage", "unet"], "--stage: is for training"),
        (["--sampling", "--videos", "0"], "--videos 0: must be at least 1"),
        (["--sampling", "--videos", "2", "--largest"], "--videos: is what --largest looks for"),
        (["--videos", "2", "--largest"], "--videos: is for --sampling"),
        (["--chunk", "2"], "--chunk: is for --sampling"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/demo.py", "--topology", "v5e:2x2", *options])
    assert stop.value.code == 2 and message in capsys.readouterr().err


def test_the_most_videos_at_once_are_found_by_bisection(tmp_path, monkeypatch, capsys):
    tried = []

    def place(argv, module):
        tried.append((int(argv[argv.index("--videos") + 1]), module))
        assert argv[argv.index("--program") + 1] == module.removeprefix("sampling_") and "--largest" not in argv
        return Placement(gib=(4.0 if module == "sampling_sample" else 3.0) * tried[-1][0], hlo="", seconds=1.0)

    monkeypatch.setattr("svdjax.planning.buffers.place", place)
    with pytest.raises(SystemExit):
        main(["plan", str(_file(tmp_path)), "--topology", "v5e:1", "--sampling", "--largest"])
    assert [videos for videos, module in tried if module == "sampling_decode"] == [1, 2, 4, 3]
    said = capsys.readouterr().out
    assert "videos 4: 16.00 GiB" in said and "largest number of videos whose arrays fit: 3" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--context", "2"], "--context: is for --sampling; in training it is --mesh.context"),
        (["--sampling", "--context", "8"], "--context 8: must be from 1 to 4, the number of devices here"),
    ],
)
def test_chips_that_cannot_share_a_video_are_named(options, says, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["plan", "configs/demo.py", "--topology", "v5e:2x2", *options])
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_the_estimate_counts_every_part_of_a_batch(tmp_path, monkeypatch):
    config = tiny_run(tmp_path)
    stage = dataclasses.replace(config.vae, batch=8, accumulate=4)

    def make_plan(step, arguments, outline, *, turns):
        raise UserError(f"{turns} turns")

    monkeypatch.setattr(sys.modules["svdjax.planning.training"], "make_plan", make_plan)
    with pytest.raises(UserError, match=r"^4 turns"):
        plan_training(config, stage, make_mesh(config.mesh, jax.devices()[:1]), "v5e:1")


@pytest.mark.slow
def test_a_step_compiles_for_a_slice_that_is_not_there(tmp_path):
    config = tiny_run(tmp_path)
    stage = dataclasses.replace(config.vae, batch=8)
    mesh = make_mesh(config.mesh, topology_devices("v5e:2x2"))
    made = plan_training(config, stage, mesh, "v5e:2x2")
    assert made.chips == 4 and 0 < made.total < 1
    assert {each.kind for each in made.collectives} & {"all-reduce", "reduce-scatter"}  # gradients meet
    batch = {"video": _Shape((1, 1, 16, 16, 3), "uint8")}
    assert made.flops == 8 * stage_flops(stage, MODEL, clip_shapes(batch)).model
    assert made.memory["moments"] == pytest.approx(2 * made.memory["parameters"], rel=0.01)


@pytest.mark.slow
def test_buffers_are_those_of_the_whole_plan(tmp_path, capsys):
    argv = ["plan", _file(tmp_path), "--stage", "vae", "--vae.batch", "8", "--topology", "v5e:2x2", "--json"]
    for how in ([tmp_path / "whole.json"], [tmp_path / "placed.json", "--buffers"]):
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in (*argv, *how)])
        assert not stop.value.code
    said = capsys.readouterr().out
    assert said.count("compiler's roofline") == said.count("arrays fit, code on top") == 1, said
    whole, placed = (json.loads((tmp_path / f"{name}.json").read_text())[0] for name in ("whole", "placed"))
    assert "program" not in placed["memory"] and placed["fits"] is placed["step"] is placed["mfu"] is None
    assert placed["collectives"] == whole["collectives"]
    outline = sum(size for name, size in placed["memory"].items() if name in whole["memory"] and name != WORKING)
    without_code = whole["total"] - whole["memory"]["program"]
    # The executable's own account adds what tiny programs consist of.
    assert max(outline, 0.4 * without_code) < placed["total"] <= without_code


def test_what_lies_in_the_hbm_is_added_up():
    assignment = """BufferAssignment:
allocation 0: size 1073741824, parameter 0, shape |f32[8,8]| at ShapeIndex {2}, maybe-live-out:
 value: <1 x @0> (size=4194304,offset=0): f32[8,8]{1,0:T(8,128)}
allocation 1: size 536870912, preallocated-temp:
allocation 2: size 268435456, color 1, preallocated-temp:
allocation 3: size 134217728, color 5, parameter 1, shape |f32[8,8]| at ShapeIndex {3}:
allocation 4: size 268435456, output shape is |(f32[8,8])|, maybe-live-out:
"""
    assert gib_in(assignment) == 1 + 0.5 + 0.25


@pytest.mark.parametrize(
    ("stderr", "code", "kind", "message"),
    [
        ("W warned\nerror: unet on v5e:1: does not fit (needs 22G of 15G)\n", 2, NoRoom, "unet on v5e:1: does not"),
        ("error: --stage x: no such stage\nE late words\n", 2, UserError, "--stage x: no such stage"),
        ("error: the file does not fit the model", 2, UserError, "the file does not fit"),
        ("E some words\n", -9, UserError, "code -9 .*: E some words"),
    ],
)
def test_why_a_plan_ended_early(stderr, code, kind, message):
    found = reason(stderr, code)
    assert type(found) is kind
    assert re.search(message, str(found))


def test_the_largest_batch_is_found_by_bisection(monkeypatch, capsys):
    tried = []

    def place(argv, module):
        assert module == "train_step"
        assert "--largest" not in argv and argv[argv.index("--topology") + 1] == "v5e:2x2"
        tried.append(int(argv[len(argv) - argv[::-1].index("--unet.batch")]))
        if tried[-1] > 30:
            raise NoRoom("does not fit")
        return Placement(gib=0.6 * tried[-1], hlo="", seconds=1.0)

    monkeypatch.setattr("svdjax.planning.command.place", place)
    with pytest.raises(SystemExit):
        main(["plan", "configs/demo.py", "--topology", "v5e:2x2", "--largest", "--unet.batch", "4"])
    assert tried == [4, 8, 16, 32, 24, 28]  # of 15.75 GiB 28 clips take 16.8
    said = capsys.readouterr().out
    assert "batch 32: does not fit" in said and "largest batch whose arrays fit: 24" in said


def test_a_plan_that_cannot_be_made_says_why():
    with pytest.raises(UserError, match="--stage dance: the configuration has"):
        place(["configs/demo.py", "--stage", "dance", "--topology", "v5e:1"], "train_step")


def test_what_waits_in_the_hosts_memory_is_not_on_the_chip(tmp_path):
    config = tiny_run(tmp_path)
    mesh = make_mesh(config.mesh, topology_devices("v5e:1"))
    kept, away = (
        outline_training(config, dataclasses.replace(config.vae, offload=offload), mesh, "v5e:1").memory
        for offload in (False, True)
    )
    assert away["parameters"] == kept["parameters"] > 0
    assert away["average"] == 0 < kept["average"] and away["moments"] < kept["moments"] / 10


@pytest.mark.slow
@pytest.mark.parametrize("context", [1, 2])
def test_sampling_compiles_for_chips_that_hold_the_whole_model_each(context):
    settings = Settings(defaults=dataclasses.replace(MODEL.defaults, steps=3), context=context)
    devices = topology_devices("v5e:2x2")
    plans = [each.plan() for each in sampling_programs(MODEL, settings, devices, "v5e:2x2")]
    assert [each.name for each in plans] == ["condition", "sample", "decode"]
    flops = sampling_flops(MODEL, settings)
    assert {each.name: each.flops for each in plans} == flops and all(flops.values())
    size = sum(x.size for x in flat_params(abstract(SVD, MODEL)).values())
    for each in plans:
        assert each.memory["weights"] * GIB == pytest.approx(2 * size, rel=0.01)  # bfloat16, each has all of them
        assert each.fits and each.chips == context and bool(each.collectives) == (context > 1)
        assert json.loads(json.dumps(each.to_dict()))["total"] == each.total


@dataclasses.dataclass
class _Shape:
    shape: tuple
    dtype: str


def test_between_slices_lie_copies_of_the_model_alone():
    """What is cut over fsdp and context stays within a slice, whose links are fast; data spans the slices."""
    assert chip_of("2xv5e:2x2") == CHIPS["v5e"]
    mesh = make_mesh(MeshConfig(context=2), topology_devices("2xv5e:2x2"))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2}
    slices = [{device.slice_index for device in copy.flat} for copy in mesh.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(UserError, match="2xv5e:7x7: libtpu knows no such slice"):
        topology_devices("2xv5e:7x7")


def test_a_topology_needs_libtpu(monkeypatch):
    def missing(module, extra):
        raise UserError(f"{module} is not installed: run `pip install 'svdjax[{extra}]'`")

    monkeypatch.setattr("svdjax.planning.chips.require", missing)
    with pytest.raises(UserError, match=r"svdjax\[tpu\]"):
        topology_devices("v5e:2x2")
