"""The tasks with known frames ask for clips, or for pictures and where they belong."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from svdjax.data.decoding import decode, decode_all, probe, sample_times
from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import from_uint8, read_image
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import ASSETS, Sample, overlap_of
from svdjax.typing import Bool, Float, Int, UInt8, ndarray

# About the fastest rate that full-size training draws (6 to 31). A faster clip is conditioned on this one.
FASTEST = 30.0


@dataclass(frozen=True, kw_only=True)
class SparseVideos:
    """Videos of which some frames are given, made as they are asked for.

    All at once, the gaps of a clip take twenty times its memory: five float32 frames for each uint8 frame of it.

    Attributes:
        given: frames of all videos, each kept once.
        index: which of them each frame of a video is; -1 where it is not given.
    """

    given: UInt8[ndarray, "n h w 3"]
    index: Int[ndarray, "b t"]

    @classmethod
    def of(
        cls,
        clips: Sequence[UInt8[ndarray, "_ h w 3"]],
        which: Int[ndarray, "b k"],
        *,
        at: Sequence[int],
        frames: int,
    ) -> "SparseVideos":
        """Videos of so many ``frames``, which have at ``at`` those that ``which`` numbers through all clips."""
        index = np.full((len(which), frames), -1)
        index[:, at] = which
        return cls(given=np.concatenate(clips), index=index)

    @property
    def known(self) -> Bool[ndarray, "b t"]:
        """Which frames are given."""
        return self.index >= 0

    def __getitem__(self, rows: Int[ndarray, " b"]) -> Float[ndarray, "b t h w 3"]:
        """These videos, in [-1, 1]; zeros where a frame is not given."""
        index, known = self.index[rows], self.known[rows]
        video = np.zeros((*index.shape, *self.given.shape[1:]), np.float32)
        video[known] = from_uint8(self.given[index[known]])
        return video


def read_pairs(args: Sample, defaults: SamplingDefaults) -> Given:
    """Clips, of which each pair of neighbouring frames becomes the ends of a video.

    Raises:
        UserError: one cannot be read or has a single frame, or the videos have no room between their ends.
    """
    _check_room(defaults, 2)
    size, clips = (defaults.height, defaults.width), []
    for path in args.photos:
        clips.append(decode_all(path, size=size).frames)
        if len(clips[-1]) < 2:
            raise UserError(f"{path}: has a single frame: give a clip of at least 2")
    lengths = [len(clip) for clip in clips]
    first = np.delete(np.arange(sum(lengths)), np.cumsum(lengths) - 1)  # every frame but the last of each clip
    rates = [args.fps or (defaults.frames - 1) * probe(path).fps for path in args.photos]
    pieces = [length - 1 for length in lengths]
    fps = np.repeat(np.minimum(rates, FASTEST), pieces)
    video = SparseVideos.of(clips, np.stack([first, first + 1], axis=1), at=[0, -1], frames=defaults.frames)
    return Given(
        inputs={"video": video, "known": video.known, "fps": fps},
        names=[path.stem for path in args.photos],
        notes=[{"clip": path.name} for path in args.photos],
        pieces=pieces,
        rates=rates,
    )


def read_beginnings(args: Sample, defaults: SamplingDefaults) -> Given:
    """Clips, whose last frames become the first ones of a video; at ``--fps``, or their own rate if it is
    lower. A picture is a clip of one frame.

    Raises:
        UserError: one cannot be read or is too short.
    """
    size, count = (defaults.height, defaults.width), overlap_of(args, defaults.frames)
    clips, rates = [], []
    for path in args.photos:
        info = probe(path)
        fps = min(info.fps, defaults.fps) if info.last else defaults.fps  # a picture has no rate of its own
        length = int(info.last * fps + 1e-3) + 1
        if length < count:
            raise UserError(
                f"{path}: has {length} frame(s) at {fps:g} fps, to go on from {count}: give a longer clip, or "
                f"--overlap {length}"
            )
        times = sample_times(info.last - (length - 1) / fps, fps, length)
        clips.append(decode(path, np.maximum(times, 0), size=size))
        rates.append(fps)
    which = np.arange(len(clips) * count).reshape(-1, count)
    ends = [clip[-count:] for clip in clips]
    video = SparseVideos.of(ends, which, at=range(count), frames=defaults.frames)
    return Given(
        inputs={"video": video, "known": video.known, "fps": np.array(rates)},
        names=[path.stem for path in args.photos],
        notes=[{"clip": path.name} for path in args.photos],
        before=[clip[:-count] for clip in clips],
        rates=rates,
    )


def read_ends(args: Sample, defaults: SamplingDefaults) -> Given:
    """Two pictures, the first and the last frame of a video.

    Raises:
        UserError: there are not two, one cannot be read, or the video has no room between them.
    """
    if len(args.photos) != 2:
        raise UserError(f"{len(args.photos)} pictures: give two, the first and the last frame of the video")
    _check_room(defaults, 2)
    return _placed(args, defaults, (0, defaults.frames - 1))


def read_placed(args: Sample, defaults: SamplingDefaults) -> Given:
    """Pictures, and with ``--at`` the frames of one video that they are.

    Raises:
        UserError: the numbers do not fit the pictures or the video, or a picture cannot be read.
    """
    at = args.at
    if not args.photos:
        raise UserError(
            "--task known_frames: give pictures, and with --at of each which frame it is: a.png b.png --at 0 7"
        )
    if not at or len(at) != len(args.photos):
        raise UserError(f"--at: {len(at)} numbers for {len(args.photos)} pictures: say of each which frame it is")
    if len(set(at)) != len(at) or min(at) < 0 or max(at) >= defaults.frames:
        raise UserError(f"--at {' '.join(map(str, at))}: give different numbers from 0 to {defaults.frames - 1}")
    _check_room(defaults, len(at))
    return _placed(args, defaults, at)


def _check_room(defaults: SamplingDefaults, count: int) -> None:
    """See that there is a frame to make beside so many that are given.

    Raises:
        UserError: there is none.
    """
    if defaults.frames <= count:
        raise UserError(
            f"--frames {defaults.frames}: with {count} given none is left to make: ask for at least {count + 1}"
        )


def _placed(args: Sample, defaults: SamplingDefaults, at: tuple[int, ...]) -> Given:
    video = np.zeros((1, defaults.frames, defaults.height, defaults.width, 3), np.float32)
    known = np.zeros((1, defaults.frames), bool)
    for path, index in zip(args.photos, at, strict=True):
        video[0, index] = read_image(path, defaults.height, defaults.width, args.fit)
        known[0, index] = True
    return Given(
        inputs={"video": video, "known": known},
        names=["-".join(path.stem for path in args.photos)],
        notes=[{"pictures": " ".join(path.name for path in args.photos)}],
    )


_SCALARS = ("motion_bucket", "noise_aug")
_BETWEEN = ("frame_interpolation", "first_last", "known_frames")
RATE = 4  # the paper's: as many times as many frames
# All of one clip: each fourth frame, its first and fifth one, and the whole.
PAIRS = Reader(
    models=_BETWEEN,
    options=("photos", *_SCALARS),
    read=read_pairs,
    photos=(ASSETS / "demo_clip_sparse.mp4",),
    frames=RATE + 1,
)
ENDS = Reader(
    models=_BETWEEN,
    options=("photos", "fit", *_SCALARS),
    read=read_ends,
    photos=(ASSETS / "demo_photo.png", ASSETS / "demo_photo_later.png"),
)
BEGINNINGS = Reader(
    models=("video_prediction", "known_frames"),
    options=("photos", "windows", "overlap", *_SCALARS),
    read=read_beginnings,
    photos=(ASSETS / "demo_clip.mp4",),
)
PLACED = Reader(models=("known_frames",), options=("photos", "at", "fit", *_SCALARS), read=read_placed)
