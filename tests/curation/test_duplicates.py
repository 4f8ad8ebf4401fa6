"""Perceptual hashes of real clips and their copies; exact neighbours against all pairs; who is kept."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from svdjax.curation.clip import ClipFrames
from svdjax.curation.duplicates import find_duplicates, hash_stills, near_embeddings, near_hashes, perceptual_hash
from svdjax.data.decoding import decode, decode_all, resize_crop
from tests.curation.films import BIKE_CUTS, BIKES, RABBIT
from tests.data.clips import encode


def clip(frames):
    """What the stages would see of these frames."""
    return ClipFrames(name="clip", stills=frames[[0, len(frames) // 2, -1]], moving=frames, seconds=1.0, fps=25.0)


def near(a, b):
    """Most bits that differ in any of the three stills."""
    return max(bin((x ^ y) & (2**64 - 1)).count("1") for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def scenes():
    """One frame sequence of each scene of two real films."""
    times = [(start + np.arange(20)) / 25 for start in (0, *(cut + 1 for cut in BIKE_CUTS[:-1]))]
    found = [decode(BIKES, each) for each in times]
    return [*found, decode(RABBIT, np.arange(20) / 25, size=(240, 424))]


def test_copies_of_real_clips_are_found_and_other_scenes_are_not(scenes):
    hashes = [hash_stills(clip(frames))["hash"] for frames in scenes]
    for number, frames in enumerate(scenes):
        height, width = frames.shape[1:3]
        poor = decode_all(encode(frames, options={"crf": "38"}, fps=25)).frames
        small = resize_crop(frames, (height // 2, width // 2))
        small_and_poor = decode_all(encode(small, options={"crf": "30"}, fps=25)).frames
        for copy in (poor, small, small_and_poor, np.clip(frames.astype(int) + 12, 0, 255).astype(np.uint8)):
            assert near(hashes[number], hash_stills(clip(copy))["hash"]) <= 6
    apart = [near(a, b) for a, b in itertools.combinations(hashes, 2)]
    assert min(apart) > 12


def test_of_all_copies_the_largest_then_the_longest_stays(scenes):
    rows = []
    for number, frames in enumerate(scenes[:4]):
        for copy, (size, seconds) in enumerate([((120, 284), 9.0), ((240, 568), 2.0), ((240, 568), 3.0)]):
            annotations = hash_stills(clip(resize_crop(frames, size)))
            rows.append(
                {"name": f"{number}-{copy}", "height": size[0], "width": size[1], "seconds": seconds, **annotations}
            )
    found = find_duplicates(rows)
    assert found.kept == [2, 5, 8, 11] and found.removed == [0, 1, 3, 4, 6, 7, 9, 10]
    assert found.groups == [[2, 1, 0], [5, 4, 3], [8, 7, 6], [11, 10, 9]]


def test_the_hash_is_the_signs_of_the_low_frequencies_around_their_median():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (32, 32, 1), np.uint8).repeat(3, 2)
    grey = np.asarray(Image.fromarray(picture).convert("L"), float)
    n = np.arange(32) + 0.5
    coefficients = np.zeros((8, 8))
    for u, v in itertools.product(range(8), repeat=2):
        scale = (1 if u else 0.5**0.5) * (1 if v else 0.5**0.5) * 2 / 32
        coefficients[u, v] = scale * (grey * np.cos(np.pi * u * n / 32)[:, None] * np.cos(np.pi * v * n / 32)).sum()
    wanted = np.packbits(coefficients > np.median(coefficients) + 0.5).tobytes()
    assert perceptual_hash(picture).to_bytes(8, "little", signed=True) == wanted


def test_flat_pictures_have_one_hash_whatever_compression_left_in_them():
    hashes = set()
    for seed in range(5):
        noise = np.random.default_rng(seed).integers(0, 3, (90, 160, 3), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise + np.uint8(10)).save(buffer, "JPEG", quality=60)
        hashes.add(perceptual_hash(np.asarray(Image.open(buffer))))
    assert len(hashes) == 1


@pytest.mark.parametrize("bits", [0, 3, 6, 9])
def test_near_hashes_are_those_of_all_pairs(bits):
    rng = np.random.default_rng(bits)
    base = rng.integers(-(2**63), 2**63, (60, 3), np.int64)
    copies = [base, base[:3].repeat(4, 0)]  # exact ones, too
    for flips in (1, 3, 6, 7, 10):
        changed = base.copy()
        for row, column in itertools.product(range(60), range(3)):
            for place in rng.choice(64, flips, replace=False):
                changed[row, column] ^= np.int64(np.uint64(1 << int(place)).view(np.int64))
        copies.append(changed)
    hashes = np.concatenate(copies)
    counts = np.bitwise_count((hashes[:, None] ^ hashes[None]).view(np.uint64)).max(-1)
    wanted = np.argwhere(np.triu(counts <= bits, 1))
    np.testing.assert_array_equal(near_hashes(hashes, bits), wanted)
    assert len(wanted) >= 18  # the exact copies


def test_many_hashes_take_no_more_than_a_few_comparisons_each(monkeypatch):
    from svdjax.curation import duplicates

    compared, close = [], duplicates._close
    monkeypatch.setattr(duplicates, "_close", lambda a, b, bits: compared.append(len(a)) or close(a, b, bits))
    n = 20_000
    hashes = np.random.default_rng(0).integers(-(2**63), 2**63, (n, 3), np.int64)
    assert len(near_hashes(np.concatenate([hashes, hashes[:50]]), 6)) == 50
    assert sum(compared) < n * (n - 1) / 2 / 500


def test_near_embeddings_are_those_of_all_pairs(monkeypatch):
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((30, 3, 16)).astype(np.float32)
    embeddings[20:] = embeddings[:10] * 3 + 0.1 * rng.standard_normal((10, 3, 16))
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    wanted = np.argwhere(np.triu(np.einsum("ikc,jkc->ijk", unit, unit).mean(-1) >= 0.9, 1))
    assert len(wanted) == 10
    for size in (1 << 22, 70):
        monkeypatch.setattr("svdjax.curation.duplicates._AT_ONCE", size)
        np.testing.assert_array_equal(near_embeddings(embeddings, 0.9), wanted)


def test_rows_join_by_hash_or_embedding_but_not_in_chains():
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, 3, 8))
    rows = [
        {"name": "plain", "height": 9, "width": 9},
        {"name": "a", "height": 4, "width": 4, "hash": [0, 0, 0]},
        {"name": "like a", "height": 2, "width": 2, "hash": [1, 0, 2]},
        {"name": "moved a", "height": 3, "width": 3, "hash": [-1, -1, -1]},
        {"name": "like like a", "height": 1, "width": 1, "hash": None},
    ]
    embeddings = np.stack([np.full_like(one, np.nan), one, other, one, other])
    found = find_duplicates(rows, embeddings, bits=1)
    assert found.groups == [[1, 3, 2]] and found.kept == [0, 1, 4]
    told = [{"name": name, "hash": [3, 3, 3], "caption": caption} for name, caption in (("a", "told"), ("b", None))]
    assert find_duplicates(told).kept == [0]
    assert find_duplicates(rows, np.full((5, 3, 8), np.nan), bits=1) == find_duplicates(rows, bits=1)
    assert find_duplicates(rows, embeddings, bits=1, cosine=1.1).groups == [[1, 2]]
    assert find_duplicates([]).kept == []
    same = [{"name": f"{i:05}", "hash": [7, 7, 7]} for i in range(30_000)]  # 450 million pairs
    many = np.concatenate([np.full((30_000, 3, 8), np.nan), embeddings])
    assert find_duplicates([*same, *rows], many, bits=1).kept == [29_999, 30_000, 30_001, 30_004]
    assert find_duplicates(rows[:1]).kept == [0]
