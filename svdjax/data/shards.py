"""ArrayRecord files: their records, read as patiently as other files, and new ones."""

import copy
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, SupportsIndex, TypeVar

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from svdjax.data import files
from svdjax.errors import UserError

_NUMBERS = {os.strerror(number): number for number in errno.errorcode}

T = TypeVar("T")


class Records:
    """The records of ArrayRecord files in a directory, read as `files.PatientFile` reads."""

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        """
        Raises:
            RuntimeError: one of the files is damaged.
            ValueError: there are no files.
            Unread: one of them could not be read.
        """
        paths = [str(directory / name) for name in names]
        self._directory = directory
        self._source = self._patiently(lambda: ArrayRecordDataSource(paths), str(directory), let_go=lambda: None)

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
            return files.patiently(lambda: _of_the_system(act), let_go, files.WAITS)
        except OSError as error:
            raise files.unread(error.filename or label, error) from None

    def _let_go(self) -> None:
        self._source = copy.copy(self._source)  # which has opened nothing


def _of_the_system(act: Callable[[], T]) -> T:
    """Do it, and tell failures of the system from damaged files: ArrayRecord has one exception for both."""
    try:
        return act()
    except RuntimeError as error:
        failed = re.match(r"\w+\(\) failed: ([^;]+)(?:; \w+ing ([^;]+))?", str(error))
        if failed is None:
            raise
        raise OSError(_NUMBERS.get(failed[1]), *failed.groups()) from error


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
