"""Which item of a data set each row of a run holds: endless, shuffled, mixed, and a function of (seed, row)."""

from collections.abc import Sequence
from dataclasses import dataclass

import grain
import numpy as np

from svdjax.typing import Int, ndarray

# What a random number is for; without it, draws for different purposes would share a stream.
_ORDER, _SHAPE = 0, 1


@dataclass(frozen=True, kw_only=True)
class Group:
    """Items that are drawn alike: of one shape, and from one part of a mixture.

    Attributes:
        shape: whatever tells shapes apart, for a batch holds items of one shape.
        indices: the items' places in the data set.
        weight: share of the rows that comes from here, up to a factor common to all groups.
    """

    shape: tuple[int, ...]
    indices: Int[ndarray, " n"]
    weight: float


class Order:
    """Rows of all batches of a run -> items, as the groups' weights say.

    The shape of a batch is drawn at random; within a shape, the groups take turns in the proportions of their
    weights (`grain.MapDataset.mix`), and each group is shuffled anew in every pass through it.
    """

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        self._seed = seed
        shapes = sorted({group.shape for group in groups})
        of_shape = [[group for group in groups if group.shape == shape] for shape in shapes]
        weights = np.array([sum(group.weight for group in alike) for alike in of_shape])
        self._ends = np.cumsum(weights / weights.sum())[:-1]
        numbers = {id(group): number for number, group in enumerate(groups)}
        self._orders = [
            grain.MapDataset.mix(
                [_endless(group.indices, seed, numbers[id(group)]) for group in alike],
                [group.weight for group in alike],
            )
            for alike in of_shape
        ]

    def of_batch(self, step: int) -> grain.MapDataset:
        """The order for the rows of a batch: element p is the item of row p of the whole run."""
        if not len(self._ends):
            return self._orders[0]
        draw = np.random.default_rng((self._seed, _SHAPE, step)).random()
        return self._orders[np.searchsorted(self._ends, draw, side="right")]


def _endless(indices: Int[ndarray, " n"], seed: int, number: int) -> grain.MapDataset:
    # grain adds the number of the pass to the seed: hashed, neighbouring seeds are not each other's passes.
    hashed = int(np.random.SeedSequence((seed, _ORDER, number)).generate_state(1)[0])
    return grain.MapDataset.source(indices).shuffle(seed=hashed).repeat().map(int)
