"""From cuts to clip files: which stretch of the video each clip is, and how it is written.

A clip that begins with an encoder's key frame can be copied out of the file without decoding. So a clip's start
moves to the next key frame of its scene, and never across a cut (section 3.1 and appendix C); where that would lose
more than a tenth of the scene, or a player could not read the copy, the clip is encoded anew.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from svdjax.conversion.output import finished
from svdjax.curation.scan import Scan
from svdjax.data.decoding import frames_of, opened_at, packets_of
from svdjax.errors import UserError
from svdjax.typing import Int, ndarray

MOST_LOST = 0.1  # share of a scene that a move to key frames may cost
_COPIED = ("h264", "hevc", "av1", "vp9", "mpeg4")  # what an mp4 file may hold
_QUALITY = {"crf": "18", "preset": "fast"}  # visually lossless


@dataclass(frozen=True, kw_only=True)
class Span:
    """A clip in its video: frames ``first`` up to ``stop`` (not with it), and whether they can be copied."""

    first: int
    stop: int
    copy: bool


def plan(scan: Scan, *, shortest: float, longest: float) -> list[Span]:
    """The clips of a video.

    Args:
        shortest: in seconds; scenes below it give no clip. longest: longer scenes are cut into parts, at key frames
            where there are any near.
    """
    starts = [0, *(cut.start for cut in scan.cuts)]
    stops = [*(cut.end for cut in scan.cuts), len(scan.stamps)]
    parts = [part for scene in zip(starts, stops, strict=True) for part in _parts(scan, *scene, longest)]
    spans = [_moved(scan, first, stop) for first, stop in parts]
    return [span for span in spans if span.stop > span.first and _length(scan, span.first, span.stop) >= shortest]


def _parts(scan: Scan, first: int, stop: int, longest: float) -> Iterator[tuple[int, int]]:
    """A scene in parts of about equal length, none longer than ``longest``."""
    times = scan.times
    keys = np.array(scan.keys, int)
    while stop > first and (left := _length(scan, first, stop)) > longest:
        share = left / math.ceil(left / longest)
        target, latest = times[first] + share, times[first] + longest
        near = keys[(times[keys] > target - share / 4) & (times[keys] <= latest) & (keys > first) & (keys < stop)]
        if len(near):
            cut = int(near[np.abs(times[near] - target).argmin()])
        else:
            cut = max(first + 1, int(np.searchsorted(times, target - 1e-6)))
        yield first, cut
        first = cut
    yield first, stop


def _length(scan: Scan, first: int, stop: int) -> float:
    """Seconds from a frame up to another, which may be the end of the video."""
    return (scan.seconds if stop == len(scan.stamps) else float(scan.times[stop])) - float(scan.times[first])


def _moved(scan: Scan, first: int, stop: int) -> Span:
    """The stretch that is copied, where that loses little of the one asked for."""
    key = next((key for key in scan.keys if first <= key < stop), None)
    if key is not None and scan.codec in _COPIED:
        end = _last_complete(scan, key, stop)
        if end > key and _length(scan, key, end) >= (1 - MOST_LOST) * _length(scan, first, stop):
            return Span(first=key, stop=end, copy=True)
    return Span(first=first, stop=stop, copy=False)


def _last_complete(scan: Scan, key: int, stop: int) -> int:
    """Up to which frame the packets from a key frame on can be taken without one that is shown later.

    Packets come in the order of decoding: a frame that is shown early may need one that is shown after the cut.
    """
    begin = int(np.flatnonzero(scan.packets == scan.stamps[key])[0])
    packets = scan.packets[begin:]
    packets = packets[packets >= scan.stamps[key]]  # pictures before the key frame need the scene before
    limit = scan.stamps[stop] if stop < len(scan.stamps) else packets.max() + 1
    shown = np.maximum.accumulate(packets)
    later = np.append(np.minimum.accumulate(packets[::-1])[::-1][1:], np.iinfo(np.int64).max)
    complete = np.flatnonzero((shown < limit) & (shown < later))
    return int(np.searchsorted(scan.stamps, shown[complete[-1]])) + 1 if len(complete) else key


def write_clip(path: Path, scan: Scan, span: Span, out: Path, name: str) -> None:
    """Write one clip as an mp4 file without sound, which appears when it is complete.

    Args:
        path: the video. name: what to call it in errors.

    Raises:
        UserError: the video cannot be read, or the clip cannot be written.
    """
    wanted = scan.stamps[span.first : span.stop]
    with finished(out, overwrite=True) as partial:
        (_copy if span.copy else _encode)(path, wanted, partial, name)


def _copy(path: Path, wanted: Int[ndarray, " t"], out: Path, name: str) -> None:
    """Take the packets over, with time stamps that begin at 0."""
    start, left = int(wanted[0]), len(wanted)
    with (
        opened_at(path, name, lambda _: start, packets_of) as (source, packets),
        av.open(out, "w", format="mp4") as target,
    ):
        copied = target.add_stream_from_template(source.streams.video[0])
        for packet in packets:
            if packet.pts is None or not start <= packet.pts <= wanted[-1]:
                continue
            packet.pts -= start
            if packet.dts is not None:
                packet.dts -= start
            packet.stream = copied
            target.mux(packet)
            left -= 1
            if not left:
                return


def _encode(path: Path, wanted: Int[ndarray, " t"], out: Path, name: str) -> None:
    """Decode and encode as 8-bit H.264; an odd side loses a row or column."""
    start, left = int(wanted[0]), set(wanted.tolist())
    with (
        opened_at(path, name, lambda _: start, frames_of) as (source, frames),
        av.open(out, "w", format="mp4") as target,
    ):
        stream = source.streams.video[0]
        encoded = None
        for frame in frames:
            if frame.pts not in left:
                if not left or (frame.pts or 0) > wanted[-1]:
                    break
                continue
            left.remove(frame.pts)
            if encoded is None:
                encoded = target.add_stream("libx264", rate=stream.average_rate or 25, options=_QUALITY)
                encoded.width, encoded.height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
                encoded.pix_fmt, encoded.codec_context.time_base = "yuv420p", stream.time_base
                encoded.codec_context.sample_aspect_ratio = stream.sample_aspect_ratio or 1
                if frame.rotation:
                    encoded.set_display_rotation(frame.rotation)
            picture = frame.reformat(width=encoded.width, height=encoded.height, format="yuv420p")
            picture.pts, picture.time_base = frame.pts - start, stream.time_base
            picture.pict_type = 0
            target.mux(encoded.encode(picture))
        if encoded is None:
            raise UserError(
                f"{name} holds no frame at second {float(start * stream.time_base):.2f}: replace or remove it"
            )
        target.mux(encoded.encode(None))
