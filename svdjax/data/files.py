"""Files as data is read from them."""

from pathlib import Path


def caption_beside(clip: Path) -> str:
    """The caption in ``clip.txt`` beside ``clip.mp4``, or "". What is not UTF-8 becomes question marks."""
    text = clip.with_suffix(".txt")
    return text.read_text("utf-8", errors="replace").strip() if text.is_file() else ""
