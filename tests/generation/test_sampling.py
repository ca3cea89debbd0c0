"""Which tokens may be chosen, by hand; and how they are drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.generation import Sampling
from sft_jax.generation.sampling import choose, first_best, keep_likely

# probabilities .1 .4 .2 .3
LOGITS = jnp.log(jnp.asarray([[0.1, 0.4, 0.2, 0.3]]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (1, 1.0, [1]),
        (2, 1.0, [1, 3]),
        (3, 1.0, [1, 2, 3]),
        (9, 1.0, [0, 1, 2, 3]),  # more than there are
        (0, 0.3, [1]),  # the first alone reaches it
        (0, 0.5, [1, 3]),
        (0, 0.69, [1, 3]),
        (0, 0.75, [1, 2, 3]),
        (0, 0.95, [0, 1, 2, 3]),
        (0, 1e-9, [1]),  # never empty
        (3, 0.45, [1, 3]),  # of .44 .33 .22: the first reaches .44
        (3, 0.75, [1, 3]),  # .44 + .33 reach it; of all four tokens .4 + .3 would not
    ],
)
def test_keep_likely_by_hand(top_k, top_p, kept):
    found = keep_likely(LOGITS, top_k, top_p)[0]
    assert np.flatnonzero(np.isfinite(found)).tolist() == kept
    np.testing.assert_array_equal(found[np.asarray(kept)], LOGITS[0, np.asarray(kept)])


def test_the_first_of_equally_likely_tokens_is_taken():
    logits = jnp.asarray([[1.0, 3.0, 3.0, 2.0], [-5.0, -7.0, -6.0, -5.0], [0.0, 0.0, 0.0, 0.0]])
    assert first_best(logits).tolist() == jnp.argmax(logits, axis=1).tolist() == [1, 0, 0]


def test_sequences_are_cut_on_their_own():
    logits = jnp.concatenate([LOGITS, LOGITS[:, ::-1], jnp.zeros((1, 4))])
    found = np.isfinite(keep_likely(logits, 0, 0.5))
    assert found[:2].tolist() == [[False, True, False, True], [True, False, True, False]]
    assert found[2].all()  # equal tokens stay or go together


def chosen(logits, examples, sampling, sample=0, count=0, seed=0):
    examples = jnp.asarray(examples)
    identities = jnp.stack([examples, jnp.full_like(examples, sample)], axis=1)
    return np.asarray(choose(logits, identities, jnp.full_like(examples, count), jnp.asarray(seed), sampling))


def drawn(sampling, sequences=4000, **options):
    return chosen(jnp.broadcast_to(LOGITS, (sequences, 4)), range(sequences), sampling, **options)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 1.0}, [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [1 / 30, 16 / 30, 4 / 30, 9 / 30]),  # squares
        ({"temperature": 1.0, "top_k": 2}, [0, 4 / 7, 0, 3 / 7]),
        ({"temperature": 1.0, "top_p": 0.75}, [0, 4 / 9, 2 / 9, 3 / 9]),
        ({"temperature": 0.0}, [0, 1, 0, 0]),
    ],
)
def test_frequencies_over_sequences(settings, expected):
    frequencies = np.bincount(drawn(Sampling(**settings)), minlength=4) / 4000
    np.testing.assert_allclose(frequencies, expected, atol=0.03)  # four standard deviations
    assert (frequencies[np.asarray(expected) == 0] == 0).all()


def test_randomness_is_of_seed_example_sample_and_count_and_nothing_else():
    hot = Sampling(temperature=1.0)
    np.testing.assert_array_equal(
        drawn(hot, sequences=100), drawn(hot, sequences=50).tolist() + drawn(hot, sequences=100)[50:].tolist()
    )
    for other in ({"seed": 1}, {"count": 1}, {"sample": 1}):
        assert (drawn(hot) != drawn(hot, **other)).mean() > 0.5
    swapped = chosen(jnp.tile(LOGITS, (2, 1)), [7, 3], hot)
    np.testing.assert_array_equal(swapped, drawn(hot)[[7, 3]])


def test_a_sampled_token_of_two_tokens_of_one_sequence_is_not_copied():
    """Example e at count c and example c at count e draw differently: the two are folded one after the other."""
    logits = jnp.zeros((64, 1000))
    table = np.stack([chosen(logits, range(64), Sampling(temperature=1.0), count=c) for c in range(8)])
    assert (table[:, :8] != table[:, :8].T).sum() >= 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, "temperature=-0.1 must not be negative"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": -1}, "top_k=-1 must not be negative; 0 keeps all"),
        ({"top_p": 0.0}, r"top_p=0.0 must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p=1.1"),
    ],
)
def test_sampling_values_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)


def test_choose_is_jittable_with_any_example_ids():
    logits = jax.random.normal(jax.random.key(0), (3, 9))
    for settings in (Sampling(), Sampling(temperature=0.7, top_k=4, top_p=0.9)):
        arguments = (jnp.asarray([[0, 0], [9, 1], [5, 2]]), jnp.asarray([2, 0, 7]), jnp.asarray(3), settings)
        run = jax.jit(lambda x, arguments=arguments: choose(x, *arguments))
        np.testing.assert_array_equal(run(logits), choose(logits, *arguments))
