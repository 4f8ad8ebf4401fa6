"""``svdjax curate filter``: which annotated clips stay, a table that says why the others go, and the shards.

Annotations are made once; this is quick and can be repeated with other thresholds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from svdjax.conversion.output import finished
from svdjax.curation.duplicates import find_duplicates
from svdjax.curation.report import write_report
from svdjax.curation.store import read_embeddings, read_rows
from svdjax.curation.thresholds import PAPER, Axis, Filtered, Row, decide, effects
from svdjax.data.records import ClipRecord, write_shards
from svdjax.errors import UserError, check_range
from svdjax.evaluation.camera import Camera
from svdjax.typing import Float, ndarray

_LEFT_OUT = ("hash", "file", "short_side")  # what training has no use for
_PAPER = {axis.name: axis.percentile or axis.threshold or 0.0 for axis in PAPER}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which clips stay. The first four rules are the paper's (section 3.2 and appendix C).

    A clip that was not measured on an axis passes it, but for ``camera``.

    Attributes:
        motion_percentile: remove this share, in percent, of the clips: those that move least.
        aesthetic_percentile: the same of the clips that please least.
        clip_percentile: the same of the clips that fit their caption least.
        text_area: remove clips of which more than this share of the picture is text.
        still: remove clips whose motion score is below this: nothing moves.
        letterbox: remove clips of which more than this share of the picture is black bars.
        shortest_side: remove clips that are smaller, in pixels.
        duplicates: remove near-duplicates, but for the largest and longest.
        camera: keep only clips whose annotated camera motion is one of these; clips without that annotation go,
            too. All stay if left out.
    """

    motion_percentile: float = _PAPER["motion"]
    aesthetic_percentile: float = _PAPER["aesthetic"]
    clip_percentile: float = _PAPER["clip score"]
    text_area: float = _PAPER["text"]
    still: float = 0.1
    letterbox: float = 0.05
    shortest_side: int = 64
    duplicates: bool = True
    camera: tuple[Camera, ...] = ()

    def axes(self) -> list[Axis]:
        """The rules as axes.

        Raises:
            UserError: a percentile outside of 0..100.
        """
        shares = {
            "motion": self.motion_percentile,
            "aesthetic": self.aesthetic_percentile,
            "clip score": self.clip_percentile,
        }
        columns = {axis.name: axis.column for axis in PAPER}
        return [
            *(Axis(name=n, column=columns[n], keeps="above", percentile=p) for n, p in shares.items()),
            Axis(name="text", column=columns["text"], keeps="below", threshold=self.text_area),
            Axis(name="still", column="motion_score", keeps="above", threshold=self.still),
            Axis(name="letterbox", column="letterbox", keeps="below", threshold=self.letterbox),
            Axis(name="size", column="short_side", keeps="above", threshold=float(self.shortest_side)),
        ]


@dataclass(frozen=True, kw_only=True)
class Filter:
    """Choose among annotated clips: print and report what each axis removes, write the rest as shards for training.

    Attributes:
        directory: the --out of `svdjax curate`.
        out: directory for the shards; none are written without it.
        shards: number of files.
        rules: which clips stay.
    """

    directory: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    shards: int = 4
    rules: tyro.conf.OmitArgPrefixes[Rules] = field(default_factory=Rules)

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a number is out of range, or an option would do nothing.
        """
        check_range("--shards", self.shards, 1)
        if self.out is None and self.shards != Filter.shards:
            raise UserError(
                f"--shards {self.shards}: no shards are written without --out: name a directory for them"
            )


def run(args: Filter) -> None:
    """Print the table, write the report anew, and write the shards if asked to.

    Raises:
        UserError: no annotations, no clip stays, or the shards cannot be written.
    """
    if args.out is not None and args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise UserError(f"--out {args.out}: is not empty, or no directory: choose another one or remove it")
    rows = read_rows(args.directory)
    filtered = choose(rows, args.rules, read_embeddings(args.directory, rows) if args.rules.duplicates else None)
    Console().print(table(rows, filtered))
    print(write_report(args.directory, rows, filtered, args.rules.axes()))
    if args.out is not None:
        write(args.directory, rows, filtered, args.out, shards=args.shards)
        print(args.out)


def choose(rows: Sequence[Row], rules: Rules, embeddings: Float[ndarray, "n k c"] | None = None) -> Filtered:
    """Apply the rules to all clips.

    Args:
        embeddings: of the rows, in which duplicates are looked for.
    """
    also = {"duplicate": find_duplicates(rows, embeddings).removed} if rules.duplicates else {}
    if rules.camera:
        also["camera"] = [number for number, row in enumerate(rows) if row.get("camera") not in rules.camera]
    return decide(rows, rules.axes(), also)


def table(rows: Sequence[Row], filtered: Filtered) -> Table:
    """What each axis removes: by itself, and that no other axis removes; and what all of them leave."""
    made = Table(title=f"{len(rows)} clips")
    for column in ("axis", "threshold", "removes", "removes alone", "share"):
        made.add_column(column, justify="left" if column == "axis" else "right")
    *axes, gone, kept = effects(rows, filtered)
    for effect in axes:
        made.add_row(effect.name, effect.threshold, str(effect.removes), str(effect.alone), effect.share)
    made.add_section()
    for effect, style in ((gone, None), (kept, "bold")):
        made.add_row(effect.name, "", str(effect.removes), "", effect.share, style=style)
    return made


def write(directory: Path, rows: Sequence[Row], filtered: Filtered, out: Path, *, shards: int) -> None:
    """Write the clips that stay, in order, as `data.records` has them; ``out`` is replaced when all are written.

    Raises:
        UserError: no clip stays, a clip file is gone, or the shards cannot be written.
    """
    if not filtered.kept:
        raise UserError(f"{directory}: no clip passes all axes: loosen the one that removes most")
    notes = {"curated": {"thresholds": filtered.thresholds, "clips": len(rows)}}
    with finished(out, overwrite=True) as partial:
        write_shards(_records(directory, rows, filtered.kept), partial, shards=shards, notes=notes)


def _records(directory: Path, rows: Sequence[Row], kept: Sequence[int]) -> Iterator[ClipRecord]:
    for number in kept:
        row = rows[number]
        file = directory / row["file"]
        if not file.is_file():
            raise UserError(f"{file} is gone: remove the annotations of {row['video']} and curate again")
        yield ClipRecord(video=file, annotations=_annotations(row))


def _annotations(row: Mapping[str, Any]) -> dict[str, Any]:
    """What training may read of a row; three captions become ``captions``, of which it draws."""
    found = {name: value for name, value in row.items() if value is not None and name not in _LEFT_OUT}
    image, video = found.pop("caption_image", ""), found.pop("caption_video", "")
    captions = {"image": image, "video": video, "merged": found.get("caption", "")}
    return (
        found | {"captions": {name: text for name, text in captions.items() if text}} if image or video else found
    )
