"""Training: the run (loop.py), its state, step, optimizer, schedules and recorder."""

from sft_jax.training.loop import RunResult, run

__all__ = ["RunResult", "run"]
