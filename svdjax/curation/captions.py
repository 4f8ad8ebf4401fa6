"""Captions of a clip: of its middle frame, of the video, and a language model's merger of both (paper, appendix C).

The paper's captioners are CoCa and V-BLIP. Here each is any function of the Protocols below: a model of
transformers on this machine for pictures, or a server that speaks OpenAI's chat protocol (vLLM, Ollama, ...).
"""

import base64
import http.client
import io
import json
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from svdjax.curation.clip import ClipFrames
from svdjax.errors import Unavailable, UserError, require
from svdjax.typing import UInt8, ndarray

VIDEO_FRAMES = 8  # that a video captioner sees, evenly spread
_ASK_PICTURE = "Describe this picture in one sentence of at most 40 words. Say only what is seen."
_ASK_VIDEO = (
    "These pictures are frames of one video, in order. Describe in one sentence of at most 40 words what is seen "
    "and what happens. Do not mention frames or pictures."
)
_ASK_MERGED = (
    "Two captions of one video follow: the first is of a single frame, the second of the whole. Write one caption "
    "of at most 50 words that says what both say, adds nothing, and follows the second where they disagree. Answer "
    "with the caption alone.\n1. {image}\n2. {video}"
)
_TRY_AGAIN = (408, 409, 425, 429)  # and all from 500 on
_MOST_BYTES = 1 << 20  # of an answer
_LONGEST_WAIT = 60.0


@runtime_checkable
class ImageCaptioner(Protocol):
    """A caption of a picture, on one line."""

    def __call__(self, picture: UInt8[ndarray, "h w 3"]) -> str: ...


@runtime_checkable
class VideoCaptioner(Protocol):
    """A caption of a video, on one line, from a few frames in order."""

    def __call__(self, frames: UInt8[ndarray, "t h w 3"]) -> str: ...


@runtime_checkable
class Merger(Protocol):
    """One caption of a video, made of that of a frame and that of the video."""

    def __call__(self, image: str, video: str) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Captions:
    """The stage ``caption_image``, ``caption_video`` and ``caption``: merged, or else the video's or the picture's.

    Attributes:
        image, video: captioners; None for no such caption.
        merge: of both captions; None for none.
    """

    image: ImageCaptioner | None = None
    video: VideoCaptioner | None = None
    merge: Merger | None = None

    def __call__(self, clip: ClipFrames) -> dict[str, Any]:
        """
        Raises:
            Unavailable: a captioner fails.
        """
        found = {}
        if self.image is not None:
            found["caption_image"] = self.image(clip.stills[1])
        if self.video is not None:
            found["caption_video"] = self.video(spread(clip.moving, VIDEO_FRAMES))
        if self.merge is not None and len(found) == 2:
            found["caption"] = self.merge(found["caption_image"], found["caption_video"])
        elif found:
            found["caption"] = found.get("caption_video") or found["caption_image"]
        return found


def spread(frames: UInt8[ndarray, "t h w 3"], most: int) -> UInt8[ndarray, "n h w 3"]:
    """At most so many of the frames, evenly spread, with the first and the last."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, min(most, len(frames))).round().astype(int))]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server with OpenAI's ``/chat/completions``; its methods are all three kinds of captioner.

    Attributes:
        url: up to that path, such as ``http://localhost:8000/v1``.
        model: name that the server knows it by.
        key: sent as a bearer token, if any.
        timeout: seconds to wait for the server to go on.
        retries: more tries after one that fails for a reason which may pass: no connection, a time-out, an
            overloaded server, an answer that cannot be understood.
        wait: seconds before the first of them, doubled before each further one; the server may ask for more.
        tokens: most tokens of an answer.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    retries: int = 4
    wait: float = 1.0
    tokens: int = 160

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: the address is none of HTTP.
        """
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"{self.url}: no address of a captioner: give one such as http://localhost:8000/v1")

    def describe_picture(self, picture: UInt8[ndarray, "h w 3"]) -> str:
        """An `ImageCaptioner`.

        Raises:
            Unavailable: no caption after all tries, or the server refuses.
        """
        return self._ask(_ASK_PICTURE, [picture])

    def describe_video(self, frames: UInt8[ndarray, "t h w 3"]) -> str:
        """A `VideoCaptioner`; raises as `describe_picture`."""
        return self._ask(_ASK_VIDEO, list(frames))

    def merge(self, image: str, video: str) -> str:
        """A `Merger`; raises as `describe_picture`."""
        return self._ask(_ASK_MERGED.format(image=image, video=video), [])

    def _ask(self, text: str, pictures: Sequence[UInt8[ndarray, "h w 3"]]) -> str:
        content = [{"type": "text", "text": text}]
        content += [{"type": "image_url", "image_url": {"url": _jpeg_uri(picture)}} for picture in pictures]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.tokens,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.key}"} if self.key else {}
        )
        address = self.url.rstrip("/") + "/chat/completions"
        request = urllib.request.Request(address, json.dumps(body).encode(), headers)
        for number in range(self.retries + 1):
            pause = self.wait * 2**number
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as response:
                    return _caption_in(response.read(_MOST_BYTES))
            except urllib.error.HTTPError as error:
                with error:
                    problem = f"status {error.code}: {_excerpt(error)}"
                if error.code < 500 and error.code not in _TRY_AGAIN:
                    raise Unavailable(f"{address} refuses {self.model} ({problem}): check its options") from None
                pause = max(pause, _seconds(error.headers.get("Retry-After", "")))
            except (OSError, http.client.HTTPException, ValueError) as error:
                problem = str(getattr(error, "reason", None) or error or type(error).__name__)
            if number < self.retries:
                time.sleep(min(pause, _LONGEST_WAIT))
        raise Unavailable(f"{address}: no caption after {self.retries + 1} tries ({problem}): check that it runs")


def _caption_in(data: bytes) -> str:
    """The text of an answer on one line.

    Raises:
        ValueError: there is none.
    """
    try:
        caption = json.loads(data)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        raise ValueError(f"an answer that is no chat completion: {_shortened(data)}") from None
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError("an answer without text")
    return " ".join(caption.split())


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        return _shortened(error.read(2000)) or error.reason
    except (OSError, http.client.HTTPException):
        return error.reason


def _shortened(data: bytes) -> str:
    return " ".join(data.decode("utf-8", "replace").split())[:200]


def _seconds(text: str) -> float:
    """The number in a ``Retry-After``, which may also be a date; then 0."""
    return float(text) if text.strip().isdecimal() and text.isascii() else 0.0


def _jpeg_uri(picture: UInt8[ndarray, "h w 3"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@dataclass(frozen=True, kw_only=True)
class LocalCaptioner:
    """An `ImageCaptioner` of transformers on this machine: BLIP, BLIP-2, GIT and the like (extra ``caption``).

    The model is read when the first picture comes, so each worker process reads its own.

    Attributes:
        model: a folder, or a repository of the Hugging Face Hub. tokens: most tokens of a caption.
    """

    model: str
    tokens: int = 60

    def __call__(self, picture: UInt8[ndarray, "h w 3"]) -> str:
        """
        Raises:
            Unavailable: the extra is missing, or the model is none that captions pictures.
        """
        processor, model = self._loaded
        inputs = processor(images=Image.fromarray(picture), return_tensors="pt").to(model.device)
        written = model.generate(**inputs, max_new_tokens=self.tokens, do_sample=False)
        return " ".join(processor.batch_decode(written, skip_special_tokens=True)[0].split())

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        transformers = require("transformers", "caption")
        torch = require("torch", "caption")
        try:
            processor = transformers.AutoProcessor.from_pretrained(self.model)
            model = transformers.AutoModelForImageTextToText.from_pretrained(self.model)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise Unavailable(f"{self.model}: no captioner that transformers can read ({reason})") from None
        if getattr(processor, "chat_template", None):
            raise Unavailable(f"{self.model}: a chat model: serve it, and give the address of its endpoint")
        return processor, model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
