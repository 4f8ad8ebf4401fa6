"""What a clip shows, as one stage: captions, CLIP embeddings, how well the two agree, and how pleasing it looks."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdjax.curation.captions import Captions, Endpoint, LocalCaptioner
from svdjax.curation.clip import ClipFrames
from svdjax.curation.embeddings import (
    ImageEmbedder,
    TextEmbedder,
    check_towers,
    clip_scores,
    open_image_embedder,
    open_text_embedder,
)
from svdjax.curation.settings import Settings

KEY = "SVDJAX_ENDPOINT_KEY"  # environment variable with the key of the captions' server


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """The stage. A caption that came with the video takes the place of the merged one.

    Attributes:
        captions: of clips. images, texts: the towers; None leaves out what needs them.
    """

    captions: Captions
    images: ImageEmbedder | None = None
    texts: TextEmbedder | None = None

    def __call__(self, clip: ClipFrames) -> dict[str, Any]:
        """
        Raises:
            UserError: a captioner fails.
        """
        row = self.captions(clip)
        if clip.caption:
            row["caption"] = clip.caption
        captions = dict(row)
        if self.images is not None:
            row |= self.images(clip)
        if self.images is not None and self.texts is not None:
            row |= clip_scores(self.texts, row["clip_embedding"], captions)
        return row


def open_meaning(settings: Settings) -> tuple[Meaning, list[str]]:
    """The stage as the settings ask for it, and a line for each axis that is left out.

    Raises:
        UserError: weights cannot be read, or do not belong together.
    """
    notices = []
    if not settings.clip_image:
        notices.append(
            "clip: no image tower (--clip-image), so clip_embedding, aesthetic and clip_score are left out"
        )
    elif not settings.aesthetic:
        notices.append("aesthetic: no head (--aesthetic), so the score is left out")
    if settings.clip_image and not settings.clip_text:
        notices.append("clip score: no text tower (--clip-text), so clip_score is left out")
    if not settings.image_captioner and not settings.endpoint:
        notices.append(
            "captions: no captioner (--image-captioner, --endpoint), so only those beside videos are there"
        )
    head = Path(settings.aesthetic) if settings.aesthetic else None
    images = open_image_embedder(settings.clip_image, head) if settings.clip_image else None
    texts = open_text_embedder(settings.clip_text) if settings.clip_text and images else None
    if images and texts:
        check_towers(images, texts)
    return Meaning(captions=_captions(settings), images=images, texts=texts), notices


def _captions(settings: Settings) -> Captions:
    """The server does what it can; a model on this machine, if there is one, takes the pictures over."""
    local = LocalCaptioner(model=settings.image_captioner) if settings.image_captioner else None
    if not settings.endpoint:
        return Captions(image=local)
    server = Endpoint(url=settings.endpoint, model=settings.endpoint_model, key=os.environ.get(KEY, ""))
    return Captions(image=local or server.describe_picture, video=server.describe_video, merge=server.merge)
