"""The page about a curated set: what each axis measured and removed, examples, cuts of the videos, throughput."""

import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from svdjax.curation.store import read_failures, read_notes, read_took
from svdjax.curation.thresholds import Axis, Filtered, Row, effects
from svdjax.data.decoding import decode
from svdjax.errors import MissingPackage, UserError
from svdjax.pages import COLOURS, draw, image, table, write_page
from svdjax.typing import Bool, Float, ndarray

KEPT, DROPPED = COLOURS[2], COLOURS[1]
MOST_KEPT, MOST_DROPPED = 12, 6  # examples that are shown, the second for each axis
MOST_VIDEOS = 60  # whose cuts are drawn
_THUMBNAIL = (320, 180)
_BINS = 40


@dataclass(frozen=True, kw_only=True)
class Account:
    """What happened beside the clips' rows.

    Attributes:
        failures: why a video could not be used, by where it is. notes: what is wrong with a video that could.
        took: seconds of work of all processes, by stage.
    """

    failures: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    took: Mapping[str, float] = field(default_factory=dict)


def report(
    directory: Path,
    rows: Sequence[Row],
    filtered: Filtered,
    axes: Sequence[Axis],
    out: Path,
    account: Account | None = None,
) -> None:
    """Write the page, which needs no other file.

    Args:
        directory: in which the rows' ``file`` are, of which thumbnails are made; without them there are none.
        rows: of all clips. filtered: what was decided about them. axes: the rules.
        out: the page. account: of the run.

    Raises:
        UserError: matplotlib is missing, or the page cannot be written.
    """
    write_page(out, f"svdjax: {directory.name}", _page(directory, rows, filtered, axes, account or Account()))


def write_report(directory: Path, rows: Sequence[Row], filtered: Filtered, axes: Sequence[Axis]) -> str:
    """Write ``report.html`` into the directory of `svdjax curate`, with what is noted there about the run.

    Returns:
        The page's path, or why there is none, in words.

    Raises:
        UserError: it cannot be written.
    """
    account = Account(
        failures={failure["where"]: failure["error"] for failure in read_failures(directory)},
        notes=read_notes(directory),
        took=read_took(directory),
    )
    out = directory / "report.html"
    try:
        report(directory, rows, filtered, axes, out, account)
    except MissingPackage as error:
        return f"no report: {error}"
    return f"report: {out}"


def _page(
    directory: Path, rows: Sequence[Row], filtered: Filtered, axes: Sequence[Axis], account: Account
) -> Iterator[str]:
    kept = np.isin(np.arange(len(rows)), filtered.kept)
    yield f"<h1>{escape(directory.resolve().name)}</h1>"
    yield f'<p class="dim">{_summary(rows, kept, account)}</p>'
    yield "<h2>What each axis removes</h2>" + _effects(rows, filtered)
    yield '<h2>Axes</h2><div class="curves">'
    yield from _histograms(rows, filtered, axes)
    yield "</div>"
    yield f"<h2>Kept</h2>{_examples(directory, rows, _spread(filtered.kept, MOST_KEPT))}"
    for name, numbers in filtered.removed.items():
        if numbers:
            yield f"<h3>Removed: {escape(name)}</h3>" + _dropped(directory, rows, name, numbers, axes)
    yield from _timelines(rows, kept)
    yield from _cameras(rows, kept)
    yield from _throughput(len(rows), account.took)
    yield from _problems(account)


def _summary(rows: Sequence[Row], kept: Bool[ndarray, " n"], account: Account) -> str:
    seconds = np.array([row["seconds"] for row in rows])
    videos = len({row["video"] for row in rows})
    return (
        f"{len(rows):,} clips ({_duration(seconds.sum())}) of {videos:,} videos; {len(account.failures):,} videos "
        f"could not be used. {int(kept.sum()):,} clips ({_duration(seconds[kept].sum())}) are kept."
    )


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(float(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} h" if hours else f"{minutes}:{seconds:02} min"


def _effects(rows: Sequence[Row], filtered: Filtered) -> str:
    header = ("axis", "threshold", "removes", "removes alone", "share")
    lines = [
        (effect.name, effect.threshold, str(effect.removes), str(effect.alone), effect.share)
        for effect in effects(rows, filtered)
    ]
    return table(header, lines)


def _histograms(rows: Sequence[Row], filtered: Filtered, axes: Sequence[Axis]) -> Iterator[str]:
    """One picture for each measured column, with the thresholds of all axes on it."""
    for column in dict.fromkeys(axis.column for axis in axes if axis.name in filtered.thresholds):
        on_it = [axis for axis in axes if axis.column == column and axis.name in filtered.thresholds]
        values = np.array([np.nan if row.get(column) is None else row[column] for row in rows], float)
        found = np.isfinite(values)
        gone = np.isin(np.arange(len(rows)), sorted({n for axis in on_it for n in filtered.removed[axis.name]}))
        lines = {axis.name: filtered.thresholds[axis.name] for axis in on_it}
        yield f"<figure>{_histogram(column, values[found], gone[found], lines)}</figure>"


def _histogram(
    column: str, values: Float[ndarray, " n"], gone: Bool[ndarray, " n"], lines: Mapping[str, float]
) -> str:
    def plot(axes: Any) -> None:
        edges = np.histogram_bin_edges([*values, *lines.values()], _BINS)
        axes.hist(
            [values[~gone], values[gone]], edges, stacked=True, color=[KEPT, DROPPED], label=["kept", "removed"]
        )
        for i, (name, threshold) in enumerate(lines.items()):
            label = f"{name}: {threshold:.4g}"
            axes.axvline(threshold, color=COLOURS[(0, 3, 4)[i % 3]], linestyle="--", label=label)
        axes.set_ylabel("clips")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False, fontsize="small", ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.1))

    return draw(column, plot)


def _spread(numbers: Sequence[int], most: int) -> list[int]:
    """At most so many of them, from the first to the last."""
    places = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
    return [numbers[place] for place in places]


def _dropped(directory: Path, rows: Sequence[Row], name: str, numbers: Sequence[int], axes: Sequence[Axis]) -> str:
    """Examples of what an axis removes, from the most to the least clear."""
    axis = next((axis for axis in axes if axis.name == name), None)
    if axis is None:
        return _examples(directory, rows, _spread(numbers, MOST_DROPPED))
    ranked = sorted(numbers, key=lambda n: rows[n][axis.column], reverse=axis.keeps == "below")
    return _examples(directory, rows, _spread(ranked, MOST_DROPPED), axis.column)


def _examples(directory: Path, rows: Sequence[Row], numbers: Sequence[int], column: str | None = None) -> str:
    shown = "".join(_example(directory, rows[number], column) for number in numbers)
    return f'<div class="samples">{shown}</div>' if shown else "<p>None.</p>"


def _example(directory: Path, row: Row, column: str | None) -> str:
    value = "" if column is None or row.get(column) is None else f" · {column} {row[column]:.4g}"
    texts = [row[name] for name in ("caption", "caption_image", "caption_video") if row.get(name)]
    caption = f"{row['name']} · {row['seconds']:.1f} s{value}" + "".join(f" · {t}" for t in dict.fromkeys(texts))
    try:
        frame = decode(directory / row["file"], [row["seconds"] / 2], name=row["name"])[0]
    except UserError:
        return f"<p>{escape(caption)}</p>"
    picture, buffer = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail(_THUMBNAIL)
    picture.save(buffer, "WEBP", quality=75)
    return image(buffer.getvalue(), "image/webp", caption)


def _timelines(rows: Sequence[Row], kept: Bool[ndarray, " n"]) -> Iterator[str]:
    """Of each video a bar, with its clips in the colours of kept and removed; gaps belong to no clip."""
    videos: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        videos.setdefault(row["video"], []).append(number)
    shown = sorted(videos, key=lambda video: -len(videos[video]))[:MOST_VIDEOS]
    kinds = " and ".join(f'<b style="color:{c}">{name}</b>' for name, c in (("kept", KEPT), ("removed", DROPPED)))
    yield f"<h2>Cuts</h2><p>Clips that are {kinds}; between them are cuts, or what is too short for a clip.</p>"
    if len(videos) > len(shown):
        yield f"<p>The {len(shown)} of {len(videos):,} videos with most clips.</p>"
    for video in sorted(shown):
        end = max(rows[number]["end"] for number in videos[video])
        yield f'<div class="dim">{escape(video)} · {_duration(end)} · {len(videos[video])} clips</div>'
        bars = "".join(_bar(rows[number], end, KEPT if kept[number] else DROPPED) for number in videos[video])
        yield f'<svg viewBox="0 0 1000 14" preserveAspectRatio="none" width="100%" height="14">{bars}</svg>'


def _bar(row: Row, end: float, colour: str) -> str:
    left, right = (1000 * row[name] / end for name in ("start", "end"))
    label = escape(f"{row['name']}: {row['start']:.2f} to {row['end']:.2f} s")
    width = max(0.5, right - left - 0.8)
    return f'<rect x="{left:.2f}" width="{width:.2f}" height="14" fill="{colour}"><title>{label}</title></rect>'


def _cameras(rows: Sequence[Row], kept: Bool[ndarray, " n"]) -> Iterator[str]:
    counts = Counter(row["camera"] for row in rows if row.get("camera"))
    if counts:
        stay = Counter(row.get("camera") for row, stays in zip(rows, kept, strict=True) if stays)
        lines = [(name, f"{count:,}", f"{stay[name]:,}") for name, count in counts.most_common()]
        yield "<h2>Camera</h2>" + table(("motion", "clips", "kept"), lines)


def _throughput(clips: int, took: Mapping[str, float]) -> Iterator[str]:
    total = sum(took.values())
    if total:
        lines = [
            (name, f"{seconds:,.1f}", f"{seconds / total:.1%}", f"{clips / seconds:,.2f}")
            for name, seconds in (*took.items(), ("all", total))
            if seconds > total / 1000  # a stage that had nothing to do
        ]
        yield "<h2>Throughput</h2><p>Seconds of work, summed over the processes.</p>"
        yield table(("stage", "seconds", "share", "clips per second and process"), lines)


def _problems(account: Account) -> Iterator[str]:
    if account.failures:
        yield "<h2>Videos that could not be used</h2>" + table(("video", "why"), account.failures.items())
    if account.notes:
        lines = [(video, "; ".join(notes)) for video, notes in account.notes.items()]
        yield "<h2>Videos with something wrong</h2>" + table(("video", "what"), lines)
