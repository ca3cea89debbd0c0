"""The divergence of two distributions by hand and against torch, and what it adds to an objective."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.objectives.kl import kl_divergence, with_kl

LN2, LN3 = np.log(2), np.log(3)


@pytest.mark.parametrize(
    ("p", "q", "divergence"),
    [
        ([1 / 2, 1 / 2], [1 / 4, 3 / 4], 0.5 * LN2 + 0.5 * np.log(2 / 3)),  # the docstring's, 0.1438
        ([1 / 4, 3 / 4], [1 / 2, 1 / 2], 0.25 * np.log(1 / 2) + 0.75 * np.log(3 / 2)),  # the other way round, 0.1308
        ([1 / 3, 2 / 3], [1 / 3, 2 / 3], 0.0),
    ],
)
def test_by_hand(p, q, divergence):
    found = kl_divergence(jnp.log(jnp.asarray(p)), 5.0 + jnp.log(jnp.asarray(q)))  # a constant changes no distribution
    assert float(found) == pytest.approx(divergence, abs=1e-6)


def test_against_torch():
    rng = np.random.default_rng(0)
    reference, logits = 3 * rng.standard_normal((2, 3, 5, 11)).astype(np.float32)
    log_p, log_q = (torch.log_softmax(torch.from_numpy(x), -1) for x in (reference, logits))
    expected = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(kl_divergence(jnp.asarray(reference), jnp.asarray(logits)), expected, rtol=2e-5)
    assert float(expected.min()) > 0.1


def test_what_it_adds_to_the_loss():
    """Targets of weight 2 and 0.5, and one that is left out although its divergence is infinite."""
    metrics = {"loss": (jnp.float32(7), jnp.float32(2.5)), "nll": (jnp.float32(6), jnp.float32(2.5))}
    divergence, weights = jnp.asarray([[1.0, 4.0, jnp.inf]]), jnp.asarray([[2.0, 0.5, 0.0]])
    found = with_kl(metrics, divergence, weights, jnp.float32(0.1))
    pairs = {name: tuple(map(float, pair)) for name, pair in found.items()}
    assert pairs == {"loss": (pytest.approx(7.4), 2.5), "nll": (6, 2.5), "kl_to_base": (4, 2.5)}
