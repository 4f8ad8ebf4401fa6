"""The cache of compiled programs, and what is kept out of it."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from svdjax.compilation import compiler_options, keep_compiled, nothing_kept


@pytest.fixture
def settings():
    """Give the process its own cache back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_compiled_programs_are_kept_except_where_nothing_is(settings, monkeypatch, tmp_path):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    keep_compiled()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    with nothing_kept():
        jax.jit(lambda x: 3 * x + 1).lower(jnp.ones(3)).compile()
    assert not list(tmp_path.rglob("*-cache"))
    jax.jit(lambda x: 3 * x + 1).lower(jnp.ones(3)).compile()
    assert list((tmp_path / "svdjax" / "xla").rglob("*-cache"))


def test_only_the_tpu_compiler_is_given_options():
    """Others refuse them; that libtpu knows them is tested where a step is compiled by it (tests/planning)."""
    assert compiler_options("tpu") and not compiler_options("cpu") and not compiler_options("gpu")
