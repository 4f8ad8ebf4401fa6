"""The weights that a run starts with: strictly those that its configuration declares, shown in a table."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from svdjax.conversion.checkpoint import Checkpoint, shapes_of
from svdjax.conversion.source import open_checkpoint, read_arrays
from svdjax.conversion.tensors import Tensor
from svdjax.errors import UserError
from svdjax.models.params import flat_params
from svdjax.models.svd import SVDConfig
from svdjax.training.config import RunConfig
from svdjax.training.transfer import Init, Shapes, Transfer, resolve, widen

# What a run may change of the networks that it starts from; shapes alone would not show other heads or norm groups,
# while levels with attention show in the paths.
# The text tower is as the checkpoint has it: some files lack its last block, or its projection.
CHANGEABLE = {
    "unet": {"attention", "in_channels", "vector_dim", "temporal", "norm_eps", "remat"},
    "vae": {"scaling_factor", "remat", "temporal_decoder"},
    "image_encoder": set(),
    "text_encoder": {"last_block", "projection_dim"},
}
_TOWER = "image_encoder."
ENCODERS = ("vae.", _TOWER, "text_encoder.")
_MARKED = ("vae.encoder.", "vae.quant_conv.", _TOWER, "text_encoder.")
_MARKS = 4  # weights of each that tell two checkpoints apart


@dataclass(frozen=True, kw_only=True)
class Initial:
    """What a run starts with.

    Attributes:
        config: the run's model, with what the checkpoint alone can say: the scaling of its latents, and which parts
            of the text tower its file holds.
        loaded: float32 arrays by dotted path, on the host; zeros among them.
        new: paths of the parameters to draw at random. Every parameter of the model is either here or there.
    """

    config: SVDConfig
    loaded: dict[str, np.ndarray]
    new: tuple[str, ...]


def initial(config: RunConfig, console: Console) -> Initial:
    """Read the weights that a run starts with, and print what became of the checkpoint's parameters.

    Raises:
        UserError: the checkpoint cannot be read, or it and the declaration ``config.init`` do not agree exactly.
    """
    if config.init_from is None:
        if config.init != Init():
            raise UserError("this configuration continues from a trained model: name its file with --init-from")
        return Initial(config=config.model, loaded={}, new=tuple(flat_params(shapes_of(config.model))))
    start, model, ours, theirs = _matched(config.init_from, config)
    transfer = resolve(config.init, ours, theirs, what=start.what)
    console.print(_table(transfer, ours, theirs, start.what))
    kept = {path: start.params[path] for path in (*transfer.loaded, *transfer.widened)}
    loaded = dict(read_arrays(kept))
    for path in transfer.widened:
        loaded[path] = widen(path, loaded[path], ours[path][-2], model, start.config)
    loaded |= {path: np.zeros(ours[path], np.float32) for path in transfer.zero}
    return Initial(config=model, loaded=loaded, new=transfer.new)


def check_start(config: RunConfig) -> None:
    """Look, without reading weights, whether `initial` will find what the configuration declares.

    Raises:
        UserError: as `initial`.
    """
    if config.init_from is not None:
        start, _, ours, theirs = _matched(config.init_from, config)
        resolve(config.init, ours, theirs, what=start.what)


def encoder_marks(config: RunConfig) -> dict[str, list[float]]:
    """A few weights of each part that encodes, by which it is known again, whatever its file is called.

    Returns:
        By dotted path, weights of the part's smallest matrix, evenly spaced; only these matrices are read.

    Raises:
        UserError: as `initial`; or an encoder would have random weights.
    """
    params: dict[str, Tensor] = {}
    new = tuple(flat_params(shapes_of(config.model)))
    if config.init_from is not None:
        start, _, ours, theirs = _matched(config.init_from, config)
        transfer = resolve(config.init, ours, theirs, what=start.what)
        params, new = {path: start.params[path] for path in transfer.loaded}, transfer.new
    if random := [path for path in new if path.startswith(ENCODERS)]:
        raise UserError(
            f"{len(random)} parameters of the encoders are new ({random[0]}, ...): name a checkpoint with "
            "--init-from"
        )
    marks = {}
    for part in _MARKED:
        matrices = [path for path, x in params.items() if path.startswith(part) and len(x.shape) > 1]
        for path in sorted(matrices, key=lambda path: (math.prod(params[path].shape), path))[:1]:
            values = params[path].load().ravel()
            marks[path] = [float(f"{x:.6g}") for x in values[:: max(1, len(values) // _MARKS)][:_MARKS]]
    return marks


def _matched(source: str, config: RunConfig) -> tuple[Checkpoint, SVDConfig, Shapes, Shapes]:
    """The checkpoint to start from, the run's model with what it says, and the shapes of the parameters of both."""
    if source.startswith((".", "/")) and not Path(source).exists():
        raise UserError(
            f"--init-from {source}: no such file: train the stage that leaves it first (docs/recipes.md), or name "
            "another checkpoint"
        )
    start = _open(source, config.init)
    model = _with_what_it_says(config.model, start, config.init)
    ours = {path: tuple(shape.shape) for path, shape in flat_params(shapes_of(model)).items()}
    return start, model, ours, {path: tensor.shape for path, tensor in start.params.items()}


def _open(source: str, init: Init) -> Checkpoint:
    """The checkpoint to start from in float32, with the image encoder of a second one if there is one."""
    start = open_checkpoint(source).cast(np.dtype(np.float32))
    if init.image_encoder is None:
        return start
    if start.config.image_encoder is not None:
        raise UserError(f"{source}: has an image encoder already: leave out --init.image-encoder")
    other = open_checkpoint(init.image_encoder).cast(np.dtype(np.float32))
    if other.config.image_encoder is None:
        raise UserError(f"--init.image-encoder {init.image_encoder}: this checkpoint has no image encoder")
    tower: dict[str, Tensor] = {path: x for path, x in other.params.items() if path.startswith(_TOWER)}
    config = dataclasses.replace(start.config, image_encoder=other.config.image_encoder)
    return dataclasses.replace(
        start, what=f"{start.what} with {other.what}", config=config, params={**start.params, **tower}
    )


def _with_what_it_says(ours: SVDConfig, start: Checkpoint, init: Init) -> SVDConfig:
    """The run's model, with those values that are the checkpoint's to say.

    Raises:
        UserError: a network of the checkpoint computes something else than the run's.
    """
    theirs = start.config
    for name, changeable in CHANGEABLE.items():
        wanted, found = getattr(ours, name), getattr(theirs, name)
        if wanted is None or found is None or f"{name}.*" in init.new:
            continue  # whether that is as declared shows in the paths
        for key, value in dataclasses.asdict(wanted).items():
            if key not in changeable and value != getattr(found, key):
                raise UserError(
                    f"--init-from {start.what}: its {name} has {key} {getattr(found, key)}, the model of "
                    f"this run {value}: give another checkpoint, or change model.{name}"
                )
    if (ours.preconditioning == "discrete_eps") != (theirs.preconditioning == "discrete_eps"):
        raise UserError(
            f"--init-from {start.what}: its output is {theirs.preconditioning}, this run's {ours.preconditioning}: "
            "start from a model that predicts the same (of SD 2.1, the one for 768 pixels predicts v)"
        )
    vae = dataclasses.replace(ours.vae, scaling_factor=theirs.vae.scaling_factor)
    text = theirs.text_encoder if ours.text_encoder and theirs.text_encoder else ours.text_encoder
    return dataclasses.replace(ours, vae=vae, text_encoder=text)


def _table(transfer: Transfer, ours: Shapes, theirs: Shapes, what: str) -> Table:
    """Numbers of parameters of each network by what became of them."""
    columns = {
        field.name: _sizes(getattr(transfer, field.name), theirs if field.name == "dropped" else ours)
        for field in dataclasses.fields(transfer)
    }
    table = Table(title=f"parameters from {what}")
    table.add_column("part")
    for name in columns:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for sizes in columns.values() for part in sizes):
        table.add_row(part, *(f"{sizes[part]:,}" if part in sizes else "" for sizes in columns.values()))
    return table


def _sizes(paths: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for path in paths:
        sizes[path.split(".")[0]] += math.prod(shapes[path])
    return sizes
