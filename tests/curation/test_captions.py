"""Captions from a real HTTP server that answers as OpenAI's does, fails or dawdles; and from transformers."""

import base64
import io
import json
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from svdjax.curation.captions import Captions, Endpoint, LocalCaptioner, spread
from svdjax.curation.clip import ClipFrames
from svdjax.errors import MissingPackage, UserError


def completion(text):
    return 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@dataclass
class Scripted:
    """A server that gives prepared answers in turn, the last one for ever, and keeps what it is asked."""

    answers: list
    asked: list = field(default_factory=list)
    headers: list = field(default_factory=list)
    times: list = field(default_factory=list)


@pytest.fixture
def serve():
    """Starts such servers: their script and address."""
    running = []

    def start(*answers):
        script = Scripted(list(answers))

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                script.times.append(time.monotonic())
                script.headers.append((self.path, dict(self.headers)))
                script.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                answer = script.answers.pop(0) if len(script.answers) > 1 else script.answers[0]
                if callable(answer):
                    return answer(self)
                status, headers, body = answer
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        return script, f"http://127.0.0.1:{server.server_address[1]}/v1/"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def picture(value=0, height=24, width=32):
    return np.full((height, width, 3), value, np.uint8)


def endpoint(url, **options):
    return Endpoint(url=url, model="see-1", **({"wait": 0.01, "retries": 2, "timeout": 5.0} | options))


def shown(message):
    """The pictures in a request."""
    uris = [part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in uris)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in uris]


def test_all_three_captions_of_a_clip(serve):
    script, url = serve(completion(" a\n cat "), completion("a cat jumps"), completion("a grey cat jumps"))
    server = endpoint(url, key="word")
    stills = np.stack([picture(value, 40, 60) for value in (10, 120, 250)])
    moving = np.stack([picture(10 * value) for value in range(20)])
    clip = ClipFrames(name="c", stills=stills, moving=moving, seconds=10.0, fps=24.0)
    stage = Captions(image=server.describe_picture, video=server.describe_video, merge=server.merge)
    assert stage(clip) == {
        "caption_image": "a cat", "caption_video": "a cat jumps", "caption": "a grey cat jumps"
    }  # fmt: skip
    assert [request["model"] for request in script.asked] == ["see-1"] * 3
    path, headers = script.headers[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer word"
    messages = [request["messages"][0] for request in script.asked]
    still, frames, none = map(shown, messages)
    assert [round(x.mean()) for x in still] == [120] and still[0].shape == (40, 60, 3) and none == []
    assert [round(x.mean()) for x in frames] == [10 * i for i in (0, 3, 5, 8, 11, 14, 16, 19)]
    assert "a cat" in messages[2]["content"][0]["text"] and "a cat jumps" in messages[2]["content"][0]["text"]
    assert "word" not in repr(server)


def test_the_caption_is_the_best_there_is():
    frames = picture()[None].repeat(3, 0)
    clip = ClipFrames(name="c", stills=frames, moving=frames, seconds=1.0, fps=24.0)
    image, video, merge = (lambda _: "of the frame"), (lambda _: "of the video"), (lambda a, b: f"{a} and {b}")
    assert Captions()(clip) == {}
    assert Captions(image=image, merge=merge)(clip)["caption"] == "of the frame"
    assert Captions(video=video, merge=merge)(clip)["caption"] == "of the video"
    assert Captions(image=image, video=video)(clip)["caption"] == "of the video"
    assert Captions(image=image, video=video, merge=merge)(clip)["caption"] == "of the frame and of the video"


def test_frames_are_spread_evenly():
    frames = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    assert spread(frames, 3)[:, 0, 0, 0].tolist() == [0, 2, 4]
    assert spread(frames, 8)[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(spread(frames[:1], 8)) == 1


def hang_up(handler):
    handler.connection.close()


def cut_short(handler):
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices')


@pytest.mark.parametrize(
    "trouble",
    [
        (503, {}, b"loading"),
        (429, {}, b"slow down"),
        (200, {}, b"<html>"),
        (200, {}, b'{"choices": []}'),
        (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
        (200, {}, b"[]"),
        completion("  "),
        hang_up,
        cut_short,
    ],
)
def test_what_may_pass_is_tried_again(serve, trouble):
    script, url = serve(trouble, trouble, completion("a dog"))
    assert endpoint(url).describe_picture(picture()) == "a dog"
    assert len(script.asked) == 3


def test_pauses_double_and_the_server_may_ask_for_longer_ones(serve):
    script, url = serve((500, {}, b""), (500, {}, b""), (429, {"Retry-After": "1"}, b""), completion("a dog"))
    assert endpoint(url, wait=0.2, retries=3).describe_picture(picture()) == "a dog"
    pauses = np.diff(script.times)
    assert pauses[0] >= 0.2 and pauses[1] >= 0.4 and pauses[2] >= 1.0


def test_what_will_not_pass_is_said_at_once(serve):
    script, url = serve((401, {}, b'{"error": {"message": "wrong\nkey"}}'))
    with pytest.raises(UserError, match=r"/v1/chat/completions refuses see-1 \(status 401: .*wrong key"):
        endpoint(url).describe_picture(picture())
    assert len(script.asked) == 1


@pytest.mark.parametrize(
    ("trouble", "problem"),
    [
        ((500, {}, b"out of memory"), "status 500: out of memory"),
        ((200, {}, b"hello"), "no chat completion: hello"),
    ],
)
def test_after_all_tries_the_last_problem_is_said_in_one_line(serve, trouble, problem):
    script, url = serve(trouble)
    with pytest.raises(
        UserError, match=rf"no caption after 3 tries \(.*{problem}.*\): check that it runs"
    ) as raised:
        endpoint(url).merge("a", "b")
    assert len(script.asked) == 3 and "\n" not in str(raised.value)


def test_a_slow_server_times_out(serve):
    def dawdle(handler):
        time.sleep(1.5)

    _, url = serve(dawdle)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"no caption after 2 tries \(timed out\)"):
        endpoint(url, timeout=0.2, retries=1).describe_picture(picture())
    assert time.monotonic() - begun < 1.4


def test_no_server_and_no_address():
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/.*no caption after 1 tries .*refused"):
        endpoint("http://127.0.0.1:9", retries=0).describe_picture(picture())
    with pytest.raises(UserError, match="file:///etc/passwd: no address of a captioner"):
        endpoint("file:///etc/passwd")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A tiny captioner with random weights."""
    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", "a", "cat", "dog", "runs", "jumps"]
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(folder / "vocab.txt"))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BlipConfig(
        text_config={
            **sizes, "vocab_size": 10, "encoder_hidden_size": 32, "bos_token_id": 4, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0,
        },
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)
    from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

    images = BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_a_local_model_captions_pictures(blip):
    captioner = LocalCaptioner(model=str(blip), tokens=6)
    caption = captioner(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    processor = transformers.AutoProcessor.from_pretrained(blip)
    model = transformers.BlipForConditionalGeneration.from_pretrained(blip).eval()
    again = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    ids = model.generate(**processor(images=again, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert caption == processor.decode(ids[0], skip_special_tokens=True).strip() and caption


def test_a_local_model_that_is_none_and_a_missing_extra_are_named(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no captioner that transformers can read"):
        LocalCaptioner(model=str(tmp_path))(picture())
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'svdjax\[caption\]'"):
        LocalCaptioner(model=str(tmp_path))(picture())
