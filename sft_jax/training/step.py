"""The train step and the evaluation step: functions of (state, batch), compiled once.

`train_step(state, batch) -> (state, metrics)`; every metric is a (sum, count) pair until it is logged.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from sft_jax.models.decoder import Decoder
from sft_jax.objectives import Objective, Settings
from sft_jax.objectives.head import gather_targets, over_chunks
from sft_jax.training.optimizer import adamw, learning_rate
from sft_jax.training.sharding import batch_sharding, shardings_of
from sft_jax.training.state import TrainState, head_weights, merge, variables

Tree = Any
Metrics = dict[str, tuple[Array, Array]]
Step = Callable[..., tuple[TrainState, Metrics]]


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What is static in the compiled step.

    Attributes:
        objective: the objective's function.
        objective_settings: its options.
        schedule: kind of learning-rate schedule.
        micro_batches: parts into which the global batch is split, one after the other.
        head_chunk: target slots of a row that go through the head at a time; 0 takes all.
        seed: of dropout.
    """

    objective: Objective
    objective_settings: Settings
    schedule: str = "cosine"
    micro_batches: int = 1
    head_chunk: int = 0
    seed: int = 0


def loss_sums(
    model: Decoder, settings: StepSettings, trained: Tree, state: TrainState, batch: Tree, dropout_key: Array | None
) -> Metrics:
    """Sums and counts of the objective over a (micro-)batch, as a function of `trained`."""
    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    hidden, _ = model.apply(
        variables(trained, state.frozen, state.hyper),
        batch["tokens"],
        batch["positions"],
        batch["segment_ids"],
        method="hidden",
        rngs=rngs,
    )
    hidden = gather_targets(hidden, batch["target_slots"])

    def head_objective(trained_head, frozen_head, hidden, targets, weights):
        logits = model.apply(merge(trained_head, frozen_head), hidden, method="head")
        return settings.objective(logits, targets, weights, settings.objective_settings)

    with jax.named_scope("head_and_loss"):
        return over_chunks(
            head_objective,
            head_weights(trained),
            head_weights(state.frozen),
            hidden,
            batch["targets"],
            batch["weights"],
            settings.head_chunk,
        )


def gradients(
    model: Decoder, settings: StepSettings, state: TrainState, batch: Tree, constrain: Callable[[Tree], Tree]
) -> tuple[Metrics, Tree]:
    """Metrics, and the gradient of loss sum / loss count over all micro-batches."""
    dropout = model.adapter is not None and model.adapter.dropout
    rows = batch["tokens"].shape[0]

    def sums(trained, batch, keys):
        metrics = loss_sums(model, settings, trained, state, batch, keys[0] if dropout else None)
        return metrics["loss"][0], metrics

    def value_and_grad(batch, keys):
        (_, metrics), gradient = jax.value_and_grad(sums, has_aux=True)(state.trained, batch, keys)
        # Micro-batches are summed in float32 whatever the dtype of the parameters.
        return metrics, constrain(jax.tree.map(lambda g: g.astype(jnp.float32), gradient))

    step_key = jax.random.fold_in(jax.random.key(settings.seed), state.step)
    keys = jax.random.split(step_key, rows)
    if settings.micro_batches > 1:
        value_and_grad = optax.microbatching.microbatch(
            value_and_grad, argnums=(0, 1), microbatch_size=rows // settings.micro_batches
        )
    metrics, gradient = value_and_grad(batch, keys)
    scale = 1.0 / jnp.maximum(metrics["loss"][1], jnp.finfo(jnp.float32).tiny)
    return metrics, jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradient)


def train_step(
    model: Decoder, settings: StepSettings, constrain: Callable[[Tree], Tree], state: TrainState, batch: Tree
) -> tuple[TrainState, Metrics]:
    """One optimizer step. Where loss, gradient or update is not finite nothing but the counters changes."""
    metrics, gradient = gradients(model, settings, state, batch, constrain)
    with jax.named_scope("optimizer"):
        norms = _module_norms(gradient)
        norm = jnp.sqrt(sum(norms.values()))
        clip = jnp.minimum(1.0, state.hyper["clip_norm"] / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        gradient = jax.tree.map(lambda g: (g * clip).astype(g.dtype), gradient)
        rate = learning_rate(settings.schedule, state.step, state.hyper)
        updates, opt_state = adamw(state.hyper, rate).update(gradient, state.opt_state, state.trained)
        update_ratio = optax.global_norm(updates) / jnp.maximum(optax.global_norm(state.trained), 1e-12)
        # That the update is checked too has a second use: all of the old state is read before any of the new one can be
        # written, so that XLA updates it in place. Otherwise it begins with a copy of parameters and moments.
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm) & jnp.isfinite(update_ratio)
        trained = optax.apply_updates(state.trained, updates)
    skip = jnp.where(finite, 0, 1).astype(jnp.int32)
    logged = {
        "learning_rate": rate,
        "grad_norm": norm,
        "update_ratio": update_ratio,
        "skipped": skip.astype(jnp.float32),
        "skipped_in_a_row": jnp.where(finite, 0, state.skipped_in_a_row + 1).astype(jnp.float32),
        **{f"grad_norm/{name}": jnp.sqrt(square) for name, square in norms.items()},
    }
    state = state.replace(
        step=state.step + 1,
        trained=_where(finite, trained, state.trained),
        opt_state=_where(finite, opt_state, state.opt_state),
        skipped=state.skipped + skip,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1).astype(jnp.int32),
    )
    one = jnp.ones((), jnp.float32)
    return state, metrics | {name: (value.astype(jnp.float32), one) for name, value in logged.items()}


def _where(condition: Array, yes: Tree, no: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _module_norms(gradient: Tree) -> dict[str, Array]:
    """Squared norm of the gradient by kind of module: embedding, head, attention, ffn, norms."""
    squares: dict[str, Array] = {}
    for path, leaf in flatten_dict(gradient).items():
        name = next((part for part in path if part in ("attention", "ffn", "embedding", "head")), "norms")
        squares[name] = squares.get(name, 0.0) + jnp.sum(jnp.square(leaf.astype(jnp.float32)))
    return squares


def compile_train_step(model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> Step:
    """The jitted train step: state donated, shardings of state, batch and results given, so that it compiles once.

    Args:
        model: the decoder.
        settings: what is static.
        state: the state or its shapes.
        mesh: the mesh; call the step inside `jax.set_mesh(mesh)`.
    """
    state_shardings = shardings_of(state, mesh)

    def constrain(gradient: Tree) -> Tree:
        return jax.lax.with_sharding_constraint(gradient, state_shardings.trained)

    def step(state, batch):
        return train_step(model, settings, constrain, state, batch)

    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, NamedSharding(mesh, P())),
    )


def compile_eval_step(model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> Callable:
    """The jitted evaluation step (state, batch) -> metrics, without dropout."""
    state_shardings = shardings_of(state, mesh)

    def step(state, batch):
        return loss_sums(model, settings, state.trained, state, batch, None)

    return jax.jit(step, in_shardings=(state_shardings, batch_sharding(mesh)), out_shardings=NamedSharding(mesh, P()))
