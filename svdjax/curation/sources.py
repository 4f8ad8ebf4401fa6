"""Which videos are to be curated: folders, list files, single files and URLs, each video with a name that stays."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from types import ModuleType

from svdjax.conversion.output import finished
from svdjax.curation.settings import FILE
from svdjax.data.decoding import SUFFIXES
from svdjax.data.files import caption_beside
from svdjax.errors import MissingPackage, UserError, require

_LONGEST = 60  # characters of a readable name
_AT_ONCE = 1 << 20  # bytes of a URL


@dataclass(frozen=True, kw_only=True, order=True)
class SourceVideo:
    """One video: its name, fit for a file name and the same in every run, and its path or URL."""

    name: str
    where: str


def find_videos(sources: Sequence[str]) -> list[SourceVideo]:
    """All videos of some sources, in order of names.

    Args:
        sources: folders (searched with their subfolders, by ending, but for what curation wrote), list files
            (``.txt``, one path or URL a line, relative paths from the list's folder), video files, or URLs such as
            ``gs://bucket/film.mp4``; a URL that ends in ``/`` is a folder.

    Raises:
        UserError: a source is not there or empty, or two videos have the same name.
    """
    videos: dict[str, SourceVideo] = {}
    for key, where in [entry for source in sources for entry in _entries(source)]:
        video = SourceVideo(name=_name(key), where=where)
        other = videos.setdefault(video.name, video)
        if other.where != where:
            raise _one_name(where, other.where)
    if not videos:
        raise UserError(
            f"{', '.join(sources)}: no videos ({' '.join(SUFFIXES)}): name a folder or file that has some"
        )
    return sorted(videos.values())


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What tells whether a video is the one that was done before under its name.

    Attributes:
        where: its URL, or its path from the root. size: in bytes, of a file.
    """

    where: str
    size: int | None = None

    @classmethod
    def of(cls, video: SourceVideo) -> "Origin":
        """The origin of a video as it is now."""
        if _is_url(video.where):
            return cls(where=video.where)
        path = Path(video.where).absolute()
        return cls(where=str(path), size=path.stat().st_size if path.is_file() else None)

    def check(self, video: SourceVideo) -> None:
        """Check that a video is this one, whose folder may have moved.

        Raises:
            UserError: it is another one.
        """
        now, before = Origin.of(video), Path(self.where)
        if now.where == self.where or (now.size is not None and before.exists() and before.samefile(now.where)):
            return
        if before.exists() or now.size != self.size:
            raise _one_name(now.where, self.where)


def _one_name(where: str, other: str) -> UserError:
    return UserError(f"{where} and {other} would have one name: rename a folder, or use two --out")


@contextmanager
def local_file(video: SourceVideo, folder: Path) -> Iterator[Path]:
    """The video as a file on this machine: itself, or for a URL a copy in ``folder``, removed afterwards.

    Raises:
        UserError: it is no file, cannot be fetched or stored, or the package for its kind of URL is not installed.
    """
    if not _is_url(video.where):
        path = Path(video.where)
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise UserError(f"{path} is no file: remove it or give it another ending")
        yield path
        return
    copy = folder / f".{video.name}{PurePosixPath(video.where).suffix}"
    with finished(copy, overwrite=True) as unfinished, unfinished.open("wb") as file:
        file.writelines(_chunks(video.where))
    try:
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def caption_of(video: SourceVideo) -> str:
    """The text in ``film.txt`` beside ``film.mp4``, at a URL, too; "" if there is none.

    Raises:
        UserError: it cannot be read, or the package for its kind of URL is not installed.
    """
    if not _is_url(video.where):
        return caption_beside(Path(video.where))
    text = video.where.removesuffix(PurePosixPath(video.where).suffix) + ".txt"
    with _reached(text, "read") as fsspec:
        system, path = fsspec.core.url_to_fs(text)
        return system.cat_file(path).decode(errors="replace").strip() if system.exists(path) else ""


def _chunks(url: str) -> Iterator[bytes]:
    """What is at a URL, piece by piece; a full disk where they are written to is no fault of the URL."""
    with _reached(url, "read") as fsspec, fsspec.open(url, "rb") as remote:
        yield from iter(partial(remote.read, _AT_ONCE), b"")


@contextmanager
def _reached(url: str, what: str) -> Iterator[ModuleType]:
    """fsspec; whatever goes wrong with a URL inside becomes one line that says what cannot be done with it."""
    fsspec = require("fsspec", "gcs")
    try:
        yield fsspec
    except ImportError as error:
        raise MissingPackage(f"{url}: {error}; for gs:// run `pip install 'svdjax[gcs]'`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{url} cannot be {what} ({error}): check the address and your access") from None


def _entries(source: str) -> Iterator[tuple[str, str]]:
    """Key (what names the video) and place of each video of one source."""
    if _is_url(source):
        yield from _listed(source) if source.endswith("/") else [(source, source)]
        return
    path = Path(source)
    if path.is_dir():
        root = path.resolve().name
        found = sorted(path.rglob("*"))
        curated = {file.parent for file in found if file.name == FILE}  # clips of earlier runs
        files = [f for f in found if f.suffix.lower() in SUFFIXES and curated.isdisjoint(f.parents)]
        yield from ((f"{root}/{file.relative_to(path).as_posix()}", str(file)) for file in files)
    elif path.suffix == ".txt":
        yield from _lines(path)
    elif path.exists():
        yield path.name, str(path)
    else:
        raise UserError(f"{source} does not exist: name a folder, a video, a list (.txt) or a URL")


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no list of videos ({error}): give one path or URL a line") from None
    for line in filter(None, map(str.strip, lines)):
        yield line, line if _is_url(line) else str(path.parent / line)


def _listed(url: str) -> Iterator[tuple[str, str]]:
    """The videos below a URL."""
    with _reached(url, "listed") as fsspec:
        system, root = fsspec.core.url_to_fs(url)
        found = sorted(system.find(root))
    for path in found:
        if PurePosixPath(path).suffix.lower() in SUFFIXES:
            where = system.unstrip_protocol(path)
            yield where, where


def _is_url(where: str) -> bool:
    return "://" in where


def _name(key: str) -> str:
    """Readable, fit for a file name, and told apart from similar ones by a few digits of a hash."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", str(PurePosixPath(key).with_suffix(""))).strip("-")
    return f"{stem[-_LONGEST:].strip('-') or 'video'}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
