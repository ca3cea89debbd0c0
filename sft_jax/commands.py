"""What the commands share: starting JAX, and errors as one clear message instead of a traceback."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging

_DEBUG = flags.DEFINE_bool("traceback", False, "Show the whole traceback of an error.")


def start_jax() -> None:
    """Joins the other processes of a distributed run, and turns on the persistent compilation cache.

    The cache lies in JAX_COMPILATION_CACHE_DIR, by default ~/.cache/sft_jax/compilations; an empty value turns it off.
    """
    import jax

    if "JAX_COORDINATOR_ADDRESS" in os.environ or "SFT_JAX_DISTRIBUTED" in os.environ:
        jax.distributed.initialize()
    default = Path.home() / ".cache" / "sft_jax" / "compilations"
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default))
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def run(main: Callable[[list[str]], None]) -> None:
    """`app.run(main)`, with mistakes of the user shown as a message; `--traceback` shows where they came from."""

    def checked(arguments: list[str]) -> None:
        if len(arguments) > 1:
            raise app.UsageError(f"unexpected argument {arguments[1]!r}; flags look like --name=value")
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries announce themselves at INFO
        try:
            main(arguments)
        except (ValueError, OSError, RuntimeError) as error:
            if _DEBUG.value or not str(error):
                raise
            sys.stderr.write(f"error: {error}\n(--traceback shows where in the code)\n")
            sys.exit(1)

    app.run(checked)
