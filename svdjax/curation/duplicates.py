"""Near-duplicates: a perceptual hash of each still, and which clips to keep of those that look alike.

The hash is the DCT kind ("pHash", Zauner 2010): the signs of the lowest frequencies of the brightness around their
median, which survive rescaling and compression.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from svdjax.curation.clip import ClipFrames
from svdjax.typing import Bool, Float, Int, UInt8, ndarray

BITS = 6  # of 64 that two hashes may differ in
COSINE = 0.97
_SIDE, _LOW = 32, 8  # pixels that the picture is reduced to, and frequencies an axis of the hash
_FLAT = 0.5  # grey levels: what a frequency must be above the median by, so that flat pictures have one hash
_BANDS, _WIDTH = 4, 16
_AT_ONCE = 1 << 22  # pairs, or numbers of a block, that are compared at a time

Pairs = Int[ndarray, "pairs 2"]


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """Which rows to keep.

    Attributes:
        kept: numbers of the rows, ascending.
        removed: of the others.
        groups: each kept row that has duplicates, followed by them, better ones first.
    """

    kept: list[int]
    removed: list[int]
    groups: list[list[int]]


def hash_stills(clip: ClipFrames) -> dict[str, list[int]]:
    """The stage: ``hash``, three signed 64-bit integers, of the first, middle and last frame."""
    return {"hash": [perceptual_hash(still) for still in clip.stills]}


def perceptual_hash(picture: UInt8[ndarray, "h w 3"]) -> int:
    """64 bits as a signed integer, which is what tables hold."""
    grey = Image.fromarray(picture).convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    basis = _dct_basis()
    low = basis @ np.asarray(grey, float) @ basis.T / _SIDE
    bits = low.ravel() > np.median(low) + _FLAT
    return int(np.packbits(bits).view(np.int64)[0])


@lru_cache(maxsize=1)
def _dct_basis() -> Float[ndarray, "low side"]:
    """The lowest rows of the orthonormal DCT-II times sqrt(side), which makes the first the mean times side."""
    angles = np.pi * np.arange(_LOW)[:, None] * (np.arange(_SIDE) + 0.5) / _SIDE
    return np.cos(angles) * np.where(np.arange(_LOW)[:, None] == 0, 1.0, np.sqrt(2.0))


def find_duplicates(
    rows: Sequence[Mapping[str, Any]],
    embeddings: Float[ndarray, "n k c"] | None = None,
    *,
    bits: int = BITS,
    cosine: float = COSINE,
) -> Duplicates:
    """Which clips to keep: of each group of near-duplicates the one of the largest frame, the longest if equal.

    Two clips are near-duplicates if the hashes of their three stills differ in at most ``bits`` bits each; or if
    the mean cosine of their embeddings is at least ``cosine``. Going from the best clip to the worst, each one that
    is no near-duplicate of a kept clip is kept: it is not enough to be near to a removed one.

    Args:
        rows: with ``hash``; ``height``, ``width``, ``seconds``, whether there is a ``caption``, and ``name`` decide
            between duplicates. embeddings: of the rows, NaN for those without.
        bits: 0 to 11. cosine: above 1 for hashes alone.
    """
    order = sorted(range(len(rows)), key=lambda i: _worth(rows[i]), reverse=True)
    same: dict[Any, list[int]] = {}  # equal hashes go together: black clips are many, and their pairs too many
    for i in order:
        same.setdefault(i if rows[i].get("hash") is None else tuple(rows[i]["hash"]), []).append(i)
    firsts = [alike[0] for alike in same.values()]
    best = [rows[i] for i in firsts]
    near: dict[int, list[int]] = {}
    pairs = [_hash_pairs(best, bits)]
    if embeddings is not None and cosine <= 1:
        pairs.append(_embedding_pairs(embeddings, np.array(firsts, int), cosine))
    for a, b in np.concatenate(pairs).tolist():
        near.setdefault(a, []).append(b)
        near.setdefault(b, []).append(a)
    groups: dict[int, list[int]] = {}
    leader: dict[int, int] = {}
    for i, alike in enumerate(same.values()):
        for j in (i, *near.get(i, ())) if i not in leader else ():
            leader.setdefault(j, i)
        groups.setdefault(firsts[leader[i]], []).extend(alike)
    return Duplicates(
        kept=sorted(groups),
        removed=sorted(set(range(len(rows))) - groups.keys()),
        groups=[group for _, group in sorted(groups.items()) if len(group) > 1],
    )


def _worth(row: Mapping[str, Any]) -> tuple[Any, ...]:
    height, width, seconds = (row.get(name) or 0 for name in ("height", "width", "seconds"))
    return (height * width, seconds, bool(row.get("caption")), str(row.get("name", "")))


def _hash_pairs(rows: Sequence[Mapping[str, Any]], bits: int) -> Pairs:
    found = [i for i, row in enumerate(rows) if row.get("hash") is not None]
    hashes = np.array([rows[i]["hash"] for i in found], np.int64).reshape(-1, 3)
    return np.array(found, int)[near_hashes(hashes, bits)]


def near_hashes(hashes: Int[ndarray, "n 3"], bits: int) -> Pairs:
    """All pairs of rows whose hashes differ in at most ``bits`` bits, in each of the three columns.

    Of two such rows' middle hashes, at least one of four bands of 16 bits differs in at most ``bits // 4`` bits (or
    they would differ in more altogether): only rows that agree in a band up to so many flipped bits are compared.
    That is exact, and for random hashes a few comparisons per row.

    Args:
        bits: 0 to 11; the work grows with the 1, 17 or 137 ways to flip a band.
    """
    middle = hashes[:, 1].copy().view(np.uint16).reshape(len(hashes), _BANDS)
    flips = [
        sum(1 << place for place in places)
        for count in range(bits // _BANDS + 1)
        for places in itertools.combinations(range(_WIDTH), count)
    ]
    found = [np.zeros((0, 2), int)]
    for band in middle.T:
        order = np.argsort(band, kind="stable")
        for flip in flips:
            starts, ends = (np.searchsorted(band[order], band ^ flip, side) for side in ("left", "right"))
            for a, places in _candidates(starts, ends):
                b = order[places]
                a, b = a[a < b], b[a < b]
                found.append(np.stack([a, b], 1)[_close(hashes[a], hashes[b], bits)])
    return np.unique(np.concatenate(found), axis=0)


def _candidates(
    starts: Int[ndarray, " n"], ends: Int[ndarray, " n"]
) -> Iterator[tuple[Int[ndarray, " m"], Int[ndarray, " m"]]]:
    """Every row with every place from its start to its end, a few million at a time."""
    counts = ends - starts
    blocks = np.cumsum(counts) // _AT_ONCE
    for rows in np.split(np.arange(len(counts)), np.flatnonzero(np.diff(blocks)) + 1):
        repeated = np.repeat(rows, counts[rows])
        first = np.repeat(np.cumsum(counts[rows]) - counts[rows], counts[rows])
        yield repeated, starts[repeated] + np.arange(len(repeated)) - first


def _close(a: Int[ndarray, "m 3"], b: Int[ndarray, "m 3"], bits: int) -> Bool[ndarray, " m"]:
    return (np.bitwise_count((a ^ b).view(np.uint64)) <= bits).all(1)


def _embedding_pairs(embeddings: Float[ndarray, "n k c"], rows: Int[ndarray, " m"], cosine: float) -> Pairs:
    found = np.flatnonzero(np.isfinite(embeddings[rows, 0, 0]))
    return found[near_embeddings(embeddings[rows[found]], cosine)]


def near_embeddings(embeddings: Float[ndarray, "n k c"], cosine: float) -> Pairs:
    """All pairs of rows whose k embeddings have a mean cosine of at least ``cosine``: n^2 k c products."""
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), 1e-12)
    flat = unit.reshape(len(unit), unit[0:1].size) / np.float32(np.sqrt(embeddings.shape[1]))
    step = max(1, _AT_ONCE // max(1, len(flat)))
    found = [np.zeros((0, 2), int)]
    for start in range(0, len(flat), step):
        near = flat[start : start + step] @ flat[start:].T >= cosine
        found.append(np.argwhere(np.triu(near, 1)) + start)
    return np.concatenate(found)
