"""Draws simple shaded solids from a circling camera, with known elevation, azimuths and flow.

The solid rests at the origin of a right-handed world with z up and fills a ball of radius 0.68. The camera stands
2.6 away at ``(cos e cos a, cos e sin a, sin e)`` for elevation e and azimuth a, looks at the origin and sees 33.8
degrees from top to bottom, SV3D's field of view. A growing azimuth moves it anticlockwise as seen from above,
so that the front of the solid moves to the left in the picture.
"""

from dataclasses import dataclass

import numpy as np

from svdjax.typing import Bool, Float, UInt8, ndarray

SOLIDS = ("cube", "pyramid", "octahedron", "prism", "column", "sphere")

_DISTANCE, _RADIUS = 2.6, 0.68
_FOCAL = 0.5 / np.tan(np.deg2rad(33.8) / 2)
_LIGHT = np.array([0.45, -0.5, 0.74], np.float32)
_SAMPLES = 2  # rays per pixel and axis


@dataclass(frozen=True, kw_only=True)
class Look:
    """A solid's shape and surface.

    Attributes:
        shape: one of SOLIDS.
        colour: base colour in 0..1.
        tints: factor on each face's colour (one face for the sphere).
        frequency, phase, strength: waves of brightness, ``sum_k strength_k sin(frequency_k . X + phase_k)``.
    """

    shape: str
    colour: Float[ndarray, "3"]
    tints: Float[ndarray, " faces"]
    frequency: Float[ndarray, "k 3"]
    phase: Float[ndarray, " k"]
    strength: Float[ndarray, " k"]


def random_look(rng: np.random.Generator, shape: str, colour: Float[ndarray, "3"]) -> Look:
    """A random surface that tells every azimuth apart."""
    waves = 4
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Look(
        shape=shape,
        colour=colour.astype(np.float32),
        tints=rng.uniform(0.6, 1.1, 1 if shape == "sphere" else len(_faces(shape)[1])).astype(np.float32),
        frequency=(direction * rng.uniform(6, 16, (waves, 1))).astype(np.float32),
        phase=rng.uniform(0, 2 * np.pi, waves).astype(np.float32),
        strength=np.full(waves, 0.25, np.float32),
    )


def render_orbit(
    look: Look, elevation: float, azimuths: Float[ndarray, " t"], height: int, width: int
) -> tuple[UInt8[ndarray, "t h w 3"], Float[ndarray, "pairs h w 2"]]:
    """Views of a solid on a white ground.

    Args:
        elevation, azimuths: the camera's, in degrees.

    Returns:
        The frames, and the flow between neighbours in pixels as in `render.render` (0 on the ground). A surface
        that turns away is covered in the next frame; its flow says where it would be.
    """
    position, basis = cameras(elevation, azimuths)
    n = _SAMPLES
    grid_x = (np.arange(n * width) + 0.5 - n * width / 2) / (n * height)
    grid_y = (np.arange(n * height) + 0.5 - n * height / 2) / (n * height)
    plane = np.stack(
        [*np.broadcast_arrays(grid_x, -grid_y[:, None]), np.full((len(grid_y), len(grid_x)), _FOCAL)], -1
    )
    rays = np.einsum("hwi,tij->thwj", plane.astype(np.float32), basis, optimize=True)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    depth, normal, tint, hit = _intersect(look, position[:, None, None], rays)
    points = position[:, None, None] + rays * depth[..., None]

    light = 0.45 + 0.55 * np.clip(normal @ (_LIGHT / np.linalg.norm(_LIGHT)), 0, None)
    waves = np.sin(points @ look.frequency.T + look.phase) @ look.strength
    colour = np.clip(look.colour * (tint * light * (1 + waves))[..., None], 0, 1)
    picture = _pool(np.where(hit[..., None], colour, np.float32(1)))
    flow = _flow(points[:-1], hit[:-1], position[1:], basis[1:], grid_x, grid_y)
    return (picture * 255 + 0.5).astype(np.uint8), flow * height


def cameras(
    elevation: float, azimuths: Float[ndarray, " t"]
) -> tuple[Float[ndarray, "t 3"], Float[ndarray, "t 3 3"]]:
    """Positions of the cameras, and the rows right, up, forward of each, in world coordinates."""
    e, a = np.deg2rad(elevation), np.deg2rad(azimuths)
    outward = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.full_like(a, np.sin(e))], 1)
    right = np.stack([-np.sin(a), np.cos(a), np.zeros_like(a)], 1)
    basis = np.stack([right, np.cross(outward, right), -outward], 1)
    return (_DISTANCE * outward).astype(np.float32), basis.astype(np.float32)


def _faces(shape: str) -> tuple[Float[ndarray, "faces 3"], Float[ndarray, " faces"]]:
    """Outward normals and distances from the origin of a convex solid's faces."""
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    ends = np.array([[0, 0, 1.0], [0, 0, -1.0]])
    if shape == "cube":
        normals, offsets = axes, np.full(6, 1 / np.sqrt(3))
    elif shape == "octahedron":
        signs = np.array(np.meshgrid([1, -1], [1, -1], [1, -1])).reshape(3, -1).T
        normals, offsets = signs / np.sqrt(3), np.full(8, 1 / np.sqrt(3))
    elif shape == "pyramid":
        # Apex (0, 0, 1), square base at z = -0.5: slanted faces touch the base at distance 0.6.
        normals = np.concatenate([np.stack([*_ring(4), np.full(4, 0.4)], 1), ends[1:]])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        offsets = np.append(normals[:4, 2], 0.5)
    else:
        sides, reach = (3, 0.42) if shape == "prism" else (6, 0.62)
        normals = np.concatenate([np.stack([*_ring(sides), np.zeros(sides)], 1), ends])
        offsets = np.append(np.full(sides, reach), [0.6, 0.6])
    return normals.astype(np.float32), (_RADIUS * offsets).astype(np.float32)


def _ring(count: int) -> tuple[Float[ndarray, " n"], Float[ndarray, " n"]]:
    angle = 2 * np.pi * np.arange(count) / count
    return np.cos(angle), np.sin(angle)


def _intersect(
    look: Look, origin: Float[ndarray, "t 1 1 3"], rays: Float[ndarray, "t h w 3"]
) -> tuple[Float[ndarray, "t h w"], Float[ndarray, "t h w 3"], Float[ndarray, "t h w"], Bool[ndarray, "t h w"]]:
    """Depth along each ray, normal and tint where it enters the solid, and whether it does."""
    if look.shape == "sphere":
        closest = -(rays * origin).sum(-1)
        inside = _RADIUS**2 - (_DISTANCE**2 - closest**2)
        depth = closest - np.sqrt(np.clip(inside, 0, None))
        normal = (origin + rays * depth[..., None]) / np.float32(_RADIUS)
        return depth, normal, np.full(depth.shape, look.tints[0]), inside > 0
    normals, offsets = _faces(look.shape)
    enter = np.full(rays.shape[:3], -np.inf, np.float32)
    leave = np.full(rays.shape[:3], np.inf, np.float32)
    face = np.zeros(rays.shape[:3], np.intp)
    for i, (n, offset) in enumerate(zip(normals, offsets, strict=True)):
        slope = rays @ n
        gap = offset - origin @ n
        # A ray along a face meets it never: far outside or far inside.
        at = gap / np.where(np.abs(slope) < 1e-9, np.float32(-1e-9), slope)
        front = (slope < 0) & (at > enter)
        enter = np.where(front, at, enter)
        face[front] = i
        leave = np.where(slope > 0, np.minimum(leave, at), leave)
    hit = enter < leave
    return np.where(hit, enter, np.float32(_DISTANCE)), normals[face], look.tints[face], hit


def _flow(
    points: Float[ndarray, "pairs H W 3"],
    hit: Bool[ndarray, "pairs H W"],
    position: Float[ndarray, "pairs 3"],
    basis: Float[ndarray, "pairs 3 3"],
    grid_x: Float[ndarray, " W"],
    grid_y: Float[ndarray, " H"],
) -> Float[ndarray, "pairs h w 2"]:
    """Where the next cameras see the points, minus where they are now, in heights, averaged over each pixel."""
    seen = np.einsum("thwj,tij->thwi", points - position[:, None, None], basis, optimize=True)
    next_x = _FOCAL * seen[..., 0] / seen[..., 2]
    next_y = -_FOCAL * seen[..., 1] / seen[..., 2]
    flow = np.stack([next_x - grid_x, next_y - grid_y[:, None]], -1) * hit[..., None]
    share = _pool(hit[..., None].astype(np.float32))
    return np.where(share > 0.5, _pool(flow.astype(np.float32)) / np.maximum(share, 0.5), 0).astype(np.float32)


def _pool(values: Float[ndarray, "t H W c"]) -> Float[ndarray, "t h w c"]:
    """Mean over the rays of each pixel."""
    n = _SAMPLES
    return sum(values[:, i::n, j::n] for i in range(n) for j in range(n)) / np.float32(n * n)
