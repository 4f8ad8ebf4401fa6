"""The built-in world: clips of moving shapes under a moving camera, with every ground truth, from (seed, index)."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svdjax.data import solids
from svdjax.data.render import SHAPES, Scene, Sprite, mean_motion, random_texture, render
from svdjax.errors import UserError, check_range
from svdjax.typing import Float, UInt8, ndarray

COLOURS = {
    "red": (0.88, 0.14, 0.12),
    "green": (0.12, 0.68, 0.20),
    "blue": (0.14, 0.28, 0.90),
    "yellow": (0.95, 0.86, 0.15),
    "purple": (0.58, 0.16, 0.78),
    "orange": (0.97, 0.52, 0.08),
    "cyan": (0.12, 0.80, 0.88),
    "white": (0.94, 0.94, 0.94),
}
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
CAMERAS = ("static", "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out")
_CAMERA_PHRASES = {"static": "stays still"} | {
    camera: camera.replace("pan", "pans").replace("zoom", "zooms") for camera in CAMERAS[1:]
}


@dataclass(frozen=True, kw_only=True)
class World:
    """What clips are drawn from. One speed in 0..1 per clip multiplies every velocity in it.

    Attributes:
        height, width, frames, fps: size of a clip in pixels and frames, and its frames per second.
        sprites: smallest and largest number of shapes.
        radius: range of a shape's radius, in heights.
        spread: where shapes start: within so much of the picture's middle along each axis, in heights (of x, in
            widths), and then a tenth of a height upstream of their motion.
        cameras: how often each of CAMERAS is chosen, relative to the others.
        sprite_step, pan_step: movement per frame at full speed, in heights (x 64 for pixels of a 64-pixel clip).
        zoom_step: change of ln(scale) per frame at full speed.
        ground_contrast: strength of the ground's waves, 0..1: the standard deviation of a channel is 0.74 of it;
            0 is a plain ground.
        still_share: share of clips in which nothing moves at all.
        orbit_share: share of clips that show a solid from a circling camera instead; what is said of shapes, their
            motion and the ground does not count there.
        elevation: range of the orbits' elevation in degrees; the paper's multi-view set has -5..30.
    """

    height: int = 64
    width: int = 64
    frames: int = 8
    fps: float = 7.0
    sprites: tuple[int, int] = (1, 2)
    radius: tuple[float, float] = (0.12, 0.2)
    spread: float = 0.28
    cameras: tuple[float, ...] = (2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    sprite_step: float = 4.5 / 64
    pan_step: float = 4.5 / 64
    zoom_step: float = 0.11
    ground_contrast: float = 0.13
    still_share: float = 0.04
    orbit_share: float = 0.0
    elevation: tuple[float, float] = (-5.0, 30.0)

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 8 or self.frames < 1 or self.fps <= 0:
            raise UserError(
                f"the sprite world needs at least 8x8 pixels, one frame and a positive fps, not "
                f"{self.height}x{self.width}, {self.frames} frames, fps {self.fps}: choose larger values"
            )
        if len(self.cameras) != len(CAMERAS) or min(self.cameras) < 0 or sum(self.cameras) <= 0:
            raise UserError(
                f"world.cameras needs {len(CAMERAS)} weights >= 0 that are not all zero, one for each of {CAMERAS}"
            )
        if not 1 <= self.sprites[0] <= self.sprites[1] <= len(COLOURS):
            raise UserError(
                f"world.sprites {self.sprites}: name the fewest and the most, in this order, from 1 to "
                f"{len(COLOURS)} (no two of a clip share a colour)"
            )
        for name, (least, most) in {"radius": self.radius, "elevation": self.elevation}.items():
            if not least <= most:
                raise UserError(f"world.{name} {(least, most)}: name the smallest and the largest, in this order")
        if self.radius[0] <= 0:
            raise UserError(f"world.radius {self.radius}: a shape needs a radius above 0")
        check_range("world.spread", self.spread, 0)
        for name in ("ground_contrast", "still_share", "orbit_share"):
            check_range(f"world.{name}", getattr(self, name), 0, 1)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What is in a clip.

    Attributes:
        kind: "sprites" or "orbit".
        caption: one English sentence that says all of it.
        shapes, colours, directions: one entry per shape, first drawn first; directions are in the world
            ("still" when nothing moves), so that a shape and a camera moving left together look still.
        camera: one of CAMERAS, or "orbit".
        speed: 0..1, the common factor of all velocities.
        motion: mean length of the true flow over pixels and frame pairs, in pixels per frame.
        elevation: degrees, of orbits.
        azimuths: degrees for each frame, of orbits; see `solids.render_orbit`.
    """

    kind: str
    caption: str
    shapes: tuple[str, ...]
    colours: tuple[str, ...]
    directions: tuple[str, ...]
    camera: str
    speed: float
    motion: float
    elevation: float | None = None
    azimuths: tuple[float, ...] | None = None

    def annotations(self) -> dict[str, Any]:
        """The truth as JSON-ready values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A drawn clip, with the true flow (x, y) in pixels from each frame to the next."""

    frames: UInt8[ndarray, "t h w 3"]
    fps: float
    flow: Float[ndarray, "pairs h w 2"]
    truth: Truth


def draw_clip(world: World, seed: int, index: int) -> Clip:
    """Clip ``index`` of the endless series ``seed``: the same every time, whichever clips were drawn before."""
    rng = np.random.default_rng((seed, index))
    if rng.random() < world.orbit_share:
        return _draw_orbit(world, rng)
    return _draw_sprites(world, rng)


def draw_clips(world: World, seed: int, count: int) -> Iterator[Clip]:
    """The first ``count`` clips of the series ``seed``."""
    return (draw_clip(world, seed, index) for index in range(count))


def _draw_sprites(world: World, rng: np.random.Generator) -> Clip:
    still = rng.random() < world.still_share
    speed = 0.0 if still else float(rng.uniform(0.02, 1.0))
    weights = np.array(world.cameras) / sum(world.cameras)
    camera = "static" if still else str(rng.choice(CAMERAS, p=weights))
    count = int(rng.integers(world.sprites[0], world.sprites[1] + 1))
    colours = [str(c) for c in rng.choice(list(COLOURS), count, replace=False)]
    shapes = [str(s) for s in rng.choice(SHAPES, count)]
    headings = [str(d) for d in rng.choice(list(DIRECTIONS), count)]
    centre, scale = _camera_path(world, camera, speed)
    scene = Scene(
        background=_random_background(rng, world.ground_contrast),
        sprites=tuple(
            _random_sprite(world, rng, *each, speed) for each in zip(shapes, colours, headings, strict=True)
        ),
        centre=centre,
        scale=scale,
    )
    frames, flow = render(scene, world.height, world.width)
    directions = ["still"] * count if still else headings
    truth = Truth(
        kind="sprites",
        caption=_caption(shapes, colours, directions, camera),
        shapes=tuple(shapes),
        colours=tuple(colours),
        directions=tuple(directions),
        camera=camera,
        speed=speed,
        motion=mean_motion(flow),
    )
    return Clip(frames=frames, fps=world.fps, flow=flow, truth=truth)


def _camera_path(world: World, camera: str, speed: float) -> tuple[Float[ndarray, "t 2"], Float[ndarray, " t"]]:
    """Centre and scale of the camera in each frame; it starts at the origin with scale 1."""
    time = np.arange(world.frames)
    centre, scale = np.zeros((world.frames, 2)), np.ones(world.frames)
    verb, _, where = camera.partition(" ")
    if verb == "pan":
        centre = time[:, None] * speed * world.pan_step * np.array(DIRECTIONS[where])
    elif verb == "zoom":
        scale = np.exp(time * speed * world.zoom_step * (-1 if where == "in" else 1))
    return centre, scale


def _random_background(rng: np.random.Generator, contrast: float) -> Any:
    """Muted colours in slow waves: shapes stand out, and with contrast the camera's motion shows everywhere."""
    base = rng.uniform(0.3, 0.6) + rng.uniform(-0.12, 0.12, 3)
    return random_texture(rng, base, waves=10, contrast=contrast, tint=0.35, band=(0.8, 4.0))


def _random_sprite(
    world: World, rng: np.random.Generator, shape: str, colour: str, direction: str, speed: float
) -> Sprite:
    heading = np.array(DIRECTIONS[direction])
    radius = float(rng.uniform(*world.radius))
    # Starting a little upstream keeps fast shapes in view; the start must not depend on the speed, or the
    # first frame would tell how much is going to move.
    start = rng.uniform(-world.spread, world.spread, 2) * (world.width / world.height, 1.0) - 0.1 * heading
    texture = random_texture(
        rng, np.array(COLOURS[colour]), waves=3, contrast=0.07, tint=0.0, band=(0.5 / radius, 1.0 / radius)
    )
    return Sprite(
        shape=shape, radius=radius, start=start, velocity=heading * speed * world.sprite_step, texture=texture
    )


def _caption(shapes: list[str], colours: list[str], directions: list[str], camera: str) -> str:
    parts = [
        f"{_article(colour)} {colour} {shape} " + ("stays still" if direction == "still" else f"moves {direction}")
        for shape, colour, direction in zip(shapes, colours, directions, strict=True)
    ]
    return f"{' and '.join(parts)} while the camera {_CAMERA_PHRASES[camera]}"


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _draw_orbit(world: World, rng: np.random.Generator) -> Clip:
    shape = str(rng.choice(solids.SOLIDS))
    colour = str(rng.choice([c for c in COLOURS if c != "white"]))  # the ground is white
    elevation = float(rng.uniform(*world.elevation))
    azimuths = (rng.uniform(0, 360) + 360 / world.frames * np.arange(world.frames)) % 360
    look = solids.random_look(rng, shape, np.array(COLOURS[colour]))
    frames, flow = solids.render_orbit(look, elevation, azimuths, world.height, world.width)
    truth = Truth(
        kind="orbit",
        caption=f"the camera orbits {_article(colour)} {colour} {shape}",
        shapes=(shape,),
        colours=(colour,),
        directions=("still",),
        camera="orbit",
        speed=1.0,
        motion=mean_motion(flow),
        elevation=elevation,
        azimuths=tuple(azimuths.tolist()),
    )
    return Clip(frames=frames, fps=world.fps, flow=flow, truth=truth)
