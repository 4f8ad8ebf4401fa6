"""Eight fake CPU devices, runtime checks of every shape annotation, and float64 on request."""

import os
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Many tests compile the same programs. One cache for each process of pytest-xdist: JAX's writes are not atomic.
_CACHE = f"svdjax-tests-{os.getuid()}-{os.environ.get('PYTEST_XDIST_WORKER', 'main')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(tempfile.gettempdir(), _CACHE))

from jaxtyping import install_import_hook

install_import_hook("svdjax", "beartype.beartype")

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def memory():
    """Give back what a file's tests compiled: the programs of all files together take 10 GB."""
    yield
    jax.clear_caches()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True):
        yield
