"""Tasks: what a model is conditioned on, in training and in sampling alike."""

from types import MappingProxyType

from svdjax.errors import UserError
from svdjax.models.svd import SVDConfig
from svdjax.tasks.conditioning import Conditioning, DropRates, drop, embed_scalars, network_of
from svdjax.tasks.image_to_video import ImageRequest, ImageToVideo
from svdjax.tasks.known_frames import PATTERNS, KnownFrames, KnownFramesRequest
from svdjax.tasks.multi_view import MultiView, ViewsRequest
from svdjax.tasks.task import Task
from svdjax.tasks.text_to_video import TextRequest, TextToVideo

# By the name in a model's configuration. An image model is a video model of one frame.
TASKS = MappingProxyType(
    {
        "image_to_video": ImageToVideo,
        "text_to_video": TextToVideo,
        "text_to_image": TextToVideo,
        "multi_view": MultiView,
    }
    | dict.fromkeys(PATTERNS, KnownFrames)
)


def task_of(config: SVDConfig) -> Task:
    """The task that a model is conditioned by.

    Raises:
        UserError: no task of this name is known.
    """
    if config.task not in TASKS:
        raise UserError(f"no task {config.task}: training knows {', '.join(TASKS)}")
    return TASKS[config.task](config=config)


__all__ = [
    "TASKS",
    "Conditioning",
    "DropRates",
    "ImageRequest",
    "ImageToVideo",
    "KnownFrames",
    "KnownFramesRequest",
    "MultiView",
    "Task",
    "TextRequest",
    "TextToVideo",
    "ViewsRequest",
    "drop",
    "embed_scalars",
    "network_of",
    "task_of",
]
