"""The command ``svdjax curate vote``: a page, served on this machine, to vote on pairs of videos."""

import json
import mimetypes
import re
import secrets
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from hashlib import blake2b
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

import tyro
from rich.console import Console

from svdjax.curation.elo import AXES
from svdjax.curation.votes import SIDES, Poll, Question, prompt_of, videos_of_models
from svdjax.errors import UserError, check_range

PAGE = Path(__file__).parents[1] / "assets" / "vote.html"
_MOST_BYTES = 10_000  # of what a page sends
_POLICY = "; ".join(
    f"{what}-src {whence}"
    for what, whence in {
        "default": "'none'",
        "media": "'self'",
        "connect": "'self'",
        "img": "data:",
        "style": "'unsafe-inline'",
        "script": "'unsafe-inline'",
    }.items()
)
_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})")


@dataclass(frozen=True, kw_only=True)
class Vote:
    """Vote on pairs of videos of two or more models, in a page of this machine: Ctrl-C ends it.

    Videos of equal names are compared, in random order and on random sides; nothing on the page names the models.
    `NAME.txt` beside `NAME.mp4` holds the prompt; without it the file's name is shown. Votes that are in the file
    count: the same command goes on after an interruption.

    Attributes:
        folders: of videos, one for each model, which is called by the folder's name.
        votes: the file that votes are added to, one JSON object a line.
        annotators: votes that each pair gets, each of another voter who passes most attention checks.
        check_every: pairs for each attention check (one video twice, one side blurred); 0 for none.
        seed: of orders, sides and checks.
        host: address to serve at; 0.0.0.0 lets everyone on the network vote.
        port: of the page; 0 takes a free one.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    votes: Path
    annotators: int = 3
    check_every: int = 10
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8765

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: a number is out of range.
        """
        check_range("--annotators", self.annotators, 1)
        check_range("--check-every", self.check_every, 0)
        check_range("--seed", self.seed, 0)
        check_range("--port", self.port, 0, 65535)


def run(args: Vote) -> None:
    """Serve the page until it is interrupted.

    Raises:
        UserError: no videos to compare, the votes cannot be kept, or the port is taken.
    """
    poll = Poll(
        videos_of_models(args.folders),
        args.votes,
        annotators=args.annotators,
        check_every=args.check_every,
        seed=args.seed,
    )
    console = Console()
    with closing(poll), server(poll, args.host, args.port) as serving:
        host, port = serving.server_address[:2]
        console.print(f"{len(poll.pairs)} pairs of videos of {len(poll.models)} models", markup=False)
        console.print(f"vote at http://{host}:{port}/ and press Ctrl-C when done", markup=False, soft_wrap=True)
        with suppress(KeyboardInterrupt):
            serving.serve_forever()
    console.print(f"\nnow: svdjax curate elo {args.votes}", markup=False, soft_wrap=True)


def server(poll: Poll, host: str, port: int) -> ThreadingHTTPServer:
    """The page's server, which does not run yet.

    Raises:
        UserError: the address is taken or not this machine's.
    """
    secret = secrets.token_bytes(16)  # so that the address of a video does not tell its model
    addresses = {
        (model, name): blake2b(f"{model}\0{name}".encode(), key=secret, digest_size=12).hexdigest()
        for model, videos in poll.models.items()
        for name in videos
    }

    files = {address: poll.models[model][name] for (model, name), address in addresses.items()}
    handler = type("Handler", (_Handler,), {"poll": poll, "addresses": addresses, "files": files})
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be served ({error.strerror}): give another --port or --host"
        ) from None


class _Handler(BaseHTTPRequestHandler):
    """``GET /``, ``GET /question?voter=V``, ``POST /answer``, and ``GET /video/ADDRESS``, whole or in part."""

    protocol_version = "HTTP/1.1"
    timeout = 60
    poll: Poll
    addresses: Mapping[tuple[str, str], str]
    files: Mapping[str, Path]

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/":
            self._send(HTTPStatus.OK, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif url.path == "/question":
            voter = parse_qs(url.query).get("voter", [""])[0].strip()
            if voter:
                self._send_question(voter)
            else:
                self._fail(HTTPStatus.BAD_REQUEST, "no voter is named")
        elif file := self.files.get(url.path.removeprefix("/video/")):
            self._send_video(file)
        else:
            self._fail(HTTPStatus.NOT_FOUND, "there is no such page")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        # A page of another site may not send JSON here: so no other site can vote.
        if self.path != "/answer" or self.headers.get_content_type() != "application/json":
            return self._fail(HTTPStatus.BAD_REQUEST, "POST JSON to /answer", close=True)
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            return self._fail(HTTPStatus.BAD_REQUEST, f"send at most {_MOST_BYTES} bytes", close=True)
        try:
            sent = json.loads(self.rfile.read(int(length)))
            voter, ticket, sides = sent["voter"].strip(), sent["ticket"], {axis: sent[axis] for axis in AXES}
            if not voter or not isinstance(ticket, str) or not set(sides.values()) <= set(SIDES):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._fail(HTTPStatus.BAD_REQUEST, "an answer is not complete")
        try:
            self.poll.answer(voter, ticket, sides)
        except UserError as error:
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return self._send_question(voter)

    def _send_question(self, voter: str) -> None:
        done, left = self.poll.progress(voter)
        question = self.poll.question(voter)
        try:
            shown = question and self._shown(question)
        except UserError as error:
            return self._fail(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        return self._send_json({"done": done, "left": left, "question": shown})

    def _shown(self, question: Question) -> dict[str, Any]:
        """What the page may know of a question."""
        blurred = {None: None, "left": "right", "right": "left"}[question.check]
        return {
            "ticket": question.ticket,
            "prompt": prompt_of(question.name, self.poll.models),
            "left": f"video/{self.addresses[question.left, question.name]}",
            "right": f"video/{self.addresses[question.right, question.name]}",
            "blurred": blurred,
        }

    def _send_video(self, path: Path) -> None:
        """The file, or the part of it that is asked for: without parts, browsers neither seek nor loop."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        except OSError as error:
            return self._fail(HTTPStatus.NOT_FOUND, f"a video cannot be read ({error.strerror})")
        with file:
            size = path.stat().st_size
            part = _part(self.headers.get("Range", ""), size)
            if part is not None and not len(part):
                self.send_response(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            sent = range(size) if part is None else part
            self.send_response(HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT)
            self.send_header("Content-Type", mimetypes.guess_type(path.name)[0] or "video/mp4")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(sent)))
            if part is not None:
                self.send_header("Content-Range", f"bytes {sent.start}-{sent.stop - 1}/{size}")
            self.end_headers()
            if self.command == "GET":
                file.seek(sent.start)
                self._copy(file, len(sent))
        return None

    def _copy(self, file: Any, count: int) -> None:
        try:
            while count and (block := file.read(min(count, 1 << 16))):
                self.wfile.write(block)
                count -= len(block)
        except OSError:  # browsers hang up when they have enough
            self.close_connection = True

    def _send_json(self, value: Mapping[str, Any]) -> None:
        self._send(HTTPStatus.OK, json.dumps(value).encode(), "application/json")

    def _fail(self, status: HTTPStatus, reason: str, *, close: bool = False) -> None:
        self.close_connection |= close  # what was sent is not read
        self._send(status, json.dumps({"error": reason}).encode(), "application/json")

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Cache-Control", "no-store")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        """Nothing: the terminal is for the votes."""


def _part(header: str, size: int) -> range | None:
    """The bytes that a Range header asks for: None for all, empty where there are none such."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or not any(match.groups()):
        return None
    first, last = match.groups()
    if not first:
        return range(max(0, size - int(last)), size)
    stop = min(int(last) + 1, size) if last else size
    return range(int(first), stop) if int(first) < stop else range(0)
