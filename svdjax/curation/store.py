"""The annotations on disk: one Parquet file for each video, and a JSON file for each that could not be used.

``annotations/VIDEO.parquet`` appears when the video and all its clips are done, so it is the mark that says so.
``annotations/VIDEO.json`` holds ``video``, ``where`` and ``error`` of one that failed.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from svdjax.conversion.output import finished
from svdjax.errors import UserError, require

FOLDER = "annotations"
# Of a video without any clip, so that all files have the columns that all videos have.
_CORE = {
    "name": "string",
    "video": "string",
    "file": "string",
    "start": "float64",
    "end": "float64",
    "seconds": "float64",
    "fps": "float64",
    "frames": "int64",
    "height": "int64",
    "width": "int64",
    "short_side": "int64",
    "codec": "string",
}


def rows_file(out: Path, video: str) -> Path:
    """Where the rows of a video are."""
    return out / FOLDER / f"{video}.parquet"


def failure_file(out: Path, video: str) -> Path:
    """Where it is written why a video could not be used."""
    return out / FOLDER / f"{video}.json"


def write_rows(
    out: Path,
    video: str,
    rows: Sequence[dict[str, Any]],
    notes: Sequence[str],
    took: Mapping[str, float] | None = None,
) -> None:
    """Write the rows of a video's clips, what is wrong with the video, and the seconds of each stage, at once.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be written.
    """
    arrow, parquet = require("pyarrow", "curate"), require("pyarrow.parquet", "curate")
    if rows:
        table = arrow.Table.from_pylist([dict(row) for row in rows])
    else:
        table = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in _CORE.items()]).empty_table()
    table = table.replace_schema_metadata({"notes": json.dumps(list(notes)), "took": json.dumps(took or {})})
    with finished(rows_file(out, video), overwrite=True) as partial:
        parquet.write_table(table, partial)
    failure_file(out, video).unlink(missing_ok=True)


def write_failure(out: Path, video: str, where: str, error: str) -> None:
    """Write down why a video could not be used."""
    with finished(failure_file(out, video), overwrite=True) as partial:
        partial.write_text(json.dumps({"video": video, "where": where, "error": error}))


def read_rows(out: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The rows of all clips, in order of videos; what was not measured of a clip is None.

    Args:
        columns: only these, where there are any; embeddings and flow maps take most of the memory.

    Raises:
        UserError: no annotations there, or a damaged file.
    """
    arrow, parquet = require("pyarrow", "curate"), require("pyarrow.parquet", "curate")
    files = sorted((out / FOLDER).glob("*.parquet"))
    if not files:
        raise UserError(f"{out} holds no annotations: run `svdjax curate SOURCES --out {out}` first")
    tables = []
    for file in files:
        try:
            table = parquet.read_table(file)
        except (OSError, arrow.ArrowInvalid) as error:
            raise UserError(f"{file} is damaged ({error}): remove it and curate again") from None
        tables.append(table if columns is None else table.select([c for c in columns if c in table.column_names]))
    return arrow.concat_tables(tables, promote_options="permissive").to_pylist()


def read_notes(out: Path) -> dict[str, list[str]]:
    """What is wrong with each video that has clips all the same, by its name."""
    return {video: notes for video, notes in _metadata(out, "notes").items() if notes}


def read_took(out: Path) -> dict[str, float]:
    """The seconds that each stage took, of all videos."""
    total: Counter[str] = Counter()
    for took in _metadata(out, "took").values():
        total.update(took)
    return dict(total)


def _metadata(out: Path, key: str) -> dict[str, Any]:
    """What is written of each video beside its rows."""
    parquet = require("pyarrow.parquet", "curate")
    files = sorted((out / FOLDER).glob("*.parquet"))
    return {
        file.stem: json.loads((parquet.read_schema(file).metadata or {}).get(key.encode(), b"{}")) for file in files
    }


def read_failures(out: Path) -> list[dict[str, str]]:
    """The videos that could not be used: ``video``, ``where`` and ``error`` of each."""
    return [json.loads(file.read_text()) for file in sorted((out / FOLDER).glob("*.json"))]
