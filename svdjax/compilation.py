"""How programs are compiled, and that they are kept on disk: a second start need not compile them again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_compiled() -> None:
    """Keep what takes over a second to compile, in ``~/.cache/svdjax/xla``.

    ``JAX_COMPILATION_CACHE_DIR`` names another directory, ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "svdjax" / "xla"))


# Where parameters are cut over chips, the TPU compiler turns each product with them into a loop that fetches one
# part while it works on another: a thousand loops for SVD, whose parts of 20 channels take the room of 128.
_TPU_OPTIONS: MappingProxyType[str, bool] = MappingProxyType(
    {
        "xla_tpu_enable_windowed_einsum_for_all_gather": False,
        "xla_tpu_enable_windowed_einsum_for_reduce_scatter": False,
    }
)


def compiler_options(platform: str) -> dict[str, bool] | None:
    """What `jax.jit` is told for training on a platform (``"tpu"``, ``"cpu"``, ...); docs/tpu_plans.md says why."""
    return dict(_TPU_OPTIONS) if platform == "tpu" else None


@contextmanager
def nothing_kept() -> Iterator[None]:
    """Neither keep nor look for what is compiled in here.

    A program for chips that are not there can be written, but not read back.
    """
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
