"""The camera's motion is found where it is known: in clips of the built-in world, whatever moves before it."""

import numpy as np
import pytest

from svdjax.data.sprites import CAMERAS as WORLD_CAMERAS
from svdjax.data.sprites import World, draw_clip
from svdjax.evaluation.camera import CAMERAS, GlobalMotion, global_motion

CLIPS = 10


@pytest.fixture(scope="module")
def clips():
    """Clips of each camera at a quarter of the full speed or more; a static one has moving shapes only."""

    def draw(camera):
        world = World(cameras=tuple(float(c == camera) for c in WORLD_CAMERAS), frames=4, still_share=0.0)
        drawn = (draw_clip(world, 3, index) for index in range(4 * CLIPS))
        return [clip for clip in drawn if clip.truth.speed > 0.25][:CLIPS]

    return {camera: draw(camera) for camera in CAMERAS}


def test_the_names_are_those_of_the_built_in_world():
    assert set(CAMERAS) == set(WORLD_CAMERAS)


def test_the_camera_of_known_clips_is_named(clips):
    right = {camera: [global_motion(clip.frames).camera == camera for clip in clips[camera]] for camera in CAMERAS}
    assert all(np.mean(found) >= 0.8 for found in right.values()), right
    assert np.mean(list(right.values())) >= 0.95


def test_pans_and_zooms_are_measured_in_their_units(clips):
    world = World()
    for clip in clips["pan right"][:5]:
        wanted = -100 * clip.truth.speed * world.pan_step
        assert global_motion(clip.frames).x == pytest.approx(wanted, rel=0.1, abs=0.2)
    for clip in clips["zoom out"][:5]:
        wanted = -100 * clip.truth.speed * world.zoom_step
        assert global_motion(clip.frames).zoom == pytest.approx(wanted, rel=0.2, abs=0.3)


def test_a_single_frame_has_no_motion(clips):
    assert global_motion(clips["pan up"][0].frames[:1]) == GlobalMotion(x=0.0, y=0.0, zoom=0.0)


def test_the_largest_component_names_the_motion():
    assert GlobalMotion(x=1.0, y=-3.0, zoom=2.0).camera == "pan down"
    assert GlobalMotion(x=1.0, y=0.9, zoom=-2.5).camera == "zoom out"
    assert GlobalMotion(x=0.4, y=-0.4, zoom=0.9).camera == "static"
