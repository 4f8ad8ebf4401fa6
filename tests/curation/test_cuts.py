"""Known cuts between real shots are found: hard ones, dissolves and fades; motion is no cut."""

import numpy as np
import pytest

from svdjax.curation.cuts import Cut, find_cuts, judge_mixture, unmoved
from tests.curation.films import BIKE_CUTS, BIKES, joined, order, right, shots, small


@pytest.fixture(scope="module")
def parts():
    return shots()


@pytest.mark.parametrize(("dissolve", "least"), [(0, 0.95), (12, 0.9), (25, 0.9)])
def test_known_cuts_are_found_and_no_others(parts, dissolve, least):
    rng = np.random.default_rng(100 + dissolve)
    counts = np.zeros(4)
    for _ in range(4):
        film, changes = joined([parts[i] for i in order(len(parts), rng)], dissolve)
        counts += right([cut.frame for cut in find_cuts(small(film))], changes)
    found, changes, correct, cuts = counts
    assert changes == 32
    assert found / changes >= least and correct / cuts >= least, counts


def test_cuts_of_a_real_film_are_those_an_eye_finds():
    from svdjax.curation.scan import scan

    found = scan(BIKES, "bikes")
    assert found.cuts == [Cut(number, number) for number in BIKE_CUTS]
    assert found.keys == [0, *BIKE_CUTS] and len(found.stamps) == 250 and not found.notes


def test_frames_of_a_dissolve_belong_to_neither_scene(parts):
    film, ((first, last),) = joined([parts[5], parts[7]], dissolve=12)
    (cut,) = find_cuts(small(film))
    assert abs(cut.end - first) <= 2 and abs(cut.start - last - 1) <= 2


def test_a_fade_to_black_and_back_is_found_at_any_frame_rate(parts):
    black = np.zeros_like(parts[5][:30])
    film, changes = joined([parts[5], black, parts[7]], dissolve=12)
    assert len(changes) == 2
    assert right([c.frame for c in find_cuts(small(film))], changes).tolist() == [2, 2, 2, 2]
    twice, slow = np.repeat(film, 2, axis=0), [(2 * a, 2 * b + 1) for a, b in changes]
    assert right([c.frame for c in find_cuts(small(twice, fps=50.0))], slow).tolist() == [2, 2, 2, 2]


def test_one_shot_has_no_cut(parts):
    assert [find_cuts(small(part)) for part in parts] == [[]] * len(parts)
    assert find_cuts([]) == []


def mixture(shares, noise=0.0):
    """Frames mixed of two random pictures."""
    rng = np.random.default_rng(0)
    first, last = rng.uniform(0, 255, (2, 576)).astype(np.float32)
    shares = np.asarray(shares, np.float32)[:, None]
    frames = first * (1 - shares) + last * shares
    return frames + rng.normal(0, noise, frames.shape).astype(np.float32) if noise else frames


def test_a_mixture_is_told_from_a_cut_a_jump_and_motion():
    rise = np.clip(np.linspace(-0.3, 1.3, 25), 0, 1)
    residual, first, last = judge_mixture(mixture(rise))
    assert residual < 1e-3
    assert (first, last) == (np.flatnonzero(rise > 0.2)[0], np.flatnonzero(rise < 0.8)[-1])
    assert judge_mixture(mixture(rise > 0.5)) is None  # a hard cut
    assert judge_mixture(mixture(rise, noise=90.0)) is None  # as much else as mixture
    assert judge_mixture(mixture(np.zeros(25))) is None  # nothing changes
    late = np.concatenate([np.linspace(0, 0.7, 4), np.linspace(0.7, 1, 30)])
    assert judge_mixture(mixture(late)) is None  # fast, then slow: something passed by
    slight = mixture(rise)[0] + rise[:, None] * np.float32(20) * np.sin(np.arange(576, dtype=np.float32))
    assert judge_mixture(slight.astype(np.float32)) is None  # the same picture, a little changed


def test_pans_over_real_pictures_are_no_cuts(parts):
    """A soft picture that moves looks like a mixture, but for the flow."""
    wide = [part[0] for part in shots(height=360, width=640)[::2]]
    pans = [
        np.stack([picture[100:196:2, i * step : i * step + 128 : 2] for i in range(60)])
        for picture in wide
        for step in (1, 2, 4)
    ]
    assert sum(bool(find_cuts(small(np.repeat(np.repeat(pan, 2, 1), 2, 2), fps=10.0))) for pan in pans) <= 1


def test_flow_accounts_for_motion_and_not_for_a_dissolve(parts):
    picture, other = parts[5][0], parts[7][0]
    assert unmoved(picture[:, :120], picture[:, 2:122]) < 0.2
    mixed = [np.uint8(picture * (1 - a) + other * a) for a in (0.4, 0.6)]
    assert unmoved(*mixed) > 0.7
    assert unmoved(picture, picture) == 0.0
