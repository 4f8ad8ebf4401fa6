"""From the command line to a task's inputs: one reader for each task that can be asked for."""

import dataclasses
from types import MappingProxyType

from svdjax.errors import UserError
from svdjax.sampling.inputs.known_frames import BEGINNINGS, ENDS, PAIRS, PLACED
from svdjax.sampling.inputs.photos import PHOTOS
from svdjax.sampling.inputs.prompts import PROMPTS, PROMPTS_FOR_PICTURES
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.inputs.views import VIEWS
from svdjax.sampling.options import Sample

# By the name that ``--task`` takes.
READERS = MappingProxyType(
    {"image_to_video": PHOTOS, "text_to_video": PROMPTS, "text_to_image": PROMPTS_FOR_PICTURES, "multi_view": VIEWS}
    | {"frame_interpolation": PAIRS, "first_last": ENDS, "video_prediction": BEGINNINGS, "known_frames": PLACED}
)


def reader_of(args: Sample, task: str) -> Reader:
    """The reader that a command line asks for.

    Args:
        args: the command line.
        task: of the checkpoint, and what is asked for if ``--task`` says nothing else.

    Raises:
        UserError: no such task can be sampled, not with this checkpoint, or an option is of another task.
    """
    name = args.task or task
    if name not in READERS:
        raise UserError(f"--task {name}: cannot be sampled; choose from {', '.join(READERS)}")
    reader = READERS[name]
    if task not in reader.models:
        raise UserError(f"{args.checkpoint}: a checkpoint for {task}, not for {name}")
    for field in dataclasses.fields(Sample):
        of_others = any(field.name in other.options for other in READERS.values())
        if of_others and field.name not in reader.options and getattr(args, field.name) != field.default:
            options = ", ".join(map(_spelled, reader.options))
            raise UserError(f"{_spelled(field.name)}: means nothing to {name}, which reads {options}")
    return reader


def _spelled(option: str) -> str:
    return option if option == "photos" else f"--{option.replace('_', '-')}"


__all__ = ["READERS", "Given", "Reader", "reader_of"]
