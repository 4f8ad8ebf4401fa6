"""What a training stage is: which parameters it trains, on which loss, and how its run is set up."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import grain
from jax.sharding import Mesh

from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training import processes
from svdjax.training.bad_steps import BadSteps
from svdjax.training.data import Clips
from svdjax.training.keep import Keep
from svdjax.training.model import Model, read, svd_shapes
from svdjax.training.model_file import save_model
from svdjax.training.optim import OptimConfig
from svdjax.typing import Array, Float, Key, ndarray

INTERVALS = ("log_every", "validate_every", "sample_every", "checkpoint_every")
Batch = dict[str, Array | ndarray]
Metrics = dict[str, Float[Array, ""] | Float[Array, "2"]]  # a mean, or a sum and a count


@dataclass(frozen=True, kw_only=True)
class Stage(ABC):
    """One part of a run. Stages differ in what is declared here and share loop, step, state and checkpoints.

    Attributes:
        name: of the stage's option and directory.
        result: of the file that it leaves there.
        steps: updates to make.
        batch: clips per update, over all devices.
        accumulate: parts in which a batch is worked through, one after the other, to save memory.
        optim: the optimizer.
        ema_decay: largest decay of the moving average.
        compute_dtype: type in which the networks compute, and of the frozen parameters; the trained ones stay
            float32.
        offload: keep moments and average in the host's memory between the steps.
        log_every: steps from one line of metrics to the next; 0 is never.
        validate_every: likewise, from one validation to the next.
        sample_every: likewise, from one grid of samples to the next.
        checkpoint_every: likewise, from one checkpoint to the next.
        keep: which checkpoints stay.
        bad: what becomes of a step whose loss is not finite or explodes.
    """

    name: ClassVar[str]
    result: ClassVar[str] = "model.safetensors"
    steps: int = 10_000
    batch: int = 16
    accumulate: int = 1
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float = 0.9999
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    offload: bool = False
    log_every: int = 20
    validate_every: int = 500
    sample_every: int = 0
    checkpoint_every: int = 500
    keep: Keep = field(default_factory=Keep)
    bad: BadSteps = field(default_factory=BadSteps)

    def __post_init__(self) -> None:
        """Check what would otherwise fail in the middle of a run.

        Raises:
            UserError: a number is too small; the message names its option.
        """
        for field_name, least in {"steps": 1, "batch": 1, "accumulate": 1, **dict.fromkeys(INTERVALS, 0)}.items():
            value = getattr(self, field_name)
            if value < least:
                raise UserError(f"--{self.name}.{field_name.replace('_', '-')} {value}: must be at least {least}")
        if self.batch % self.accumulate:
            raise UserError(
                f"--{self.name}.accumulate {self.accumulate}: does not divide --{self.name}.batch {self.batch}"
            )

    def shapes(self, config: SVDConfig) -> SVD:
        """The module that the stage trains a part of, without values."""
        return svd_shapes(config)

    def begin(self, model: Model, *, seed: int, mesh: Mesh) -> Model:
        """The model before the first step, of the structure :meth:`shapes`; a stage may add parameters."""
        return model

    def save(self, model: Model, path: Path, *, dtype: str = "float32") -> None:
        """Write what the stage leaves: the whole model. All processes have to call this together."""
        whole = model.whole()
        if processes.is_main():
            save_model(whole, path, dtype=dtype)

    def read(self, model: Model, path: Path, *, mesh: Mesh) -> Model:
        """The model after the stage, from what it left at ``path`` and from the model before the stage."""
        return read(path, mesh)

    @abstractmethod
    def trains(self, path: str) -> bool:
        """Whether the stage trains the parameter with this dotted path; the others are frozen."""

    @abstractmethod
    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss of a batch and what to log.

        All randomness of a clip comes from ``key`` and its ``batch["row"]`` (see `diffusion.noise.row_keys`): so it
        is the same on every mesh and in every part of a batch. Of a metric of shape () the mean over parts and
        steps is logged; a metric of shape (2,) is a sum and a count, which are added up.
        """

    def batches(
        self, model: SVD, clips: Clips, *, seed: int, rows: Sequence[int] | None = None
    ) -> grain.MapDataset:
        """The training batches, of which this process makes ``rows``; a stage may compute something beforehand."""
        return clips.batches(batch=self.batch, seed=seed, rows=rows)

    def prepare(self, config: SVDConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
        """On the host: make of a batch what may go to a device."""
        return {name: value for name, value in batch.items() if name != "caption"}

    def held_out(self, clips: Clips, *, batch: int, count: int) -> Sequence[Batch]:
        """Validation batches."""
        return clips.held_out(batch=batch, count=count)

    def for_validation(self) -> "Stage":
        """The stage whose loss is taken of held-out clips."""
        return self

    def finish(self, model: SVD, batches: Sequence[Batch]) -> SVDConfig:
        """The model's configuration after training; a stage may measure it on a few held-out batches.

        Of ``model`` the trained parameters are float32, the others in ``compute_dtype``.
        """
        return model.config
