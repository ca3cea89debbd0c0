"""The loss of each slice is the loss with the weights of the others set to 0, whatever the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import Settings, cross_entropy
from sft_jax.objectives.head import over_chunks
from sft_jax.objectives.slices import LOSS_BY_SLICE, loss_by_slice, means_by_slice

SEQUENCES, SLOTS, DIM, VOCAB, SLICES = 3, 7, 4, 16, 4  # slice 3 has no target


def smoothed(logits, targets, weights):
    return cross_entropy(logits, targets, weights, Settings(label_smoothing=0.1, z_loss=1e-2))


def not_linear_in_weights(logits, targets, weights):
    """The largest weighted loss: no sum over targets could be divided among slices."""
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return {"loss": (jnp.max(nll * weights), jnp.ones(()))}


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.standard_normal((SEQUENCES, SLOTS, DIM)), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((DIM, VOCAB)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, VOCAB, (SEQUENCES, SLOTS)), jnp.int32)
    weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (SEQUENCES, SLOTS)), jnp.float32)
    slices = jnp.asarray(rng.integers(0, SLICES - 1, (SEQUENCES, SLOTS)), jnp.int32)
    return kernel, hidden, targets, weights, slices


@pytest.mark.parametrize("objective", [smoothed, not_linear_in_weights])
def test_masking_by_hand(objective):
    kernel, hidden, targets, weights, slices = arrays()
    logits = hidden @ kernel
    sums, counts = loss_by_slice(objective, logits, targets, weights, slices, SLICES)
    for number in range(SLICES):
        total, count = objective(logits, targets, weights * (slices == number))["loss"]
        np.testing.assert_allclose((sums[number], counts[number]), (total, count), rtol=1e-6)


def test_slices_add_up():
    kernel, hidden, targets, weights, slices = arrays()
    total, count = smoothed(hidden @ kernel, targets, weights)["loss"]
    sums, counts = loss_by_slice(smoothed, hidden @ kernel, targets, weights, slices, SLICES)
    np.testing.assert_allclose((sums.sum(), counts.sum()), (total, count), rtol=1e-6)
    assert (sums[3], counts[3]) == (0, 0)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_in_chunks_and_without_a_gradient_of_its_own(chunk):
    kernel, hidden, *rest = arrays()

    def head(kernel, frozen, hidden, targets, weights, *slices):
        metrics = smoothed(hidden @ kernel, targets, weights)
        if slices:
            metrics[LOSS_BY_SLICE] = loss_by_slice(smoothed, hidden @ kernel, targets, weights, *slices, SLICES)
        return metrics

    def loss(kernel, hidden, more, chunk):
        metrics = over_chunks(head, kernel, {}, hidden, *rest[:2], chunk, more)
        return metrics["loss"][0], metrics

    differentiated = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, plain), gradient = differentiated(kernel, hidden, (), 0)
    (_, chunked), chunked_gradient = differentiated(kernel, hidden, (rest[2],), chunk)
    by_slice = chunked.pop(LOSS_BY_SLICE)
    whole = loss(kernel, hidden, (rest[2],), 0)[1][LOSS_BY_SLICE]
    for ours, theirs in ((chunked, plain), (chunked_gradient, gradient), (by_slice, whole)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


def test_names():
    pair = (np.array([3.0, 0.0, 1.0]), np.array([2.0, 0.0, 4.0]))
    assert means_by_slice("loss", ("math", "code", ""), pair) == {"loss/math": 1.5, "loss/other": 0.25}
    assert means_by_slice("loss", (), None) == {}
