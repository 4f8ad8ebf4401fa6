"""What a run is: data, model sizes, and a list of stages; read from a Python file, overridden by dotted paths."""

import dataclasses
import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Literal, TypeVar

import tyro

from svdjax.errors import UserError, check_local
from svdjax.models.svd import SVDConfig
from svdjax.tasks import task_of
from svdjax.training.data import DataConfig
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.mesh import MeshConfig
from svdjax.training.sinks import LogConfig
from svdjax.training.stage import Stage
from svdjax.training.transfer import Init
from svdjax.training.vae_stage import DecoderStage, VAEStage

Options = TypeVar("Options")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One training run.

    Attributes:
        out: directory of the run: checkpoints, metrics, samples and the final ``model.safetensors``.
        seed: of the initial weights, the order of the clips and every random draw of training.
        init_from: a checkpoint to start from, in any format that ``svdjax convert`` reads; None for random weights.
        init: where the model differs from that checkpoint.
        quick: train a twentieth of the steps, to see everything work within minutes.
        distributed: this is one of several processes, one per host (see `processes.start`).
        mesh: how the devices are divided.
        export_dtype: type of the weights in the final ``model.safetensors``.
        log: where metrics go besides the run's directory.
        profile: first and last step of a trace that the profiler writes of each stage, e.g. 10 12.
        model: sizes of the networks.
        data: the clips.
        vae, decoder, unet: the stages, in the order in which they run; None leaves one out.
    """

    out: Path = Path("runs/run")
    seed: int = 0
    init_from: str | None = None
    init: Init = field(default_factory=Init)
    quick: bool = False
    distributed: bool = False
    mesh: MeshConfig = field(default_factory=MeshConfig)
    export_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    log: LogConfig = field(default_factory=LogConfig)
    profile: tuple[int, int] | None = None
    model: SVDConfig
    data: DataConfig = field(default_factory=DataConfig)
    vae: VAEStage | None = None
    decoder: DecoderStage | None = None
    unet: DiffusionStage | None = None

    def __post_init__(self) -> None:
        """Check what no part can check alone.

        Raises:
            UserError: a value is out of range, or the data has what no stage reads.
        """
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: must be at least 0")
        paths = [("out", self.out), ("data.train", self.data.train), ("data.validation", self.data.validation)]
        for option, path in [*paths, *(("data.also", path) for path in self.data.also)]:
            check_local(option, path)
        self._check_context()
        self._check_frames()
        if self.profile is not None and not 2 <= self.profile[0] <= self.profile[1]:
            raise UserError(
                f"--profile {self.profile[0]} {self.profile[1]}: give the first and the last step to trace, "
                "at least 2 (step 1 compiles)"
            )
        if self.data.sampling.captions and self.model.text_encoder is None:
            raise UserError("--data.sampling.captions: no stage of this run reads captions: leave it out")

    def _check_context(self) -> None:
        """Videos that several devices share have to divide at every level: elsewhere XLA gets gradients wrong.

        Raises:
            UserError: they do not.
        """
        multiple = self.model.size_multiple * self.mesh.context
        for _, _, width in self.data.sampling.shapes if self.mesh.context > 1 else ():
            if width % multiple:
                raise UserError(
                    f"--mesh.context {self.mesh.context}: clips {width} pixels wide do not divide at every level: "
                    f"make the width a multiple of {multiple}, or use fewer devices for one video"
                )

    def _check_frames(self) -> None:
        """Samples are asked for by held-out clips, which some tasks then need to be as long as the samples.

        Raises:
            UserError: none are; said here, for the first samples may be made after the whole training.
        """
        sampling, wanted = self.data.sampling, self.model.defaults.frames
        lengths = sorted({frames for frames, *_ in sampling.shapes})
        if self.unet is not None and wanted not in lengths and task_of(self.model).per_frame:
            raise UserError(
                f"--data.sampling.{'buckets' if sampling.buckets else 'frames'}: clips of "
                f"{' or '.join(map(str, lengths))} frames, where {self.model.task} samples as many as "
                f"--model.defaults.frames, {wanted}: make the two the same"
            )

    def stages(self) -> list[Stage]:
        """The stages to run, in order, with the step counts that ``quick`` asks for."""
        stages = [stage for stage in (self.vae, self.decoder, self.unet) if stage is not None]
        return [_quick(stage) for stage in stages] if self.quick else stages

    def to_json(self) -> str:
        """The resolved configuration; it is saved beside the checkpoints."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)


def _quick(stage: Stage) -> Stage:
    steps = max(stage.steps // 20, 1)
    optim = dataclasses.replace(stage.optim, warmup=min(stage.optim.warmup, steps // 4))
    return dataclasses.replace(stage, steps=steps, optim=optim)


def load_config(argv: Sequence[str], *, default: Path) -> RunConfig:
    """Read a command line: an optional configuration file, then overrides such as ``--unet.steps 100``.

    Args:
        argv: arguments after the program's name.
        default: the file to use when the command line names none.

    Raises:
        UserError: the file is missing or has no ``config()``.
        SystemExit: an unknown option (code 2, with a suggestion) or ``--help`` (code 0).
    """
    argv = list(argv)
    path = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else default
    module = _load_module(path)
    return tyro.cli(
        RunConfig,
        args=argv,
        default=module.config(),
        description=module.__doc__,
        prog=" ".join([Path(sys.argv[0]).name, *_command(sys.argv[1:2]), str(path)]),
        config=(tyro.conf.AvoidSubcommands,),
    )


def load_with(
    options: type[Options], argv: Sequence[str], *, command: str, default: Path
) -> tuple[Options, RunConfig]:
    """Read a command line that has options of its own besides those of a configuration.

    Args:
        options: a dataclass of them. argv, default: as of :func:`load_config`. command: for help and mistakes; one
            process does it, on its own devices.

    Raises:
        UserError: as :func:`load_config`; or an option says what other processes and devices should do.
        SystemExit: as :func:`load_config`.
    """
    # The configuration file stands first; else its name would be reported as unknown where an option is missing.
    files = [*argv[:1]] if argv and not argv[0].startswith("-") else []
    prog = f"svdjax {command} {files[0] if files else '[CONFIG.py]'}"
    about = "Other options are those of the configuration: svdjax train CONFIG.py --help lists them."
    own, rest = tyro.cli(options, args=argv[len(files) :], prog=prog, description=about, return_unknown_args=True)
    if idle := [word for word in rest if re.match(r"--(distributed|mesh)\b", word)]:
        raise UserError(f"{idle[0]}: svdjax {command} is one process, on its own devices: leave it out")
    return own, load_config([*files, *rest], default=default)


def _command(first: list[str]) -> list[str]:
    """What stands between the program and the configuration file: ``train`` of ``svdjax train``."""
    return [word for word in first if not word.startswith("-") and not word.endswith(".py")]


def _load_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no configuration file {path}: name one of configs/*.py")
    spec = importlib.util.spec_from_file_location(f"svdjax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "config", None)):
        raise UserError(f"{path} has no function config(): it should return a RunConfig")
    return module
