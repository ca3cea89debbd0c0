"""Shared set-up: eight emulated CPU devices, shape checks at run time, strict rank promotion, no network."""

import gc
import os
import platform
from importlib.metadata import version

from tests import xla_flags

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"  # also where JAX's plugins for other devices are installed
# What torch computes here is tiny, and processes of tests share the machine: its threads would wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Emulated devices wait for one another; on a loaded machine longer than the default.
# And what tiny models run needs no optimisation: compiling is most of the time of a test.
xla_flags.add(
    (
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402 (flags come first)
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from tests import type_checks  # noqa: E402 (devices come first)

type_checks.install("sft_jax")

from sft_jax import emulation  # noqa: E402
from sft_jax.planning import topologies  # noqa: E402
from tests import compilations  # noqa: E402
from tests.models import family_table  # noqa: E402

if topologies.has_compiler("tpu") or topologies.has_compiler("gpu"):
    topologies.prepare()
    # What the compilers warn of is looked at; they read this when they are loaded.
    os.environ |= dict.fromkeys(("TF_CPP_MIN_LOG_LEVEL", "TPU_MIN_LOG_LEVEL", "TPU_STDERR_LOG_LEVEL"), "1")
emulation.reserve_threads()
compilations.share()


pytest_plugins = ("tests.byte_tokenizers", "tests.children", "tests.spent_programs", "tests.time_limit")


def pytest_addoption(parser):
    parser.addoption("--family-table", help="write what the tests of families showed into this Markdown file")


def pytest_report_header():
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "numpy", "transformers"))
    return f"versions: Python {platform.python_version()}, {packages}"


def pytest_runtest_setup(item):
    """Leaves out what compiles for hardware whose compiler is not installed."""
    marker = item.get_closest_marker("compilers")
    for platform_name in (marker.args or ("tpu", "gpu")) if marker else ():
        if not topologies.has_compiler(platform_name):
            pytest.skip(f"the compiler for a {platform_name.upper()} is not installed: make plan-test")


def pytest_collection_finish():
    """What was imported stays, and tracing programs makes many objects: looking for unused ones takes a tenth."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_terminal_summary(terminalreporter, config):
    path = config.getoption("--family-table")
    if path and not hasattr(config, "workerinput"):  # which a worker has, and it has not seen all
        passed, failed = (
            [report.nodeid for report in terminalreporter.stats.get(kind, [])] for kind in ("passed", "failed")
        )
        family_table.write(path, passed, failed)
