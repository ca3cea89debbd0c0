"""A teacher's most likely tokens of every target: computed once, before the first step, and then data of the batches.

The teacher is on the devices only while it is asked, and not at all where the cache has its values.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from rich.console import Console

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.data.tokenized.cache import cache_directory
from sft_jax.data.tokenized.cached_values import cached_values
from sft_jax.models.decoder import Decoder
from sft_jax.models.variables import head_weights
from sft_jax.objectives.head_on_mesh import head_on_mesh
from sft_jax.objectives.top_k import most_likely_of_states, outcomes_of
from sft_jax.preparation.run_data import Data
from sft_jax.progress import ProgressBars
from sft_jax.sharding import batch_sharding, shardings_of
from sft_jax.training.checked_run import CheckedRun
from sft_jax.training.forward import frozen_target_states
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.target_values import Progress, key_of_values, row_without, values_of_targets

Tree = Any
Values = np.ndarray  # [targets] records of ids int32 [k] and log_probabilities float32 [outcomes]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a teacher is asked of each target.

    Attributes:
        k: how many tokens.
        vocabulary: of the first so many.
        temperature: of the distribution; None is 1.
        chunk: slots of a sequence that go through the head at a time; 0 takes all.
    """

    k: int
    vocabulary: int
    temperature: float | None
    chunk: int

    @property
    def dtype(self) -> np.dtype:
        """Of what is kept of a target."""
        outcomes = outcomes_of(self.k, self.vocabulary)
        return np.dtype([("ids", "<i4", (self.k,)), ("log_probabilities", "<f4", (outcomes,))])


def asked_of(checked: CheckedRun) -> Asked:
    """What a run asks its teacher."""
    options = checked.options
    shared_tokens = min(checked.teacher.base.decoder.vocab_size, checked.base.decoder.vocab_size)
    temperature = options.objective.temperature
    return Asked(
        options.teacher.top_k, shared_tokens, None if temperature == 1 else temperature, checked.settings.head_chunk
    )


def compile_teacher_step(teacher: Decoder, asked: Asked, variables: Tree, mesh: Mesh) -> Callable:
    """The jitted function (variables, batch) -> (ids [B, P, k], log-probabilities [B, P, outcomes]) of its targets."""
    return _shared_teacher_step(teacher, asked, signature_of(variables, shardings_of(variables, mesh)), mesh)


@shared
def _shared_teacher_step(teacher: Decoder, asked: Asked, signature: Signature, mesh: Mesh) -> Callable:
    def teacher_step(variables: Tree, batch: Tree) -> tuple[jax.Array, jax.Array]:
        hidden, weights = frozen_target_states(teacher, variables, batch), head_weights(variables)
        execution = teacher.execution
        on_mesh = head_on_mesh({}, weights, hidden, execution.matmul_dtype, execution.gradient_dtype)
        by_vocabulary = on_mesh.logits if on_mesh else lambda logits: logits
        head = lambda weights, hidden: by_vocabulary(teacher.apply(weights, hidden, method="head"))
        sizes = (asked.k, asked.vocabulary, asked.chunk)
        return most_likely_of_states(head, weights, hidden, *sizes, asked.temperature, on_mesh)

    sharding = batch_sharding(mesh)
    shardings = {"in_shardings": (signature.shardings, sharding), "out_shardings": NamedSharding(mesh, sharding.spec)}
    return jax.jit(teacher_step, **shardings)


def teacher_key(checked: CheckedRun, examples: TokenizedExamples, slots: int) -> dict[str, Any]:
    """What the values depend on."""
    teacher = checked.teacher
    key = key_of_values(checked, examples, slots, teacher.model, [Path(__file__)])
    return key | {"teacher": teacher.base.fingerprint, "asked": dataclasses.asdict(asked_of(checked))}


def with_teacher_values(checked: CheckedRun, data: Data, console: Console) -> Data:
    """The data of a run, whose targets have what its teacher thinks most likely.

    That is taken from the cache, or computed where it is not there.

    Args:
        checked: the run's config, and what was made of it.
        data: of the run.
        console: where it is said where the values come from.
    """
    weights = functools.cache(lambda: checked.teacher.variables(checked.mesh))  # read where a value has to be computed
    taken = {"examples": _with_values(checked, weights, data.examples, data.plan.sequence_targets, console)}
    if data.held_out is not None:
        taken["held_out"] = _with_values(checked, weights, data.held_out, data.held_out_targets, console)
    return dataclasses.replace(data, **taken)


def _with_values(
    checked: CheckedRun, weights: Callable[[], Tree], examples: TokenizedExamples, slots: int, console: Console
) -> TokenizedExamples:
    key, count = teacher_key(checked, examples, slots), int(examples.target_offsets[-1])
    with ProgressBars(console) as show:
        bar = functools.cache(lambda: show("the teacher's most likely tokens", None))
        progress = lambda share: bar().update(share, within=True)
        make = lambda: values_of_teacher(checked, weights(), examples, slots, progress)
        cache = cache_directory(checked.options.data.cache)
        values, note = cached_values(cache, key, count, make, asked_of(checked).dtype)
    said = f"Teacher: its {checked.options.teacher.top_k:,} most likely tokens of {count:,} targets, {note}"
    console.print(said, markup=False, soft_wrap=True)
    return dataclasses.replace(examples, teacher=values)


def values_of_teacher(
    checked: CheckedRun, variables: Tree, examples: TokenizedExamples, slots: int, progress: Progress
) -> Values:
    """The most likely tokens of every target of all examples, in their order, and their log-probabilities.

    Args:
        checked: the run's config, and what was made of it.
        variables: of the teacher.
        examples: all are measured once.
        slots: target slots of a sequence.
        progress: called with the share that is done.

    Raises:
        ValueError: a log-probability is not finite; names the row.
    """
    asked = asked_of(checked)
    step = compile_teacher_step(checked.teacher.model, asked, variables, checked.mesh)
    found = np.zeros(int(examples.target_offsets[-1]), asked.dtype)
    found["log_probabilities"] = np.nan
    fields = tuple(found[name] for name in found.dtype.names)
    values_of_targets(lambda batch: step(variables, batch), fields, examples, slots, checked, progress)
    if row := row_without(~np.isfinite(found["log_probabilities"]).all(axis=1), examples):
        raise ValueError(f"{row}: --config.teacher.source={checked.teacher.base.name} gives it no finite probabilities")
    return found
