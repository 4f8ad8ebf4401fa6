"""Elo: the same as a plain loop, kept sums, the right order on simulated votes, and whose votes count."""

import json
import random

import numpy as np
import pytest

from svdjax import cli
from svdjax.curation.elo import AXES, attentive, elo, read_votes, standings
from svdjax.curation.standings import Elo, run
from svdjax.errors import UserError


def vote(left, right, quality="left", prompt="left", *, voter="v", check=None, name="a.mp4"):
    return {
        "voter": voter, "name": name, "left": left, "right": right,
        "quality": quality, "prompt": prompt, "check": check, "time": 0.0,
    }  # fmt: skip


def simulated(strengths, count, seed):
    """Votes of random pairs in which the winner is drawn by Elo's own formula."""
    rng = random.Random(seed)
    votes = []
    for _ in range(count):
        a, b = rng.sample(sorted(strengths), 2)
        chance = 1 / (1 + 10 ** ((strengths[b] - strengths[a]) / 400))
        votes.append(vote(a, b, *(("left" if rng.random() < chance else "right") for _ in AXES)))
    return votes


def plain(pairs, models, orders):
    """Elo as on paper: one order after the other, one vote after the other."""
    sums = [0.0] * models
    for order in orders:
        ratings = [1000.0] * models
        for winner, loser in (pairs[i] for i in order):
            expected = 1 / (1 + 10 ** ((ratings[loser] - ratings[winner]) / 400))
            ratings[winner], ratings[loser] = ratings[winner] + (1 - expected), ratings[loser] - (1 - expected)
        sums = [a + b for a, b in zip(sums, ratings, strict=True)]
    return [each / len(orders) for each in sums]


def test_ratings_are_those_of_a_plain_loop_over_the_same_orders():
    rng = random.Random(0)
    pairs = [tuple(rng.sample(range(4), 2)) for _ in range(60)]
    found = elo(*np.array(pairs).T, 5, shuffles=25, seed=3)
    orders = np.random.default_rng(3).permuted(np.tile(np.arange(60), (25, 1)), axis=1)
    assert len({tuple(order) for order in orders}) == 25
    np.testing.assert_allclose(found, plain(pairs, 5, orders.tolist()), rtol=1e-12)
    assert found[4] == 1000.0  # of a model without votes


def test_one_vote_moves_half_a_point():
    np.testing.assert_allclose(elo(np.array([1]), np.array([0]), 2, shuffles=7), [999.5, 1000.5])


def test_the_sum_of_the_ratings_is_kept():
    rng = np.random.default_rng(1)
    winners = rng.integers(0, 6, 500)
    losers = (winners + rng.integers(1, 6, 500)) % 6
    assert elo(winners, losers, 6, shuffles=50).sum() == pytest.approx(6000, abs=1e-8)


def test_stronger_models_rank_higher_and_the_seed_decides_the_orders():
    ranked = standings(simulated({"weak": 900, "middle": 1000, "strong": 1100}, 1500, seed=0), shuffles=100)
    assert [model.model for model in ranked] == ["strong", "middle", "weak"]
    assert ranked[-1].gain == 0 and ranked[0].gain == pytest.approx(ranked[0].aggregate - ranked[-1].aggregate)
    for model in ranked:
        assert model.aggregate == pytest.approx(sum(model.ratings.values()) / 2)
    votes = simulated({"a": 1000, "b": 1010}, 40, seed=1)
    first, again, other = (standings(votes, shuffles=3, seed=seed)[0].aggregate for seed in (0, 0, 1))
    assert first == again != other


def test_each_axis_has_its_own_winners():
    ranked = {model.model: model for model in standings([vote("a", "b", "left", "right")] * 4, shuffles=10)}
    assert ranked["a"].ratings["quality"] > 1000 > ranked["a"].ratings["prompt"]
    assert ranked["a"].wins == {"quality": 4, "prompt": 0} and ranked["b"].votes == {"quality": 4, "prompt": 4}
    assert ranked["a"].aggregate == pytest.approx(1000) and ranked["b"].gain == pytest.approx(0)


def test_voters_who_miss_checks_do_not_count_and_checks_are_no_votes():
    good = [vote("a", "b", voter="good"), vote("a", "a", "right", voter="good", check="right")]
    bad = [vote("b", "a", voter="bad")] + [vote("a", "a", q, voter="bad", check="left") for q in ("left", "right")]
    votes, failed = attentive([*good, *bad], 0.8)
    assert votes == good[:1] and failed == {"bad": 0.5}
    assert len(attentive([*good, *bad], 0.5)[0]) == 2


def write(path, votes, tail=""):
    path.write_text("".join(json.dumps(each) + "\n" for each in votes) + tail)
    return path


def test_a_cut_last_line_is_left_out_and_other_damage_is_named(tmp_path):
    path = write(tmp_path / "votes.jsonl", [vote("a", "b")] * 2, tail='{"voter": "v')
    assert len(read_votes(path)) == 2
    wrong = (
        {"voter": "v"},
        vote("a", 3),
        vote("a", "b", "both"),
        vote("a", "b", check="up"),
        vote("a", "b", ["left"]),
    )
    for each in wrong:
        with pytest.raises(UserError, match=r"votes\.jsonl, line 2: no vote.*remove the line"):
            read_votes(write(path, [vote("a", "b"), each]))
    with pytest.raises(UserError, match="cannot be read"):
        read_votes(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no votes count"):
        run(Elo(votes=write(path, [])))


def test_the_command_prints_a_table_or_json_and_writes_a_page(tmp_path, capsys):
    votes = [*simulated({"a<b>": 1000, "c": 1300}, 30, 0), vote("c", "c", voter="late <v>", check="right")]
    path = write(tmp_path / "votes.jsonl", votes)
    run(Elo(votes=path, shuffles=20))
    printed = capsys.readouterr().out
    assert "Elo after 30 votes" in printed and "late <v>" in printed and "votes.html" in printed.replace("\n", "")
    page = (tmp_path / "votes.html").read_text()
    assert "a&lt;b&gt;" in page and "<b>" not in page and "late &lt;v&gt;" in page and "<svg" in page
    run(Elo(votes=path, shuffles=20, json=True))
    found = json.loads(capsys.readouterr().out)
    with pytest.raises(SystemExit) as stop:
        cli.main(["curate", "elo", str(path), "--shuffles", "20", "--json"])
    assert stop.value.code == 0 and json.loads(capsys.readouterr().out) == found
    assert found["votes"] == 30 and found["failed_checks"] == {"late <v>": 0.0}
    assert [model["model"] for model in found["models"]] == ["c", "a<b>"]
