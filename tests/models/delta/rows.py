"""Random inputs of a gated delta rule, and packed rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from sft_jax.models.delta import recurrence
from sft_jax.models.delta.order import Order

KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 2, 6, 8, 5
NAMES = ("query", "key", "value", "log_decay", "beta")


def inputs(batch: int, length: int, seed: int = 0, decay: float = 1.0) -> dict[str, np.ndarray]:
    """What the rule is given, not normalised; each token keeps exp(-decay) on average."""
    rng = np.random.default_rng(seed)
    normal = lambda *shape: rng.standard_normal((batch, length, *shape)).astype(np.float32)
    return {
        "query": normal(KEY_HEADS, KEY_DIM),
        "key": normal(KEY_HEADS, KEY_DIM),
        "value": normal(HEADS, VALUE_DIM),
        "log_decay": -decay * rng.exponential(size=(batch, length, HEADS)).astype(np.float32),
        "beta": rng.uniform(0.05, 0.95, (batch, length, HEADS)).astype(np.float32),
    }


def order(segments, parents=None, carried=None) -> Order:
    segments = jnp.asarray(segments, jnp.int32)
    carried = jnp.zeros(segments.shape[0], jnp.int32) if carried is None else jnp.asarray(carried, jnp.int32)
    return Order(segments, None if parents is None else jnp.asarray(parents, jnp.int32), carried)


def one_segment(batch: int, length: int) -> Order:
    return order(np.ones((batch, length)))


def chunked(arrays: dict, order: Order, state=None, ends=None, size: int = recurrence.CHUNK):
    """`recurrence.chunked` of arrays that are not normalised, compiled."""

    return _chunked(arrays, order, state, ends, size)


@functools.partial(jax.jit, static_argnums=4)
def _chunked(arrays, order, state, ends, size):
    return recurrence.chunked(*_given(arrays), order, state, ends, "float32", size)


def _given(arrays):
    query = recurrence.normalized(arrays["query"], KEY_DIM**-0.5)
    return (query, recurrence.normalized(arrays["key"]), *(arrays[name] for name in NAMES[2:]))


def recurrent(arrays: dict, segments, state=None, carried=None):
    batch = arrays["key"].shape[0]
    if state is None:
        state, carried = jnp.zeros((batch, HEADS, KEY_DIM, VALUE_DIM)), jnp.zeros(batch, jnp.int32)
    return _recurrent(arrays, jnp.asarray(segments, jnp.int32), state, carried)


@jax.jit
def _recurrent(arrays, segments, state, carried):
    return recurrence.recurrent(*_given(arrays), segments, state, carried)


def of_torch(arrays: dict, name: str = "chunk", state=None, weights=None):
    """What `torch_*_gated_delta_rule` of transformers gives, its state, and gradients of sum(weights * read)."""
    rule = getattr(qwen3_next, f"torch_{name}_gated_delta_rule")
    given = {name: torch.tensor(np.asarray(arrays[name]), requires_grad=True) for name in NAMES}
    read, after = rule(
        given["query"],
        given["key"],
        given["value"],
        g=given["log_decay"],
        beta=given["beta"],
        initial_state=None if state is None else torch.tensor(np.asarray(state)),
        output_final_state=True,
        use_qk_l2norm_in_kernel=True,
    )
    gradients = {}
    if weights is not None:
        (read * torch.tensor(weights)).sum().backward()
        gradients = {name: array.grad.numpy() for name, array in given.items()}
    return read.detach().numpy(), after.detach().numpy(), gradients


def distance(ours, theirs) -> float:
    """Largest difference, as a part of the largest value."""
    return float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs))) / np.max(np.abs(np.asarray(theirs))))
