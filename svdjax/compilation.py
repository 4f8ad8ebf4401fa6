"""Compiled programs are kept on disk: the second start of a command need not compile them again."""

import os
from pathlib import Path

import jax


def keep_compiled() -> None:
    """Keep what takes over a second to compile, in ``~/.cache/svdjax/xla``.

    ``JAX_COMPILATION_CACHE_DIR`` names another directory, ``JAX_ENABLE_COMPILATION_CACHE=0`` turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "svdjax" / "xla"))
