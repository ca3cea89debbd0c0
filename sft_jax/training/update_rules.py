"""Update rules: from gradients to changes of the parameters; one small function a rule, and its line in `RULES`.

A rule is given hyperparameters as arrays, the learning rate of the step, and `descend`, which turns a direction into a
change: it adds weight decay and multiplies by the learning rate, of each group of parameters its own.

Layers and experts may be stacked in one array or not: a rule gives each matrix the same numbers either way.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float

from sft_jax.models.variables import is_kernel_of_layer, matrix_axes, merge, split
from sft_jax.sharding import path_string
from sft_jax.training import eight_bit

Tree = Any
Hyperparameters = dict[str, Array]
Transformation = optax.GradientTransformation

_MUON_RMS = 0.2


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update rule.

    Attributes:
        make: (hyperparameters, learning rate, descend) -> transformation; what its `init` makes must not depend on the
            numbers.
        reads: fields of `config.optimizer` beside those that every rule reads.
        by_element: an entry of a parameter changes by its own gradients alone, whatever the shape around it: zeros
            beside it, whose gradient is 0, change nothing.
        needs: what it is made for: True for the path of a parameter of that kind. A run that trains none is refused.
    """

    make: Callable[[Hyperparameters, Float[Array, ""], Transformation], Transformation]
    reads: tuple[str, ...] = ()
    by_element: bool = False
    needs: Callable[[str], bool] = lambda path: True


def adamw(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101)."""
    del rate
    return optax.chain(_adam(hyper), descend)


def lion(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """Lion (Chen et al. 2023, https://arxiv.org/abs/2302.06675): the sign of a momentum, one moment a parameter.

    Its authors take betas (0.9, 0.99), a learning rate 3 to 10 times smaller than AdamW's, and a weight decay as much
    larger.
    """
    del rate
    return optax.chain(optax.scale_by_lion(b1=hyper["beta1"], b2=hyper["beta2"]), descend)


def adafactor(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """Adafactor (Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235), without momentum.

    The second moment of a matrix is kept as one vector of rows and one of columns where both sides have at least 128
    entries. Updates are clipped to an RMS of 1 and multiplied by the RMS of the matrix: learning rates are relative to
    the size of the weights.
    """
    del rate
    return optax.chain(
        per_matrix(
            optax.chain(
                optax.scale_by_factored_rms(decay_rate=hyper["decay_power"]),
                optax.clip_by_block_rms(1.0),
                optax.scale_by_param_block_rms(),
            )
        ),
        descend,
    )


def muon(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) on the kernels of layers, AdamW elsewhere.

    Orthogonalised updates are scaled by 0.2 sqrt(max(in, out)), to the RMS that AdamW's have, so that learning rate and
    weight decay are the same for both (Liu et al. 2025, https://arxiv.org/abs/2502.16982). Embeddings, head, norms,
    biases and the routers of experts go to AdamW.
    """
    del rate
    # optax's own momentum corrects a bias, which changes how gradient and momentum are mixed in the first steps.
    matrices = optax.chain(optax.trace(hyper["momentum"], nesterov=True), optax.stateless(_orthogonalised))
    return optax.chain(_by_path(is_kernel_of_layer, matrices, _adam(hyper)), descend)


def schedule_free(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """Schedule-free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682): averaging in place of a schedule.

    Trains at y, an interpolation with `beta1` between the iterate z, which is in its state, and the average x, which is
    what is used (`averages.for_use`).
    """
    base = optax.chain(optax.scale_by_adam(b1=0.0, b2=hyper["beta2"], eps=hyper["epsilon"]), descend)
    return optax.contrib.schedule_free(base, rate, b1=hyper["beta1"])


def adam8bit(hyper: Hyperparameters, rate: Float[Array, ""], descend: Transformation) -> Transformation:
    """AdamW with both moments in 8 bits (`eight_bit`)."""
    del rate
    return optax.chain(eight_bit.scale_by_adam(hyper["beta1"], hyper["beta2"], hyper["epsilon"]), descend)


def _adam(hyper: Hyperparameters) -> Transformation:
    return optax.scale_by_adam(b1=hyper["beta1"], b2=hyper["beta2"], eps=hyper["epsilon"])


RULES: dict[str, Rule] = {
    "adamw": Rule(adamw, ("betas", "epsilon"), by_element=True),
    "lion": Rule(lion, ("betas",), by_element=True),
    "adafactor": Rule(adafactor, ("decay_power",)),
    "schedule_free": Rule(schedule_free, ("betas", "epsilon"), by_element=True),
    "adam8bit": Rule(adam8bit, ("betas", "epsilon")),
    "muon": Rule(muon, ("betas", "epsilon", "momentum"), needs=is_kernel_of_layer),
}


def unread_options(rule: str) -> list[str]:
    """Fields of `config.optimizer` that only other rules read."""
    return sorted({option for other in RULES.values() for option in other.reads} - {*RULES[rule].reads})


def _orthogonalised(updates: Tree, params: Tree) -> Tree:
    """Each matrix with its singular values brought near 1 by optax's Newton-Schulz iteration, then scaled."""
    del params
    newton_schulz = optax.contrib.scale_by_muon(beta=0.0, nesterov=False)

    def one(matrix: Float[Array, "I O"]) -> Float[Array, "I O"]:
        direction, _ = newton_schulz.update(matrix, newton_schulz.init(matrix))
        return direction * (_MUON_RMS * max(matrix.shape) ** 0.5)

    return jax.tree.map(lambda leaf: _vmap(one, leaf.ndim - 2)(leaf), updates)


def _by_path(
    is_first: Callable[[str], bool], first: Transformation, second: Transformation
) -> optax.GradientTransformation:
    """`first` for the parameters that the predicate names, `second` for the others."""

    def init(params: Tree) -> Tree:
        ours, others = split(params, is_first)
        return {"first": first.init(ours), "second": second.init(others)}

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        ours, others = split(updates, is_first)
        our_params, other_params = split(params, is_first)
        ours, first_state = first.update(ours, state["first"], our_params)
        others, second_state = second.update(others, state["second"], other_params)
        return merge(ours, others), {"first": first_state, "second": second_state}

    return optax.GradientTransformation(init, update)


def per_matrix(transformation: Transformation) -> Transformation:
    """`transformation` on each matrix and vector by itself, however they are stacked; the state is one a parameter."""

    def depth(path: tuple, leaf: Any) -> int:
        return leaf.ndim - matrix_axes(path_string(path), leaf.ndim)

    def init(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: _vmap(transformation.init, depth(path, leaf))(leaf), params
        )

    def update(updates: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        pairs = jax.tree_util.tree_map_with_path(
            lambda path, *leaves: _vmap(transformation.update, depth(path, leaves[0]))(*leaves), updates, state, params
        )
        tree = jax.tree.structure(updates)
        changes, states = zip(*tree.flatten_up_to(pairs), strict=True)
        return jax.tree.unflatten(tree, changes), jax.tree.unflatten(tree, states)

    return optax.GradientTransformation(init, update)


def _vmap(function: Callable, times: int) -> Callable:
    for _ in range(times):
        function = jax.vmap(function)
    return function
