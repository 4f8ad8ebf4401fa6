"""Files that data is read from.

They are read again where a network file system fails for a moment: a clip that one host alone took for bad would
make that host's rows others than they are.
"""

import io
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from svdjax.errors import Unread

WAITS = (0.2, 1.0, 5.0)  # seconds, each before a file is opened anew
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
        waits = () if self._lost else WAITS
        try:
            done = patiently(lambda: act(self._open()), self._let_go, waits)
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


def patiently(act: Callable[[], T], let_go: Callable[[], None], waits: Sequence[float]) -> T:
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


def unread(label: str, error: OSError) -> Unread:
    """What to say of a file that could not be read."""
    return Unread(f"{label} cannot be read ({error.strerror or error}): check the disk or network that it is on")


def read_file(path: Path) -> bytes | None:
    """What is in a small file, or None where there is none.

    Raises:
        Unread: it is there and cannot be read.
    """
    try:
        with PatientFile(path) as file:
            return file.read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    except OSError as error:
        raise unread(str(path), error) from None


def caption_beside(clip: Path) -> str:
    """The caption in ``clip.txt`` beside ``clip.mp4``, or "". What is not UTF-8 becomes question marks.

    Raises:
        Unread: it is there and cannot be read.
    """
    return (read_file(clip.with_suffix(".txt")) or b"").decode(errors="replace").strip()
