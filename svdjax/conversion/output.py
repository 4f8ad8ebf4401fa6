"""Outputs that appear complete or not at all."""

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from svdjax.errors import UserError


@contextmanager
def finished(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """A sibling path to write a file or a folder to; takes the place of ``path`` when the block ends well.

    Whatever was written is removed when the block raises.

    Raises:
        UserError: ``path`` exists and ``overwrite`` is not given, or the place cannot be written.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path}: exists already: choose another path, or give --overwrite")
    partial = path.with_name(f".{path.name}.partial-{process_name()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)
        yield partial
        _take_place(partial, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(partial)


def _take_place(partial: Path, path: Path) -> None:
    if not path.exists() or not (path.is_dir() or partial.is_dir()):
        partial.replace(path)
        return
    old = path.with_name(f".{path.name}.old-{process_name()}")
    path.replace(old)
    partial.replace(path)
    _remove(old)


def process_name() -> str:
    """What no other process is called, on this machine or on another that sees the same folder."""
    return f"{platform.node()}-{os.getpid()}"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        try:
            path.unlink(missing_ok=True)
        except NotADirectoryError:
            return  # a parent is a file: nothing was written
