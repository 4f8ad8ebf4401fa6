"""``svdjax curate``: from raw videos to a training set; ``svdjax curate filter`` to choose again."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from rich.console import Console

from svdjax.curation import filtering, runners, standings, vote_page
from svdjax.curation.filtering import Rules
from svdjax.curation.pipeline import Task
from svdjax.curation.report import write_report
from svdjax.curation.settings import Settings, claim
from svdjax.curation.sources import SourceVideo, find_videos
from svdjax.curation.stages import open_stages
from svdjax.curation.store import FOLDER, read_embeddings, read_failures, read_notes, read_rows, write_failure
from svdjax.errors import UserError, check_range, require
from svdjax.interrupts import terminable
from svdjax.progress import step_bar

SHARDS = "shards"
COMMANDS = {
    "filter": (filtering.Filter, filtering.run),
    "vote": (vote_page.Vote, vote_page.run),
    "elo": (standings.Elo, standings.run),
}


@dataclass(frozen=True, kw_only=True)
class Curate:
    """Cut videos into clips, annotate each clip once, filter, and write shards that training reads.

    The same command goes on where an interrupted one stopped. `svdjax curate filter DIR` chooses again among the
    annotated clips; `svdjax curate vote` and `svdjax curate elo` compare models that were trained on them.

    Attributes:
        sources: folders, videos, lists of them (.txt), or URLs (gs://...).
        out: directory of the clips, their annotations, the shards and the report.
        workers: processes on this machine; 0 works in this one.
        engine: where the videos are worked on; "beam" takes Apache Beam and --beam-options.
        beam_options: options for Beam, as --beam-options="--runner=FlinkRunner --flink_master=host:8081".
        shards: number of files that the training set is written to.
        settings: how videos are cut and which axes are measured.
        rules: which clips stay.
    """

    sources: Annotated[tuple[str, ...], tyro.conf.Positional]
    out: Path
    workers: int = 0
    engine: Literal["local", "beam"] = "local"
    beam_options: str = ""
    shards: int = 4
    settings: tyro.conf.OmitArgPrefixes[Settings] = field(default_factory=Settings)
    rules: tyro.conf.OmitArgPrefixes[Rules] = field(default_factory=Rules)

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a number is out of range, or an option would do nothing.
        """
        check_range("--workers", self.workers, 0)
        check_range("--shards", self.shards, 1)
        if self.engine == "beam" and self.workers:
            raise UserError(f"--workers {self.workers}: --engine beam has workers of its own: see --beam-options")
        if self.beam_options and self.engine != "beam":
            raise UserError(f"--beam-options {self.beam_options}: are for --engine beam: give that, too")


def main(argv: Sequence[str]) -> None:
    """``svdjax curate SOURCES... --out DIR``, or one of `COMMANDS`."""
    if argv and argv[0] in COMMANDS:
        options, act = COMMANDS[argv[0]]
        act(tyro.cli(options, args=argv[1:], prog=f"svdjax curate {argv[0]}"))
    else:
        run(tyro.cli(Curate, args=argv, prog="svdjax curate"))


def run(args: Curate) -> None:
    """Annotate what is not annotated yet, then filter all.

    Raises:
        UserError: bad sources or settings, a package is missing, the directory cannot be written, or nothing is
            left of the videos.
    """
    console = Console()
    args.rules.axes()
    for module in ("scenedetect", "cv2", "pyarrow"):
        require(module, "curate")
    _check_accelerator(args)
    videos = find_videos(args.sources)
    claim(args.out, args.settings)
    logging.basicConfig(format="%(message)s")
    for notice in open_stages(args.settings)[1]:
        console.print(f"left out: {notice}", markup=False, soft_wrap=True)
    with terminable():
        annotate(args, videos, console)
        rows = _report_videos(args.out, console)
        embeddings = read_embeddings(args.out, rows) if args.rules.duplicates else None
        filtered = filtering.choose(rows, args.rules, embeddings)
        console.print(filtering.table(rows, filtered))
        filtering.write(args.out, rows, filtered, args.out / SHARDS, shards=args.shards)
        console.print(write_report(args.out, rows, filtered, args.rules.axes()), markup=False, soft_wrap=True)
    console.print(f"train with --data.train {args.out / SHARDS}", markup=False, soft_wrap=True)


def _check_accelerator(args: Curate) -> None:
    """The tower that embeds pictures takes all memory of an accelerator, or the whole chip, for its process."""
    if args.workers and args.settings.clip_image and (backend := jax.default_backend()) != "cpu":
        raise UserError(
            f"--workers {args.workers} with --clip-image: several processes cannot share the {backend}: leave out "
            "--workers, or set JAX_PLATFORMS=cpu"
        )


def annotate(args: Curate, videos: Sequence[SourceVideo], console: Console) -> None:
    """Work on the videos that are not done, under a progress bar."""
    task = Task(out=args.out, settings=args.settings)
    todo = [video for video in videos if not task.is_done(video)]
    if len(todo) < len(videos):
        console.print(f"{len(videos) - len(todo)} of {len(videos)} videos are done already")
    start = time.monotonic()
    with step_bar(console) as bar:
        shown = bar.add_task("videos", total=len(todo))
        for _ in _started(args, task, todo):
            bar.advance(shown)
    console.print(f"{len(todo)} videos in {time.monotonic() - start:.1f} s")


def _started(args: Curate, task: Task, todo: Sequence[SourceVideo]) -> Iterator[str]:
    if args.engine == "beam":
        return runners.on_beam(task, todo, options=args.beam_options.split())
    if not args.workers:
        return runners.in_this_process(task, todo)
    crashed = partial(_crashed, args.out)
    return runners.on_this_machine(task, todo, workers=args.workers, crashed=crashed)


def _crashed(out: Path, video: SourceVideo) -> None:
    write_failure(out, video.name, video.where, f"{video.where} ends the process that decodes it: remove it")


def _report_videos(out: Path, console: Console) -> list[filtering.Row]:
    """Say which videos failed or have something wrong with them; give the rows of all clips.

    Raises:
        UserError: none of the videos gave a clip.
    """
    failures, notes = read_failures(out), read_notes(out)
    for failure in failures:
        console.print(f"failed: {failure['error']}", markup=False, highlight=False)
    for video, lines in notes.items():
        console.print(f"note: {video}: {'; '.join(lines)}", markup=False, highlight=False)
    rows = read_rows(out) if any((out / FOLDER).glob("*.parquet")) else []
    if not rows:
        raise UserError(f"{out}: no clip came of the videos ({len(failures)} failed): see {out / FOLDER}")
    return rows
