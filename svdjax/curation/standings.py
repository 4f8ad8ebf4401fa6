"""The command ``svdjax curate elo``: how models stand after the votes, as a table, as JSON, and as a page."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from svdjax.curation.elo import AXES, MIN_CHECKS, SHUFFLES, Standing, attentive, read_votes, standings
from svdjax.errors import MissingPackage, check_range
from svdjax.pages import COLOURS, draw, figure, table, write_page

HEADER = ("model", *AXES, "aggregate", "gain", *(f"{axis} won" for axis in AXES))


@dataclass(frozen=True, kw_only=True)
class Elo:
    """Rate models by the votes of `svdjax curate vote`, and write a page about it.

    Ratings start at 1000, with K = 1 and 400 points for ten to one, and are means over random orders of the votes.
    The gain is the aggregate above that of the worst model.

    Attributes:
        votes: the file of votes.
        json: print one JSON object instead of the table, and write no page.
        out: the page; left out: beside the votes, ending in .html. Needs matplotlib.
        shuffles: random orders of the votes to average over.
        seed: of the orders.
        min_checks: share of the attention checks that a voter has to pass for their votes to count.
    """

    votes: Annotated[Path, tyro.conf.Positional]
    json: bool = False
    out: Path | None = None
    shuffles: int = SHUFFLES
    seed: int = 0
    min_checks: float = MIN_CHECKS

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a number is out of range.
        """
        check_range("--shuffles", self.shuffles, 1)
        check_range("--seed", self.seed, 0)
        check_range("--min-checks", self.min_checks, 0, 1)


def run(args: Elo) -> None:
    """Print the standings and write the page.

    Raises:
        UserError: the votes cannot be read, or none counts.
    """
    votes, failed = attentive(read_votes(args.votes), args.min_checks)
    models = standings(votes, shuffles=args.shuffles, seed=args.seed)
    if args.json:
        ranked = [dataclasses.asdict(model) for model in models]
        print(json.dumps({"votes": len(votes), "failed_checks": failed, "models": ranked}, indent=1))
        return
    console = Console()
    console.print(_table(models, len(votes)))
    for voter, share in failed.items():
        console.print(f"left out: {voter}, who passed {share:.0%} of the attention checks", markup=False)
    path = args.out or args.votes.with_suffix(".html")
    try:
        write_page(path, f"Elo: {args.votes.name}", _page(models, len(votes), failed))
    except MissingPackage as error:
        print(f"no page: {error}", file=sys.stderr)
    else:
        console.print(path, markup=False, soft_wrap=True)


def _table(models: Sequence[Standing], votes: int) -> Table:
    shown = Table(title=f"Elo after {votes:,} votes")
    for name in HEADER:
        shown.add_column(name, justify="left" if name == "model" else "right")
    for cells in map(_cells, models):
        shown.add_row(*cells)
    return shown


def _cells(model: Standing) -> tuple[str, ...]:
    ratings = [*model.ratings.values(), model.aggregate]
    won = [f"{model.wins[axis]}/{model.votes[axis]}" for axis in AXES]
    return (model.model, *(f"{rating:.1f}" for rating in ratings), f"{model.gain:+.1f}", *won)


def _page(models: Sequence[Standing], votes: int, failed: Mapping[str, float]) -> Iterator[str]:
    yield "<h1>Elo ratings</h1>"
    yield f'<p class="dim">{votes:,} votes. Gain is the aggregate above that of the worst model.</p>'
    yield table(HEADER, map(_cells, models))
    yield f'<div class="curves">{figure(draw("Elo gain over the worst model", _bars(models)), "")}</div>'
    if failed:
        yield "<h2>Voters left out</h2>"
        yield table(("voter", "checks passed"), ((voter, f"{share:.0%}") for voter, share in failed.items()))


def _bars(models: Sequence[Standing]) -> Any:
    """Draws, of each model, the gain on each axis over the model that is worst on the aggregate."""
    names = [model.model for model in models][::-1]
    worst = models[-1]

    def plot(axes: Any) -> None:
        for i, axis in enumerate((*AXES, "aggregate")):
            values = [_rating(model, axis) - _rating(worst, axis) for model in models][::-1]
            places = [place + 0.27 * (1 - i) for place in range(len(names))]
            axes.barh(places, values, height=0.25, color=COLOURS[i], label=axis)
        axes.set_yticks(range(len(names)), names)
        axes.legend(frameon=False, fontsize="small")

    return plot


def _rating(model: Standing, axis: str) -> float:
    return model.aggregate if axis == "aggregate" else model.ratings[axis]
