"""Flags of the tests: what the installed XLA does not know is left out, whatever it calls it, and the rest is set."""

import os

import pytest

from tests import xla_flags

KNOWN, UNKNOWN = "--xla_backend_optimization_level=0", "--xla_flag_of_another_release=true"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([KNOWN], [KNOWN]),
        ([UNKNOWN, KNOWN], [KNOWN]),
        ([UNKNOWN, KNOWN, "--xla_another=1"], [KNOWN]),
    ],
)
def test_only_flags_that_xla_knows_are_left(flags, expected):
    assert xla_flags.known(flags) == expected


def test_what_is_set_stays():
    environment = {"XLA_FLAGS": "--xla_dump_to=/somewhere"}
    xla_flags.add([KNOWN, UNKNOWN], environment)
    assert environment["XLA_FLAGS"].split() == ["--xla_dump_to=/somewhere", KNOWN]
    xla_flags.add([KNOWN], environment)
    assert environment["XLA_FLAGS"].split() == ["--xla_dump_to=/somewhere", KNOWN]


def test_another_error_is_not_taken_for_an_answer():
    with pytest.raises(RuntimeError, match="xla_backend_optimization_level=many"):
        xla_flags.known(["--xla_backend_optimization_level=many"])


def test_this_suite_runs_with_them():
    assert KNOWN in os.environ["XLA_FLAGS"].split()


def test_the_suite_says_its_versions(pytestconfig):
    import jax

    (header,) = (
        line
        for lines in pytestconfig.hook.pytest_report_header(config=pytestconfig, start_path=pytestconfig.rootpath)
        for line in ([lines] if isinstance(lines, str) else lines)
        if line.startswith("versions: ")
    )
    assert f"jax {jax.__version__}," in header
    assert header.startswith("versions: Python 3.")
