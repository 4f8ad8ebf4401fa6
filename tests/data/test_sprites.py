"""The built-in world: determinism, captions against parameters, and flow against the drawn frames."""

import dataclasses
import re

import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.stats import spearmanr

from svdjax.data import solids
from svdjax.data.motion import flow_magnitude
from svdjax.data.render import SHAPES, mean_motion, signed_distance
from svdjax.data.sprites import CAMERAS, COLOURS, DIRECTIONS, World, draw_clip, draw_clips
from svdjax.errors import UserError


def moving(camera, **changes):
    """A world in which every clip has this camera."""
    return World(cameras=tuple(float(c == camera) for c in CAMERAS), still_share=0.0, **changes)


def pull_back(frames, flow, t):
    """How far frame t+1, fetched from where the flow points, is from frame t: each pixel's largest channel.

    NaN where the flow leaves the picture.
    """
    height, width = flow.shape[1:3]
    rows, columns = np.mgrid[:height, :width] + np.stack([flow[t, ..., 1], flow[t, ..., 0]])
    warped = [map_coordinates(frames[t + 1, ..., c].astype(float), [rows, columns], order=3) for c in range(3)]
    inside = (rows >= 0) & (rows <= height - 1) & (columns >= 0) & (columns <= width - 1)
    return np.where(inside, np.abs(np.stack(warped, -1) - frames[t]).max(-1), np.nan)


def test_a_clip_depends_on_seed_and_index_alone():
    later = draw_clip(World(), 3, 7)
    series = list(draw_clips(World(), 3, 8))
    np.testing.assert_array_equal(series[7].frames, later.frames)
    assert series[7].truth == later.truth
    assert not np.array_equal(draw_clip(World(), 4, 7).frames, later.frames)


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (33, 17)])
def test_any_size_and_length(size):
    clip = draw_clip(World(height=size[0], width=size[1], frames=5), 0, 0)
    assert clip.frames.shape == (5, *size, 3) and clip.frames.dtype == np.uint8
    assert clip.flow.shape == (4, *size, 2)
    assert draw_clip(World(frames=1), 0, 0).truth.motion == 0.0


@pytest.mark.parametrize("camera", CAMERAS)
def test_flow_moves_each_pixel_to_where_its_surface_goes(camera):
    for index in range(4):
        clip = draw_clip(moving(camera), 11, index)
        for t in range(0, 7, 3):
            error = pull_back(clip.frames, clip.flow, t)
            # Rounding to bytes costs half a level; pixels on outlines and covered ones are few.
            assert np.nanmedian(error) < 1.0
            assert np.mean(error[np.isfinite(error)] > 12) < 0.15
            if clip.truth.motion > 0.3:
                assert np.nanmean(pull_back(clip.frames, -clip.flow, t)) > 1.5 * np.nanmean(error)


def test_farneback_ranks_clips_like_the_true_flow():
    clips = list(draw_clips(World(), 5, 64))
    measured = [flow_magnitude(clip.frames) for clip in clips]
    assert spearmanr(measured, [clip.truth.motion for clip in clips]).statistic >= 0.95


def test_motion_is_spread_from_nothing_to_five_pixels():
    motion = np.array([clip.truth.motion for clip in draw_clips(World(), 1, 300)])
    assert motion.min() == 0.0
    assert 3.9 < motion.max() < 5.5
    assert np.quantile(motion, 0.2) < 0.5 < 2.0 < np.quantile(motion, 0.75)


def test_the_first_frame_does_not_tell_how_much_moves():
    """One speed scales all motion, and the first frame is the same whatever it is."""
    slow, fast = (
        draw_clip(moving("pan left", pan_step=s * 4.5 / 64, sprite_step=s * 4.5 / 64), 2, 0) for s in (0.5, 1.0)
    )
    np.testing.assert_array_equal(slow.frames[0], fast.frames[0])
    assert fast.truth.motion == pytest.approx(2 * slow.truth.motion, rel=0.05)
    clips = list(draw_clips(moving("pan left"), 3, 100))
    contrast = [clip.frames[0].std() for clip in clips]
    assert abs(spearmanr(contrast, [clip.truth.motion for clip in clips]).statistic) < 0.3


def test_still_clips_do_not_move_and_say_so():
    truth = draw_clip(World(still_share=1.0), 0, 0)
    assert (truth.frames == truth.frames[0]).all()
    assert truth.truth.motion == truth.truth.speed == 0.0
    assert "moves" not in truth.truth.caption and "the camera stays still" in truth.truth.caption


@pytest.mark.parametrize("index", range(20))
def test_captions_name_every_parameter_in_order(index):
    truth = draw_clip(World(orbit_share=0.2), 9, index).truth
    found = re.findall(r"\ban? (\w+) (\w+)", truth.caption)
    assert found == list(zip(truth.colours, truth.shapes, strict=True))
    assert re.findall(r"moves (\w+)", truth.caption) == [d for d in truth.directions if d != "still"]
    assert set(truth.colours) <= set(COLOURS) and set(truth.shapes) <= {*SHAPES, *solids.SOLIDS}
    camera = {"static": "stays still", "orbit": "the camera orbits"}.get(truth.camera)
    assert (camera or truth.camera.replace(" ", "s ")) in truth.caption


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_shapes_move_where_the_caption_says(direction):
    world = moving("static", sprites=(1, 1))
    clip = next(c for c in (draw_clip(world, 4, i) for i in range(99)) if c.truth.directions == (direction,))
    moves = clip.flow[np.abs(clip.flow).sum(-1) > 0]
    step = clip.truth.speed * world.sprite_step * world.height
    np.testing.assert_allclose(
        moves, np.broadcast_to(np.array(DIRECTIONS[direction]) * step, moves.shape), rtol=1e-4
    )


@pytest.mark.parametrize("camera", CAMERAS[1:])
def test_the_background_moves_against_the_camera(camera):
    clip = draw_clip(moving(camera), 0, 0)
    corner, opposite = clip.flow[0, 0, 0], clip.flow[0, -1, -1]
    verb, where = camera.split()
    if verb == "pan":
        assert np.sign(corner) @ np.array(DIRECTIONS[where]) == -1
    else:
        assert (np.sign(opposite) == (1 if where == "in" else -1)).all() and (
            np.sign(corner) == -np.sign(opposite)
        ).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_have_about_the_same_area(shape):
    grid = np.linspace(-2, 2, 400)[None]
    area = (signed_distance(shape, 1.0, grid, grid) < 0).mean() * 16
    assert 2.2 < area < 3.6


@pytest.mark.parametrize("shape", solids.SOLIDS)
def test_orbit_flow_and_azimuths_agree_with_the_views(shape):
    rng = np.random.default_rng(0)
    look = solids.random_look(rng, shape, np.array([0.2, 0.7, 0.3]))
    frames, flow = solids.render_orbit(look, 20.0, np.array([40.0, 45.0, 405.0]), 64, 64)
    # Azimuths count modulo 360 degrees, and other ones look different.
    np.testing.assert_allclose(frames[1].astype(int), frames[2], atol=1)
    assert np.abs(frames[0].astype(int) - frames[1]).max() > 20
    inside = np.hypot(*np.moveaxis(flow[0], -1, 0)) > 0
    assert 0.1 < inside.mean() < 0.8
    error = pull_back(frames, flow, 0)[inside]
    unmoved = pull_back(frames, 0 * flow, 0)[inside]
    assert np.quantile(error, 0.7) < 0.5 * np.quantile(unmoved, 0.7)


def test_orbit_cameras_stand_where_elevation_and_azimuth_say():
    position, basis = solids.cameras(30.0, np.array([0.0, 90.0]))
    np.testing.assert_allclose(position[:, 2] / np.linalg.norm(position, axis=1), 0.5, atol=1e-6)
    np.testing.assert_allclose(np.arctan2(position[:, 1], position[:, 0]), np.deg2rad([0, 90]), atol=1e-6)
    np.testing.assert_allclose(basis @ np.swapaxes(basis, 1, 2), np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-6)
    assert (np.linalg.det(basis * np.array([1, 1, -1])[None, :, None]) > 0).all()


def test_an_orbit_goes_once_round_in_equal_steps():
    clip = draw_clip(World(orbit_share=1.0, frames=6), 0, 0)
    truth = clip.truth
    np.testing.assert_allclose(np.diff(np.unwrap(truth.azimuths, period=360)), 60.0, atol=1e-9)
    assert -5 <= truth.elevation <= 30 and truth.camera == "orbit"
    assert truth.motion == pytest.approx(mean_motion(clip.flow)) and truth.motion > 0.5


def test_the_ground_may_be_plain_and_shapes_of_any_size():
    world = moving("static", sprites=(1, 1), ground_contrast=0.0)
    for index in range(4):
        clips = [draw_clip(dataclasses.replace(world, radius=(size, size)), 6, index) for size in (0.1, 0.2)]
        # The ground has more than half of the pixels, so each channel's median is its colour.
        plain = [(clip.frames[0] == np.median(clip.frames[0], (0, 1))).all(-1) for clip in clips]
        covered = [1 - share.mean() for share in plain]
        assert 0.01 < covered[0] < 0.08 and 0.04 < covered[1] < 0.25 and covered[1] > 2 * covered[0]


def test_impossible_worlds_are_refused():
    with pytest.raises(UserError, match="at least 8x8"):
        World(height=4)
    with pytest.raises(UserError, match="weights"):
        World(cameras=(1.0,))
    for sprites in ((2, 1), (0, 1), (1, 9)):
        with pytest.raises(UserError, match="fewest and the most"):
            World(sprites=sprites)
    for name, value in (("radius", (0.3, 0.2)), ("elevation", (30.0, -5.0))):
        with pytest.raises(UserError, match=f"world.{name} .* smallest and the largest"):
            World(**{name: value})
    with pytest.raises(UserError, match="above 0"):
        World(radius=(0.0, 0.2))
    for name, value in (
        ("spread", -0.1),
        ("ground_contrast", -0.1),
        ("ground_contrast", 2.0),
        ("still_share", 2.0),
        ("orbit_share", -0.5),
    ):
        with pytest.raises(UserError, match=f"world.{name} {value}"):
            World(**{name: value})
