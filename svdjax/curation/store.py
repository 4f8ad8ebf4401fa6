"""The annotations on disk: one Parquet file for each video, and a JSON file for each that could not be used.

``annotations/VIDEO.parquet`` appears when the video and all its clips are done, so it is the mark that says so.
``annotations/VIDEO.json`` holds ``video``, ``where`` and ``error`` of one that failed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.conversion.output import finished
from svdjax.curation.sources import Origin
from svdjax.errors import UserError, require
from svdjax.typing import Float, ndarray

FOLDER = "annotations"
HEAVY = ("flow_map", "flow_map_shape", "clip_embedding")  # columns that take nearly all of the memory
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
    origin: Origin | None = None,
) -> None:
    """Write the rows of a video's clips, what is wrong with the video, and the seconds of each stage, at once.

    Args:
        origin: of the video, for `read_origin`.

    Raises:
        UserError: pyarrow is not installed, or the file cannot be written.
    """
    arrow, parquet = require("pyarrow", "curate"), require("pyarrow.parquet", "curate")
    if rows:
        table = arrow.Table.from_pylist([dict(row) for row in rows])
    else:
        table = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in _CORE.items()]).empty_table()
    beside = {"notes": list(notes), "took": took or {}, "origin": asdict(origin) if origin else None}
    table = table.replace_schema_metadata({key: json.dumps(value) for key, value in beside.items()})
    with finished(rows_file(out, video), overwrite=True) as partial:
        parquet.write_table(table, partial)
    failure_file(out, video).unlink(missing_ok=True)


def write_failure(out: Path, video: str, where: str, error: str) -> None:
    """Write down why a video could not be used."""
    with finished(failure_file(out, video), overwrite=True) as partial:
        partial.write_text(json.dumps({"video": video, "where": where, "error": error}))


def read_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of all clips, in order of videos, without `HEAVY`; what was not measured of a clip is None.

    Raises:
        UserError: no annotations there, or a damaged file.
    """
    tables = list(_tables(out, lambda column: column not in HEAVY))
    return require("pyarrow", "curate").concat_tables(tables, promote_options="permissive").to_pylist()


def read_embeddings(out: Path, rows: Sequence[Mapping[str, Any]]) -> Float[ndarray, "n k c"] | None:
    """``clip_embedding`` of the clips of these rows, NaN for a clip without; None if all are.

    Args:
        rows: of `read_rows`; videos that are done in the meantime are left out.

    Raises:
        UserError: as `read_rows`.
    """
    numbers = {row["name"]: number for number, row in enumerate(rows)}
    embeddings = None
    for table in _tables(out, lambda column: column in ("name", "clip_embedding")):
        if "clip_embedding" not in table.column_names:
            continue
        column = table.column("clip_embedding").combine_chunks()
        names = table.filter(column.is_valid()).column("name").to_pylist()
        stills = column.flatten()  # without what is null
        values = stills.flatten().to_numpy().astype(np.float32)
        values = values.reshape(len(names), len(stills) // max(1, len(names)), -1)
        known = [place for place, name in enumerate(names) if name in numbers]
        if known and embeddings is None:
            embeddings = np.full((len(rows), *values.shape[1:]), np.nan, np.float32)
        if known:
            embeddings[[numbers[names[place]] for place in known]] = values[known]
    return embeddings


def _tables(out: Path, wanted: Callable[[str], bool]) -> Iterator[Any]:
    """The wanted columns of each video, as far as it has them."""
    arrow, parquet = require("pyarrow", "curate"), require("pyarrow.parquet", "curate")
    files = _row_files(out)
    if not files:
        raise UserError(f"{out} holds no annotations: run `svdjax curate SOURCES --out {out}` first")
    for file in files:
        try:
            with parquet.ParquetFile(file) as opened:
                table = opened.read(columns=list(filter(wanted, opened.schema_arrow.names)))
        except (OSError, arrow.ArrowInvalid) as error:
            raise _damaged(file, error) from None
        yield table


def read_notes(out: Path) -> dict[str, list[str]]:
    """What is wrong with each video that has clips all the same, by its name."""
    return {file.stem: notes for file in _row_files(out) if (notes := _beside(file, "notes"))}


def read_took(out: Path) -> dict[str, float]:
    """The seconds that each stage took, of all videos."""
    total: Counter[str] = Counter()
    for file in _row_files(out):
        total.update(_beside(file, "took") or {})
    return dict(total)


def read_origin(out: Path, video: str) -> Origin | None:
    """What the video was whose rows are there; None if that was not written down."""
    found = _beside(rows_file(out, video), "origin")
    return Origin(**found) if found else None


def _row_files(out: Path) -> list[Path]:
    return sorted((out / FOLDER).glob("*.parquet"))


def _beside(file: Path, key: str) -> Any:
    """What is written of a video beside its rows, or None."""
    arrow, parquet = require("pyarrow", "curate"), require("pyarrow.parquet", "curate")
    try:
        return json.loads((parquet.read_schema(file).metadata or {}).get(key.encode(), b"null"))
    except (OSError, arrow.ArrowInvalid) as error:
        raise _damaged(file, error) from None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(f"{file} is damaged ({error}): remove it and curate again")


def read_failures(out: Path) -> list[dict[str, str]]:
    """The videos that could not be used: ``video``, ``where`` and ``error`` of each."""
    return [json.loads(file.read_text()) for file in sorted((out / FOLDER).glob("*.json"))]
