"""From cuts to clip files: which stretch of the video each clip is, and how it is written.

A clip that begins with an encoder's key frame can be copied out of the file without decoding. So a clip's start
moves to the next key frame of its scene, and never across a cut (section 3.1 and appendix C); where that would lose
more than a tenth of the scene, or a player could not read the copy, the clip is encoded anew.
"""

import errno
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace

from svdjax.conversion.output import finished
from svdjax.curation.scan import Scan
from svdjax.data.decoding import frames_of, opened_at, packets_of
from svdjax.errors import UserError
from svdjax.typing import Int, ndarray

MOST_LOST = 0.1  # share of a scene that a move to key frames may cost
_COPIED = ("h264", "hevc", "av1", "vp9", "mpeg4")  # what an mp4 file may hold
_QUALITY = {"crf": "18", "preset": "fast"}  # visually lossless
# What FFmpeg says when it is the place of a clip that fails, and not the video.
_OF_THE_PLACE = (errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOENT, errno.ENOSPC, errno.EROFS)


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
    parts = [part for scene in _scenes(scan) for part in _parts(scan, *scene, longest)]
    spans = [_moved(scan, first, stop, shortest) for first, stop in parts]
    return [span for span in spans if _length(scan, span.first, span.stop) >= shortest]


def _scenes(scan: Scan) -> Iterator[tuple[int, int]]:
    """What lies between the cuts, which may overlap: a damaged stretch may hold a change of scene."""
    first = 0
    for cut in scan.cuts:
        if cut.end > first:
            yield first, cut.end
        first = max(first, cut.start)
    if first < len(scan.stamps):
        yield first, len(scan.stamps)


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


def _moved(scan: Scan, first: int, stop: int, shortest: float) -> Span:
    """The stretch that is copied, where that loses little of the one asked for and leaves ``shortest`` seconds."""
    key = next((key for key in scan.keys if first <= key < stop), None)
    if key is not None and scan.codec in _COPIED:
        end = _last_complete(scan, key, stop)
        if _length(scan, key, end) >= max(shortest, (1 - MOST_LOST) * _length(scan, first, stop)):
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
        try:
            with av.open(partial, "w", format="mp4") as target:
                (_copy if span.copy else _encode)(path, wanted, target, name)
        except av.FFmpegError as error:
            if error.errno in _OF_THE_PLACE:
                raise OSError(error.errno, error.strerror) from None  # `finished` names the place
            raise UserError(f"{name}: no clip can be made of it ({error.strerror}): replace or remove it") from None


def _copy(path: Path, wanted: Int[ndarray, " t"], target: OutputContainer, name: str) -> None:
    """Take the packets over, with time stamps that begin at 0."""
    start, copied = int(wanted[0]), None
    for packet in _packets(path, wanted, name):
        copied = copied or target.add_stream_from_template(packet.stream)
        packet.pts -= start
        if packet.dts is not None:
            packet.dts -= start
        packet.stream = copied
        target.mux(packet)


def _packets(path: Path, wanted: Int[ndarray, " t"], name: str) -> Iterator[av.Packet]:
    """The packets of a stretch. What its caller meets while it writes is no fault of the video: see `opened`."""
    start, left = int(wanted[0]), len(wanted)
    with opened_at(path, name, lambda _: start, packets_of) as (_, packets):
        for packet in packets:
            if packet.pts is not None and start <= packet.pts <= wanted[-1]:
                yield packet
                left -= 1
                if not left:
                    return


def _encode(path: Path, wanted: Int[ndarray, " t"], target: OutputContainer, name: str) -> None:
    """Decode and encode as 8-bit H.264; an odd side loses a row or column."""
    start, encoded = int(wanted[0]), None
    for stream, frame in _frames(path, wanted, name):
        encoded = encoded or _add_encoder(target, stream, frame)
        context = encoded.codec_context
        picture = frame.reformat(
            width=encoded.width,
            height=encoded.height,
            format="yuv420p",
            src_colorspace=frame.colorspace,
            dst_colorspace=context.colorspace,
            src_color_range=frame.color_range,
            dst_color_range=context.color_range,
        )
        picture.pts, picture.time_base = frame.pts - start, stream.time_base
        picture.pict_type = 0
        target.mux(encoded.encode(picture))
    target.mux(encoded.encode(None))


def _frames(path: Path, wanted: Int[ndarray, " t"], name: str) -> Iterator[tuple[av.VideoStream, av.VideoFrame]]:
    """The frames of a stretch, each with the stream that it is of; see `_packets`."""
    start, left = int(wanted[0]), set(wanted.tolist())
    with opened_at(path, name, lambda _: start, frames_of) as (source, frames):
        stream = source.streams.video[0]
        for frame in frames:
            if frame.pts in left:
                left.remove(frame.pts)
                yield stream, frame
            elif not left or (frame.pts or 0) > wanted[-1]:
                break
        if len(left) == len(wanted):
            second = float(start * stream.time_base)
            raise UserError(f"{name} holds no frame at second {second:.2f}: replace or remove it")


def _add_encoder(target: OutputContainer, stream: av.VideoStream, frame: av.VideoFrame) -> av.VideoStream:
    """An encoder of pictures like ``frame``: with its shape, the way it is turned, and its colours."""
    encoded = target.add_stream("libx264", rate=stream.average_rate or 25, options=_QUALITY)
    encoded.width, encoded.height = max(2, frame.width // 2 * 2), max(2, frame.height // 2 * 2)
    encoded.pix_fmt = "yuv420p"
    context = encoded.codec_context
    context.time_base, context.sample_aspect_ratio = stream.time_base, stream.sample_aspect_ratio or 1
    # Without these, players and we would take all colours for BT.601 of limited range.
    context.colorspace = Colorspace.ITU709 if frame.format.is_rgb else frame.colorspace
    context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
    context.color_range = ColorRange.MPEG
    if frame.rotation:
        encoded.set_display_rotation(frame.rotation)
    return encoded
