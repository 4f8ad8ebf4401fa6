"""The first look at a video: decodes it once, frame by frame, and notes what cutting it into clips needs."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer

from svdjax.curation.cuts import SHORT_SIDE, Cut, Small, find_cuts
from svdjax.data.decoding import frame_rate, nominal_rate, opened, pictures_of
from svdjax.errors import UserError
from svdjax.typing import Float, Int, ndarray

# FFmpeg's own lines about damaged files would fill the screen; what is wrong goes into the notes.
logging.getLogger("libav").setLevel(logging.CRITICAL)


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What is known of a video after one pass.

    Attributes:
        stamps: time stamp of each frame in units of ``time_base``, ascending, as its packets carry it.
        time_base: seconds of one unit.
        packets: time stamps of the packets in the order of decoding.
        keys: numbers of the frames with which decoding can begin.
        cuts: changes of scene, and damaged stretches.
        height, width: of the frames as they are shown, upright and with square pixels.
        fps: frames per second. codec: FFmpeg's name of it.
        notes: what is wrong with the file, in words; empty for a sound one.
    """

    stamps: Int[ndarray, " t"]
    time_base: Fraction
    packets: Int[ndarray, " p"]
    keys: list[int]
    cuts: list[Cut]
    height: int
    width: int
    fps: float
    codec: str
    notes: list[str]

    @property
    def times(self) -> Float[ndarray, " t"]:
        """Seconds of each frame from the first."""
        return (self.stamps - self.stamps[0]) * float(self.time_base)

    @property
    def seconds(self) -> float:
        """How long the video is, its last frame included."""
        return float(self.times[-1]) + 1 / self.fps


def scan(path: Path, name: str) -> Scan:
    """Decode a video once. Memory: some bytes for each frame, and a few seconds of small frames.

    A damaged packet is passed over; the stretch up to the next key frame becomes a cut, so that no clip has it.

    Raises:
        UserError: not a readable video, or PySceneDetect is not installed.
    """
    seen = _Seen()
    with opened(path, name) as container:
        cuts = find_cuts(seen.frames(container, name))
        if not seen.stamps:
            raise UserError(f"{name} holds no frame that can be decoded: replace or remove it")
        stream = container.streams.video[0]
        header = float(container.duration / av.time_base) if container.duration else 0.0
        stamps = np.array(seen.stamps)
        times = (stamps - stamps[0]) * float(seen.time_base)
        fps = frame_rate(times) if len(times) > 1 else float(nominal_rate(stream))
        return Scan(
            stamps=stamps,
            time_base=seen.time_base,
            packets=np.array(seen.packets or seen.stamps),
            keys=seen.keys,
            cuts=sorted([*cuts, *seen.damaged_stretches()]),
            height=seen.size[0],
            width=seen.size[1],
            fps=fps,
            codec=stream.codec_context.name,
            notes=seen.notes(header, float(times[-1]) + 1 / fps),
        )


class _Seen:
    """Collects what a scan notes while the frames pass by."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.packets: list[int] = []
        self.keys: list[int] = []
        self.size = (0, 0)
        self.time_base = Fraction(1, 1000)
        self._unseen = 0
        self._damaged: list[int] = []  # numbers of the frames that come next

    def frames(self, container: InputContainer, name: str) -> Iterator[Small]:
        """The frames of a video, small, as the cut detectors want them."""
        stream = container.streams.video[0]
        self.time_base = stream.time_base or self.time_base
        small = None
        for frame in self._decoded(container):
            stamp = frame.pts
            if stamp is None:
                raise UserError(f"{name} carries no time stamps: put it into a container such as mp4 or mkv")
            if self.stamps and stamp <= self.stamps[-1]:
                self._unseen += 1
                continue
            if small is None:
                small = _small_size(frame)
                self.size = next(pictures_of([frame], stream)).size
            if frame.key_frame:
                self.keys.append(len(self.stamps))
            if frame.is_corrupt:
                self._damaged.append(len(self.stamps))
            self.stamps.append(stamp)
            shown = frame.reformat(width=small[1], height=small[0], format="rgb24", interpolation="AREA")
            yield Small((stamp - self.stamps[0]) * float(self.time_base), shown.to_ndarray())

    def _decoded(self, container: InputContainer) -> Iterator[av.VideoFrame]:
        """All frames that can be decoded."""
        packets = container.demux(container.streams.video[0])
        while True:
            try:
                packet = next(packets)
                if packet.pts is not None and packet.size:
                    self.packets.append(packet.pts)
                yield from packet.decode()
            except StopIteration:
                return
            except av.EOFError:
                return
            except av.InvalidDataError:
                self._damaged.append(len(self.stamps))

    def damaged_stretches(self) -> list[Cut]:
        """From each damaged place to the next key frame."""
        ends = [*self.keys, len(self.stamps)]
        places = [max(0, number - 1) for number in self._damaged]
        return sorted({Cut(place, next((key for key in ends if key > place), ends[-1])) for place in places})

    def notes(self, header: float, seconds: float) -> list[str]:
        """What is wrong with the file."""
        notes = [f"{len(self._damaged)} damaged packets or frames"] if self._damaged else []
        if self._unseen:
            notes.append(f"{self._unseen} frames left out, whose time stamps go back")
        if header > 1.1 * seconds + 1:
            notes.append(f"ends after {seconds:.1f} s, where its header says {header:.1f} s")
        return notes


def _small_size(frame: av.VideoFrame) -> tuple[int, int]:
    zoom = min(1.0, SHORT_SIDE / min(frame.height, frame.width))
    return max(1, round(frame.height * zoom)), max(1, round(frame.width * zoom))
