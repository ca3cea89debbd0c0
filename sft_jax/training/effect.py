"""Whether training has an effect: how many steps gave each trained array, of each layer by itself, a gradient and an
update.

The step counts it beside the norms that it takes anyway, in two small vectors of the state. They are looked at once
after the first few steps, and at the end: a run in which nothing moves is stopped, an array that does not take part is
named.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Bool, Int32

from sft_jax.models.layouts import is_stacked, numbers_of
from sft_jax.models.variables import canonical_path
from sft_jax.options import OptimizerOptions
from sft_jax.training.groups import group_of, parse_groups
from sft_jax.training.state import TrainState

Tree = Any
Part = tuple[str, int | None]  # canonical path, and the layer where it lies in one

LOOK_AFTER = 5  # good steps; `a` of LoRA has no gradient at the first, since `b` is 0
_SHOWN = 10  # arrays that a message names


class NoEffectError(RuntimeError):
    """The steps of a run change nothing."""


def squares(tree: Tree) -> dict[str, Array]:
    """Squared norm of every array by canonical path, of each layer by itself: float32 [layers], or [1].

    They and their order are the same in both layer layouts.

    Args:
        tree: like the trained parameters.
    """
    found: dict[str, list[tuple[list[int], Array]]] = {}
    for path, leaf in flatten_dict(tree, sep="/").items():
        axes = tuple(range(1 if is_stacked(path) else 0, leaf.ndim))
        square = jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes).reshape(-1)
        found.setdefault(canonical_path(path), []).append((_layers_of(path, leaf.shape), square))
    return {name: _in_order(found[name]) for name in sorted(found)}


def _in_order(of_layers: Sequence[tuple[list[int], Array]]) -> Array:
    """One array of (layers, an entry for each), in the order of the layers."""
    together = jnp.concatenate([entries for _, entries in of_layers])
    numbers = [number for layers, _ in of_layers for number in layers]
    return together if numbers == sorted(numbers) else together[np.argsort(numbers)]


def parts(tree: Tree) -> list[Part]:
    """What the entries of `squares`, one after the other, are of; `tree` may hold shapes."""
    found: set[tuple[str, int]] = set()
    in_layers: set[str] = set()
    for path, leaf in flatten_dict(tree, sep="/").items():
        name = canonical_path(path)
        if numbers_of(path, 1) is not None:
            in_layers.add(name)
        found |= {(name, layer) for layer in _layers_of(path, leaf.shape)}
    return [(name, layer if name in in_layers else None) for name, layer in sorted(found)]


def _layers_of(path: str, shape: tuple[int, ...]) -> list[int]:
    """Those that an array is of; of what is outside of layers [0]."""
    numbers = numbers_of(path, shape[0] if shape else 1)
    return [0] if numbers is None else list(numbers)


def no_counts(trained: Tree) -> dict[str, Int32[Array, "parts"]]:
    """The counts before the first step."""
    zero = jnp.zeros(len(parts(trained)), jnp.int32)
    return {"gradient": zero, "update": zero}


def counted(
    counts: dict[str, Int32[Array, "parts"]],
    finite: Bool[Array, ""],
    gradient: dict[str, Array],
    update: dict[str, Array],
) -> dict[str, Int32[Array, "parts"]]:
    """The counts with one step more, whose `squares` are given; a step that is not finite counts for nothing."""
    return {
        name: counts[name] + (finite & (jnp.concatenate(list(norms.values())) > 0)).astype(jnp.int32)
        for name, norms in (("gradient", gradient), ("update", update))
    }


class EffectWatch:
    """Looks at the counts once when `LOOK_AFTER` good steps are done, and at the end of the run."""

    def __init__(
        self,
        optimizer: OptimizerOptions,
        state: TrainState,
        say: Callable[[int, str], None],
        *,
        waits_for_gradient: bool = False,
    ):
        """Prepares the watch.

        Args:
            optimizer: what was asked for.
            state: the state that the run begins or goes on with.
            say: given the step and what there is to know of single arrays, once in the life of a run.
            waits_for_gradient: there may be none for many steps, where all rewards of a group are equal: `after` looks
                when there was one.
        """
        self._waits = waits_for_gradient
        self._optimizer, self._say, self._parts = optimizer, say, parts(state.trained)
        self._looked = int(state.step) - int(state.skipped) >= LOOK_AFTER

    def is_due(self, step: int) -> bool:
        """Whether `after` may look after this step."""
        return not self._looked and step >= LOOK_AFTER

    def after(self, step: int, state: TrainState) -> None:
        """Looks, if it is time to and was not done; then it waits for the step.

        Args:
            step: number of the step.
            state: after it.

        Raises:
            NoEffectError: nothing has had a gradient, or an update.
        """
        if not self.is_due(step):
            return
        good = step - int(state.skipped)
        if good >= LOOK_AFTER:
            counts = jax.device_get(state.effect)
            if self._waits and not counts["gradient"].any():
                return
            self._looked = True
            self._check_all(counts, step, good)
            for line in self._idle(counts, good):
                self._say(step, line)

    def at_end(self, step: int, state: TrainState) -> None:
        """Looks whether anything moved in the whole run; arguments and errors are those of `after`."""
        self._check_all(jax.device_get(state.effect), step, step - int(state.skipped))

    def _check_all(self, counts: dict[str, np.ndarray], step: int, good: int) -> None:
        if not good:
            raise NoEffectError(
                f"nothing is trained: all {step} steps were skipped: loss or gradient was not finite. Look at the "
                "examples in skipped_steps.jsonl, or lower --config.optimizer.learning_rate, with another --workdir."
            )
        if not counts["gradient"].any() and self._waits:
            raise NoEffectError(
                f"nothing is trained: in {good} steps all answers to each prompt were worth the same "
                "(train/no_signal), or had no end and were left out (train/truncated). Look at samples/; give prompts "
                "that the model answers rightly "
                "now and then, rewards that tell its answers apart, or more --config.rollouts.max_new_tokens, with "
                "another --workdir."
            )
        if not counts["gradient"].any():
            raise NoEffectError(
                f"nothing is trained: in {good} steps no trained array has had a gradient. The loss does not depend on "
                f"what is trained, which is {_listed(self._parts)}."
            )
        if not counts["update"].any() and self._optimizer.learning_rate:
            raise NoEffectError(
                f"nothing is trained: in {good} steps no trained array has had an update, though there were gradients. "
                f"Raise --config.optimizer.learning_rate={self._optimizer.learning_rate}, or the "
                "learning_rate_factor of --config.optimizer.groups, with another --workdir."
            )

    def _idle(self, counts: dict[str, np.ndarray], good: int) -> list[str]:
        """A line for arrays without gradient, and one for those that have one and no update that was asked for."""
        without = [part for part, count in zip(self._parts, counts["gradient"], strict=True) if not count]
        still = [
            part
            for part, gradient, update in zip(self._parts, counts["gradient"], counts["update"], strict=True)
            if gradient and not update and self._is_to_move(part)
        ]
        lines = []
        if without:
            lines.append(
                f"warning: no gradient in the first {good} steps for {_listed(without)}. The loss does not depend on "
                "them, or the numbers before or behind them are all 0: they are trained in vain."
            )
        if still:
            lines.append(
                f"warning: gradients and no update in the first {good} steps for {_listed(still)}: the learning "
                "rate is too small for them."
            )
        return lines

    def _is_to_move(self, part: Part) -> bool:
        """False where the options themselves say that the learning rate is 0."""
        groups = parse_groups(self._optimizer.groups)
        group = group_of(part[0], [group.pattern for group in groups])
        factor = 1.0 if group is None else groups[group].learning_rate_factor
        return bool(self._optimizer.learning_rate and factor)


def _listed(found: Sequence[Part]) -> str:
    """`final_norm/scale, layers/ffn/up/kernel (layers 0, 3)`."""
    by_name: dict[str, list[int]] = {}
    for name, layer in found:
        by_name.setdefault(name, []).extend([] if layer is None else [layer])
    texts = [f"{name} ({_ranges(layers)})" if layers else name for name, layers in by_name.items()]
    more = len(texts) - _SHOWN
    return ", ".join(texts[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "layers 0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    word = "layer" if len(numbers) == 1 else "layers"
    return f"{word} " + ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
