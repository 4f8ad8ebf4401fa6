"""Files that data is read from and written to.

They are read again where a network file system fails for a moment: a clip that one host alone took for bad would
make that host's rows others than they are.
"""

import copy
import io
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

import grain
from array_record.python.array_record_module import ArrayRecordWriter

from svdjax.errors import Unread, UserError

_WAITS = (0.2, 1.0, 5.0)  # seconds, each before a file is opened anew
_LASTING = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)

T = TypeVar("T")


class PatientFile(io.RawIOBase):
    """A file to read. Where that fails, it is opened anew and read on, three times within seconds.

    Raises:
        OSError: from any method, at once for a file that is not there or not to be read.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._file: FileIO | None = None
        self._at = 0
        self._lost = False
        self._patiently(FileIO.fileno)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        def read(file: FileIO) -> int:
            file.seek(self._at)
            return file.readinto(buffer)

        count = 0 if self._lost else self._patiently(read)  # FFmpeg asks again before it lets the error through
        self._at += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_END:
            self._at = self._patiently(lambda file: file.seek(0, os.SEEK_END))
        self._at = max(0, offset if whence == os.SEEK_SET else self._at + offset)  # as io.BytesIO does
        return self._at

    def tell(self) -> int:
        return self._at

    def close(self) -> None:
        self._let_go()
        super().close()

    def _patiently(self, act: Callable[[FileIO], T]) -> T:
        waits = () if self._lost else _WAITS
        try:
            done = _patiently(lambda: act(self._open()), self._let_go, waits)
        except OSError:
            self._lost = True
            raise
        self._lost = False
        return done

    def _open(self) -> FileIO:
        self._file = self._file or FileIO(self.name)
        return self._file

    def _let_go(self) -> None:
        with suppress(OSError):
            if self._file is not None:
                self._file.close()
        self._file = None


class Records:
    """The records of ArrayRecord files in a directory, read as `PatientFile` reads."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        """
        Raises:
            RuntimeError: one of the files is damaged.
            ValueError: there are no files.
            Unread: one of them could not be read.
        """
        paths = [str(directory / name) for name in names]
        self._directory = directory
        self._source = self._patiently(
            lambda: grain.sources.ArrayRecordDataSource(paths), str(directory), let_go=lambda: None
        )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: SupportsIndex) -> bytes:
        """
        Raises:
            RuntimeError: it is damaged.
            Unread: it could not be read.
        """
        return self._patiently(lambda: self._source[index], f"clip {index} of {self._directory}", self._let_go)

    def _patiently(self, act: Callable[[], T], label: str, let_go: Callable[[], None]) -> T:
        try:
            return _patiently(lambda: _of_the_system(act), let_go, _WAITS)
        except OSError as error:
            raise unread(label, error) from None

    def _let_go(self) -> None:
        self._source = copy.copy(self._source)  # which has opened nothing


@contextmanager
def record_writer(path: Path) -> Iterator[Callable[[bytes], None]]:
    """Write an ArrayRecord file: gives what writes one record. The file is whole after the block.

    Raises:
        UserError: the disk is full, or the place cannot be written.
    """

    def told(act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except (RuntimeError, OSError) as error:
            reason = str(error).split(";")[0]
            raise UserError(
                f"{path} cannot be written ({reason}): make room there, or choose another place"
            ) from None

    writer = told(ArrayRecordWriter, str(path), "group_size:1")
    try:
        yield partial(told, writer.write)
    finally:
        told(writer.close)


def _patiently(act: Callable[[], T], let_go: Callable[[], None], waits: Sequence[float]) -> T:
    """Do what may fail for a moment, after each failure anew."""
    for wait in waits:
        try:
            return act()
        except _LASTING:
            raise
        except OSError:
            let_go()
            time.sleep(wait)
    return act()


def _of_the_system(act: Callable[[], T]) -> T:
    """Do it, and tell failures of the system from damaged files: ArrayRecord has one exception for both."""
    try:
        return act()
    except RuntimeError as error:
        if failed := re.match(r"\w+\(\) failed: ([^;]+)", str(error)):
            raise OSError(failed[1]) from error
        raise


def unread(label: str, error: OSError) -> Unread:
    """What to say of a file that could not be read."""
    return Unread(f"{label} cannot be read ({error.strerror or error}): check the disk or network that it is on")


def caption_beside(clip: Path) -> str:
    """The caption in ``clip.txt`` beside ``clip.mp4``, or "". What is not UTF-8 becomes question marks.

    Raises:
        Unread: it is there and cannot be read.
    """
    path = clip.with_suffix(".txt")
    try:
        with PatientFile(path) as file:
            return file.read().decode(errors="replace").strip()
    except (FileNotFoundError, IsADirectoryError):
        return ""
    except OSError as error:
        raise unread(str(path), error) from None
