"""The reference of objectives of answers: what the run begins with, as the log-probability that it gives every target.

They are computed once, before the first step, by the decoder, the head and the dtypes of the run on its mesh, a
micro-batch at a time; then they are data like the targets themselves, and no second model is ever in memory.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float, Float32
from rich.console import Console

from sft_jax.data.batches import Batch
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenized.cache import cache_directory
from sft_jax.data.tokenized.cached_values import cached_values
from sft_jax.models.decoder import Decoder
from sft_jax.objectives import METHODS, PreferenceSettings, get_objective
from sft_jax.objectives.branches import PAIR, by_branch
from sft_jax.objectives.kto import BRANCHES
from sft_jax.options import ObjectiveOptions, Options
from sft_jax.preparation.run_data import Data
from sft_jax.progress import ProgressBars
from sft_jax.sharding import batch_sharding, shardings_of
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.first_batch import values_of_first_batch
from sft_jax.training.forward import Randomness, target_log_probabilities
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings, method_of
from sft_jax.training.target_values import Progress, key_of_values, row_without, values_of_targets

Tree = Any
Values = Float32[np.ndarray, "targets"]

_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.02}  # of margins, before the first step


class WrongReferenceError(ValueError):
    """Before the first step a policy is not what it is compared with."""


def compile_reference_step(model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> Callable:
    """The jitted function (state, batch) -> log-probabilities [B, P] of the targets of a micro-batch, float32."""
    signature = signature_of(state, shardings_of(state, mesh))
    return _shared_reference_step(model, settings, method_of(model), signature, mesh)


@shared
def _shared_reference_step(
    model: Decoder, settings: StepSettings, method: ModuleType | None, signature: Signature, mesh: Mesh
) -> Callable:
    del method  # which is looked up by name

    def reference_step(state: TrainState, batch: Tree) -> Float[jax.Array, "B P"]:
        return target_log_probabilities(model, settings.head_chunk, state.trained, state, batch, Randomness())[0]

    return jax.jit(
        reference_step,
        in_shardings=(signature.shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, batch_sharding(mesh).spec),
        compiler_options=settings.compiler_options,
    )


def reference_of(
    step: Callable,
    state: TrainState,
    examples: TokenizedExamples,
    slots: int,
    checked: CheckedRun,
    progress: Progress,
) -> Values:
    """The log-probability of every target of all examples, in their order.

    Args:
        step: of `compile_reference_step`.
        state: that the run begins with.
        examples: all are measured once.
        slots: target slots of a sequence.
        checked: the run's config, and what was made of it.
        progress: called with the share that is done.
    """
    found = np.full(int(examples.target_offsets[-1]), np.nan, np.float32)
    values_of_targets(lambda batch: (step(state, batch),), (found,), examples, slots, checked, progress)
    if row := row_without(np.isnan(found), examples):
        raise ValueError(f"{row}: what the run begins with gives it no finite log-probability")
    return found


def reference_key(checked: CheckedRun, examples: TokenizedExamples, slots: int) -> dict[str, Any]:
    """What the log-probabilities depend on."""
    adapter = repr(dataclasses.asdict(checked.options.adapter))
    weights = [checked.base.fingerprint, checked.initial and checked.initial.fingerprint, adapter]
    return key_of_values(checked, examples, slots, checked.model, [Path(__file__)]) | {"weights": weights}


def with_reference(checked: CheckedRun, data: Data, state: TrainState, console: Console, *, begins: bool) -> Data:
    """The data of a run, whose targets have the log-probabilities of what it begins with.

    They are taken from the cache, or computed where they are not there.

    Args:
        checked: the run's config, and what was made of it.
        data: of the run.
        state: at step 0.
        console: where it is said where they come from.
        begins: the run is before its first step: its first batch is checked.

    Raises:
        WrongReferenceError: before the first step the policy is something else.
    """
    step = compile_reference_step(checked.model, checked.settings, state, checked.mesh)
    taken = {"examples": _referenced(checked, step, state, data.examples, data.plan.sequence_targets, console)}
    if data.held_out is not None:
        taken["held_out"] = _referenced(checked, step, state, data.held_out, data.held_out_targets, console)
    data = dataclasses.replace(data, **taken)
    if begins:
        check_begins_as_reference(*values_of_first_batch(step, checked, data, state), checked.options)
    return data


def _referenced(
    checked: CheckedRun, step: Callable, state: TrainState, examples: TokenizedExamples, slots: int, console: Console
) -> TokenizedExamples:
    options = checked.options
    with ProgressBars(console) as show:
        bar = functools.cache(lambda: show("log-probabilities of the reference", None))
        progress = lambda share: bar().update(share, within=True)
        make = lambda: reference_of(step, state, examples, slots, checked, progress)
        key, count = reference_key(checked, examples, slots), int(examples.target_offsets[-1])
        values, note = cached_values(cache_directory(options.data.cache), key, count, make)
    console.print(f"Reference: {count:,} log-probabilities, {note}", markup=False, soft_wrap=True)
    return dataclasses.replace(examples, reference=values)


def check_begins_as_reference(found: Float32[np.ndarray, "B P"], batch: Batch, options: Options) -> None:
    """Checks that the policy, before the first step, is what it will be compared with.

    Args:
        found: the policy's log-probabilities of the targets of a batch.
        batch: with those of the reference.
        options: of the run.

    Raises:
        WrongReferenceError: rewards or margins are off by more than rounding; says what the loss is and should be.
    """
    objective, precision = options.objective, options.precision
    found = np.where(batch["weights"] > 0, found, batch["reference"])
    off = _mean_reward(found - batch["reference"], batch, objective)
    rounded = "bfloat16" in (precision.params, precision.frozen, precision.matmul, precision.activations)
    bound = _TOLERANCE["bfloat16" if rounded else "float32"]
    if off <= bound:
        return
    raise WrongReferenceError(
        f"--config.objective.name={objective.name}: before the first step the policy is its own reference, so that the "
        f"loss should be {_loss(batch['reference'], batch, objective):.4f}, and it is "
        f"{_loss(found, batch, objective):.4f}: rewards and "
        f"margins are off by {off:.2g}, of which rounding explains {bound:.2g}. Either the step computes another thing "
        "than the reference was computed by (something random in the model, other code), or these devices give other "
        "results each time (--config.execution.deterministic=True), or the values in the cache are not of this run: "
        "give another --config.data.cache, or an empty one"
    )


def _mean_reward(ratios: Float32[np.ndarray, "B P"], batch: Batch, objective: ObjectiveOptions) -> float:
    """How large the rewards of answers are on average, or the margins of pairs, whichever is more."""
    per, method = (PAIR, METHODS[objective.name]) if objective.name in METHODS else (BRANCHES, None)
    branches, used = jnp.asarray(batch["branches"]), jnp.asarray(batch["weights"] > 0, jnp.float32)
    scores, lengths = (np.asarray(by_branch(x, branches, per)) for x in (jnp.asarray(ratios, jnp.float32), used))
    if objective.per_token or (method and method.per_token):
        scores = scores / np.maximum(lengths, 1.0)
    rewards, there = objective.beta * np.abs(scores), lengths > 0
    if not there.any():
        return 0.0
    means = [rewards[:, :, branch][there[:, :, branch]].mean() for branch in np.flatnonzero(there.any(axis=(0, 1)))]
    if method:
        means.append(objective.beta * np.abs(scores[:, :, 0] - scores[:, :, 1])[there[:, :, 0]].mean())
    return float(max(means))


def _loss(values: Float32[np.ndarray, "B P"], batch: Batch, objective: ObjectiveOptions) -> float:
    """The loss of log-probabilities, without the terms that do not compare them with the reference's."""
    numbers = {name: getattr(objective, name) for name in ("beta", "desirable_weight", "undesirable_weight")}
    smoothing = {"label_smoothing": objective.label_smoothing or None, "per_token": objective.per_token}
    arrays = (jnp.asarray(array) for array in (values, batch["reference"], batch["weights"], batch["branches"]))
    total, count = get_objective(objective.name)(*arrays, settings=PreferenceSettings(**numbers, **smoothing))["loss"]
    return float(total / count)
