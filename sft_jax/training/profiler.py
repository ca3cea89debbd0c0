"""A trace of some steps, for TensorBoard's profile page."""

from typing import Any, Self

import jax

from sft_jax.options import ProfileOptions
from sft_jax.training.recorder import Recorder


class Profiler:
    """A trace of the steps that `config.profile` names, beside the TensorBoard events.

    A process has one trace at a time, so a run that ends within these steps, by an error or a signal, ends its trace.
    """

    def __init__(self, profile: ProfileOptions, recorder: Recorder):
        self._recorder = recorder
        self._first, self._last = profile.start, profile.start + profile.steps - 1
        self._directory = recorder.tensorboard_dir if profile.start > 0 else None
        self._running = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def before(self, step: int) -> None:
        if self._directory is not None and step == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, step: int, metrics: Any) -> None:
        if self._running and step == self._last:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._recorder.profile_written()
