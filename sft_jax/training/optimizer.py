"""Hyperparameters as arrays, learning-rate schedules on them, and the optimizer built from them.

Nothing numeric is a constant of the compiled step: one compilation serves a sweep over learning rate, decay, betas.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

Tree = Any
Hyperparameters = dict[str, Array]

SCHEDULES = ("constant", "linear", "cosine")
_NO_DECAY = re.compile(r"(scale|bias|magnitude)$")


def hyperparameters(config: ml_collections.ConfigDict, warmup_steps: int, total_steps: int) -> Hyperparameters:
    """The numbers of a run as float32 scalars.

    Args:
        config: `optimizer`, `objective`, `experts` and `adapter` of the experiment config.
        warmup_steps: steps of linear warm-up.
        total_steps: length of the run in optimizer steps, for the schedule.
    """
    optimizer = config.optimizer
    beta1, beta2 = optimizer.betas
    values = {
        "learning_rate": optimizer.learning_rate,
        "final_share": optimizer.final_share,
        "warmup_steps": warmup_steps,
        "total_steps": total_steps,
        "weight_decay": optimizer.weight_decay,
        "beta1": beta1,
        "beta2": beta2,
        "epsilon": optimizer.epsilon,
        "clip_norm": optimizer.clip_norm or float("inf"),
        "balance_loss": config.experts.balance_loss,
        "neftune_alpha": config.objective.neftune_alpha,
        "adapter_alpha": config.adapter.alpha,
        "adapter_rank_power": {"rank": 1.0, "sqrt_rank": 0.5}[config.adapter.scaling],
        "adapter_dropout": config.adapter.dropout,
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def learning_rate(kind: str, step: Int[Array, ""], hyper: Hyperparameters) -> Float[Array, ""]:
    """Learning rate at `step`: linear warm-up from 0, then constant, or down to `final_share` of the peak.

    Cosine with peak 0.2, warm-up 10 and 100 steps: 0 at step 0, 0.1 at 5, 0.2 at 10, 0.1 at 55, 0 at 100.
    """
    step = step.astype(jnp.float32)
    warm = jnp.where(hyper["warmup_steps"] > 0, step / jnp.maximum(hyper["warmup_steps"], 1.0), 1.0)
    span = jnp.maximum(hyper["total_steps"] - hyper["warmup_steps"], 1.0)
    progress = jnp.clip((step - hyper["warmup_steps"]) / span, 0.0, 1.0)
    shapes = {
        "constant": lambda: jnp.ones(()),
        "linear": lambda: 1 - progress,
        "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    }
    decayed = hyper["final_share"] + (1 - hyper["final_share"]) * shapes[kind]()
    return hyper["learning_rate"] * jnp.minimum(warm, 1.0) * decayed


def decay_mask(trained: Tree) -> Tree:
    """True where weight decay applies: everywhere but on norms' scales and on biases."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: not _NO_DECAY.search(str(getattr(path[-1], "key", path[-1]))), trained
    )


def adamw(hyper: Hyperparameters, rate: Float[Array, ""]) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter 2019) at learning rate `rate`; `init` does not depend on the numbers."""
    return optax.chain(
        optax.scale_by_adam(b1=hyper["beta1"], b2=hyper["beta2"], eps=hyper["epsilon"]),
        optax.add_decayed_weights(hyper["weight_decay"], mask=decay_mask),
        optax.scale_by_learning_rate(rate),
    )
