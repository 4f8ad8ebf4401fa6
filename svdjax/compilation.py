"""Compiled programs are kept on disk: the second start of a command need not compile them again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache


def keep_compiled() -> None:
    """Keep what takes over a second to compile, in ``~/.cache/svdjax/xla``.

    ``JAX_COMPILATION_CACHE_DIR`` names another directory, ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "svdjax" / "xla"))


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
