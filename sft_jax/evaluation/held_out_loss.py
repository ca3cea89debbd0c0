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
from sft_jax.dispatch import one_late
from sft_jax.evaluation.scorers.cases import Outcome
from sft_jax.generation.sizes import on_host
from sft_jax.models.decoder import Decoder
from sft_jax.models.variables import head_weights
from sft_jax.objectives import Settings, cross_entropy
from sft_jax.objectives.head import chunk_of, gather_targets, over_chunks
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
    head_chunk_tokens: int = 512,
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
        head_chunk_tokens: of a device, whose logits are there at a time; 0: those of all.
        progress: called with (examples done, examples in all).
    """
    chunk = head_chunk_of(head_chunk_tokens, batch_sequences, mesh)
    sums_of = functools.partial(_example_sums, model, chunk, variables)
    every = sums_by_example(sums_of, examples, mesh, batch_sequences=batch_sequences, progress=progress)
    return [{"loss_sum": float(total), "loss_weight": float(weight)} for total, weight in every]


def head_chunk_of(tokens: int, batch_sequences: int, mesh: Mesh) -> int:
    """Slots of a sequence that go through the head at a time, so that a device has about `tokens` of them; 0: all."""
    return chunk_of(tokens, -(-batch_sequences // data_shards(mesh)))


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
    own = sequences_here(mesh, batch_sequences)
    batches = held_out_batches(examples, length, targets, batch_sequences, packing="none", own=own)
    for found in one_late(sums_of(put_batch(batch, mesh)) for batch in batches):
        sums.append(np.stack(on_host(found), axis=1))
        if progress:
            progress(min(len(sums) * batch_sequences, len(examples)), len(examples))
    return np.concatenate(sums)[: len(examples)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _example_sums(
    model: Decoder, head_chunk: int, variables: Tree, batch: Tree
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    hidden, _ = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"], method="hidden")
    hidden = gather_targets(hidden, batch["target_slots"])

    def objective(_, head, states, targets, weights):
        logits = model.apply(head, states, method="head")
        of_one = lambda *example: cross_entropy(*(x[None] for x in example), Settings())["nll"]
        return {"nll": jax.vmap(of_one)(logits, targets, weights)}

    head, targets, weights = head_weights(variables), batch["targets"], batch["weights"]
    return over_chunks(objective, {}, head, hidden, targets, weights, head_chunk)["nll"]
