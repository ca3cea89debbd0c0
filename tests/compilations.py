"""Within one process, programs that are the same are compiled once: half the time of many tests is compiling.

`jit` finds what it compiled by the Python function, so a second run of the same model compiles again. JAX's own answer,
the persistent cache, stores programs on disk, and programs with collectives that were loaded from there hang on
emulated devices. This keeps the compiled programs themselves.
"""

import functools
from collections import OrderedDict

import numpy as np
from jax._src import cache_key, compiler

KEPT = 400  # programs; the least recently used go first
_PROGRAMS: OrderedDict[str, object] = OrderedDict()


def share() -> None:
    """Has JAX take a program with the same code, options and devices from the ones compiled before in this process."""
    compile_and_load = compiler.backend_compile_and_load

    @functools.wraps(compile_and_load)
    def shared(backend, module, executable_devices, options, host_callbacks):
        if host_callbacks:  # they belong to one program
            return compile_and_load(backend, module, executable_devices, options, host_callbacks)
        key = cache_key.get(module, np.array(list(executable_devices)), options, backend)
        if key not in _PROGRAMS:
            _PROGRAMS[key] = compile_and_load(backend, module, executable_devices, options, host_callbacks)
            if len(_PROGRAMS) > KEPT:
                _PROGRAMS.popitem(last=False)
        _PROGRAMS.move_to_end(key)
        return _PROGRAMS[key]

    compiler.backend_compile_and_load = shared


def forget() -> None:
    """Lets go of all programs that were compiled."""
    _PROGRAMS.clear()


def kept() -> int:
    """How many programs there are."""
    return len(_PROGRAMS)
