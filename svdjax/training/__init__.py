"""Training: a run is a list of stages that share one loop, step, state and checkpoint format."""

from svdjax.training.config import RunConfig, load_config
from svdjax.training.run import Stopped, run

__all__ = ["RunConfig", "Stopped", "load_config", "run"]
