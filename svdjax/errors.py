"""The one exception for mistakes that the user can mend, and the checks that raise it."""

import importlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


class UserError(Exception):
    """A mistake that the user can mend: one line that says what, where, and what to do.

    The command line prints the message without a traceback and exits with code 2.
    """


class Unavailable(UserError):
    """Something that the work needs cannot be had: nothing is wrong with what it would have worked on."""


class MissingPackage(Unavailable):
    """An optional package is not installed."""


class Unread(UserError):
    """The system could not read a file: what is in it is not known to be wrong."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package.

    Args:
        module: name to import, e.g. ``"torch"``.
        extra: the extra of this package that installs it.

    Raises:
        MissingPackage: the package is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingPackage(f"{module} is not installed: run `pip install 'svdjax[{extra}]'`") from None


def check_keys(what: str, found: Iterable[str], expected: Iterable[str]) -> None:
    """Compare two sets of names.

    Raises:
        UserError: some names are missing or unexpected; the message lists them.
    """
    found, expected = set(found), set(expected)
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    problems = []
    if missing:
        problems.append(f"{len(missing)} missing: {_shortened(missing)}")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {_shortened(unexpected)}")
    if problems:
        raise UserError(f"{what}: {'; '.join(problems)}")


def check_range(what: str, value: int | float, least: int, most: int | float = math.inf) -> None:
    """Check a number of the user's.

    Raises:
        UserError: it is below ``least``, above ``most``, or none.
    """
    if not least <= value <= most:
        raise UserError(
            f"{what} {value}: must be at least {least}" + (f" and at most {most}" if most < math.inf else "")
        )


def check_local(option: str, path: Path) -> None:
    """Check a path of the user's: a bucket's address is none, and each host would make a folder of that name.

    Raises:
        UserError: it is an address.
    """
    if address := re.match(r"(\w+):/+(.*)", str(path)):  # a path has lost one of its slashes
        raise UserError(
            f"--{option} {address[1]}://{address[2]}: is an address, not a path: mount it (docs/tpu_pods.md)"
        )


def _shortened(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
