"""The tasks with known frames ask for clips, or for pictures and where they belong."""

import numpy as np

from svdjax.data.decoding import decode, decode_all, probe, sample_times
from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import from_uint8, read_image
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import ASSETS, Sample, overlap_of

# About the fastest rate that full-size training draws (6 to 31). A faster clip is conditioned on this one.
FASTEST = 30.0


def read_pairs(args: Sample, defaults: SamplingDefaults) -> Given:
    """Clips, of which each pair of neighbouring frames becomes the ends of a video.

    Raises:
        UserError: one cannot be read or has a single frame, or the videos have no room between their ends.
    """
    _check_room(defaults, 2)
    size, videos = (defaults.height, defaults.width), []
    for path in args.photos:
        frames = from_uint8(decode_all(path, size=size).frames)
        if len(frames) < 2:
            raise UserError(f"{path}: has a single frame: give a clip of at least 2")
        video = np.zeros((len(frames) - 1, defaults.frames, *frames.shape[1:]), np.float32)
        video[:, 0], video[:, -1] = frames[:-1], frames[1:]
        videos.append(video)
    rates = [args.fps or (defaults.frames - 1) * probe(path).fps for path in args.photos]
    pieces = [len(video) for video in videos]
    known = np.zeros((sum(pieces), defaults.frames), bool)
    known[:, [0, -1]] = True
    fps = np.repeat(np.minimum(rates, FASTEST), pieces)
    return Given(
        inputs={"video": np.concatenate(videos), "known": known, "fps": fps},
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
    video = np.zeros((len(clips), defaults.frames, *size, 3), np.float32)
    for row, clip in zip(video, clips, strict=True):
        row[:count] = from_uint8(clip[-count:])
    known = np.tile(np.arange(defaults.frames) < count, (len(clips), 1))
    return Given(
        inputs={"video": video, "known": known, "fps": np.array(rates)},
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
