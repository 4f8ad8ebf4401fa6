"""Runs can be killed, repeated and spread over processes: every clip once, the same in all."""

import io
import os
import signal
import subprocess
import sys
import time

import av
import psutil
import pytest

from svdjax.curation import runners
from svdjax.curation.command import Curate, main, run
from svdjax.curation.pipeline import Task
from svdjax.curation.settings import Settings
from svdjax.curation.sources import SourceVideo, find_videos
from svdjax.curation.store import read_failures, read_notes, read_rows
from svdjax.data.decoding import probe
from svdjax.data.opening import open_source
from svdjax.errors import UserError
from svdjax.evaluation.camera import CAMERAS
from tests.curation.broken import film, moving
from tests.data.clips import encode

COUNT = 12
SETTINGS = Settings(text=False)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of short videos, of different motion, and one that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    for i in range(COUNT):
        (folder / f"film_{i:02d}.mp4").write_bytes(encode(moving(24, shift=i % 3), fps=10, gop=6))
    (folder / "broken.mp4").write_bytes(b"broken")
    (folder / "film_03.txt").write_text("a caption\n")
    return folder


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The rows of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(Curate(sources=(str(videos),), out=out, settings=SETTINGS))
    return out


def files(out):
    return sorted(path.relative_to(out).as_posix() for path in (out / "clips").rglob("*") if path.is_file())


def test_a_run_gives_clips_rows_shards_and_names_what_failed(videos, whole, capsys, monkeypatch):
    rows = read_rows(whole)
    assert len(rows) == COUNT == len({row["name"] for row in rows})
    assert files(whole) == sorted(row["file"] for row in rows)
    assert [row["caption"] for row in rows if row["source"].endswith("film_03.mp4")] == ["a caption"]
    assert rows[0].get("text_area") is None
    install = "text: rapidocr is not installed (run `pip install 'svdjax[curate]'`), so text_area is left out"
    monkeypatch.setattr("svdjax.curation.command.open_stages", lambda settings: ({}, [install]))
    run(Curate(sources=(str(videos),), out=whole, settings=SETTINGS))  # nothing is left to do but the broken one
    lines = capsys.readouterr().out.splitlines()
    said = " ".join(" ".join(lines).split())
    assert f"left out: {install}" in lines and f"train with --data.train {whole / 'shards'}" in lines
    assert f"{COUNT} of {COUNT + 1} videos are done already" in said and "broken.mp4 cannot be read" in said
    assert 0 < len(open_source(whole / "shards")) < COUNT
    assert read_rows(whole) == rows


def test_other_settings_and_directories_are_refused(videos, whole, tmp_path):
    with pytest.raises(UserError, match=r"other settings \(shortest 2.0 -> 1.0\)"):
        run(Curate(sources=(str(videos),), out=whole, settings=Settings(text=False, shortest=1.0)))
    with pytest.raises(UserError, match="is not empty"):
        run(Curate(sources=(str(videos),), out=videos))
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match=r"no clip came of the videos \(1 failed\)"):
        run(Curate(sources=(str(tmp_path / "one"),), out=tmp_path / "out", settings=SETTINGS))
    with pytest.raises(UserError, match="--workers -1"):
        Curate(sources=("x",), out=tmp_path, workers=-1)
    with pytest.raises(UserError, match="--engine beam has workers of its own"):
        Curate(sources=("x",), out=tmp_path, workers=2, engine="beam")
    with pytest.raises(UserError, match="are for --engine beam"):
        Curate(sources=("x",), out=tmp_path, beam_options="--direct_num_workers=2")
    with pytest.raises(UserError, match="--shortest 5 --longest 2"):
        Settings(shortest=5.0, longest=2.0)


@pytest.mark.slow
def test_several_processes_give_the_same(videos, whole, tmp_path):
    run(Curate(sources=(str(videos),), out=tmp_path / "out", workers=2, settings=SETTINGS))
    assert read_rows(tmp_path / "out") == read_rows(whole)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_a_stopped_run_goes_on_without_losing_or_repeating_clips(videos, whole, tmp_path, stop):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "svdjax.cli", "curate", str(videos), "--out", str(out), "--no-text"]
    process = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: len(list(out.glob("annotations/*.parquet"))) >= 2, process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(stop)
    stderr = process.communicate(timeout=60)[1].decode()
    assert process.returncode == (-signal.SIGKILL if stop == signal.SIGKILL else 130), stderr
    assert not psutil.wait_procs(children, timeout=20)[1]
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("annotations/*.parquet")}
    assert 2 <= len(done) < COUNT and not (out / "shards").exists()
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    assert read_rows(out) == read_rows(whole)
    assert files(out) == files(whole)
    assert {name: (out / "annotations" / name).stat().st_mtime_ns for name in done} == done


def wait_for(condition, process, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.005)


def dies(video: SourceVideo) -> str:
    """A task that a decoder's crash ends, at one of the videos."""
    if video.name == "bad":
        os.kill(os.getpid(), signal.SIGSEGV)
    return video.name


@pytest.mark.slow
def test_a_video_that_kills_its_process_is_named_and_the_others_are_done():
    videos = [SourceVideo(name=name, where=name) for name in ("a", "b", "bad", "c", "d", "e")]
    crashed = []
    names = list(runners.on_this_machine(dies, videos, workers=2, crashed=crashed.append))
    assert sorted(names) == sorted(video.name for video in videos)
    assert crashed == [SourceVideo(name="bad", where="bad")]


@pytest.mark.slow
def test_beam_gives_the_same_with_more_than_one_worker(videos, whole, tmp_path):
    """Needs `pip install 'svdjax[beam]'`, which wants another protobuf than TensorFlow Datasets."""
    pytest.importorskip("apache_beam")
    options = "--direct_num_workers=2 --direct_running_mode=multi_threading"
    run(
        Curate(sources=(str(videos),), out=tmp_path / "out", engine="beam", beam_options=options, settings=SETTINGS)
    )
    assert read_rows(tmp_path / "out") == read_rows(whole)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path):
    """A video ten times as long takes at most 30 MB more: some bytes a frame, and no frames."""

    def peak(name, repeats):
        path = tmp_path / f"{name}.mp4"
        frames = moving(60, height=180, width=320)
        path.write_bytes(encode(frames, fps=30) if repeats == 1 else looped(encode(frames, fps=30), repeats))
        code = (
            "import resource, sys; from pathlib import Path; from svdjax.curation.scan import scan; "
            "found = scan(Path(sys.argv[1]), 'film'); "
            "print(len(found.stamps), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        count, kilobytes = map(int, ran.stdout.split())
        assert count == 60 * repeats
        return kilobytes / 1024

    assert peak("long", 40) - peak("short", 4) < 30


def looped(data, repeats):
    """A video's packets again and again."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="mp4") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        length = source.streams.video[0].duration
        for i in range(repeats):
            source.seek(0)
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts + i * length, packet.dts + i * length, stream
                    target.mux(packet)
    return out.getvalue()


def test_the_command_line_takes_both_forms(whole, tmp_path, capsys):
    main(["filter", str(whole), "--motion-percentile", "75", "--no-duplicates", "--out", str(tmp_path / "shards")])
    said = capsys.readouterr().out
    assert "12 clips" in said and len(open_source(tmp_path / "shards")) == 4
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "--motion-percentile" in capsys.readouterr().out


@pytest.mark.parametrize(("cameras", "share"), [(["pan left", "pan right"], 2), (["static"], 1)])
def test_clips_of_one_camera_motion_are_picked(whole, tmp_path, cameras, share):
    """One of three videos stands still, the others pan."""
    rules = ["--motion-percentile", "0", "--still", "0", "--no-duplicates"]
    main(["filter", str(whole), "--out", str(tmp_path / "shards"), *rules, "--camera", *cameras])
    assert len(open_source(tmp_path / "shards")) == share * COUNT // 3


def test_an_unknown_camera_motion_is_refused_with_those_that_are(whole, capsys):
    with pytest.raises(SystemExit):
        main(["filter", str(whole), "--camera", "pan lefft"])
    said = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "'pan lefft'" in said and all(f"'{camera}'" in said for camera in CAMERAS)


def test_a_full_disk_ends_the_run_and_is_no_fault_of_the_video(tmp_path):
    (tmp_path / "film.mp4").write_bytes(film())
    code = (
        "import resource, sys; from pathlib import Path; from svdjax.curation.pipeline import Task; "
        "from svdjax.curation.settings import Settings; from svdjax.curation.sources import find_videos; "
        "(video,) = find_videos(sys.argv[1:2]); task = Task(out=Path(sys.argv[2]), settings=Settings(text=False)); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); task(video)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "film.mp4"), str(tmp_path / "out")]
    ran = subprocess.run(command, capture_output=True, text=True)
    last = ran.stderr.strip().rpartition("\n")[2]
    assert "UserError" in last and last.endswith(".mp4: cannot be written (File too large)"), ran.stderr
    assert not list(tmp_path.glob("out/annotations/*")) and not list(tmp_path.glob("out/clips/*/*.mp4"))


def task_and_video(folder, settings):
    """A task, and a video of 4.8 s for it."""
    (folder / "film.mp4").write_bytes(film(48))
    (video,) = find_videos([str(folder / "film.mp4")])
    return Task(out=folder / "out", settings=settings), video


def test_what_is_missing_on_a_machine_is_no_fault_of_the_video(tmp_path):
    task, video = task_and_video(tmp_path, Settings(text=False, clip_image=str(tmp_path / "nowhere.safetensors")))
    with pytest.raises(UserError, match=r"nowhere\.safetensors"):
        task(video)
    assert not list(tmp_path.glob("out/annotations/*"))


def test_a_stage_that_fails_leaves_the_video_to_the_next_run_and_a_bad_clip_is_noted(tmp_path, monkeypatch):
    task, video = task_and_video(tmp_path, Settings(text=False, longest=3.0))

    def fails(*seen):
        raise UserError("it fails")

    with monkeypatch.context() as patch:
        patch.setattr("svdjax.curation.pipeline.open_stages", lambda settings: ({"fails": fails}, []))
        task(video)
    assert not task.is_done(video) and [f["error"] for f in read_failures(tmp_path / "out")] == ["it fails"]
    with monkeypatch.context() as patch:
        patch.setattr(
            "svdjax.curation.pipeline.probe", lambda file: fails() if "_000000" in file.name else probe(file)
        )
        task(video)
    (row,) = read_rows(tmp_path / "out")
    assert files(tmp_path / "out") == [row["file"]] and row["start"] > 2
    assert read_notes(tmp_path / "out") == {video.name: ["it fails"]} and not read_failures(tmp_path / "out")


def test_processes_that_would_share_an_accelerator_are_refused(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    with pytest.raises(UserError, match="--workers 2 with --clip-image: several processes cannot share the tpu"):
        run(Curate(sources=(str(videos),), out=tmp_path, workers=2, settings=Settings(clip_image="svd")))


def test_one_video_can_be_annotated_alone(tmp_path):
    path = tmp_path / "a film.mp4"
    path.write_bytes(film())
    (video,) = find_videos([str(path)])
    assert Task(out=tmp_path / "out", settings=SETTINGS)(video) == video.name
    (row,) = read_rows(tmp_path / "out")
    assert row["frames"] == 24 and (tmp_path / "out" / row["file"]).is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / path.name).write_bytes(film())
    (twin,) = find_videos([str(tmp_path / "other" / path.name)])
    with pytest.raises(UserError, match="would have one name"):  # of another source, in a later run
        Task(out=tmp_path / "out", settings=SETTINGS)(twin)
