"""Signals that come before a run trains."""

import os
import signal

import pytest

from sft_jax import leaving
from sft_jax.training.interrupt import StopRequest


@pytest.fixture
def handled(monkeypatch):
    monkeypatch.setattr(leaving, "_came", [])
    before = signal.signal(signal.SIGTERM, leaving.leave)
    yield
    signal.signal(signal.SIGTERM, before)


class SignalledInItsFinalizer:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exit_is_dropped_stops_the_training(handled):
    with StopRequest() as request:
        assert not request.requested(1)
    SignalledInItsFinalizer()  # Python ignores SystemExit there
    with StopRequest() as request:
        assert request.requested(1)


def test_a_signal_leaves_once(handled):
    with pytest.raises(SystemExit):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
