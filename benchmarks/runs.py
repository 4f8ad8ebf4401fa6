"""The committed demo configurations as runs of a benchmark: where they write, and that each is trained once."""

import dataclasses
from pathlib import Path

from svdjax.training import RunConfig, Stopped, load_config, run
from svdjax.training.directory import claim

CONFIGS = Path(__file__).parents[1] / "configs"


def demo_run(name: str, folder: Path, *, seed: int = 0, steps: int | None = None) -> RunConfig:
    """A configuration of ``configs``.

    Args:
        name: of its file. folder: for its data and its run. seed: of training.
        steps: of each of its stages, if not its own.
    """
    config = load_config([str(CONFIGS / f"{name}.py")], default=CONFIGS)
    data = dataclasses.replace(config.data, train=folder / "train", validation=folder / "validation")
    stages = {stage.name: stage for stage in config.stages()}
    if steps is not None:
        stages = {of: dataclasses.replace(stage, steps=steps) for of, stage in stages.items()}
    return dataclasses.replace(config, out=folder / f"{name}_{seed}", seed=seed, data=data, **stages)


def known_frames(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path]:
    """The model for all tasks with known frames, by its two committed configurations, one after the other.

    It lies beside the folder: two benchmarks measure the same one.
    """
    folder = folder.with_name("known_frames")
    pairs = trained(demo_run("demo_frame_interpolation", folder / "pairs", seed=seed, steps=steps))
    config = demo_run("demo_known_frames", folder, seed=seed, steps=steps)
    return (trained(dataclasses.replace(config, init_from=str(pairs))),)


def trained(config: RunConfig) -> Path:
    """What a run leaves; it is trained, or goes on where it stopped, unless it is finished.

    Raises:
        UserError: its folder holds a run of another configuration.
        KeyboardInterrupt: it was stopped; it goes on when it is asked for again.
    """
    claim(config)
    finished = config.out / config.stages()[-1].result
    if not finished.exists() and isinstance(run(config), Stopped):
        raise KeyboardInterrupt
    return finished
