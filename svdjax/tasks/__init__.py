"""Tasks: what a model is conditioned on, in training and in sampling alike."""

from svdjax.tasks.conditioning import Conditioning, embed_scalars, network_of
from svdjax.tasks.image_to_video import ImageRequest, ImageToVideo

__all__ = ["Conditioning", "ImageRequest", "ImageToVideo", "embed_scalars", "network_of"]
