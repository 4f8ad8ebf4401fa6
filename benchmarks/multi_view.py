"""Multi-view at toy scale: does a video model know more of views than an image model, or than nothing (Table 3)?

Command: python -m benchmarks.multi_view [CHECKPOINT | --seeds 0 1 --steps N]   (`pip install -e ".[measure]"`)
         python -m benchmarks.multi_view CHECKPOINT --orbits SHARDS --lpips FILE --clip CHECKPOINT

Asks for orbits around solids that no training run draws, or for those of a data set, and compares views with the
true ones, all but the one that was given. Prints one JSON object: PSNR in dB and SSIM, and if asked for LPIPS
("lpips") and the cosine of CLIP embeddings ("clip_s"), of the model; of the picture repeated ("picture"), and of
the true views encoded and decoded ("autoencoder"), which no model can surpass by much.

Without a checkpoint it trains the decoder of `configs/demo_multi_view.py` once, and its UNet from three starts with
the same steps, clips and noise, and has figures of each start and seed.
scratch: a random UNet. image: the demo's UNet with new temporal layers. video: the demo's UNet, trained on videos.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np
import tyro

from benchmarks.demo import AT_ONCE, SEED, pipeline_of, reconstruct
from benchmarks.runs import demo_run, trained
from svdjax.cli import guard
from svdjax.compilation import keep_compiled
from svdjax.conversion.lpips import read_lpips
from svdjax.conversion.source import load_model
from svdjax.curation.embeddings import open_image_embedder
from svdjax.data.decoding import decode_all
from svdjax.data.sampling import views_of
from svdjax.data.sources import ShardSource
from svdjax.data.sprites import World, draw_clips
from svdjax.errors import UserError, check_range
from svdjax.evaluation import multi_view
from svdjax.evaluation.reconstruction import psnr, ssim
from svdjax.models.lpips import LPIPS, LPIPSConfig
from svdjax.models.params import abstract, load_flat
from svdjax.models.svd import SVD, SamplingDefaults
from svdjax.sampling.bundled import CHECKPOINTS
from svdjax.sampling.images import from_uint8, to_uint8
from svdjax.tasks import MultiView
from svdjax.training.transfer import Init
from svdjax.typing import Float, UInt8, ndarray

BUNDLED = (CHECKPOINTS["multi_view"],)
QUICK = MappingProxyType({"samples": 8, "steps": 12})
CONFIG = "demo_multi_view"
SOLIDS = 48
DIGITS = MappingProxyType({"psnr": 2})  # after the point; of the others 3
Metric = Callable[[UInt8[ndarray, "n t h w 3"], UInt8[ndarray, "n t h w 3"]], Float[ndarray, "n t"]]
TEMPORAL = ("unet.*.temporal.*", "unet.*.frame_embed.*", "unet.*mix_factor")
STARTS = MappingProxyType(
    {
        "scratch": Init(new=("unet.*",), dropped=("unet.*",)),
        "image": Init(new=TEMPORAL, dropped=TEMPORAL),
        "video": Init(),
    }
)


def train(folder: Path, *, seed: int = 0, steps: int | None = None) -> tuple[Path]:
    """The model of the committed configuration."""
    return (trained(demo_run(CONFIG, folder, seed=seed, steps=steps)),)


def measure(
    checkpoint: Path,
    *,
    samples: int | None = None,
    orbits: Path | None = None,
    lpips: Path | None = None,
    clip: str | None = None,
    **defaults: Any,
) -> dict[str, Any]:
    """Go around objects, and compare with the truth and with the picture repeated.

    Args:
        samples, orbits, lpips, clip: as of `Options`. defaults: see `pipeline_of`.

    Raises:
        UserError: the checkpoint, the orbits or the weights cannot be used.
    """
    metrics = metrics_of(lpips, clip)
    model = load_model(checkpoint, dtype=np.float32)
    at_once = AT_ONCE if orbits is None else 1  # real orbits are large; how many go at once changes no figure
    pipeline = pipeline_of(model, per_device=at_once, **defaults)
    if not isinstance(pipeline.task, MultiView):
        raise UserError(f"{checkpoint}: is no model of views but of {model.config.task}: give a multi-view one")
    if orbits is None:
        batch = solids(SOLIDS if samples is None else samples)
    else:
        batch = read_orbits(orbits, samples, pipeline.settings.defaults)
    true, given = batch["video"], pipeline.task.picture
    request = pipeline.request(**pipeline.task.inputs_from_batch({**batch, "video": from_uint8(true)}))
    found = {
        "model": pipeline.videos(request),
        "picture": (np.broadcast_to(video[given], video.shape) for video in true),
        "autoencoder": coded(model, true, at_once),
    }
    return {
        "checkpoint": str(checkpoint),
        **({} if orbits is None else {"orbits": str(orbits)}),
        "samples": len(true),
        "seed": SEED,
        **defaults,
        **{name: scores(made, true, given, metrics) for name, made in found.items()},
    }


def metrics_of(lpips: Path | None, clip: str | None) -> dict[str, Metric]:
    """What views are compared by: PSNR and SSIM, and what there are weights for; see `Options`.

    Raises:
        UserError: the weights cannot be read.
    """
    metrics: dict[str, Metric] = {"psnr": psnr, "ssim": ssim}
    if lpips is not None:
        network = load_flat(abstract(LPIPS, LPIPSConfig()), read_lpips(lpips), what=str(lpips))
        metrics["lpips"] = partial(multi_view.lpips, network=network)
    if clip is not None:
        metrics["clip_s"] = partial(multi_view.clip_similarity, embed=open_image_embedder(clip).embed)
    return metrics


def solids(count: int) -> dict[str, Any]:
    """A batch of clips of solids, as inputs of a task are made of it: ``video`` as bytes."""
    clips = list(draw_clips(World(orbit_share=1.0), SEED, count))
    return {
        "video": np.stack([clip.frames for clip in clips]),
        "elevation": np.float32([clip.truth.elevation for clip in clips]),
        "azimuths": np.float32([clip.truth.azimuths for clip in clips]),
    }


def read_orbits(shards: Path, count: int | None, defaults: SamplingDefaults) -> dict[str, Any]:
    """The same of the first orbits of a data set, or of all, whole, in the size of the model.

    Raises:
        UserError: no shards, or an orbit has no poses or another number of views than the model makes.
    """
    source, size, items = ShardSource(shards), (defaults.height, defaults.width), []
    for record in islice((source[i] for i in range(len(source))), count):
        name = record.annotations["name"]
        orbit = decode_all(record.video, size=size, name=name)
        if len(orbit.frames) != defaults.frames:
            raise UserError(
                f"{shards}: {name} has {len(orbit.frames)} views, the model makes {defaults.frames}: give orbits "
                "of as many"
            )
        items.append({"video": orbit.frames, **views_of(record, orbit.times)})
    return {name: np.stack([item[name] for item in items]) for name in items[0]}


def coded(model: SVD, true: UInt8[ndarray, "n t h w 3"], at_once: int) -> Iterator[UInt8[ndarray, "t h w 3"]]:
    """The true orbits, encoded and decoded."""
    for at in range(0, len(true), at_once):
        yield from to_uint8(reconstruct(model, from_uint8(true[at : at + at_once])))


def scores(
    made: Iterable[UInt8[ndarray, "t h w 3"]],
    true: UInt8[ndarray, "n t h w 3"],
    given: int,
    metrics: Mapping[str, Metric],
) -> dict[str, float]:
    """Means over the views that were not given, one orbit after the other: of large ones few fit into memory."""
    found: dict[str, list[float]] = {name: [] for name in metrics}
    for orbit in zip(made, true, strict=True):
        views = [np.delete(video, given, axis=0)[None] for video in orbit]
        for name, metric in metrics.items():
            found[name].append(float(metric(*views).mean()))
    return {name: round(float(np.mean(values)), DIGITS.get(name, 3)) for name, values in found.items()}


def as_expected(found: dict[str, Any]) -> bool:
    """Whether the model's views are nearer to the true ones than the picture repeated."""
    return found["model"]["psnr"] > found["picture"]["psnr"]


def row(found: dict[str, Any]) -> tuple[str, str]:
    """What was measured, and what it is beside."""
    model, picture, most = (
        f"{found[name]['psnr']:.2f} dB, SSIM {found[name]['ssim']:.3f}"
        for name in ("model", "picture", "autoencoder")
    )
    return f"views: {model}", f"the picture repeated: {picture}; at most: {most}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure.

    Attributes:
        checkpoint: to measure alone; if left out, the three starts are trained and compared.
        folder: for data and runs; what is finished there is not trained again.
        seeds: of training.
        samples: objects to go around; if left out 48 solids, or all of the orbits.
        steps: of each UNet and of the decoder, if not the configuration's.
        orbits: shards of true orbits in place of the solids, with as many views as the model makes, in its own size
            or another; docs/multi_view.md says how to write them.
        lpips: file of LPIPS weights, to measure it, too; docs/temporal_decoder.md says how to make it.
        clip: a checkpoint with an image tower, such as SVD's, to measure the similarity of CLIP embeddings, too.
    """

    checkpoint: Annotated[Path | None, tyro.conf.Positional] = None
    folder: Path = Path("runs/multi_view")
    seeds: tuple[int, ...] = (0,)
    samples: int | None = None
    steps: int | None = None
    orbits: Path | None = None
    lpips: Path | None = None
    clip: str | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            UserError: there is nothing to go around.
        """
        if self.samples is not None:
            check_range("--samples", self.samples, 1)

    def what(self) -> dict[str, Any]:
        """What `measure` goes around, and by which metrics."""
        return {name: getattr(self, name) for name in ("samples", "orbits", "lpips", "clip")}


def starts(options: Options) -> dict[str, Any]:
    """Train from each start, and measure."""
    keep_compiled()  # the three trainings are one program
    config, found = demo_run(CONFIG, options.folder, steps=options.steps), {}
    decoder = trained(
        dataclasses.replace(config, out=options.folder / f"decoder_{config.decoder.steps}", unet=None)
    )
    for seed in options.seeds:
        for start, init in STARTS.items():
            out = options.folder / f"{start}_{config.unet.steps}_{seed}"
            ours = {"out": out, "seed": seed, "init_from": str(decoder), "init": init, "decoder": None}
            measured = measure(trained(dataclasses.replace(config, **ours)), **options.what())
            # The decoder is the same in all of them, and with it what is beside the models.
            found |= {name: measured[name] for name in ("samples", "picture", "autoencoder")}
            found.setdefault(start, {})[f"seed {seed}"] = measured["model"]
            print(json.dumps(found), file=sys.stderr, flush=True)
    return {"samples": options.samples, "steps": config.unet.steps} | found  # which says how many there were


def main() -> None:
    """Print the figures of a checkpoint, or of each start."""
    options = tyro.cli(Options, description=__doc__.split("\n")[0])
    found = starts(options) if options.checkpoint is None else measure(options.checkpoint, **options.what())
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    sys.exit(guard(main))
