"""Small encoded videos with known pictures, for the tests of decoding and reading."""

import io
from fractions import Fraction

import av
import numpy as np


def ramp(frames=8, height=32, width=48):
    """Frames that tell their number by brightness: frame i is 20 + 10 i grey, with a bright upper left corner."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = (20 + 10 * np.arange(frames))[:, None, None, None]
    video[:, : height // 4, : width // 4] = 230
    return video


def numbers(frames):
    """The frame numbers of pictures made by `ramp`, from the middle of each."""
    height, width = frames.shape[1:3]
    return np.round((frames[:, height // 2, width // 2].mean(-1) - 20) / 10).astype(int).tolist()


def encode(
    frames,
    *,
    codec="libx264",
    pixels="yuv420p",
    container="mp4",
    times=None,
    fps=10,
    gop=12,
    options=None,
    aspect=Fraction(1),
):
    """Bytes of a video; ``times`` are milliseconds of each frame, ``aspect`` is a pixel's."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=Fraction(fps), options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        stream.codec_context.gop_size = gop
        stream.codec_context.sample_aspect_ratio = aspect
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            if times is not None:
                picture.pts, picture.time_base = int(times[index]), Fraction(1, 1000)
            file.mux(stream.encode(picture))
        file.mux(stream.encode(None))
    return buffer.getvalue()


def turned(data, quarter_turns):
    """The same mp4, marked to be shown turned clockwise, as phones write it: the matrix of the track header."""
    matrix = {1: (0, 1, -1, 0), 2: (-1, 0, 0, -1), 3: (0, -1, 1, 0)}[quarter_turns]
    a, b, c, d = (value * 0x10000 for value in matrix)
    words = np.array([a, b, 0, c, d, 0, 0, 0, 0x40000000], dtype=">i4").tobytes()
    start = data.index(b"tkhd") + 4 + 40
    return data[:start] + words + data[start + 36 :]
