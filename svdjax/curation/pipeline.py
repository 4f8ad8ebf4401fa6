"""One video becomes clips and rows. Everything that is written is a function of the video and the settings, appears
complete or not at all, and may be written twice: so a run can be killed, repeated and spread over machines.
"""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdjax.curation.clip import Annotate, ClipFrames, look
from svdjax.curation.clipping import Span, plan, write_clip
from svdjax.curation.scan import Scan, scan
from svdjax.curation.settings import Settings
from svdjax.curation.sources import Origin, SourceVideo, caption_of, local_file
from svdjax.curation.stages import open_stages
from svdjax.curation.store import read_origin, rows_file, write_failure, write_rows
from svdjax.data.decoding import VideoInfo, probe
from svdjax.errors import Unavailable, Unread, UserError

CLIPS = "clips"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a worker does with a video: a plain callable of settings and paths, which can be sent anywhere."""

    out: Path
    settings: Settings

    def is_done(self, video: SourceVideo) -> bool:
        """Whether the rows of a video are there.

        Raises:
            UserError: those of another video of its name are.
        """
        if not rows_file(self.out, video.name).exists():
            return False
        if origin := read_origin(self.out, video.name):
            origin.check(video)
        return True

    def __call__(self, video: SourceVideo) -> str:
        """Cut and annotate a video, unless that is done, and write its rows, or why there are none.

        Returns:
            The video's name.

        Raises:
            UserError: what stops every video: weights cannot be read, a package is not installed, a captioner does
            not answer, or the directory cannot be written.
        """
        if self.is_done(video):
            return video.name
        stages = open_stages(self.settings)[0]
        try:
            took: dict[str, float] = {}
            rows, notes = annotate_video(video, self.out, self.settings, stages, took)
            write_rows(self.out, video.name, rows, notes, took, Origin.of(video))
        except Unavailable:
            raise
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # `finished`: it is the writing that failed
                raise
            write_failure(self.out, video.name, video.where, str(error))
        except Exception as error:  # decoders meet files that nobody thought of; one must not end the run
            log.debug("%s", video.where, exc_info=True)
            write_failure(self.out, video.name, video.where, f"{video.where}: {type(error).__name__}: {error}")
        return video.name


def annotate_video(
    video: SourceVideo, out: Path, settings: Settings, stages: Mapping[str, Annotate], took: dict[str, float]
) -> tuple[list[dict[str, Any]], list[str]]:
    """Write the clips of a video into ``out/clips/VIDEO``.

    Args:
        stages: of `open_stages`. took: to which the seconds that each stage took are added.

    Returns:
        The row of each clip, and what is wrong with the video, in words.

    Raises:
        UserError: it cannot be read, the clips cannot be written, or a stage lacks what it needs.
    """
    folder = out / CLIPS / video.name
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".*"):  # of a run that was killed
        leftover.unlink()
    caption = caption_of(video)
    rows: list[dict[str, Any]] = []
    with local_file(video, folder) as path:
        with _timed(took, "find cuts"):
            found = scan(path, video.where)
        notes = list(found.notes)
        for span in plan(found, shortest=settings.shortest, longest=settings.longest):
            file = folder / f"{video.name}_{span.first:06d}.mp4"
            with _timed(took, "write clips"):
                write_clip(path, found, span, file, video.where)
            try:
                with _timed(took, "decode clips"):
                    info = probe(file)
                    clip = look(file, file.stem, caption, info)
            except Unread:  # of the disk, not of the clip
                raise
            except UserError as error:
                notes.append(str(error))
                file.unlink()
                continue
            row = _row(video, found, span, file.relative_to(out)) | _shape(clip, info)
            for name, stage in stages.items():
                with _timed(took, name):
                    row |= stage(clip)
            rows.append(row)
    return rows, notes


@contextmanager
def _timed(took: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    took[stage] = took.get(stage, 0.0) + time.perf_counter() - start


def _row(video: SourceVideo, found: Scan, span: Span, file: Path) -> dict[str, Any]:
    """What is known of a clip before anyone looks at it."""
    times = found.times
    return {
        "name": file.stem,
        "video": video.name,
        "source": video.where,
        "file": file.as_posix(),
        "start": float(times[span.first]),
        "end": float(times[span.stop]) if span.stop < len(times) else found.seconds,
        "frames": span.stop - span.first,
        "codec": found.codec if span.copy else "h264",
        "copied": span.copy,
    }


def _shape(clip: ClipFrames, info: VideoInfo) -> dict[str, Any]:
    return {
        "seconds": clip.seconds,
        "fps": clip.fps,
        "height": info.height,
        "width": info.width,
        "short_side": min(info.height, info.width),
    }
