"""Draws the built-in world: wavy textures, anti-aliased shapes and a moving camera, with the exact optical flow.

Lengths are in units of the picture's height, positions are (x, y) from the picture's centre, y downwards.
Camera t sees world point ``X`` at picture position ``p = (X - centre[t]) / scale[t]``: a falling scale zooms in.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np

from svdjax.typing import Float, UInt8, ndarray

SHAPES = ("circle", "square", "triangle", "diamond", "hexagon", "cross")

# Edge normals' angles in degrees (y down) of the convex shapes, and their apothem for a radius of 1.
# The radii give every shape about the same area, so that no shape moves more pixels than another.
_POLYGONS = {
    "square": ((0, 90, 180, 270), 0.89),
    "triangle": ((90, 210, 330), 0.78),
    "diamond": ((45, 135, 225, 315), 0.89),
    "hexagon": (tuple(range(0, 360, 60)), 0.95),
}


@dataclass(frozen=True, kw_only=True)
class Texture:
    """A colour plus plane waves: ``base + sum_k colour_k sin(2 pi frequency_k . x + phase_k)``; colours in 0..1."""

    base: Float[ndarray, "3"]
    frequency: Float[ndarray, "k 2"]
    phase: Float[ndarray, " k"]
    colour: Float[ndarray, "k 3"]


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """A textured shape: start position and velocity per frame in the world."""

    shape: str
    radius: float
    start: Float[ndarray, "2"]
    velocity: Float[ndarray, "2"]
    texture: Texture


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that is drawn; later sprites cover earlier ones."""

    background: Texture
    sprites: tuple[Sprite, ...]
    centre: Float[ndarray, "t 2"]
    scale: Float[ndarray, " t"]


def random_texture(
    rng: np.random.Generator, base: Float[ndarray, "3"], *, waves: int, contrast: float, tint: float, band: tuple
) -> Texture:
    """A texture around ``base`` whose waves sum up to about ``contrast`` (standard deviation).

    Args:
        tint: 0 for pure brightness waves, 1 for waves of independent colours.
        band: lowest and highest frequency, in cycles per unit length.
    """
    angle = rng.uniform(0, 2 * np.pi, waves)
    frequency = np.exp(rng.uniform(np.log(band[0]), np.log(band[1]), waves))
    colour = (1 - tint) + tint * rng.normal(size=(waves, 3))
    colour *= contrast * np.sqrt(2 / waves) / max(1.0, np.hypot(1 - tint, tint))
    return Texture(
        base=base.astype(np.float32),
        frequency=(frequency[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, waves).astype(np.float32),
        colour=colour.astype(np.float32),
    )


def render(
    scene: Scene, height: int, width: int
) -> tuple[UInt8[ndarray, "t h w 3"], Float[ndarray, "pairs h w 2"]]:
    """Draw a scene.

    Returns:
        The frames, and the true flow between neighbours in pixels: the surface seen at pixel (x, y) of frame t
        is at (x, y) + flow[t, y, x] in frame t+1, where it may be covered or out of the picture. Flow is (x, y).
    """
    grid_x = ((np.arange(width) + 0.5 - width / 2) / height).astype(np.float32)
    grid_y = ((np.arange(height) + 0.5 - height / 2) / height).astype(np.float32)
    scale = scene.scale[:, None].astype(np.float32)
    world_x = scene.centre[:, :1].astype(np.float32) + grid_x * scale
    world_y = scene.centre[:, 1:].astype(np.float32) + grid_y * scale

    picture = _paint(scene.background, world_x, world_y)
    flow = _camera_flow(scene, grid_x, grid_y)
    velocity = np.zeros_like(flow)
    for sprite in scene.sprites:
        place = sprite.start + np.arange(len(scale))[:, None] * sprite.velocity
        local_x = world_x - place[:, :1].astype(np.float32)
        local_y = world_y - place[:, 1:].astype(np.float32)
        distance = signed_distance(sprite.shape, sprite.radius, local_x, local_y)
        cover = np.clip(0.5 - distance * height / scale[:, :, None], 0, 1)
        picture += cover[..., None] * (_paint(sprite.texture, local_x, local_y) - picture)
        velocity[cover[:-1] > 0.5] = sprite.velocity
    flow += velocity / scale[1:, :, None, None]
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8), flow * height


def signed_distance(
    shape: str, radius: float, x: Float[ndarray, "t w"], y: Float[ndarray, "t h"]
) -> Float[ndarray, "t h w"]:
    """Distance to a shape's outline, negative inside; exact within a pixel of the edges."""
    x, y = x[:, None, :], y[:, :, None]
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "cross":
        long, short = 1.05 * radius, 0.42 * radius
        upright = np.maximum(np.abs(x) - short, np.abs(y) - long)
        return np.minimum(upright, np.maximum(np.abs(x) - long, np.abs(y) - short))
    angles, apothem = _POLYGONS[shape]
    # Python floats, not NumPy scalars, keep the arrays in float32.
    edges = (x * float(np.cos(a)) + y * float(np.sin(a)) for a in np.deg2rad(angles))
    return reduce(np.maximum, edges) - radius * apothem


def _paint(texture: Texture, x: Float[ndarray, "t w"], y: Float[ndarray, "t h"]) -> Float[ndarray, "t h w 3"]:
    """Colours of a texture on the grid of all (x, y).

    ``sin(a + b) = sin a cos b + cos a sin b`` with ``a`` of x alone and ``b`` of y alone turns the whole
    picture into one small matrix product per frame.
    """
    turns = np.float32(2 * np.pi)
    a = turns * texture.frequency[:, 0, None] * x[:, None, :] + texture.phase[:, None]
    b = turns * texture.frequency[:, 1] * y[:, :, None]
    along_x = np.concatenate([np.sin(a), np.cos(a)], 1)[..., None] * np.tile(texture.colour, (2, 1))[:, None, :]
    along_y = np.concatenate([np.cos(b), np.sin(b)], 2)
    frames, waves, width, _ = along_x.shape
    waves_sum = along_y @ along_x.reshape(frames, waves, width * 3)
    return waves_sum.reshape(frames, y.shape[1], width, 3) + texture.base


def _camera_flow(
    scene: Scene, grid_x: Float[ndarray, " w"], grid_y: Float[ndarray, " h"]
) -> Float[ndarray, "pairs h w 2"]:
    """Flow of points that rest in the world, in units of the height."""
    growth = scene.scale[:-1] / scene.scale[1:] - 1
    shift = (scene.centre[:-1] - scene.centre[1:]) / scene.scale[1:, None]
    flow = np.empty((len(growth), len(grid_y), len(grid_x), 2), np.float32)
    flow[..., 0] = (growth[:, None] * grid_x + shift[:, :1])[:, None, :]
    flow[..., 1] = (growth[:, None] * grid_y + shift[:, 1:])[:, :, None]
    return flow


def mean_motion(flow: Float[ndarray, "pairs h w 2"]) -> float:
    """Mean length of the flow over all pixels and frame pairs, in pixels per frame; 0 for a single frame."""
    return float(np.hypot(flow[..., 0], flow[..., 1]).mean()) if flow.size else 0.0
