"""Leaving a run in good order: SIGTERM and Ctrl-C ask for a checkpoint, a second Ctrl-C leaves at once.

With several processes jax itself listens for SIGTERM and agrees with the others on the step after which all leave;
there, Ctrl-C is passed on as SIGTERM.
"""

import os
import signal
import threading
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

from sft_jax import leaving


class StopRequest:
    """A context in which signals are noted instead of obeyed. Use it in the main thread; elsewhere it does nothing."""

    def __init__(self):
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # A handler of ours would replace jax's.
            numbers = (signal.SIGINT,) if jax.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
            self._before = {number: signal.signal(number, self._note) for number in numbers}
            if (earlier := leaving.came()) is not None:
                self._note(earlier, None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """True when all processes should save and leave after `step`, the same answer on each of them.

        Every process asks after every step.
        """
        if jax.process_count() == 1:
            return self.signal is not None
        return multihost_utils.reached_preemption_sync_point(step)
