"""A full-size checkpoint (1.5 B parameter UNet, random weights) recorded and compared. By hand, with 22 GB of disk:

SVDJAX_PHOTO=photo.jpg pytest tests/parity/test_full_size.py -m full -s --basetemp DIR
"""

import os
import resource
import subprocess
import sys
import time

import pytest

from svdjax.conversion.diffusers import write_diffusers
from svdjax.models.svd import SVDConfig
from tests.weights import random_checkpoint

PHOTO = os.environ.get("SVDJAX_PHOTO")
SMALL_RUN = ("--frames", "3", "--height", "128", "--width", "192", "--steps", "2", "--guidance", "1", "3")


def measured(*arguments):
    """Run a command of ours; prints seconds and the peak memory of all commands so far."""
    start = time.perf_counter()
    script = "import sys; from svdjax.cli import main; main(sys.argv[1:])"
    result = subprocess.run([sys.executable, "-c", script, *map(str, arguments)], check=False)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"\nsvdjax {arguments[0]}: {time.perf_counter() - start:.0f} s, peak so far {peak:.1f} GiB")
    return result.returncode


@pytest.mark.full
@pytest.mark.skipif(PHOTO is None, reason="set SVDJAX_PHOTO to a photograph")
def test_full_size_record_and_compare(tmp_path):
    folder, out = tmp_path / "pipeline", tmp_path / "run.npz"
    write_diffusers(random_checkpoint(SVDConfig.svd(), 0), folder, lambda count: None)
    assert measured("record", folder, out, "--image", PHOTO, *SMALL_RUN) == 0
    assert measured("compare", folder, out, "--out", tmp_path) == 0
