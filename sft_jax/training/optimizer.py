"""Hyperparameters as arrays, learning-rate schedules on them, and the optimizer of a run built from them.

The numbers of optimizer, objective, noise, balance and average are no constants of the compiled step: one compilation
serves a sweep over learning rate, decay, betas, label smoothing.
"""

import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sft_jax.objectives import OF_ANSWERS, distils, judges_answers, reads_of, samples_groups
from sft_jax.options import OptimizerOptions, Options
from sft_jax.runs.adapting import adapter_hyperparameters
from sft_jax.sharding import path_string
from sft_jax.training.groups import group_of, parse_groups
from sft_jax.training.update_rules import RULES, Hyperparameters

Tree = Any

SCHEDULES = ("constant", "linear", "cosine", "wsd")
DECAY_SHAPES = {"linear": 1.0, "sqrt": 0.5}  # of wsd: the power of the share of the decay that is over
# Beside label smoothing.
PREFERENCE_NUMBERS = (
    *("beta", "margin", "tail_weight", "sft_weight"),
    *("desirable_weight", "undesirable_weight", "centring"),
)
POLICY_NUMBERS = ("clip_low", "clip_high", "kl_weight", "teacher_weight")
_NO_DECAY = re.compile(r"(scale|bias|sinks|magnitude|a_log)$")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """What is static of an optimizer.

    Attributes:
        rule: name of the update rule.
        groups: patterns of the groups of parameters with numbers of their own; the first that matches decides.
    """

    rule: str = "adamw"
    groups: tuple[str, ...] = ()


def optimizer_settings(optimizer: OptimizerOptions) -> OptimizerSettings:
    """The static part of what is asked for."""
    return OptimizerSettings(optimizer.name, tuple(group.pattern for group in parse_groups(optimizer.groups)))


def hyperparameters(options: Options, warmup_steps: int, total_steps: int, decay_steps: int = 0) -> Hyperparameters:
    """The numbers of a run as float32 scalars.

    Args:
        options: of the run.
        warmup_steps: steps of linear warm-up.
        total_steps: length of the run in optimizer steps, for the schedule.
        decay_steps: of them, those at its end in which the rate of schedule `wsd` falls.
    """
    optimizer = options.optimizer
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
        "momentum": optimizer.momentum,
        "decay_power": optimizer.decay_power,
        "clip_norm": optimizer.clip_norm or float("inf"),
        "ema_decay": options.ema.decay,
        "balance_loss": options.experts.balance_loss,
        "neftune_alpha": options.objective.neftune_alpha,
        "kl_to_base": options.objective.kl_to_base,
        "label_smoothing": options.objective.label_smoothing,
        "z_loss": options.objective.z_loss,
    }
    if optimizer.schedule == "wsd":
        values |= {"decay_steps": decay_steps, "decay_exponent": DECAY_SHAPES[optimizer.decay_shape]}
    if judges_answers(options.objective.name):
        values |= {name: getattr(options.objective, name) for name in PREFERENCE_NUMBERS}
    if options.objective.name in OF_ANSWERS and OF_ANSWERS[options.objective.name].divergence:
        values["kl"] = 0.0  # of the whole step; of held-out examples, where they are measured
    if distils(options.objective.name):
        values |= {name: getattr(options.objective, name) for name in reads_of(options.objective.name)}
    if samples_groups(options.objective.name):
        values |= {name: getattr(options.objective, name) for name in POLICY_NUMBERS}
        values["temperature"] = options.rollouts.temperature
    for index, group in enumerate(parse_groups(optimizer.groups)):
        values[f"group_{index}_learning_rate_factor"] = group.learning_rate_factor
        if group.weight_decay is not None:
            values[f"group_{index}_weight_decay"] = group.weight_decay
    numbers = {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}
    return numbers | adapter_hyperparameters(options.adapter)


def learning_rate(kind: str, step: Int[Array, ""], hyper: Hyperparameters) -> Float[Array, ""]:
    """Learning rate of the step that comes after `step` others: warm-up, then constant, or down towards `final_share`.

    Step k, counted from 1, of T with a warm-up of W: `learning_rate` k / W up to step W, the first at the peak; after
    it, `learning_rate` (final_share + (1 - final_share) shape(p)) with p = (k - 1 - W) / (T - W). `final_share`
    itself would be the rate of step T + 1, so that no step is without an update, also where it is 0 or T is 1.

    Cosine with peak 0.2, warm-up 10 and 100 steps: 0.02 at step 1, 0.1 at 5, 0.2 at 10 and 11, 0.1 at 56, 6e-5 at 100.

    The decay is that of transformers' `get_cosine_schedule_with_warmup` (and of its linear one), and optax's
    `warmup_cosine_decay_schedule`, given the count of steps before. Their warm-up gives step k the rate (k - 1) / W:
    the first step does nothing, and where W is 1, as 3 percent of a short run is, there is no warm-up after it.

    `wsd` (warm-up, stable, decay; Hu et al. 2024, https://arxiv.org/abs/2404.06395) stays at the peak up to step T - D,
    where D are the steps of the decay. After it, step k has `learning_rate` (1 - (1 - `final_share`) p^e) with
    p = (k - (T - D)) / D; e is 1 for a straight line, and 1/2 for 1 - sqrt(p), which Hägele et al. 2024
    (https://arxiv.org/abs/2405.18392) found better. As in their formula step T itself has `final_share`: with 0 it
    trains nothing. Up to step T - D the rate depends on none of T, D, e and `final_share`, to the last bit.

    Peak 1, warm-up 10, 100 steps, decay 20, `final_share` 0: 0.5 at step 5, 1 at 10 to 80, at 90 0.5, or 0.292893 with
    e = 1/2, 0 at 100.
    """
    step = step.astype(jnp.float32)
    warm = (step + 1) / jnp.maximum(hyper["warmup_steps"], 1.0)
    shape = _stable_then_decay if kind == "wsd" else functools.partial(_decay_from_the_warmup, kind)
    return hyper["learning_rate"] * jnp.minimum(warm, 1.0) * shape(step, hyper)


def _decay_from_the_warmup(kind: str, step: Float[Array, ""], hyper: Hyperparameters) -> Float[Array, ""]:
    span = jnp.maximum(hyper["total_steps"] - hyper["warmup_steps"], 1.0)
    progress = jnp.clip((step - hyper["warmup_steps"]) / span, 0.0, 1.0)
    shapes = {
        "constant": lambda: jnp.ones(()),
        "linear": lambda: 1 - progress,
        "cosine": lambda: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
    }
    return hyper["final_share"] + (1 - hyper["final_share"]) * shapes[kind]()


def _stable_then_decay(step: Float[Array, ""], hyper: Hyperparameters) -> Float[Array, ""]:
    """1 up to the decay, whatever the numbers of the decay are; then down to `final_share` at the last step."""
    begin = hyper["total_steps"] - hyper["decay_steps"]
    over = jnp.clip((step + 1 - begin) / jnp.maximum(hyper["decay_steps"], 1.0), 0.0, 1.0)
    return 1 - (1 - hyper["final_share"]) * over ** hyper["decay_exponent"]


def make_optimizer(
    settings: OptimizerSettings, hyper: Hyperparameters, rate: Float[Array, ""]
) -> optax.GradientTransformation:
    """The optimizer at learning rate `rate`; what its `init` makes does not depend on the numbers."""
    return RULES[settings.rule].make(hyper, rate, _descend(settings.groups, hyper, rate))


def _descend(patterns: tuple[str, ...], hyper: Hyperparameters, rate: Float[Array, ""]) -> optax.GradientTransformation:
    """From a direction to the change of the parameters: -rate (direction + decay parameter), by group.

    Norms, biases and sinks do not decay, unless their group says so.
    """

    def change(path: tuple, direction: Array, param: Array) -> Array:
        name = path_string(path)
        group = group_of(name, patterns)
        own_decay = None if group is None else hyper.get(f"group_{group}_weight_decay")
        if own_decay is not None or not _NO_DECAY.search(name):
            direction = direction + (hyper["weight_decay"] if own_decay is None else own_decay) * param
        own_rate = rate if group is None else rate * hyper[f"group_{group}_learning_rate_factor"]
        return -own_rate * direction

    def update(updates: Tree, params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(change, updates, params)

    return optax.stateless(update)
