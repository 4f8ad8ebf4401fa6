"""The voting page over real HTTP: who is asked what, whole and partial videos, durable votes, refused requests."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from contextlib import ExitStack, closing, contextmanager

import pytest

from svdjax import cli
from svdjax.curation import votes as module
from svdjax.curation.elo import read_votes
from svdjax.curation.vote_page import Vote, run, server
from svdjax.curation.votes import Poll, prompt_of, videos_of_models
from svdjax.errors import Unread, UserError

BYTES = bytes(range(256)) * 300


@pytest.fixture
def folders(tmp_path):
    """Three models with videos of three prompts; model c lacks one."""
    for model, names in {"a": "xyz", "b": "xyz", "c": "xy"}.items():
        (tmp_path / model / "deep").mkdir(parents=True)
        for name in names:
            (tmp_path / model / f"deep/{name}.mp4").write_bytes(model.encode() + BYTES)
    (tmp_path / "b/deep/x.txt").write_text("a red <ball>\n")
    return [tmp_path / model for model in "abc"]


@pytest.fixture
def votes(tmp_path):
    return tmp_path / "votes.jsonl"


@pytest.fixture
def poll_of():
    """Makes polls on folders, or on models, and closes them."""
    with ExitStack() as stack:

        def make(videos, votes, **options):
            models = videos if isinstance(videos, dict) else videos_of_models(videos)
            return stack.enter_context(closing(Poll(models, votes, **options)))

        yield make


def vote_all(poll, voter, quality=lambda question: "left", most=1000):
    """Answer everything; the questions."""
    asked = []
    while (question := poll.question(voter)) and len(asked) < most:
        assert poll.question(voter) == question
        asked.append(question)
        assert poll.answer(voter, question.ticket, {"quality": quality(question), "prompt": "right"})
    return asked


def test_every_pair_gets_as_many_votes_as_annotators_each_of_another_voter(folders, votes, poll_of):
    poll = poll_of(folders, votes, annotators=2, check_every=0)
    assert len(poll.pairs) == 3 + 2 + 2
    orders = [vote_all(poll, voter) for voter in ("first", "second", "third")]
    assert [len(asked) for asked in orders] == [7, 7, 0]
    pairs = Counter((vote["name"], *sorted((vote["left"], vote["right"]))) for vote in read_votes(votes))
    assert pairs == dict.fromkeys(poll.pairs, 2)
    assert [q.ticket for q in orders[0]] != [q.ticket for q in orders[1]]


def test_votes_of_those_who_miss_checks_take_no_place_of_others(folders, votes, poll_of):
    poll = poll_of(folders, votes, annotators=1, check_every=2)
    vote_all(poll, "asleep", lambda question: "right" if question.check == "left" else "left")
    assert poll.progress("asleep") == (7, 0) and poll.progress("ann") == (0, 7)
    vote_all(poll, "ann", lambda question: question.check or "left")
    assert poll.progress("ann") == (7, 0) and poll.question("bob") is None


def test_sides_are_drawn_evenly_and_orders_repeat_with_the_seed(tmp_path, poll_of):
    models = {model: {f"{i:03}": tmp_path for i in range(200)} for model in "ab"}
    asked = {seed: vote_all(poll_of(models, tmp_path / f"{seed}.jsonl", seed=seed % 2, check_every=0), "v")
             for seed in (0, 1, 2)}  # fmt: skip
    assert asked[0] == asked[2] != asked[1]
    assert 70 < sum(question.left == "a" for question in asked[0]) < 130


def test_a_check_comes_in_every_run_of_pairs_and_shows_one_model_twice(tmp_path, poll_of):
    models = {model: {f"{i:03}": tmp_path for i in range(60)} for model in "ab"}
    asked = vote_all(poll_of(models, tmp_path / "votes", check_every=10), "v")
    before = [sum(q.check is None for q in asked[:i]) for i, question in enumerate(asked) if question.check]
    assert [count // 10 for count in before] == list(range(6)) and len({count % 10 for count in before}) > 2
    checks = [question for question in asked if question.check]
    assert all(question.left == question.right for question in checks)
    assert {question.check for question in checks} == {"left", "right"}
    assert sum(vote["check"] is not None for vote in read_votes(tmp_path / "votes")) == 6


def test_a_new_process_goes_on_where_votes_stopped_and_a_cut_line_is_dropped(folders, votes, poll_of):
    poll = poll_of(folders, votes, annotators=1)
    asked = vote_all(poll, "v", most=4)
    following = poll.question("v")
    poll.close()
    with open(votes, "ab") as file:
        file.write(b'{"voter": "v", "na')
    again = poll_of(folders, votes, annotators=1)
    assert again.question("v") == following and following not in asked
    vote_all(again, "v", most=1)
    assert len(read_votes(votes)) == 5


def test_a_last_line_without_its_end_is_kept(folders, votes, poll_of):
    poll = poll_of(folders, votes)
    vote_all(poll, "v", most=2)
    poll.close()
    votes.write_bytes(votes.read_bytes().rstrip(b"\n"))
    vote_all(poll_of(folders, votes), "v", most=1)
    assert len(read_votes(votes)) == 3


def test_foreign_files_are_refused_and_left_alone(folders, tmp_path, poll_of):
    notes = tmp_path / "notes.md"
    notes.write_text("my notes, without an end of line")
    with pytest.raises(UserError, match="no vote"):
        poll_of(folders, notes)
    assert notes.read_text() == "my notes, without an end of line"
    with pytest.raises(UserError, match="cannot be written"):
        poll_of(folders, tmp_path)


def test_what_is_answered_after_the_end_is_not_kept(folders, votes, poll_of):
    poll = poll_of(folders, votes)
    with serving(poll) as port:
        ticket = poll.question("v").ticket
        poll.close()
        status, said = post(port, voter="v", ticket=ticket, quality="left", prompt="left")
    assert status == 500 and "the server is ending" in said["error"] and read_votes(votes) == []


def test_two_servers_do_not_share_a_file(folders, votes, poll_of):
    poll = poll_of(folders, votes)
    with pytest.raises(UserError, match="another `svdjax curate vote` writes to it"):
        poll_of(folders, votes)
    poll.close()
    poll_of(folders, votes).close()


def test_folders_that_cannot_be_compared_are_refused(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/a").mkdir(parents=True)
    for wrong, message in {
        (folders[0],): "give two folders or more",
        (folders[0], tmp_path / "other/a"): "a, a: give two",
        (folders[0], tmp_path / "empty"): "no video of one has the name of another's",
        (folders[0], tmp_path / "nowhere"): "is not a folder",
    }.items():
        with pytest.raises(UserError, match=message):
            videos_of_models(wrong)


@contextmanager
def serving(poll):
    with server(poll, "127.0.0.1", 0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield running.server_address[1]
        finally:
            running.shutdown()
            thread.join()


def request(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, names)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response, data


def post(port, **answer):
    response, data = request(port, "POST", "/answer", json.dumps(answer), Content_Type="application/json")
    return response.status, json.loads(data)


def test_a_voter_votes_over_http_and_the_page_never_names_a_model(folders, votes, poll_of):
    with serving(poll_of(folders, votes, check_every=2)) as port:
        page, html = request(port, "GET", "/")
        assert (
            page.status == 200
            and b"<video" in html
            and "default-src 'none'" in page.headers["content-security-policy"]
        )
        assert b"http" not in html.replace(b"http-equiv", b"")
        found = json.loads(request(port, "GET", "/question?voter=me%20too")[1])
        assert (found["done"], found["left"]) == (0, 7)
        blurred = []
        while question := found["question"]:
            for side in ("left", "right"):
                assert request(port, "GET", f"/{question[side]}")[1][1:] == BYTES
                assert not {folder.name for folder in folders} & set(question[side].split("/"))
            blurred.append(question["blurred"])
            assert (question["left"] == question["right"]) == (question["blurred"] is not None)
            answer = {"quality": "right" if question["blurred"] == "left" else "left", "prompt": "right"}
            status, found = post(port, voter="me too", ticket=question["ticket"], **answer)
            assert status == 200
            assert len(read_votes(votes)) == len(blurred)
        assert blurred.count(None) == 7 == found["done"] and len(blurred) > 9
        checks = [vote for vote in read_votes(votes) if vote["check"]]
        assert checks and all(vote["quality"] == vote["check"] for vote in checks)


def test_the_prompt_is_that_of_the_text_file_or_the_name(folders):
    models = videos_of_models(folders)
    assert prompt_of("deep/x", models) == "a red <ball>" and prompt_of("deep/y", models) == "y"
    (folders[1] / "deep/x.txt").write_bytes("Café".encode("latin-1"))
    assert prompt_of("deep/x", models) == "Caf\ufffd"
    (folders[1] / "deep/x.txt").write_text(" \n")
    assert prompt_of("deep/x", models) == "x"


def test_a_prompt_that_cannot_be_read_is_said_in_one_line(folders, votes, poll_of, monkeypatch):
    def lost(clip):
        raise Unread(f"{clip.stem}.txt cannot be read (Stale file handle): check the disk or network that it is on")

    monkeypatch.setattr(module, "caption_beside", lost)
    with serving(poll_of(folders, votes)) as port:
        response, said = request(port, "GET", "/question?voter=v")
        assert response.status == 500 and b"txt cannot be read (Stale file handle): check" in said


def test_a_second_click_counts_once(folders, votes, poll_of):
    with serving(poll_of(folders, votes)) as port:
        ticket = json.loads(request(port, "GET", "/question?voter=v")[1])["question"]["ticket"]
        first = post(port, voter="v", ticket=ticket, quality="left", prompt="left")
        second = post(port, voter="v", ticket=ticket, quality="right", prompt="left")
        assert first == second and first[0] == 200 and len(read_votes(votes)) == 1


def test_parts_of_a_video(folders, votes, poll_of):
    whole = b"a" + BYTES
    size = len(whole)
    poll = poll_of(folders[:2], votes, check_every=0)
    with serving(poll) as port:
        question = json.loads(request(port, "GET", "/question?voter=v")[1])["question"]
        side = "left" if request(port, "GET", f"/{question['left']}")[1][:1] == b"a" else "right"
        path = f"/{question[side]}"
        response, data = request(port, "GET", path)
        assert response.status == 200 and data == whole
        assert response.headers["accept-ranges"] == "bytes" and response.headers["content-type"] == "video/mp4"
        for asked, part in {
            "bytes=0-": range(size),
            "bytes=100-299": range(100, 300),
            f"bytes={size - 5}-{size + 100}": range(size - 5, size),
            "bytes=-7": range(size - 7, size),
            f"bytes=-{size * 2}": range(size),
        }.items():
            response, data = request(port, "GET", path, Range=asked)
            assert response.status == 206 and data == whole[part.start : part.stop]
            assert response.headers["content-range"] == f"bytes {part.start}-{part.stop - 1}/{size}"
        for asked in (f"bytes={size}-", "bytes=9-3", "bytes=-0"):
            response, _ = request(port, "GET", path, Range=asked)
            assert response.status == 416 and response.headers["content-range"] == f"bytes */{size}"
        for asked in ("bytes=-", "lines=1-2", "bytes=0-1,5-6"):
            assert request(port, "GET", path, Range=asked)[1] == whole
        response, data = request(port, "HEAD", path, Range="bytes=0-9")
        assert response.headers["content-length"] == "10" and data == b""
        next(iter(poll.models["a"].values())).unlink()
        assert {request(port, "GET", f"/{question[s]}")[0].status for s in ("left", "right")} <= {200, 404}


def test_requests_that_make_no_sense_are_refused_and_nothing_is_kept(folders, votes, poll_of):
    good = json.dumps({"voter": "v", "ticket": "pair-0", "quality": "left", "prompt": "left"})
    with serving(poll_of(folders, votes)) as port:
        for method, path, body, kind, status in (
            ("GET", "/etc/passwd", None, "", 404),
            ("GET", "/video/../votes.jsonl", None, "", 404),
            ("GET", "/question", None, "", 400),
            ("GET", "/question?voter=%20", None, "", 400),
            ("POST", "/answer", good, "text/plain", 400),
            ("POST", "/elsewhere", good, "application/json", 400),
            ("POST", "/answer", "{", "application/json", 400),
            ("POST", "/answer", "[]", "application/json", 400),
            ("POST", "/answer", good.replace('"left"', "1"), "application/json", 400),
            ("POST", "/answer", good.replace('"left"', '"both"'), "application/json", 400),
            ("POST", "/answer", good + " " * 20_000, "application/json", 400),
        ):
            response, data = request(port, method, path, body, Content_Type=kind)
            assert response.status == status and json.loads(data)["error"], path
        assert votes.read_bytes() == b""


def test_a_taken_port_is_named(folders, votes, poll_of):
    with serving(poll_of(folders, votes)) as port, pytest.raises(UserError, match=f"127.0.0.1:{port} cannot be"):
        run(Vote(folders=tuple(folders), votes=votes.with_name("others"), port=port))


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_votes_are_on_the_disk_when_the_process_is_killed(folders, votes):
    call = (
        "from pathlib import Path; from svdjax.curation.vote_page import Vote, run; import sys;"
        "run(Vote(folders=tuple(map(Path, sys.argv[2:])), votes=Path(sys.argv[1]), port=0))"
    )
    command = [sys.executable, "-u", "-c", call, str(votes), *map(str, folders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = next(int(line.split(":")[2].split("/")[0]) for line in process.stdout if "http://" in line)
            for _ in range(3):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/question?voter=v", timeout=20) as response:
                    ticket = json.load(response)["question"]["ticket"]
                assert post(port, voter="v", ticket=ticket, quality="left", prompt="left")[0] == 200
        finally:
            process.send_signal(signal.SIGKILL)
    assert len(read_votes(votes)) == 3


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("vote", ["--annotators", "0"]),
        ("vote", ["--check-every", "-1"]),
        ("vote", ["--seed", "-1"]),
        ("vote", ["--port", "70000"]),
        ("elo", ["--shuffles", "0"]),
        ("elo", ["--seed", "-1"]),
        ("elo", ["--min-checks", "nan"]),
    ],
)
def test_numbers_out_of_range_are_named_by_the_command_line(folders, votes, capsys, command, options):
    where = ["--votes", str(votes), *map(str, folders)] if command == "vote" else [str(votes)]
    with pytest.raises(SystemExit) as stop:
        cli.main(["curate", command, *where, *options])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {options[0]} {options[1]}: must be at least")
