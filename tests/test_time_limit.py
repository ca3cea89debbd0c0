"""Tests that begin too late are skipped, by name and with the reason."""

from types import SimpleNamespace

import pytest

from tests import time_limit


def item(minutes):
    return SimpleNamespace(config=SimpleNamespace(getoption={"--minutes": minutes}.get))


@pytest.mark.parametrize(("minutes", "passed", "skips"), [(2.0, 119, False), (2.0, 121, True), (None, 1e9, False)])
def test_what_has_not_begun_in_time_is_skipped(minutes, passed, skips, monkeypatch):
    monkeypatch.setattr(time_limit, "time", SimpleNamespace(monotonic=lambda: time_limit.BEGUN + passed))
    if skips:
        with pytest.raises(pytest.skip.Exception, match="not begun within --minutes=2"):
            time_limit.pytest_runtest_setup(item(minutes))
    else:
        time_limit.pytest_runtest_setup(item(minutes))


def test_the_limit_is_an_option_of_these_tests(request):
    assert request.config.pluginmanager.hasplugin("tests.time_limit")
