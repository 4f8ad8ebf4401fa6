"""Videos that are broken or odd, each made from a small one, and what becomes of each."""

import io
import os
import tempfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from tests.curation.films import RABBIT
from tests.data.clips import encode, turned

FPS = 10


def moving(frames=24, height=96, width=128, shift=2):
    """A view that pans over a real picture; no two frames are equal."""
    picture = _picture()
    return np.stack([picture[100 : 100 + height, i * shift : i * shift + width] for i in range(frames)])


@cache
def _picture():
    with av.open(str(RABBIT)) as container:
        return next(container.decode(video=0)).reformat(640, 360, "rgb24").to_ndarray()


def film(frames=24, **options):
    """A sound video of 2.4 s, or of more frames."""
    return encode(moving(frames), **{"gop": 6, "fps": FPS, **options})


def index_in_front(data):
    """The same mp4 written again with ``faststart``."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:  # FFmpeg opens it a second time
        copy_pictures(data, file.name, format="mp4", options={"movflags": "faststart"})
        return Path(file.name).read_bytes()


def copy_pictures(data, out, **kind):
    """The pictures of a video in another container."""
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", **kind) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)


def audio_only():
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    return out.getvalue()


def with_audio():
    """Pictures and sound in one file, the sound first."""
    out = io.BytesIO()
    with av.open(io.BytesIO(film())) as source, av.open(out, "w", format="mp4") as file:
        sound = file.add_stream("aac", rate=16000)
        stream = file.add_stream_from_template(source.streams.video[0])
        for i in range(30):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            file.mux(sound.encode(frame))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                file.mux(packet)
        file.mux(sound.encode(None))
    return out.getvalue()


def corrupt_middle(data):
    """Random bytes in place of a tenth of the pictures."""
    broken = bytearray(data)
    start = data.index(b"mdat") + 4
    size = len(data) - start
    middle = slice(start + 4 * size // 10, start + 5 * size // 10)
    broken[middle] = np.random.default_rng(0).integers(0, 256, middle.stop - middle.start, np.uint8).tobytes()
    return bytes(broken)


def wrong_duration(data):
    """The header of the movie says a thousand times its length."""
    at = data.index(b"mvhd") + 4 + 16
    length = int.from_bytes(data[at : at + 4], "big")
    return data[:at] + (1000 * length).to_bytes(4, "big") + data[at + 4 :]


def no_index(data):
    """An mp4 whose recording was cut off before the index was written."""
    return data[: data.index(b"moov") - 4]


def interlaced():
    return encode(
        moving(60, shift=1), codec="mpeg2video", container="mpegts", fps=25, options={"flags": "+ilme+ildct"}
    )


def gif():
    out = io.BytesIO()
    first, *rest = [Image.fromarray(frame) for frame in moving()]
    first.save(out, "GIF", save_all=True, append_images=rest, duration=100, loop=0)
    return out.getvalue()


def raw_h264():
    out = io.BytesIO()
    copy_pictures(film(), out, format="h264")
    return out.getvalue()


def mid_stream_size():
    """An MPEG stream whose second half is larger."""
    kind = {"codec": "mpeg2video", "container": "mpegts", "fps": 25}
    return encode(moving(60), **kind) + encode(moving(60, height=192, width=256), **kind)


def irregular():
    """Milliseconds of frames at a variable rate: 3 s in all."""
    return np.cumsum([0, *np.resize([40, 200, 110, 160], 23)])


# File name: its bytes, and what becomes of it: a number of clips, or what its failure says.
CASES: dict[str, tuple[Callable[[], bytes], int | str]] = {
    "zero_length.mp4": (lambda: b"", "cannot be read"),
    "text.mp4": (lambda: b"this is no video\n" * 100, "cannot be read"),
    "random.mp4": (lambda: np.random.default_rng(0).bytes(5000), "cannot be read"),
    "audio_only.mp4": (audio_only, "no pictures"),
    "no_index.mp4": (lambda: no_index(film()), "cannot be read"),
    "picture.mp4": (lambda: _png(), 0),
    "one_frame.mp4": (lambda: encode(moving(1)), 0),
    "two_frames.mp4": (lambda: encode(moving(2)), 0),
    "truncated.mp4": (lambda: _cut_off(index_in_front(film(60))), 1),
    "corrupt_middle.mp4": (lambda: corrupt_middle(index_in_front(film(80))), 2),
    "wrong_duration.mp4": (lambda: wrong_duration(film()), 1),
    "variable_rate.mkv": (lambda: encode(moving(), times=irregular(), container="matroska"), 1),
    "turned.mp4": (lambda: turned(film(), 1), 1),
    "turned_encoded.mp4": (
        lambda: turned(encode(moving(), codec="mjpeg", pixels="yuvj420p", container="mov"), 1),
        1,
    ),
    "ten_bit.mp4": (lambda: film(pixels="yuv420p10le"), 1),
    "full_chroma.mp4": (lambda: film(pixels="yuv444p"), 1),
    "odd_size.mkv": (lambda: encode(moving(24, 97, 131), codec="ffv1", pixels="yuv420p", container="matroska"), 1),
    "grey.mkv": (lambda: encode(moving(), codec="ffv1", pixels="gray", container="matroska"), 1),
    "alpha.mov": (lambda: encode(moving(), codec="qtrle", pixels="argb", container="mov"), 1),
    "one_pixel.mkv": (
        lambda: encode(0 * moving()[:, :1, :1] + 90, codec="ffv1", pixels="bgr0", container="matroska"),
        1,
    ),
    "thin.mkv": (lambda: encode(moving()[:, :2], codec="ffv1", pixels="bgr0", container="matroska"), 1),
    "very_fast.mp4": (lambda: encode(moving(480, shift=1), fps=240), 1),
    "very_slow.mp4": (lambda: encode(moving(4), fps=Fraction(1, 2)), 1),
    "interlaced.mpg": (interlaced, 1),
    "loop.gif": (gif, 1),
    "web.webm": (lambda: encode(moving(), codec="libvpx-vp9", container="webm"), 1),
    "old.avi": (lambda: encode(moving(), codec="mpeg4", container="avi"), 1),
    "sound.mp4": (with_audio, 1),
    "raw.mp4": (raw_h264, "no time stamps"),
    "size_changes.mpg": (mid_stream_size, 1),
    "späces and ünicode — 视频.mp4": (film, 1),
    "-dash 'quote\" %d.mp4": (film, 1),
}


def _cut_off(data):
    return data[: 7 * len(data) // 10]


def _png():
    out = io.BytesIO()
    Image.fromarray(moving(1)[0]).save(out, "PNG")
    return out.getvalue()


def write_all(folder: Path) -> None:
    """Write every case, and those that are no files with bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (make, _) in CASES.items():
        (folder / name).write_bytes(make())
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "locked.mp4").write_bytes(film())
    os.chmod(folder / "locked.mp4", 0)
    os.mkfifo(folder / "pipe.mp4")
