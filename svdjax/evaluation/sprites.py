"""What a clip of the built-in world shows: the colour, the shape and the direction of its one moving thing."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from svdjax.data.render import SHAPES, signed_distance
from svdjax.data.sprites import COLOURS, DIRECTIONS
from svdjax.typing import Bool, Float, UInt8, ndarray

# Textures vary in brightness alone, so a thing has the chroma of its colour: RGB (0..1) less its mean. The ground
# is muted, and darker than white.
_NEAR = 0.2
_WHITE = 0.72
_LEAST = 0.02  # share of a picture that the smallest shape covers, about halved
_RADII = np.linspace(0.10, 0.30, 21)  # of the shapes that are tried, in heights
_MOVED = 0.1 / 64  # per frame, in heights: below it a thing is still


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What was found, in the words of `data.sprites`; None for a thing that is not there.

    Attributes:
        colour, shape: of the thing. direction: in which it moves, or "still".
    """

    colour: str | None
    shape: str | None
    direction: str | None


def look(frames: UInt8[ndarray, "t h w 3"]) -> Seen:
    """Find the thing in a clip of one thing before a camera at rest.

    The colour is the one of which there is most; where it is, by frame, gives the direction by the centre's way
    from the first to the last frame in which it is seen whole enough, and the shape by the overlap with each
    outline, tried in every size at that centre, averaged over the frames.
    """
    pixels = frames.astype(np.float32) / 255
    masks = {name: _mask(pixels, name) for name in COLOURS}
    # A light patch of the ground may look white, but none looks coloured.
    colour = max(masks, key=lambda name: masks[name].mean() - (name == "white"))
    colour = colour if masks[colour].mean() >= _LEAST else "white"
    mask = masks[colour]
    shown = [i for i in range(len(mask)) if mask[i].mean() >= _LEAST]
    if not shown:
        return Seen(colour=None, shape=None, direction=None)
    centres = np.array([_centre(mask[i]) for i in shown])
    return Seen(colour=colour, shape=_shape(mask[shown], centres), direction=_direction(centres, shown))


def _mask(pixels: Float[ndarray, "t h w 3"], colour: str) -> Bool[ndarray, "t h w"]:
    """Pixels of a named colour: of all names the nearest in chroma, and near; of white, bright ones without any."""
    names = list(COLOURS)
    chroma, wanted = (x - x.mean(-1, keepdims=True) for x in (pixels, np.array(list(COLOURS.values()), np.float32)))
    away = np.linalg.norm(chroma[..., None, :] - wanted, axis=-1)
    nearest = (away.argmin(-1) == names.index(colour)) & (away.min(-1) < _NEAR)
    return nearest & (pixels.mean(-1) > _WHITE) if colour == "white" else nearest


def _centre(mask: Bool[ndarray, "h w"]) -> Float[ndarray, "2"]:
    """Of the pixels, as (x, y) from the picture's centre in heights; the median is not led astray by a few."""
    y, x = np.nonzero(mask)
    height, width = mask.shape
    return np.array([np.median(x) + 0.5 - width / 2, np.median(y) + 0.5 - height / 2]) / height


def _direction(centres: Float[ndarray, "n 2"], shown: list[int]) -> str:
    if len(shown) < 2:
        return "still"
    slope = np.polyfit(shown, centres, 1)[0]
    if np.abs(slope).max() < _MOVED:
        return "still"
    return max(DIRECTIONS, key=lambda name: float(slope @ np.array(DIRECTIONS[name])))


def _shape(mask: Bool[ndarray, "t h w"], centres: Float[ndarray, "t 2"]) -> str:
    height, width = mask.shape[1:]
    scores = dict.fromkeys(SHAPES, 0.0)
    for shape in SHAPES:
        best = np.zeros(len(_RADII))
        for number, radius in enumerate(_RADII):
            for each, centre in zip(mask, centres, strict=True):
                outline = _outline(
                    shape, float(radius), height, width, *np.round(centre * height).astype(int).tolist()
                )
                best[number] += (each & outline).sum() / max((each | outline).sum(), 1)
        scores[shape] = float(best.max())
    return max(scores, key=scores.__getitem__)


@cache
def _outline(shape: str, radius: float, height: int, width: int, x: int, y: int) -> Bool[ndarray, "h w"]:
    """The pixels inside a shape whose centre is (x, y) pixels from the picture's."""
    columns = ((np.arange(width) + 0.5 - width / 2 - x) / height).astype(np.float32)
    rows = ((np.arange(height) + 0.5 - height / 2 - y) / height).astype(np.float32)
    return signed_distance(shape, radius, columns[None], rows[None])[0] <= 0
