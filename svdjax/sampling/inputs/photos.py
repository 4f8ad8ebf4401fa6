"""Image to video asks for photos."""

import numpy as np

from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import read_image
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import ASSETS, Sample


def read(args: Sample, defaults: SamplingDefaults) -> Given:
    """The photos.

    Raises:
        UserError: one cannot be read.
    """
    images = [read_image(photo, defaults.height, defaults.width, args.fit) for photo in args.photos]
    return Given(
        inputs={"images": np.stack(images)},
        names=[photo.stem for photo in args.photos],
        notes=[{"photo": photo.name} for photo in args.photos],
    )


PHOTOS = Reader(
    models=("image_to_video",),
    options=("photos", "fit", "motion_bucket", "noise_aug", "windows", "overlap"),
    read=read,
    photos=(ASSETS / "demo_photo.png",),
)
