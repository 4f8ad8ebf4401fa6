"""From photos and texts to videos."""

from svdjax.sampling.images import read_image
from svdjax.sampling.pipeline import Pipeline, Settings

__all__ = ["Pipeline", "Settings", "read_image"]
