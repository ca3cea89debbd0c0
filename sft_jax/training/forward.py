"""From a batch to hidden states, and to log-probabilities of its targets: what a step differentiates."""

import dataclasses
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float

from sft_jax.models.decoder import Decoder
from sft_jax.models.experts import ROUTING, Routing, total_routing
from sft_jax.models.partitioning import context_parts
from sft_jax.models.variables import head_weights, merge, split, variables
from sft_jax.objectives.head import gather_targets
from sft_jax.objectives.head_on_mesh import head_on_mesh
from sft_jax.objectives.log_probabilities import log_probabilities
from sft_jax.training.noise import embedding_noise
from sft_jax.training.state import TrainState

Tree = Any


@dataclasses.dataclass(frozen=True)
class Randomness:
    """What is random in a training step, and absent when measuring.

    Attributes:
        dropout: key of adapter dropout.
        noise: keys of the noise on embeddings, one a sequence.
    """

    dropout: Array | None = None
    noise: Array | None = None


def hidden_states(
    model: Decoder, trained: Tree, state: TrainState, batch: Tree, randomness: Randomness
) -> tuple[Array, Routing | None]:
    """Hidden states of a (micro-)batch, and how its tokens were spread over experts in all layers together."""
    noise = None
    if randomness.noise is not None:
        width, alpha = model.config.model_dim, state.hyper["neftune_alpha"]
        noise = embedding_noise(randomness.noise, batch["segment_ids"], width, alpha, context_parts())
    (hidden, _), collections = model.apply(
        variables(trained, state.frozen, state.hyper),
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        method="hidden",
        noise=noise,
        parents=batch.get("parents"),
        dealt=context_parts(),
        rngs={} if randomness.dropout is None else {"dropout": randomness.dropout},
        mutable=[ROUTING],
    )
    return hidden, total_routing(collections[ROUTING]) if model.config.num_experts else None


def frozen_target_states(model: Decoder, variables: Tree, batch: Tree) -> Array:
    """Hidden states of the target slots, of a model that is not trained: without gradient, dropout or noise."""
    tokens, places = batch["tokens"], (batch["positions"], batch["segment_ids"])
    hidden, _ = model.apply(variables, tokens, *places, method="hidden", dealt=context_parts())
    return gather_targets(jax.lax.stop_gradient(hidden), batch["target_slots"])


def target_log_probabilities(
    model: Decoder,
    chunk: int,
    trained: Tree,
    state: TrainState,
    batch: Tree,
    randomness: Randomness,
    temperature: Float[Array, ""] | None = None,
) -> tuple[Float[Array, "B P"], Routing | None]:
    """The log-probability of every target of a (micro-)batch, float32; and how its tokens were routed.

    `chunk` slots of a sequence go through the head at a time. With a temperature they are those at it.
    """
    hidden, routing = hidden_states(model, trained, state, batch, randomness)
    hidden, execution = gather_targets(hidden, batch["target_slots"]), model.execution
    trained_head = trained_head_weights(model, trained)
    frozen = {"head": frozen_head_weights(trained_head, trained, state)}
    frozen |= {} if temperature is None else {"temperature": temperature}
    on_mesh = head_on_mesh(trained_head, frozen, hidden, execution.matmul_dtype, execution.gradient_dtype)
    by_vocabulary = on_mesh.logits if on_mesh else lambda logits: logits

    def head(trained_head: Tree, frozen: Tree, hidden: Array) -> Array:
        logits = by_vocabulary(model.apply(merge(trained_head, frozen["head"]), hidden, method="head"))
        return logits if temperature is None else logits / frozen["temperature"]

    with jax.named_scope("head_and_loss"):
        found = log_probabilities(head, trained_head, frozen, hidden, batch["targets"], chunk, on_mesh)
    return found, routing


def target_scores(
    model: Decoder, trained: Tree, state: TrainState, batch: Tree, randomness: Randomness
) -> tuple[Float[Array, "B P"], Routing | None]:
    """The score at every target of a (micro-)batch, float32, of a decoder that scores; and how it was routed."""
    hidden, routing = hidden_states(model, trained, state, batch, randomness)
    hidden = gather_targets(hidden, batch["target_slots"])
    scores = model.apply(variables(trained, state.frozen, state.hyper), hidden, method="head")
    return scores[:, :, 0], routing


def trained_head_weights(model: Decoder, trained: Tree) -> Tree:
    """What the head reads and is trained: an embedding has a gradient in the head only where it is the head."""
    of_head = head_weights(trained)
    if model.config.tie_embeddings:
        return of_head
    return {kind: {name: leaf for name, leaf in tree.items() if name != "embedding"} for kind, tree in of_head.items()}


def frozen_head_weights(trained_head: Tree, trained: Tree, state: TrainState) -> Tree:
    """What else the head reads, the scale of adapters included."""
    everything = head_weights(variables(trained, state.frozen, state.hyper))
    is_trained = flatten_dict(trained_head, sep="/")
    return split(everything, lambda path: path in is_trained)[1]
