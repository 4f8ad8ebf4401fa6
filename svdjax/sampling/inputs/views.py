"""Multi-view asks for pictures of objects, and for where the cameras stand."""

import numpy as np

from svdjax.errors import UserError
from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import read_object
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import ASSETS, Sample


def read(args: Sample, defaults: SamplingDefaults) -> Given:
    """The pictures, and the cameras' poses, which are the same for all of them.

    Raises:
        UserError: one cannot be read, or a number is out of range.
    """
    if not 0 < args.image_frame_ratio <= 1:
        raise UserError(f"--image-frame-ratio {args.image_frame_ratio}: must be above 0 and at most 1")
    if not all(-90 <= angle <= 90 for angle in args.elevation):
        raise UserError(f"--elevation {_listed(args.elevation)}: must be from -90 (below) to 90 (above)")
    if not all(np.isfinite(args.azimuths)):
        raise UserError(f"--azimuths {_listed(args.azimuths)}: must be degrees")
    size = defaults.height, defaults.width
    images = [read_object(path, *size, args.fit, ratio=args.image_frame_ratio) for path in args.photos]
    given = {"elevation": args.elevation, "azimuths": args.azimuths}
    poses = {name: np.tile(np.float32(angles), (len(images), 1)) for name, angles in given.items() if angles}
    if len(args.elevation) == 1:
        poses["elevation"] = poses["elevation"][:, 0]
    notes = {name: _listed(given[name]) for name in poses}
    return Given(
        inputs={"images": np.stack(images), **poses},
        names=[path.stem for path in args.photos],
        notes=[{"photo": path.name, **notes} for path in args.photos],
    )


def _listed(angles: tuple[float, ...]) -> str:
    return " ".join(f"{angle:g}" for angle in angles)


VIEWS = Reader(
    models=("multi_view",),
    options=("photos", "fit", "image_frame_ratio", "elevation", "azimuths", "motion_bucket", "noise_aug"),
    read=read,
    photos=(ASSETS / "demo_solid.png",),
)
