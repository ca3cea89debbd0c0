"""How far the predictions of a model are from those of its base: the divergence on each example of probe data.

Whatever is no part of the task that was trained is a probe of what the model forgot: general questions, other tasks.
Examples are measured by themselves, as losses are (`held_out_loss.py`), so that intervals and paired tests are over
examples.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.evaluation.held_out_loss import head_chunk_of, sums_by_example
from sft_jax.evaluation.scoring import Outcome
from sft_jax.evaluation.statistics import Score, bootstrap_interval, ratio_of_sums
from sft_jax.models.decoder import Decoder
from sft_jax.models.variables import head_weights
from sft_jax.objectives.head import gather_targets, over_chunks
from sft_jax.objectives.kl import kl_divergence, sum_and_count
from sft_jax.runs.restore import Loaded

Tree = Any
Progress = Callable[[int, int], None]
WEIGHT = "kl_weight"
# KL(base || tuned) is large where the tuned model no longer does what the base might; KL(tuned || base) where it does
# what the base would not.
METRICS = {"kl_base_tuned": "kl_base_tuned_sum", "kl_tuned_base": "kl_tuned_base_sum"}


def example_divergences(
    base: Loaded,
    tuned: Loaded,
    examples: TokenizedExamples,
    mesh: Mesh,
    *,
    batch_sequences: int = 8,
    head_chunk_tokens: int = 512,
    progress: Progress | None = None,
) -> list[Outcome]:
    """One outcome for each example; call it inside `jax.set_mesh`.

    `kl_base_tuned_sum` and `kl_tuned_base_sum` (nats) are the divergences of the next-token distributions, over the
    whole vocabulary, summed over the supervised tokens with their weights; `kl_weight` is the sum of the weights.

    Args:
        base: a model.
        tuned: another one of the same vocabulary. Of a run that added tokens, the base with these tokens is
            `load_for_inference(run, mesh, mix=0.0)`.
        examples: the probe data, in tokens of that vocabulary.
        mesh: the mesh in force.
        batch_sequences: examples at a time, each a sequence of its own; rounded up so that the mesh divides it.
        head_chunk_tokens: of a device, whose logits, of both models, are there at a time; 0: those of all.
        progress: called with (examples done, examples in all).

    Raises:
        ValueError: the models have other vocabularies.
    """
    _check_vocabularies(base, tuned)
    models, weights = (base.model, tuned.model), (base.variables, tuned.variables)
    chunk = head_chunk_of(head_chunk_tokens, batch_sequences, mesh)
    sums_of = functools.partial(_example_sums, models, chunk, weights)
    every = sums_by_example(sums_of, examples, mesh, batch_sequences=batch_sequences, progress=progress)
    names = (*METRICS.values(), WEIGHT)
    return [dict(zip(names, map(float, row), strict=True)) for row in every]


def divergence_scores(outcomes: Sequence[Outcome], seed: int) -> dict[str, Score]:
    """Nats a supervised token, both ways, with BCa intervals over examples; names as in METRICS."""
    scores = {}
    for name, column in METRICS.items():
        sums = np.array([[outcome[column], outcome[WEIGHT]] for outcome in outcomes])
        scores[name] = bootstrap_interval(sums, ratio_of_sums, seed=seed, maximum=None)
    return scores


def _check_vocabularies(base: Loaded, tuned: Loaded) -> None:
    sizes = base.model.config.vocab_size, tuned.model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{base.name} predicts {sizes[0]} tokens, {tuned.name} {sizes[1]}: their distributions cannot be compared"
        )
    first, second = (
        {i: token for token, i in loaded.renderer.tokenizer.get_vocab().items()} for loaded in (base, tuned)
    )
    others = sorted(i for i in first.keys() & second.keys() if first[i] != second[i])
    if others:
        example = f"{others[0]} is {first[others[0]]!r} and {second[others[0]]!r}"
        raise ValueError(f"{base.name} and {tuned.name} have different tokens at {len(others)} ids: {example}")


@functools.partial(jax.jit, static_argnums=(0, 1))
def _example_sums(
    models: tuple[Decoder, Decoder], head_chunk: int, weights: tuple[Tree, Tree], batch: Tree
) -> tuple[Float[Array, "B"], Float[Array, "B"], Float[Array, "B"]]:
    def states(model: Decoder, variables: Tree) -> Array:
        hidden, _ = model.apply(variables, batch["tokens"], batch["positions"], batch["segment_ids"], method="hidden")
        return gather_targets(hidden, batch["target_slots"])

    def both(_, heads, hidden, targets, used, other):
        of_base, of_tuned = (
            models[0].apply(heads[0], hidden, method="head"),
            models[1].apply(heads[1], other, method="head"),
        )
        of_each = jax.vmap(lambda divergence, weights: sum_and_count(divergence[None], weights[None]))
        return {
            "kl_base_tuned": of_each(kl_divergence(of_base, of_tuned), used),
            "kl_tuned_base": of_each(kl_divergence(of_tuned, of_base), used),
        }

    hidden, other = (states(model, variables) for model, variables in zip(models, weights, strict=True))
    heads, targets, used = tuple(map(head_weights, weights)), batch["targets"], batch["weights"]
    found = over_chunks(both, {}, heads, hidden, targets, used, head_chunk, (other,))
    return found["kl_base_tuned"][0], *found["kl_tuned_base"]
