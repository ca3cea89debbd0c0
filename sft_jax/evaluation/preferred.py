"""What a reward model prefers: its scores of the answers of pairs, and how often the better one has the higher."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from sft_jax.data.conversations import Preference
from sft_jax.data.records import Record, RecordError
from sft_jax.data.scored import with_scored_ends
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.evaluation.held_out_loss import sums_by_example
from sft_jax.evaluation.statistics import Score, bootstrap_interval, mean_columns, ratio_of_sums, wilson
from sft_jax.models.decoder import Decoder
from sft_jax.models.sizes import check_sizes
from sft_jax.objectives.branches import by_branch
from sft_jax.runs.restore import Loaded

Tree = Any
Scores = Float[np.ndarray, "pairs 2"]


def scores_of_pairs(
    loaded: Loaded,
    records: Sequence[Record],
    mesh: Mesh,
    *,
    batch_sequences: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """The scores of the chosen and of the rejected answer of each pair.

    Args:
        loaded: a decoder that scores.
        records: all are pairs.
        mesh: the mesh in force.
        batch_sequences: pairs at a time, each a sequence of its own; rounded up so that the mesh divides it.
        progress: called with (pairs done, pairs in all).

    Raises:
        RecordError: a row is no pair.
        ValueError: one cannot be rendered, or has more tokens than the model has positions. None is left out.
    """
    for record in records:
        if not isinstance(record.example, Preference):
            raise RecordError(
                f'{record.id}: expected a pair, {{"prompt", "chosen", "rejected"}}, this row is '
                f"{type(record.example).__name__}."
            )
    examples, dropped = tokenize_records(list(records), loaded.renderer, max_example_tokens=2**30)
    if dropped:
        raise ValueError(f"{dropped[0].id}: {dropped[0].reason} {dropped[0].detail}".strip())
    check_sizes(loaded.model.config, examples, remedy="Leave such rows out")
    both = functools.partial(_scores, loaded.model, loaded.variables)
    return sums_by_example(
        both, with_scored_ends(examples), mesh, batch_sequences=batch_sequences, progress=progress
    ).astype(np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: Decoder, variables: Tree, batch: Tree) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    places = (batch["positions"], batch["segment_ids"])
    hidden, _ = model.apply(variables, batch["tokens"], *places, parents=batch["parents"], method="hidden")
    ends = jnp.take_along_axis(hidden, batch["target_slots"][:, :, None], axis=1)
    scores = model.apply(variables, ends, method="head")[:, :, 0]
    used = jnp.where(batch["weights"] > 0, scores, 0.0)
    of_pair = by_branch(used, batch["branches"])[:, 0]
    return of_pair[:, 0], of_pair[:, 1]


def preference_scores(scores: Scores) -> dict[str, Score]:
    """`accuracy`, the share of pairs whose chosen answer has the higher score, with Wilson's interval; and the mean
    `margin`, chosen less rejected, with a bootstrap interval."""
    margins = scores[:, 0] - scores[:, 1]
    return {
        "accuracy": wilson(int((margins > 0).sum()), len(margins)),
        "margin": bootstrap_interval(mean_columns(margins), ratio_of_sums, seed=0, maximum=None),
    }
