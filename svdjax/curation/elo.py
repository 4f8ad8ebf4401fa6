"""Elo ratings of models from pairwise votes, as the paper compares its filtered data sets (appendix E).

A vote is a JSON object on a line of its own: ``voter``; ``name`` of the videos; ``left`` and ``right``, the models
that they are of; ``quality`` and ``prompt``, the better side on each axis (``"left"`` or ``"right"``); ``check``,
null or the better side of an attention check; ``time``, in seconds since 1970.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svdjax.errors import UserError
from svdjax.typing import Float, Int, ndarray

BASE, SCALE = 10.0, 400.0  # 400 points more: ten wins to one loss
START = 1000.0
K = 1.0
SHUFFLES = 1000
MIN_CHECKS = 0.8  # share of the attention checks that a voter has to pass
AXES = ("quality", "prompt")  # visual quality, and how well the prompt is followed

_BEGIN = '{"voter": '  # of each vote in a file

Vote = Mapping[str, Any]  # a line of the file of votes


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One model's ratings.

    Attributes:
        model: its name. ratings: by axis. aggregate: their mean. gain: aggregate above that of the worst model.
        wins, votes: of the model, by axis.
    """

    model: str
    ratings: dict[str, float]
    aggregate: float
    gain: float
    wins: dict[str, int]
    votes: dict[str, int]


def elo(
    winners: Int[ndarray, " n"],
    losers: Int[ndarray, " n"],
    models: int,
    *,
    shuffles: int = SHUFFLES,
    seed: int = 0,
) -> Float[ndarray, " m"]:
    """Ratings after all votes, averaged over random orders of the votes.

    A winner whose rating is above the loser's by d was expected to win with probability
    p = 1 / (1 + 10^(-d / 400)); it gains K (1 - p), which the loser loses.

    Args:
        winners, losers: numbers of the models, 0 to ``models`` - 1, of each vote.
        models: how many there are; one without votes keeps `START`.
        shuffles: orders to average over. seed: of the orders.
    """
    rng = np.random.default_rng(seed)
    orders = rng.permuted(np.tile(np.arange(len(winners)), (shuffles, 1)), axis=1)
    ratings = np.full((shuffles, models), START)
    row = np.arange(shuffles)
    for votes in orders.T:  # the same place in every order at once
        winner, loser = winners[votes], losers[votes]
        ahead = ratings[row, winner] - ratings[row, loser]
        gain = K * (1 - 1 / (1 + BASE ** (-ahead / SCALE)))
        ratings[row, winner] += gain
        ratings[row, loser] -= gain
    return ratings.mean(0)


def standings(votes: Sequence[Vote], *, shuffles: int = SHUFFLES, seed: int = 0) -> list[Standing]:
    """The models, best first.

    Args:
        votes: of `read_votes`. shuffles, seed: of `elo`.

    Raises:
        UserError: no votes.
    """
    if not votes:
        raise UserError("no votes count: vote first, or let those who miss checks count with --min-checks 0")
    models = sorted({vote[side] for vote in votes for side in ("left", "right")})
    number = {model: i for i, model in enumerate(models)}
    ratings, wins, counts = {}, {}, {}
    for axis in AXES:
        winners = np.array([number[vote[vote[axis]]] for vote in votes])
        losers = np.array([number[vote["right" if vote[axis] == "left" else "left"]] for vote in votes])
        ratings[axis] = elo(winners, losers, len(models), shuffles=shuffles, seed=seed)
        wins[axis] = np.bincount(winners, minlength=len(models))
        counts[axis] = wins[axis] + np.bincount(losers, minlength=len(models))
    aggregate = np.mean([ratings[axis] for axis in AXES], axis=0)
    return [
        Standing(
            model=models[i],
            ratings={axis: float(ratings[axis][i]) for axis in AXES},
            aggregate=float(aggregate[i]),
            gain=float(aggregate[i] - aggregate.min()),
            wins={axis: int(wins[axis][i]) for axis in AXES},
            votes={axis: int(counts[axis][i]) for axis in AXES},
        )
        for i in np.argsort(-aggregate, kind="stable")
    ]


def read_votes(path: Path) -> list[dict[str, Any]]:
    """The votes and attention checks of a file, in order; a last line that a kill has cut is left out.

    Raises:
        UserError: no such file, or a line that is no vote.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}): name the --votes of svdjax curate vote"
        ) from None
    lines = text.removesuffix(cut_off(text)).split("\n")
    return [_vote(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def cut_off(text: str) -> str:
    """What a kill has left of the last vote: the start of one, without an end of line; mostly empty."""
    tail = text[text.rfind("\n") + 1 :]
    begun = tail.startswith(_BEGIN) or _BEGIN.startswith(tail)
    return tail if begun and not tail.endswith("}") else ""


def _vote(line: str, where: str) -> dict[str, Any]:
    try:
        vote = json.loads(line)
        names = [vote[key] for key in ("voter", "name", "left", "right")]
        sides = [vote[axis] for axis in AXES]
        check = vote["check"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no vote ({error!r}): remove the line") from None
    if not all(isinstance(name, str) for name in names):
        raise UserError(f"{where}: no vote, for a name is no text: remove the line")
    if any(side not in ("left", "right") for side in sides) or check not in ("left", "right", None):
        raise UserError(f"{where}: no vote, for an answer is neither left nor right: remove the line")
    return vote


def attentive(votes: Sequence[Vote], min_checks: float) -> tuple[list[Vote], dict[str, float]]:
    """The votes of attentive voters, without the checks.

    Args:
        min_checks: share of the attention checks that a voter has to pass. One who met none counts.

    Returns:
        Votes that count, and the share of checks passed of each voter who is left out.
    """
    passed: dict[str, list[bool]] = {}
    for vote in votes:
        if vote["check"] is not None:
            passed.setdefault(vote["voter"], []).append(vote["quality"] == vote["check"])
    shares = {voter: sum(each) / len(each) for voter, each in passed.items()}
    failed = {voter: share for voter, share in shares.items() if share < min_checks}
    return [vote for vote in votes if vote["check"] is None and vote["voter"] not in failed], failed
