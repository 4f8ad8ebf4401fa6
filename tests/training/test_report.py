"""The page about a run: complete, self-contained, and made of whatever the run has left."""

import json
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from svdjax import cli
from svdjax.data.video import write_video
from svdjax.errors import UserError
from svdjax.training.curves import curves
from svdjax.training.report import MOST_SAMPLES, Report, read_metrics, run
from tests.training.tiny import tiny_run


@pytest.fixture
def directory(tmp_path):
    """A run whose autoencoder is finished, whose UNet is at step 40, and whose decoder has not begun."""
    config = tiny_run(tmp_path, name="a <run>")
    (config.out / "unet/samples").mkdir(parents=True)
    (config.out / "vae").mkdir()
    (config.out / "config.json").write_text(config.to_json())
    (config.out / "vae/model.safetensors").touch()
    (config.out / "vae/hardware.json").write_text(
        json.dumps({"device": "TPU v5p", "devices": 64, "processes": 16, "jax": "0.10.2"})
    )
    lines = [json.dumps({"step": step, "time": step * 60.0, **row}) for step, row in ROWS]
    (config.out / "unet/metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 60, "los')
    (config.out / "vae/metrics.jsonl").write_text(lines[0])
    frames = np.zeros((2, 16, 16, 3), np.uint8)
    for step in range(1, MOST_SAMPLES + 9):
        Image.fromarray(frames[0]).save(config.out / f"unet/samples/step_{step:07d}.png")
        write_video(config.out / f"unet/samples/step_{step:07d}.mp4", frames, 7.0)
    return config.out


ROWS = [
    (20, {"loss": 2.0, "loss/sigma_0-0.2": 3.0, "rate": 1e-3, "grad_norm": 1.0, "psnr": 20.0}),
    (40, {"loss": 9.0}),
    (40, {"loss": 1.0, "loss/sigma_0-0.2": 2.0, "rate": 1e-3, "grad_norm": float("nan"), "psnr": 21.0}),
    (40, {"val_loss": 1.5, "val_psnr": 19.0}),
]


class Page(HTMLParser):
    """Elements that are open at the end, sources of pictures and videos, references and texts."""

    VOID = frozenset({"meta", "img", "link", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.references, self.ids, self.texts = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in self.VOID else [tag]
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


@pytest.fixture
def page(directory):
    run(Report(run=directory))
    return Page((directory / "report.html").read_text())


def test_the_page_is_well_formed_and_needs_no_other_file(page):
    assert page.open == []
    inside = ("#", "data:image/png;base64,", "data:video/mp4;base64,")
    assert page.references and all(reference.startswith(inside) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference[0] == "#"} <= set(page.ids)


def test_the_page_shows_curves_samples_stages_hardware_and_settings(page):
    titles = {"loss", "loss by noise level", "learning rate", "norms", "psnr"}
    assert titles <= set(page.texts)
    assert {"Stage vae", "Stage decoder", "Stage unet", "Nothing is logged yet."} <= set(page.texts)
    assert {"64 x TPU v5p, 16 processes, jax 0.10.2", "unknown", "40 (not finished)", "20"} <= set(page.texts)
    assert {"unet.optim.rate", "0.001", "a <run>"} <= set(page.texts)


def test_a_stage_that_left_a_lora_is_finished(directory):
    (directory / "unet/lora.safetensors").touch()
    run(Report(run=directory))
    texts = Page((directory / "report.html").read_text()).texts
    assert "40" in texts and "40 (not finished)" not in texts


def test_samples_are_spread_over_the_run(page):
    steps = [text for text in page.texts if text.startswith("step ") and text[5:].isdigit()]
    assert len(steps) == MOST_SAMPLES == page.tags.count("video")
    assert (steps[0], steps[-1]) == ("step 1", f"step {MOST_SAMPLES + 8}")


def test_the_curves_take_the_pages_colours(directory):
    rows, _ = read_metrics(directory / "unet/metrics.jsonl")
    for svg in curves(rows):
        assert svg.startswith("<svg") and "currentColor" in svg and "#000000" not in svg


def test_a_cut_line_is_left_out_and_of_repeated_steps_the_last_counts(directory):
    rows, times = read_metrics(directory / "unet/metrics.jsonl")
    assert list(rows) == [20, 40] and (rows[40]["loss"], rows[40]["val_loss"]) == (1.0, 1.5)
    assert times == [1200.0, 2400.0, 2400.0, 2400.0]


def test_the_page_can_go_elsewhere_and_the_command_line_writes_it(directory, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["report", str(directory), "--out", str(tmp_path / "page.html")])
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert (tmp_path / "page.html").exists() and not (directory / "report.html").exists()


def test_what_is_no_run_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"no run, for it has no config\.json: name the --out of a training"):
            run(Report(run=place))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        run(Report(run=tmp_path))
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config\.json: not a run's configuration"):
        run(Report(run=tmp_path))


def test_without_matplotlib_the_extra_is_named(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"matplotlib is not installed: run `pip install 'svdjax\[report\]'`"):
        run(Report(run=directory))
    assert not (directory / "report.html").exists()
