"""Training: the run (loop.py), its state, step, optimizer, schedules and recorder."""

from sft_jax.training.ending import RunResult
from sft_jax.training.loop import run

__all__ = ["RunResult", "run"]
