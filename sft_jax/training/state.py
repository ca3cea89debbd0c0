"""The training state: what is trained, what is frozen, moments, hyperparameters."""

import dataclasses
from typing import Any

import flax.struct
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from sft_jax.models.variables import merge
from sft_jax.runs.checkpoints import CONSTANTS
from sft_jax.runs.freezing import kept_of_frozen

Tree = Any
Leaf = Any
_SAVED = ("step", "trained", "opt_state", "skipped", "skipped_in_a_row", "ema", "effect")


@flax.struct.dataclass
class TrainState:
    """All that a step reads and writes; also the tree of its shapes, or of its shardings.

    Attributes:
        step: int32 scalar, optimizer steps done, skipped ones included.
        trained: nested dict {"params": …, "adapters": …} of what the optimizer sees.
        frozen: the rest, in the same form; carries neither gradient nor moments.
        opt_state: optax state over `trained`.
        hyper: hyperparameters as float32 scalars.
        seed: uint32 scalar, of dropout, noise and stochastic rounding. As hyperparameters, it is in no checkpoint.
        skipped: int32 scalar, steps left out because loss or gradient was not finite.
        skipped_in_a_row: int32 scalar, those since the last good step.
        ema: exponential moving average of `trained`, float32; empty where the run keeps none.
        effect: how many steps gave each part of `trained` a gradient, and an update; see `effect.py`.
        base: what `trained` was in the base, where the loss has a divergence from it; else, and under adapters, empty.
            Like the frozen part it is in no checkpoint.
        teacher: {"params": …} of the teacher of a distillation that has it in the step; else empty. In no checkpoint.
    """

    step: Leaf
    trained: Tree
    frozen: Tree
    opt_state: Tree
    hyper: dict[str, Leaf]
    seed: Leaf
    skipped: Leaf
    skipped_in_a_row: Leaf
    ema: Tree
    effect: dict[str, Leaf]
    base: Tree = dataclasses.field(default_factory=dict)
    teacher: Tree = dataclasses.field(default_factory=dict)


def seed_array(seed: int) -> UInt32[Array, ""]:
    """The seed of a config as an array that `jax.random.key` makes the same key of: of its lowest 32 bits."""
    return jnp.asarray(seed % 2**32, jnp.uint32)


def saved_arrays(state: TrainState) -> Tree:
    """What a checkpoint holds of a state; of the frozen part what the pretrained checkpoint has not."""
    constants = kept_of_frozen(state.trained, state.frozen)
    return {name: getattr(state, name) for name in _SAVED} | ({CONSTANTS: constants} if constants else {})


def with_saved(state: TrainState, arrays: Tree) -> TrainState:
    """The state with what a checkpoint holds; all else is kept."""
    restored = dict(arrays)
    constants = restored.pop(CONSTANTS, {})
    return state.replace(frozen=merge(constants, state.frozen), **restored)
