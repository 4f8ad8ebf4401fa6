"""Who votes on what: pairs of videos of two models in an order and on sides drawn for each voter, kept in a file.

Beside the pairs a voter meets attention checks: one video twice, of which one side is blurred.
"""

import fcntl
import itertools
import json
import os
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from svdjax.curation.elo import MIN_CHECKS, attentive, cut_off, read_votes
from svdjax.data.files import caption_beside
from svdjax.errors import UserError

Side = Literal["left", "right"]
PLAYABLE = (".mp4", ".m4v", ".webm", ".mov", ".ogv")  # what browsers play
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True, kw_only=True)
class Question:
    """What a voter is shown next.

    Attributes:
        ticket: says which question of the voter's it is.
        name: of the videos. left, right: the models that they are of.
        check: the better side of an attention check, whose other side is blurred; None for a real pair.
    """

    ticket: str
    name: str
    left: str
    right: str
    check: Side | None = None


class Poll:
    """The pairs of all models, and the votes on them.

    Answers are added to a file, each one on the disk before `answer` returns; what is in the file already counts.
    """

    def __init__(
        self,
        models: Mapping[str, Mapping[str, Path]],
        votes: Path,
        *,
        annotators: int = 3,
        check_every: int = 10,
        seed: int = 0,
    ) -> None:
        """
        Args:
            models: videos by name, of each model.
            votes: the file, made if it is not there.
            annotators: votes that a pair gets, each of another voter who is attentive.
            check_every: pairs for each attention check; 0 for no checks.
            seed: of the orders, the sides and the checks.

        Raises:
            UserError: the file cannot be written, is no file of votes, or another process has it open.
        """
        self.models = models
        self.pairs = [
            (name, *both)
            for both in itertools.combinations(sorted(models), 2)
            for name in sorted(models[both[0]].keys() & models[both[1]].keys())
        ]
        self._annotators, self._check_every, self._seed = annotators, check_every, seed
        self._lock = threading.Lock()
        self._file, self._votes = _open_votes(votes)

    def close(self) -> None:
        """Let go of the file; no answer is kept any more."""
        with self._lock:
            self._file.close()

    def progress(self, voter: str) -> tuple[int, int]:
        """Pairs that a voter has voted on, and those still open to them."""
        with self._lock:
            return len(self._answered(voter)), len(self._open_to(voter))

    def question(self, voter: str) -> Question | None:
        """What a voter is shown next: always the same until it is answered; None when nothing is left."""
        with self._lock:
            return self._question(voter)

    def answer(self, voter: str, ticket: str, sides: Mapping[str, Side]) -> bool:
        """Keep the answer to the question that the voter has before them.

        Args:
            ticket: of the question. sides: the better one on each axis.

        Returns:
            False if that question is not the voter's next one, such as after a second click; then nothing is kept.

        Raises:
            UserError: the answer cannot be written.
        """
        with self._lock:
            question = self._question(voter)
            if question is None or question.ticket != ticket:
                return False
            vote = {
                "voter": voter,
                "name": question.name,
                "left": question.left,
                "right": question.right,
                **sides,
                "check": question.check,
                "time": round(time.time(), 3),
            }
            self._append(vote)
            self._votes.append(vote)
            return True

    def _append(self, vote: Mapping[str, Any]) -> None:
        if self._file.closed:  # a page's connection may live a little longer
            raise UserError("the vote is not kept: the server is ending")
        end = self._file.seek(0, os.SEEK_END)
        try:
            self._file.write(json.dumps(vote, ensure_ascii=False).encode() + b"\n")
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(end)
            raise UserError(f"{self._file.name}: the vote cannot be written ({error.strerror})") from None

    def _question(self, voter: str) -> Question | None:
        waiting = self._open_to(voter)
        if not waiting:
            return None
        if check := self._check(voter):
            return check
        index = next(int(i) for i in self._rng(voter, 0).permutation(len(self.pairs)) if int(i) in waiting)
        name, *both = self.pairs[index]
        left, right = both if self._rng(voter, 1, index).random() < 0.5 else both[::-1]
        return Question(ticket=f"pair-{index}", name=name, left=left, right=right)

    def _check(self, voter: str) -> Question | None:
        """The attention check that is due: number c after between c and c + 1 times ``check_every`` pairs."""
        if not self._check_every:
            return None
        done = sum(vote["voter"] == voter and vote["check"] is not None for vote in self._votes)
        rng = self._rng(voter, 2, done)
        if len(self._answered(voter)) < done * self._check_every + rng.integers(self._check_every):
            return None
        name, *both = self.pairs[rng.integers(len(self.pairs))]
        model = both[rng.integers(2)]
        return Question(ticket=f"check-{done}", name=name, left=model, right=model, check=SIDES[rng.integers(2)])

    def _rng(self, voter: str, *what: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, zlib.crc32(voter.encode()), *what))

    def _answered(self, voter: str) -> set[tuple[str, ...]]:
        return {_pair(vote) for vote in self._votes if vote["voter"] == voter and vote["check"] is None}

    def _open_to(self, voter: str) -> set[int]:
        """Numbers of the pairs that lack votes of attentive voters, and this voter's."""
        counts = Counter(map(_pair, attentive(self._votes, MIN_CHECKS)[0]))
        mine = self._answered(voter)
        return {
            index for index, pair in enumerate(self.pairs) if pair not in mine and counts[pair] < self._annotators
        }


def _pair(vote: Mapping[str, Any]) -> tuple[str, ...]:
    return (vote["name"], *sorted((vote["left"], vote["right"])))


def _open_votes(path: Path) -> tuple[BinaryIO, list[dict[str, Any]]]:
    """The file to append to, locked, and the votes in it; what a kill has left of a last one is removed."""
    with ExitStack() as stack:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+b", buffering=0))
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror}): give another file for votes") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{path}: another `svdjax curate vote` writes to it: stop that one first") from None
        votes = read_votes(path)
        text = path.read_text("utf-8")
        whole = text.removesuffix(cut_off(text))
        file.truncate(len(whole.encode()))
        if whole and not whole.endswith("\n"):
            file.write(b"\n")
        stack.pop_all()
        return file, votes


def videos_of_models(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """The videos of each model by name: the path within the folder, without its ending.

    Args:
        folders: one for each model, which is called by the folder's name.

    Raises:
        UserError: fewer than two folders, two of one name, one that is none, or no name that two of them share.
    """
    names = [folder.resolve().name for folder in folders]
    if len(folders) < 2 or len(set(names)) < len(names):
        raise UserError(
            f"models to compare: {', '.join(names) or 'none'}: give two folders or more, each of another name"
        )
    models = {name: _videos_in(folder) for name, folder in zip(names, folders, strict=True)}
    shared = Counter(video for videos in models.values() for video in videos)
    if not any(count > 1 for count in shared.values()):
        raise UserError(
            f"{', '.join(names)}: no video of one has the name of another's ({' '.join(PLAYABLE)}): give videos of "
            "the same prompts the same file names"
        )
    return models


def _videos_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one with a model's videos")
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in PLAYABLE and path.is_file()
    }


def prompt_of(name: str, models: Mapping[str, Mapping[str, Path]]) -> str:
    """The text of ``NAME.txt`` beside any of the videos, or else the words of the name.

    Raises:
        Unread: there is such a file and it cannot be read.
    """
    texts = (caption_beside(videos[name]) for videos in models.values() if name in videos)
    return next(filter(None, texts), re.sub("[-_]+", " ", Path(name).name))
