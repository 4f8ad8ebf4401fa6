"""The LoRA stage: a diffusion stage of which only low-rank updates are trained, kept and written."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from svdjax.conversion.lora import read_lora, write_lora
from svdjax.errors import UserError
from svdjax.models.lora import DOWN, UP, LoRA, LoRAConfig, check_fits, draw_lora, inject, lora_shapes
from svdjax.models.svd import SVD, SVDConfig
from svdjax.training import processes
from svdjax.training.diffusion_stage import DiffusionStage
from svdjax.training.model import Model
from svdjax.training.sharding import gather, param_shardings, place


@dataclass(frozen=True, kw_only=True)
class LoRAStage(DiffusionStage):
    """Train a LoRA of the UNet; the model itself is frozen, in ``compute_dtype``.

    Optimizer state, average and checkpoints hold the LoRA alone, in float32: 3.3 M numbers each for SVD, so
    4 x 13 MB instead of 4 x 6.1 GB.

    Attributes:
        lora: which layers, and the rank.
        base: name of the model that is adapted, for the file's header; sampling takes a bundled one of that name.
    """

    result: ClassVar[str] = "lora.safetensors"
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    base: str = ""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: one is out of range, or a part of the UNet is named, of which none is trained.
        """
        super().__post_init__()
        if self.part != "all":
            raise UserError(f"--{self.name}.part {self.part}: a LoRA is trained: name layers with lora.targets")

    def shapes(self, config: SVDConfig) -> SVD:
        """
        Raises:
            UserError: ``lora.targets`` names nothing, or something other than linear layers.
        """
        return inject(super().shapes(config), self.lora)

    def trains(self, path: str) -> bool:
        return path.endswith((f".{DOWN}", f".{UP}"))

    def begin(self, model: Model, *, seed: int, mesh: Mesh) -> Model:
        shapes = lora_shapes(model.params, self.lora)
        drawn = jax.jit(lambda key: draw_lora(shapes, key), out_shardings=param_shardings(shapes, mesh))
        return self._with(model, drawn(jax.random.key(seed)))

    def save(self, model: Model, path: Path, *, dtype: str = "float32") -> None:
        """Write the LoRA, in diffusers' style. All processes have to call this together."""
        trained = {name: value for name, value in model.params.items() if self.trains(name)}
        arrays = {name: gather(value).astype(jnp.dtype(dtype)) for name, value in trained.items()}
        if processes.is_main():
            write_lora(path, LoRA(params=arrays, alpha=self.lora.alpha, base=self.base), model.config.unet)

    def read(self, model: Model, path: Path, *, mesh: Mesh) -> Model:
        lora = read_lora(path, model.config.unet)
        check_fits(lora, model.params, what=str(path))
        return self._with(model, place(lora.params, mesh))

    def _with(self, model: Model, lora: dict[str, jax.Array]) -> Model:
        return replace(model, params={**model.params, **lora}, structure=self.shapes)
