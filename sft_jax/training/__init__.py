"""Training: state, step, sharding, checkpoints, and the loop that ties them together."""

from sft_jax.training.loop import RunResult, run

__all__ = ["RunResult", "run"]
