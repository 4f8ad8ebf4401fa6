"""The text-conditioned tasks ask for prompts."""

import re

from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import Sample

_LONGEST_NAME = 60


def read(args: Sample, defaults: SamplingDefaults) -> Given:
    """The prompt, or those of a file, and what all of them share.

    Raises:
        UserError: there is none, or the file cannot be read.
    """
    del defaults
    prompts = _prompts(args)
    others = {name: getattr(args, name) for name in ("negative_prompt", "temporal_prompt")}
    shared = {name: text for name, text in others.items() if text is not None}
    return Given(
        inputs={"prompts": prompts, **shared},
        names=[name_of(prompt) for prompt in prompts],
        notes=[{"prompt": prompt, **shared} for prompt in prompts],
    )


def _prompts(args: Sample) -> list[str]:
    if (args.prompt is None) == (args.prompts is None):
        raise UserError('--prompt "a text", or --prompts FILE with a text on each line: give one of them')
    if args.prompts is None:
        return [args.prompt]
    try:
        lines = args.prompts.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {args.prompts}: cannot be read as text ({error})") from None
    if not any(line.strip() for line in lines):
        raise UserError(f"--prompts {args.prompts}: has no line with a text")
    return [line.strip() for line in lines if line.strip()]


def name_of(prompt: str) -> str:
    """The words of a prompt as the name of a file."""
    return re.sub(r"\W+", "-", prompt.lower())[:_LONGEST_NAME].strip("-") or "no-words"


_PICTURE_OPTIONS = ("prompt", "prompts", "negative_prompt")
PROMPTS_FOR_PICTURES = Reader(models=("text_to_image",), options=_PICTURE_OPTIONS, read=read)
PROMPTS = Reader(
    models=("text_to_video",),
    options=(*_PICTURE_OPTIONS, "temporal_prompt", "motion_bucket", "windows", "overlap"),
    read=read,
)
