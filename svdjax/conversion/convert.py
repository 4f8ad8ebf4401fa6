"""The command ``svdjax convert``: checkpoints, one tensor in memory at a time, and LoRA files, into any format."""

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from svdjax.conversion.checkpoint import CONFIG_KEY, Checkpoint, Options
from svdjax.conversion.diffusers import COMPONENTS, DIFFUSERS_FILES, TEXT_FOLDERS, write_diffusers
from svdjax.conversion.lora import convert_lora, is_lora
from svdjax.conversion.native import NATIVE_FILES, write_native_file, write_native_folder
from svdjax.conversion.output import finished
from svdjax.conversion.safetensors_file import write_safetensors
from svdjax.conversion.sgm import write_sgm
from svdjax.conversion.source import locate, open_checkpoint
from svdjax.conversion.tensors import Progressed, dtype_named
from svdjax.errors import UserError

FORMATS = ("svdjax", "diffusers", "sgm", "kohya")


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Convert a checkpoint or a LoRA into another format; the same numbers come back bit for bit.

    Attributes:
        source: a diffusers folder, a .safetensors or .ckpt file, a checkpoint of svdjax, an address such as
            gs://bucket/svd, or a Hugging Face repository (owner/name, or owner/name/file.safetensors); or the
            .safetensors file of a LoRA.
        destination: the file or folder to write.
        to: svdjax writes one file if the destination ends with .safetensors, otherwise an orbax directory;
            diffusers writes a folder for from_pretrained; sgm writes a single file in the original naming. A LoRA
            becomes a .safetensors file with the key names of diffusers or of kohya's scripts.
        dtype: cast the weights; keep writes what the source has.
        variant: which files of a diffusers folder to read, e.g. fp16.
        head_dim: width of an attention head of the UNet, where a single file cannot tell (64 if left out).
        clip_heads: attention heads of CLIP, likewise (16 for the released models).
        prediction: what an SD 2.1 single file predicts: v (768 px, if left out) or eps (512 px base).
        overwrite: replace the destination if it exists.
    """

    source: Annotated[str, tyro.conf.Positional]
    destination: Annotated[Path, tyro.conf.Positional]
    to: Literal["svdjax", "diffusers", "sgm", "kohya"]
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    variant: str | None = None
    head_dim: int | None = None
    clip_heads: int | None = None
    prediction: Literal["v", "eps"] | None = None
    overwrite: bool = False


def convert(
    source: str | Path,
    destination: Path,
    *,
    to: str,
    dtype: str = "keep",
    options: Options | None = None,
    overwrite: bool = False,
) -> Path:
    """Convert, with a progress bar and notices on stderr; the arguments are those of :class:`Convert`.

    Returns:
        The destination.

    Raises:
        UserError: the source is unusable, or the destination cannot be written; nothing is left half-written.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format {to}: choose one of {', '.join(FORMATS)}")
    target = dtype_named(dtype)
    if re.match(r"\w+:/", str(destination)):
        raise UserError(f"{destination}: only local paths can be written: convert, then copy it there")
    options = options or Options()
    path = locate(source, options.variant)
    check_destination(path, destination)
    if is_lora(path):
        _refuse_options(path, options)
        convert_lora(path, destination, style=to, dtype=target, overwrite=overwrite)
        return destination
    console = Console(stderr=True)
    checkpoint = open_checkpoint(path, options).cast(target)
    if to == "kohya":
        raise UserError(f"{source}: a whole checkpoint, and --to kohya is for LoRA files: choose another format")
    _print_notices(console, checkpoint.notices)
    columns = TextColumn("converting"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with finished(destination, overwrite=overwrite) as partial, Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=checkpoint.nbytes)
        notices = _write(checkpoint, partial, to, destination.suffix, lambda count: bar.advance(task, count))
        bar.update(task, completed=checkpoint.nbytes)
    _print_notices(console, notices)
    return destination


def check_destination(source: Path, destination: Path) -> None:
    """See that what a conversion would replace is at most an older file, or a folder like those that it writes.

    Raises:
        UserError: it holds the source, or other files.
    """
    place, read = Path(os.path.abspath(destination)), source.resolve()
    if not place.name or place.resolve() in (read, *read.parents):
        raise UserError(f"{destination}: holds the source: choose another destination")
    if not place.is_dir():
        return
    ours = (*COMPONENTS, *TEXT_FOLDERS, *DIFFUSERS_FILES) if (place / "model_index.json").exists() else NATIVE_FILES
    if foreign := sorted(path.name for path in place.iterdir() if path.name not in ours):
        raise UserError(
            f"{destination}: a folder with other files in it ({foreign[0]}): choose another destination"
        )


def run(args: Convert) -> None:
    """Convert and print the destination.

    Raises:
        UserError: see :func:`convert`.
    """
    options = Options(
        variant=args.variant, head_dim=args.head_dim, clip_heads=args.clip_heads, prediction=args.prediction
    )
    print(
        convert(
            args.source,
            args.destination,
            to=args.to,
            dtype=args.dtype,
            options=options,
            overwrite=args.overwrite,
        )
    )


def _refuse_options(lora: Path, options: Options) -> None:
    given = [f"--{name.replace('_', '-')}" for name, value in asdict(options).items() if value is not None]
    if given:
        raise UserError(f"{lora}: a LoRA, for which {' and '.join(given)} means nothing: leave it out")


def _print_notices(console: Console, notices: tuple[str, ...]) -> None:
    for notice in notices:
        console.print(notice, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _write(checkpoint: Checkpoint, path: Path, to: str, suffix: str, progress: Progressed) -> tuple[str, ...]:
    if to == "diffusers":
        return write_diffusers(checkpoint, path, progress)
    if to == "sgm":
        tensors, notices = write_sgm(checkpoint)
        metadata = {"format": "pt", CONFIG_KEY: checkpoint.config.to_json()}
        write_safetensors(path, tensors, metadata, progress)
        return notices
    if suffix == ".safetensors":
        write_native_file(checkpoint, path, progress)
    else:
        write_native_folder(checkpoint, path, progress)
    return ()
