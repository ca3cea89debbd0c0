"""The loss of each held-out example by itself, so that two models can be compared example by example."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sft_jax.data.batches import held_out_batches
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.evaluation.scorers.cases import Outcome
from sft_jax.generation.sizes import on_host
from sft_jax.models.decoder import Decoder
from sft_jax.objectives import Settings, cross_entropy
from sft_jax.objectives.head import gather_targets
from sft_jax.sharding import data_shards, put_batch, sequences_here

Tree = Any
Progress = Callable[[int, int], None]


def example_losses(
    model: Decoder,
    variables: Tree,
    examples: TokenizedExamples,
    mesh: Mesh,
    *,
    batch_sequences: int = 8,
    progress: Progress | None = None,
) -> list[Outcome]:
    """One outcome for each example: `loss_sum` (nats) and `loss_weight`, the sum of its weights.

    Both are over the supervised tokens of the example.

    Args:
        model: the decoder.
        variables: what its `apply` takes.
        examples: the held-out examples.
        mesh: the mesh in force.
        batch_sequences: examples at a time, each a sequence of its own; rounded up so that the mesh divides it.
        progress: called with (examples done, examples in all).
    """
    sums_of = functools.partial(_example_sums, model, variables)
    every = sums_by_example(sums_of, examples, mesh, batch_sequences=batch_sequences, progress=progress)
    return [{"loss_sum": float(total), "loss_weight": float(weight)} for total, weight in every]


def sums_by_example(
    sums_of: Callable[[Tree], tuple[Float[Array, "B"], ...]],
    examples: TokenizedExamples,
    mesh: Mesh,
    *,
    batch_sequences: int = 8,
    progress: Progress | None = None,
) -> Float[np.ndarray, "examples sums"]:
    """Sums over the tokens of each example, of which each is a sequence of its own.

    Args:
        sums_of: of a batch, the sums of each of its sequences.
        examples: what is measured.
        mesh: the mesh in force.
        batch_sequences: examples at a time; rounded up so that the mesh divides it.
        progress: called with (examples done, examples in all).
    """
    shards = data_shards(mesh)
    batch_sequences = -(-batch_sequences // shards) * shards
    length = -(-int(examples.lengths.max()) // 64) * 64
    targets = min(-(-int(examples.supervised.max()) // 8) * 8, length)
    sums: list[np.ndarray] = []
    for batch in held_out_batches(
        examples, length, targets, batch_sequences, packing="none", own=sequences_here(mesh, batch_sequences)
    ):
        sums.append(np.stack(on_host(sums_of(put_batch(batch, mesh))), axis=1))
        if progress:
            progress(min(len(sums) * batch_sequences, len(examples)), len(examples))
    return np.concatenate(sums)[: len(examples)]


@functools.partial(jax.jit, static_argnums=0)
def _example_sums(model: Decoder, variables: Tree, batch: Tree) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    hidden, _ = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"], method="hidden")
    hidden = gather_targets(hidden, batch["target_slots"])

    def one_example(example: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        states, targets, weights = (x[None] for x in example)
        logits = model.apply(variables, states, method="head")
        return cross_entropy(logits, targets, weights, Settings())["nll"]

    return jax.lax.map(one_example, (hidden, batch["targets"], batch["weights"]))
