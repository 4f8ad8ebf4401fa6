"""The checkpoints that come with the package, found by what is asked for."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from svdjax.conversion.safetensors_file import read_safetensors
from svdjax.errors import UserError
from svdjax.sampling.loras import parse_lora
from svdjax.sampling.options import ASSETS, DEMO_CHECKPOINT, Sample
from svdjax.tasks.known_frames import PATTERNS

# By the name that ``--task`` takes; a file may be missing.
CHECKPOINTS: Mapping[str, Path] = MappingProxyType(
    {
        "image_to_video": DEMO_CHECKPOINT,
        "text_to_video": ASSETS / "demo_text_to_video.safetensors",
        "multi_view": ASSETS / "demo_multi_view.safetensors",
        **dict.fromkeys(PATTERNS, ASSETS / "demo_known_frames.safetensors"),
    }
)


def bundled_checkpoint(args: Sample) -> Path:
    """The checkpoint to use where the command line names none.

    That is the base of its first LoRA that was trained on a bundled one; else the checkpoint of ``--task``, or of
    texts if there is a prompt, or of pictures.

    Raises:
        UserError: none is bundled for what is asked.
    """
    for spec in args.lora:
        if base := _base_of(parse_lora(spec)[0]):
            return base
    prompted = args.prompt is not None or args.prompts is not None
    task = args.task or ("text_to_video" if prompted else "image_to_video")
    there = [name for name, path in CHECKPOINTS.items() if path.exists()]
    if task not in there:
        raise UserError(f"no checkpoint is bundled for {task}, only for {', '.join(there)}: give --checkpoint")
    return CHECKPOINTS[task]


def _base_of(lora: Path) -> Path | None:
    """The bundled checkpoint that a LoRA file says it was trained on."""
    base = read_safetensors(lora)[1].get("base") if lora.is_file() else None
    return next((path for path in ASSETS.glob("*.safetensors") if base in (path.name, path.stem)), None)
