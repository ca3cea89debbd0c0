"""The persistent cache of compiled programs."""

import os
from pathlib import Path


def keep_compilations() -> None:
    """Enables the persistent compilation cache, and starts JAX.

    The cache lies in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/sft_jax/compilations; an empty value disables it.
    It stays off on several CPU devices.
    """
    import jax

    from sft_jax import emulation

    emulation.reserve_threads()
    default = Path.home() / ".cache" / "sft_jax" / "compilations"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    # Not for emulated CPU devices: programs with collectives, loaded from the cache, were seen to hang there.
    emulated = jax.default_backend() == "cpu" and jax.device_count() > 1
    if directory and not emulated:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
