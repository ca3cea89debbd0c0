"""Between two files of tests a process lets go of compiled programs, where they have come to take much memory.

Tests of one file often share programs, those of different files seldom; a process that runs hundreds of tests would
keep those of all of them, some 10 GiB.
"""

import ctypes
import gc
import resource

import jax
import pytest
from etils import epath

from sft_jax.training import programs
from tests import compilations

MOST = 4 * 2**30  # bytes of a process


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(epath.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def let_go() -> None:
    """Forgets every compiled program, what is called afterwards is compiled anew; and gives memory back."""
    programs.forget()
    compilations.forget()
    jax.clear_caches()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps what was freed


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item, nextitem):
    result = yield
    if nextitem is not None and nextitem.path != item.path and resident() > MOST:
        let_go()
    return result
