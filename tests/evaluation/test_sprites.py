"""The detector finds in clips of the built-in world what is in them, and nothing in an empty one."""

import dataclasses

import numpy as np
import pytest

from svdjax.data.sprites import World, draw_clips
from svdjax.evaluation.sprites import Seen, look

WORLD = World(sprites=(1, 1), cameras=(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0))
# Large things on plain grounds, as the text demo sees them.
LARGE = dataclasses.replace(WORLD, radius=(0.2, 0.28), spread=0.08, ground_contrast=0.0)


@pytest.fixture(scope="module", params=[WORLD, LARGE], ids=["default", "large"])
def clips(request):
    return list(draw_clips(request.param, 5, 32))


def test_it_finds_colour_shape_and_direction(clips):
    seen = [look(clip.frames) for clip in clips]
    truths = [clip.truth for clip in clips]
    assert [found.colour for found in seen] == [truth.colours[0] for truth in truths]
    shapes = [found.shape == truth.shapes[0] for found, truth in zip(seen, truths, strict=True)]
    moving = [clip.truth.speed > 0.1 for clip in clips]
    directions = [found.direction == truth.directions[0] for found, truth in zip(seen, truths, strict=True)]
    assert np.mean(shapes) >= 0.9 and sum(moving) > 20
    assert all(right for right, moves in zip(directions, moving, strict=True) if moves)


def test_time_reversed_the_direction_is_the_opposite_one(clips):
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    for clip in [clip for clip in clips if clip.truth.speed > 0.2][:4]:
        assert look(clip.frames[::-1]).direction == opposite[look(clip.frames).direction]


def test_one_picture_stands_still(clips):
    assert look(np.repeat(clips[0].frames[:1], 4, axis=0)).direction == "still"


def test_nothing_is_found_where_nothing_is():
    assert look(np.full((3, 64, 64, 3), 110, np.uint8)) == Seen(colour=None, shape=None, direction=None)
