"""``contents.json``: the size of every file of a folder, by which a lost or cut file is found before it is read.

Orbax finds such a file only while it reads, and its other reads then complain in the background.
"""

import json
from pathlib import Path

CONTENTS = "contents.json"
# Orbax writes the time into it when it gives a checkpoint its name, after all else.
_CHANGING = "_CHECKPOINT_METADATA"


def write_contents(path: Path, folder: Path) -> None:
    """Write the sizes in bytes of all files below ``folder``, by relative path, to ``path``."""
    path.write_text(json.dumps(_sizes(folder)), "utf-8")


def find_damage(path: Path, folder: Path) -> str | None:
    """Compare ``folder`` with what :func:`write_contents` wrote to ``path``; there may be more files.

    Returns:
        The first damaged file and what is wrong with it; None if all is whole.
    """
    try:
        listed = dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return f"{path}: missing"
    except (OSError, ValueError, TypeError):
        return f"{path}: unreadable"
    found = _sizes(folder)
    for name, size in listed.items():
        if name not in found:
            return f"{folder / name}: missing"
        if found[name] != size:
            return f"{folder / name}: {found[name]} bytes long instead of {size}"
    return None


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _CHANGING)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
