"""Shared set-up: eight emulated CPU devices, shape checks at run time, strict rank promotion, no network."""

import collections.abc
import itertools
import os
import types

os.environ["HF_HUB_OFFLINE"] = "1"
# Emulated devices wait for one another; on a loaded machine longer than the default.
# And what tiny models run needs no optimisation: compiling is most of the time of a test.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_cpu_collective_call_terminate_timeout_seconds=600",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        "--xla_cpu_use_fusion_emitters=false",
    )
)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

import typeguard  # noqa: E402 (devices come first)
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("sft_jax", "typeguard.typechecked")
_check_type = typeguard.check_type.__wrapped__


def check_type(argname, value, expected_type, memo=None, **scope):
    """jaxtyping's own patch, which has typeguard know `A | B`, without binding a signature each time."""
    if type(expected_type) is types.UnionType:
        typeguard.check_union(argname, value, expected_type, memo)
    else:
        _check_type(argname, value, expected_type, memo, **scope)


typeguard.check_type = check_type


def of_the_beginning(check, entries=64):
    """A check of a container that looks at its first entries only: vocabularies have hundreds of thousands."""

    def checked(argname, value, expected_type, memo):
        if type(value) in (list, tuple):
            value = value[:entries]
        elif type(value) is dict:
            value = dict(itertools.islice(value.items(), entries))
        check(argname, value, expected_type, memo)

    return checked


for kind in (list, tuple, dict, collections.abc.Sequence):
    typeguard.origin_type_checkers[kind] = of_the_beginning(typeguard.origin_type_checkers[kind])

from tests import compilations  # noqa: E402
from tests.models import family_table  # noqa: E402

compilations.share()


def pytest_addoption(parser):
    parser.addoption("--family-table", help="write what the tests of families showed into this Markdown file")


def pytest_terminal_summary(terminalreporter, config):
    if path := config.getoption("--family-table"):
        passed, failed = (
            [report.nodeid for report in terminalreporter.stats.get(kind, [])] for kind in ("passed", "failed")
        )
        family_table.write(path, passed, failed)
