"""What a training stage is: which parameters it trains, on which loss, and how its run is set up."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import grain

from svdjax.errors import UserError
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training.data import Clips
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
        steps: updates to make. batch: clips per update.
        optim: the optimizer. ema_decay: largest decay of the moving average.
        compute_dtype: type in which the networks compute; the trained parameters stay float32.
        log_every, validate_every, sample_every, checkpoint_every: in steps; 0 is never.
        keep: number of checkpoints to keep.
    """

    name: ClassVar[str]
    steps: int = 10_000
    batch: int = 16
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema_decay: float = 0.9999
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = 20
    validate_every: int = 500
    sample_every: int = 0
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        """Check what would otherwise fail in the middle of a run.

        Raises:
            UserError: a number is too small; the message names its option.
        """
        for field_name, least in {"steps": 1, "batch": 1, "keep": 1, **dict.fromkeys(INTERVALS, 0)}.items():
            value = getattr(self, field_name)
            if value < least:
                raise UserError(f"--{self.name}.{field_name.replace('_', '-')} {value}: must be at least {least}")

    @abstractmethod
    def trains(self, path: str) -> bool:
        """Whether the stage trains the parameter with this dotted path; the others are frozen."""

    def prepare(self, config: SVDConfig, batch: Mapping[str, Any]) -> dict[str, Any]:
        """On the host: make of a batch what may go to a device."""
        return {name: value for name, value in batch.items() if name != "caption"}

    @abstractmethod
    def loss(self, model: SVD, batch: Batch, key: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Mean loss of a batch and what to log.

        All randomness of a video comes from ``key`` and ``batch["row"]`` (int32 [b]), its number in the global
        batch: so a loss does not depend on how the batch is divided among devices and accumulation steps.
        """

    def iterator(self, model: SVD, clips: Clips, *, seed: int) -> grain.DatasetIterator:
        """Training batches; a stage may compute something of the clips beforehand."""
        return clips.iterator(batch=self.batch, seed=seed)

    def held_out(self, clips: Clips, *, count: int) -> Sequence[Batch]:
        """Validation batches, like those of training."""
        return clips.held_out(batch=self.batch, count=count)

    def finish(self, model: SVD, batches: Sequence[Batch]) -> SVDConfig:
        """The model's configuration after training; a stage may measure it on a few held-out batches."""
        return model.config
