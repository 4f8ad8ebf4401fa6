"""Self-contained HTML pages: one file that needs no other, with drawings that follow the reader's colours."""

import base64
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from svdjax.conversion.output import finished
from svdjax.errors import require

TEMPLATE = Path(__file__).parent / "assets" / "report.html"
INK = "#010203"  # stands for the page's text colour
COLOURS = ("#3b82f6", "#f97316", "#22a06b", "#a855f7", "#e11d8f", "#8a94a3")  # legible on white and on black


def write_page(path: Path, title: str, body: Iterable[str]) -> None:
    """Write a page; it appears, or replaces an older one, when it is complete.

    Args:
        title: plain text. body: HTML, escaped where needed.

    Raises:
        UserError: the path cannot be written.
    """
    page = Template(TEMPLATE.read_text()).substitute(title=escape(title), body="\n".join(body))
    with finished(path, overwrite=True) as partial:
        partial.write_text(page, "utf-8")


def figure(inside: str, caption: str) -> str:
    """HTML with a line of plain text below."""
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"


def image(data: bytes, kind: str, caption: str) -> str:
    """A picture file of the media type ``kind``, with a line of plain text below."""
    return figure(f'<img alt="{escape(caption)}" src="{data_uri(data, kind)}">', caption)


def data_uri(data: bytes, kind: str) -> str:
    """An address that holds the data itself."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts that scrolls where it is too wide."""
    cells = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    titles = "".join(f"<th>{escape(title)}</th>" for title in header)
    return f'<div class="scroll"><table><tr>{titles}</tr>{cells}</table></div>'


def listing(values: Mapping[str, Any]) -> str:
    """A table of names and values."""
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in values.items())
    return f"<table>{''.join(rows)}</table>"


def draw(title: str, plot: Callable[[Any], None], *, size: tuple[float, float] = (5.5, 3.2)) -> str:
    """An SVG element drawn by matplotlib, transparent, its ink in the page's text colour.

    Args:
        title: above the axes. plot: draws into matplotlib axes. size: width and height in inches.

    Raises:
        UserError: matplotlib is missing.
    """
    matplotlib = require("matplotlib", "report")
    figure_class = require("matplotlib.figure", "report").Figure
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(style):
        whole = figure_class(figsize=size, layout="constrained")
        whole.patch.set_alpha(0)
        axes = whole.subplots()
        axes.patch.set_alpha(0)
        axes.set_title(title)
        axes.grid(alpha=0.15, color=INK)
        plot(axes)
        return _svg(whole)


def _svg(whole: Any) -> str:
    """Without prologue, the page's colour for ink, and the names that several pictures would share left out."""
    buffer = io.StringIO()
    whole.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    used = set(re.findall(r"#([\w-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
