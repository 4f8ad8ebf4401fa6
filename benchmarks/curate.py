"""Curation measured: cuts, text and motion against known truth; clips per second and core; cost of the engines.

Command: python -m benchmarks.curate [--film FILM.mp4]

Needs `pip install -e ".[test]"`, which brings three real films. The speed is measured on ``--film``, by default
those three. A core's second is one of CPU time, of this process and its children.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.stats import spearmanr

from svdjax.curation import runners
from svdjax.curation.clip import look
from svdjax.curation.clipping import plan, write_clip
from svdjax.curation.cuts import find_cuts
from svdjax.curation.letterbox import letterbox
from svdjax.curation.motion import motion
from svdjax.curation.pipeline import Task
from svdjax.curation.scan import scan
from svdjax.curation.settings import Settings
from svdjax.curation.sources import find_videos
from svdjax.curation.text import TextArea
from svdjax.data import decoding
from svdjax.data.decoding import Frames
from svdjax.data.motion import motion_score
from svdjax.data.sprites import World, draw_clips
from tests.curation.films import BIKES, PHONE, RABBIT, joined, order, right, shots, small

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "over",
    "lazy",
    "SUBSCRIBE",
    "NOW",
    "breaking",
    "news",
    "2024",
    "Chapter",
    "by",
)


def main() -> None:
    """Measure everything, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--film", type=Path, action="append", help="measure the speed on this instead")
    args = parser.parse_args()
    decoding.threads = lambda pixels: 1  # a speed is that of one core
    _print_truth()
    _print_speed(args.film or [BIKES, RABBIT, PHONE])
    _print_engines()


def _print_truth() -> None:
    print("| measured against known truth | |\n| --- | --- |")
    parts = shots()
    for name, dissolve in (("hard cuts", 0), ("12-frame dissolves", 12), ("25-frame dissolves", 25)):
        rng = np.random.default_rng(2024 + dissolve)
        counts = np.zeros(4)
        for _ in range(20):
            film, changes = joined([parts[i] for i in order(len(parts), rng)], dissolve)
            counts += right([cut.frame for cut in find_cuts(small(film))], changes)
        print(
            f"| {name}: recall, precision of {counts[1]:.0f} | {counts[0] / counts[1]:.3f}, "
            f"{counts[2] / counts[3]:.3f} |"
        )
    clips = list(draw_clips(World(height=96, width=96), 7, 200))
    scores = [motion_score(Frames(frames=c.frames, times=np.arange(len(c.frames)) / 2)) for c in clips]
    correlation = spearmanr(scores, [c.truth.motion for c in clips]).statistic
    print(f"| motion score and true flow of {len(clips)} clips: rank correlation | {correlation:.3f} |")
    errors = np.abs(_text_ratios() - 1)
    print(f"| text coverage: mean error, 9 of 10 below | {errors.mean():.1%}, {np.quantile(errors, 0.9):.1%} |\n")


def _text_ratios() -> np.ndarray:
    """Measured by true area of rendered captions of one to three lines on real pictures."""
    rng, detector = np.random.default_rng(1), TextArea()
    pictures = [part[0] for part in shots(height=720, width=1280)][1::2]
    ratios = []
    for size in (24, 32, 48, 64, 90):
        for picture in pictures:
            image, mask = Image.fromarray(picture), Image.new("1", (1280, 720))
            y, font = rng.uniform(20, 200), ImageFont.load_default(size)
            for _ in range(rng.integers(1, 4)):
                text, x = " ".join(rng.choice(WORDS, rng.integers(2, 5))), rng.uniform(20, 100)
                draw = ImageDraw.Draw(image)
                box = draw.textbbox((x, y), text, font=font, stroke_width=2)
                draw.text((x, y), text, font=font, fill="white", stroke_width=2, stroke_fill="black")
                ImageDraw.Draw(mask).rectangle(box, fill=1)
                y = box[3] + 0.8 * size
            ratios.append(detector.area(np.asarray(image)) / np.asarray(mask).mean())
    return np.array(ratios)


def _print_speed(films: list[Path]) -> None:
    """CPU seconds of each stage for all films."""
    spent: dict[str, float] = {}

    def timed(name, function, *args):
        start = time.process_time()
        result = function(*args)
        spent[name] = spent.get(name, 0.0) + time.process_time() - start
        return result

    text, count, copied, seconds = TextArea(), 0, 0, 0.0
    text(look(PHONE, "warm"))
    with tempfile.TemporaryDirectory() as folder:
        for film in films:
            timed("decoding alone", _decode, film)
            found = timed("cuts", scan, film, film.name)
            seconds += found.seconds
            for span in plan(found, shortest=1.0, longest=20.0):
                out = Path(folder) / "clip.mp4"
                timed("copying" if span.copy else "encoding anew", write_clip, film, found, span, out, film.name)
                clip = timed("looking at the clip", look, out, "clip")
                timed("motion, camera", motion, clip)
                timed("letterbox", letterbox, clip)
                timed("text", text, clip)
                count, copied = count + 1, copied + span.copy
    names = ", ".join(film.name for film in films)
    print(f"{names}: {seconds:.0f} s, {count} clips, {copied} of them copied\n")
    print("| stage | CPU ms per clip | clips/s per core | x decoding |\n| --- | --- | --- | --- |")
    floor = spent["decoding alone"]
    total = sum(spent.values()) - floor
    for name, value in {**spent, "all stages": total, "all but text": total - spent["text"]}.items():
        print(f"| {name} | {1000 * value / count:.0f} | {count / value:.3g} | {value / floor:.2f} |")
    print()


def _decode(film: Path) -> int:
    with av.open(str(film)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def _print_engines(copies: int = 16) -> None:
    """The same videos through each engine, two workers each, and nothing else running."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "films").mkdir()
        for i in range(copies):
            shutil.copy(BIKES, root / "films" / f"bikes_{i:02d}.mp4")
        videos = find_videos([str(root / "films")])
        engines = {
            "this process": lambda task: list(runners.in_this_process(task, videos)),
            "multiprocessing.Pool, 2": lambda task: _pool(task, videos),
            "--workers 2": lambda task: list(runners.on_this_machine(task, videos, workers=2, crashed=print)),
        }
        if find_spec("apache_beam"):
            for mode in ("multi_threading", "multi_processing"):
                options = ["--direct_num_workers=2", f"--direct_running_mode={mode}"]
                engines[f"Beam, 2, {mode}"] = lambda task, options=options: runners.on_beam(
                    task, videos, options=options
                )
        print(f"| {copies} videos | seconds | CPU seconds |\n| --- | --- | --- |")
        for number, (name, engine) in enumerate(engines.items()):
            start, spent = time.perf_counter(), sum(os.times()[:4])
            engine(Task(out=root / str(number), settings=Settings(shortest=1.0, text=False)))
            print(f"| {name} | {time.perf_counter() - start:.1f} | {sum(os.times()[:4]) - spent:.1f} |")


def _pool(task, videos) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(task, videos, chunksize=1)
        pool.close()
        pool.join()


if __name__ == "__main__":
    main()
