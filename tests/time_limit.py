"""`pytest --minutes=N`: what has not begun after N minutes is skipped, and says so."""

import time

import pytest

BEGUN = time.monotonic()  # of this process, and so of the tests but for a moment


def pytest_addoption(parser):
    parser.addoption("--minutes", type=float, help="skip the tests that have not begun after so many minutes")


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item):
    minutes = item.config.getoption("--minutes")
    if minutes is not None and time.monotonic() - BEGUN > 60 * minutes:
        pytest.skip(f"not begun within --minutes={minutes:g}")
