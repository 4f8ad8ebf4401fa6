"""A whole run: its stages in order, each resumable, and the finished model at the end."""

from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh
from rich.console import Console

from svdjax.errors import UserError
from svdjax.training import processes
from svdjax.training.cache_settings import check_cache
from svdjax.training.config import RunConfig, load_config
from svdjax.training.data import Clips, open_clips
from svdjax.training.directory import claim, keep_motion_map
from svdjax.training.initial import check_start, initial
from svdjax.training.loop import stop_on_signals
from svdjax.training.mesh import make_mesh
from svdjax.training.model import Model, drawn
from svdjax.training.samples import check_grid, grid_clips, write_grid
from svdjax.training.sharding import place
from svdjax.training.stage import Stage
from svdjax.training.stage_run import StageRun, Stopped

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"


def main(argv: Sequence[str]) -> int:
    """``svdjax train [CONFIG.py] [--option value ...]``; 0 when finished, or when stopped after saving."""
    config = load_config(argv, default=DEMO)
    if config.distributed:
        processes.start()
    with processes.explain_loss():
        run(config)
    return 0


def run(config: RunConfig, console: Console | None = None) -> Path | Stopped:
    """Run the stages that are not finished yet, then export the model and a grid of samples.

    Returns:
        The path of the finished ``model.safetensors`` (of a LoRA, ``lora.safetensors``), or where the run stopped
        (SIGTERM, Ctrl-C) after saving.

    Raises:
        UserError: there is no stage, the loss is no longer finite, the directory holds another run, or the data is
            unusable.
    """
    stages = config.stages()
    if not stages:
        raise UserError("this configuration has no stage: give it vae, decoder or unet")
    console = console or processes.console()
    mesh = make_mesh(config.mesh)
    with processes.main_first("open"):
        claim(config)
        check_start(config)  # before clips are measured, which may take hours
        check_cache(config)
        clips = open_clips(config.data, console)
        if config.unet is not None:
            check_grid(clips, config.model)
        keep_motion_map(config, clips.train)
    processes.check_same_count(len(clips.train), "training clips")
    processes.check_same_count(len(clips.validation), "validation clips")
    model = start(config, mesh, console)
    count = sum(value.size for value in model.params.values())
    devices = " x ".join(f"{size} {name}" for name, size in mesh.shape.items() if size > 1) or "1 device"
    console.print(f"{count:,} parameters on {devices}, {len(clips.train):,} clips; writing to {config.out}")
    with stop_on_signals() as stop:
        for stage in stages:
            finished = config.out / stage.name / stage.result
            if not processes.of_main(finished.exists(), f"{stage.name} looked for"):
                model = StageRun(config, stage, model, clips, mesh, console).train(stop)
                if isinstance(model, Stopped):
                    console.print(f"stopped and saved at step {model.step} of {stage.name}: run again to go on")
                    return model
            processes.see(finished)
            model = stage.read(model, finished, mesh=mesh)
    return _export(config, stages[-1], model, clips, console)


def start(config: RunConfig, mesh: Mesh, console: Console) -> Model:
    """The weights before the first stage: read, and drawn where they are new."""
    start = initial(config, console)
    params = place(start.loaded, mesh) | drawn(start.config, start.new, config.seed, mesh)
    return Model(start.config, params)


def _export(config: RunConfig, last: Stage, model: Model, clips: Clips, console: Console) -> Path:
    """Write what the last stage leaves in the type to give away, and a grid of samples."""
    path = config.out / last.result
    last.save(model, path, dtype=config.export_dtype)
    written = [path]
    if config.unet is not None:
        whole = model.whole(config.unet.compute_dtype)
        if processes.is_main():
            written += write_grid(whole, grid_clips(clips, whole.config.defaults.frames), config.out / "samples")
    for each in written:
        console.print(str(each))
    processes.barrier("exported")
    return path
