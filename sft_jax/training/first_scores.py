"""What a reward model gives before its first step: 0 for every text, by a head that begins at zero."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float

from sft_jax.models.decoder import Decoder
from sft_jax.preparation.run_data import Data
from sft_jax.sharding import batch_sharding, shardings_of
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.first_batch import values_of_first_batch
from sft_jax.training.forward import Randomness, target_scores
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.setup import in_use
from sft_jax.training.state import TrainState
from sft_jax.training.step import method_of

Tree = Any
_LARGEST = 1e-4  # of a score: half of what a margin may be off


class WrongScoreError(ValueError):
    """Before the first step a reward model prefers some answers."""


def compile_score_step(model: Decoder, state: TrainState, mesh: Mesh) -> Callable:
    """The jitted function (state, batch) -> scores [B, P] at the targets of a batch, float32, with nothing random."""
    return _shared_score_step(in_use(model), method_of(model), signature_of(state, shardings_of(state, mesh)), mesh)


@shared
def _shared_score_step(model: Decoder, method: ModuleType | None, state: Signature, mesh: Mesh) -> Callable:
    del method  # which is looked up by name

    def score_step(state: TrainState, batch: Tree) -> Float[jax.Array, "B P"]:
        return target_scores(model, state.trained, state, batch, Randomness())[0]

    sharding = batch_sharding(mesh)
    shardings = {"in_shardings": (state.shardings, sharding), "out_shardings": NamedSharding(mesh, sharding.spec)}
    return jax.jit(score_step, **shardings)


def check_begins_at_zero(checked: CheckedRun, data: Data, state: TrainState) -> None:
    """Checks that all scores of the first micro-batch are 0, where the run begins with a fresh head.

    Raises:
        WrongScoreError: they are not; says what the loss is and should be.
    """
    if not checked.base.fresh_head:
        return
    step = compile_score_step(checked.model, state, checked.mesh)
    found, first = values_of_first_batch(step, checked, data, state)
    off = float(np.abs(np.where(first["weights"] > 0, found, 0.0)).max(initial=0.0))
    if not off <= _LARGEST:
        name = checked.options.objective.name
        raise WrongScoreError(
            f"--config.objective.name={name}: before the first step the head is zero, so that every score should be 0 "
            f"and the loss of a pair without a margin ln 2, and there is a score of {off:.2g}: the model has something "
            "else between its states and its scores than that head"
        )
