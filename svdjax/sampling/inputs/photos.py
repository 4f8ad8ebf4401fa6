"""Image to video asks for photos."""

import numpy as np

from svdjax.models.svd import SamplingDefaults
from svdjax.sampling.images import read_image
from svdjax.sampling.inputs.reader import Given, Reader
from svdjax.sampling.options import ASSETS, Sample

DEMO_PHOTO = ASSETS / "demo_photo.png"


def read(args: Sample, defaults: SamplingDefaults) -> Given:
    """The photos, or the bundled one.

    Raises:
        UserError: one cannot be read.
    """
    photos = args.photos or (DEMO_PHOTO,)
    images = [read_image(photo, defaults.height, defaults.width, args.fit) for photo in photos]
    return Given(
        inputs={"images": np.stack(images)},
        names=[photo.stem for photo in photos],
        notes=[{"photo": photo.name} for photo in photos],
    )


PHOTOS = Reader(
    models=("image_to_video",),
    options=("photos", "fit", "motion_bucket", "noise_aug", "windows", "overlap"),
    read=read,
)
