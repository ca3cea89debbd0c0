"""What a run's first micro-batch gives before its first step, to be compared with what it should."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32

from sft_jax.data.batches import Batch, train_batches
from sft_jax.generation.sizes import on_host
from sft_jax.preparation.run_data import Data
from sft_jax.sharding import put_batch, sequences_here
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.state import TrainState


def values_of_first_batch(
    step: Callable, checked: CheckedRun, data: Data, state: TrainState
) -> tuple[Float32[np.ndarray, "B P"], Batch]:
    """What a step gives the targets of this process's sequences of the first micro-batch, and these sequences.

    Args:
        step: a jitted function (state, batch) -> values [B, P], float32.
        checked: the run's config, and what was made of it.
        data: of the run.
        state: at step 0.
    """
    batch, mesh, plan = checked.options.batch, checked.mesh, data.plan
    own = sequences_here(mesh, batch.sequences // batch.micro_batches)
    (first,) = train_batches(data.examples, plan, 0, 1, own=own, threads=0)
    (found,) = on_host((step(state, put_batch(first, mesh)),))
    return found[own, : plan.sequence_targets], first
