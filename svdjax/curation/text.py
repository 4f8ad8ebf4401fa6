"""How much of a clip is text: captions, titles and logos, which early models learned to draw (appendix C).

The paper takes CRAFT; here it is the PP-OCR detector of rapidocr, whose weights come with the package. What its
boxes are blown up by (`_UNCLIP`) is set so that they cover the letters of rendered captions, no more and no less
(docs/benchmarks.md).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from svdjax.curation.clip import ClipFrames
from svdjax.data.decoding import resize_crop
from svdjax.errors import require
from svdjax.typing import UInt8, ndarray

_SIDE = 512  # pixels on the shorter side of what the detector sees: below, small captions are missed
_UNCLIP = 1.1
_SURE = 0.7  # score of a box that counts: with the default, 0.5, blurred pictures are full of text
_TALLEST = 0.5  # of the picture, a line of text: the detector takes some empty skies for one


@dataclass(frozen=True)
class TextArea:
    """The stage ``text_area``: the share of the picture in boxes around text, 0..1, mean of the three stills."""

    def __call__(self, clip: ClipFrames) -> dict[str, Any]:
        return {"text_area": float(np.mean([self.area(still) for still in clip.stills]))}

    def area(self, picture: UInt8[ndarray, "h w 3"]) -> float:
        """The share of one picture inside the boxes; what several cover counts once.

        Raises:
            UserError: rapidocr is not installed.
        """
        height, width = picture.shape[:2]
        zoom = min(1.0, _SIDE / min(height, width))
        size = (max(1, round(height * zoom)), max(1, round(width * zoom)))
        shown = np.ascontiguousarray(resize_crop(picture[None], size)[0][..., ::-1])
        found = self._engine(shown, use_det=True, use_cls=False, use_rec=False).boxes
        mask = Image.new("1", (size[1], size[0]))
        for box in () if found is None else found:
            sides = np.linalg.norm(box[1:3] - box[:2], axis=1)
            if sides.min() <= _TALLEST * min(size):
                ImageDraw.Draw(mask).polygon([tuple(point) for point in box.tolist()], fill=1)
        return float(np.asarray(mask).mean())

    @cached_property
    def _engine(self) -> Any:
        """The detector, on one thread: clips are annotated side by side anyway."""
        return require("rapidocr", "curate").RapidOCR(
            params={
                "Global.log_level": "critical",
                "Det.limit_type": "min",
                "Det.limit_side_len": _SIDE,
                "Det.unclip_ratio": _UNCLIP,
                "Det.box_thresh": _SURE,
                "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            }
        )
