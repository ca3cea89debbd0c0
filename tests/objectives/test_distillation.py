"""Divergences from a teacher: known values, gradients, and what merging tokens into one outcome does to them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import DIVERGENCES, DistillationSettings, distils, get_objective
from sft_jax.objectives.distillation import distillation, of_all_tokens
from sft_jax.objectives.divergences import reverse_kl
from sft_jax.objectives.top_k import most_likely, most_likely_of_states, of_most_likely, outcomes_of

TEACHER = jnp.log(jnp.array([[[1 / 2, 1 / 4, 1 / 8, 1 / 8]]], jnp.float32))
STUDENT = jnp.log(jnp.array([[[0.4, 0.3, 0.2, 0.1]]], jnp.float32))
HALF = DistillationSettings(teacher_share=0.5)


def loss_of(name, teacher, student, k=0, **numbers):
    """The mean loss of targets of id 0, of logits, by the whole distribution or by what is kept of k tokens."""
    settings = DistillationSettings(**numbers)
    if k:
        vocabulary = min(teacher.shape[-1], student.shape[-1])
        kept = most_likely(teacher[..., :vocabulary], k, settings.temperature)
        outcomes = of_most_likely(*kept, student, vocabulary, settings.temperature)
    else:
        outcomes = of_all_tokens(teacher, student, settings.temperature)
    targets = jnp.zeros(student.shape[:2], jnp.int32)
    weights = jnp.ones(student.shape[:2], jnp.float32)
    metrics = distillation(student, targets, weights, outcomes, DIVERGENCES[name], settings)
    return metrics["loss"][0] / metrics["loss"][1]


@pytest.mark.parametrize(
    ("name", "k", "numbers", "expected"),
    [
        ("forward_kl", 0, {}, 0.035134),
        ("reverse_kl", 0, {}, 0.037125),
        ("jensen_shannon", 0, {"teacher_share": 0.5}, 0.008984),
        ("forward_kl", 0, {"temperature": 2.0}, 0.039402),
        ("forward_kl", 2, {}, 0.020411),  # 0.065991 without the rest, 0.375671 renormalised
        ("forward_kl", 4, {}, 0.035134),
        ("reverse_kl", 4, {}, 0.037125),
        ("forward_kl", 0, {"cross_entropy_share": 0.25}, 0.75 * 0.035134 - 0.25 * np.log(0.4)),
    ],
)
def test_known_values(name, k, numbers, expected):
    assert float(loss_of(name, TEACHER + 3, STUDENT - 2, k, **numbers)) == pytest.approx(expected, abs=1e-6)


def test_a_reverse_divergence_of_a_part_is_not_below_zero():
    """Without the rest it is 0.6 ln(0.6 / 0.9) = -0.243279, and the student would gain by giving the token less."""
    teacher, student = (jnp.log(jnp.array([[pair]], jnp.float32)) for pair in ((0.9, 0.1), (0.6, 0.4)))
    three = lambda logits: jnp.concatenate([logits, jnp.full((1, 1, 1), -30.0)], axis=-1)
    for logits in ((teacher, student), (three(teacher), three(student))):
        assert float(loss_of("reverse_kl", *logits, k=1)) == pytest.approx(0.311239, abs=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_jensen_shannon_is_its_definition(share):
    p, q = np.exp(np.float64(TEACHER))[0, 0], np.exp(np.float64(STUDENT))[0, 0]
    m = share * p + (1 - share) * q
    expected = share * (p * np.log(p / m)).sum() + (1 - share) * (q * np.log(q / m)).sum()
    found = float(loss_of("jensen_shannon", TEACHER, STUDENT, teacher_share=share))
    assert found == pytest.approx(expected, abs=1e-6)


def logits(seed, vocabulary=24, sequences=2, slots=5):
    return 3 * jax.random.normal(jax.random.key(seed), (sequences, slots, vocabulary), jnp.float32)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("k", [0, 1, 5, 24])
def test_gradients_are_finite_differences(name, k):
    with jax.enable_x64(True):
        teacher, student = (jnp.asarray(logits(seed)[:1, :1], jnp.float64) for seed in (0, 1))
        numbers = {"temperature": 1.7, "teacher_share": 0.3, "cross_entropy_share": 0.2}
        loss = lambda student: loss_of(name, teacher, student, k, **numbers)
        gradient = jax.jit(jax.grad(loss))(student)
        loss = jax.jit(loss)
        for place in range(0, 24, 5):
            step = jnp.zeros_like(student).at[0, 0, place].set(1e-5)
            numeric = (loss(student + step) - loss(student - step)) / 2e-5
            assert float(gradient[0, 0, place]) == pytest.approx(float(numeric), rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_the_same_model_is_at_no_distance(name):
    for k in (0, 3, 24):
        value, gradient = jax.value_and_grad(lambda x, k=k: loss_of(name, logits(0), x, k, teacher_share=0.5))(
            logits(0)
        )
        assert float(value) == pytest.approx(0, abs=1e-6)
        np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_merging_tokens_makes_a_divergence_smaller(name):
    divergence = DIVERGENCES[name]
    whole = of_all_tokens(logits(0), logits(1))
    found = [divergence(whole.teacher, whole.student, HALF)]
    for k in (20, 8, 2, 1):
        kept = of_most_likely(*most_likely(logits(0), k), logits(1), 24)
        found.append(divergence(kept.teacher, kept.student, HALF))
    for larger, smaller in itertools.pairwise(found):
        assert (np.asarray(larger - smaller) > -1e-6).all()
        assert np.mean(larger - smaller) > 1e-4
    assert (np.asarray(found[-1]) > 0).all()


def test_a_tiny_rest_is_not_lost_to_rounding():
    """Of a student so sure that 1 - p is 0 in float32: the rest keeps its probability, and its gradient."""
    sure = jnp.zeros((1, 1, 4)).at[0, 0, 0].set(30.0)
    kept = most_likely(TEACHER, 1)
    outcomes = of_most_likely(*kept, sure, 4)
    assert float(outcomes.student[0, 0, 1]) == pytest.approx(np.log(3) - 30, rel=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(of_most_likely(*kept, x, 4).student[0, 0, 1]))(sure)
    np.testing.assert_allclose(gradient[0, 0], [-1, 1 / 3, 1 / 3, 1 / 3], atol=1e-6)


def test_what_is_kept_of_a_teacher():
    ids, found = most_likely(TEACHER + 5, 2)
    assert ids.tolist() == [[[0, 1]]]
    np.testing.assert_allclose(np.exp(found[0, 0]), [0.5, 0.25, 0.25], rtol=1e-6)
    _, tempered = most_likely(TEACHER, 2, 2.0)
    roots = np.sqrt([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    np.testing.assert_allclose(np.exp(tempered[0, 0]), [*roots[:2], roots[2:].sum()] / roots.sum(), rtol=1e-6)
    assert (outcomes_of(3, 4), outcomes_of(4, 4)) == (4, 4)
    assert most_likely(TEACHER, 4)[1].shape == (1, 1, 4)


@pytest.mark.parametrize("chunk", [0, 2, 5])
def test_chunks_of_slots_change_nothing(chunk):
    hidden, head = jax.random.normal(jax.random.key(0), (2, 5, 8)), jax.random.normal(jax.random.key(1), (8, 24))
    apply = lambda weights, hidden: hidden @ weights
    expected = most_likely((hidden @ head)[..., :20], 3, 1.5)
    found = most_likely_of_states(apply, head, hidden, 3, 20, chunk, 1.5)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("padded", ["teacher", "student"])
@pytest.mark.parametrize("k", [0, 3, 24])
def test_padded_embeddings_of_one_of_them_do_not_count(padded, k):
    pad = lambda x: jnp.concatenate([x, jnp.full((*x.shape[:-1], 8), 4.0)], axis=-1)
    more = {"teacher": (pad(logits(0)), logits(1)), "student": (logits(0), pad(logits(1)))}[padded]
    for name in DIVERGENCES:
        expected = loss_of(name, logits(0), logits(1), k, teacher_share=0.5)
        assert float(loss_of(name, *more, k, teacher_share=0.5)) == pytest.approx(float(expected), rel=1e-6)


def test_slots_without_weight_do_not_count():
    weights = jnp.array([[2.0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    targets = jnp.zeros((2, 5), jnp.int32)
    wrong = logits(1).at[0, 1].set(jnp.inf)
    outcomes = of_all_tokens(logits(0), wrong)
    metrics = distillation(wrong, targets, weights, outcomes, reverse_kl, DistillationSettings(cross_entropy_share=0.5))
    assert all(np.isfinite(pair).all() for pair in metrics.values())
    each = reverse_kl(outcomes.teacher, outcomes.student, HALF)
    assert float(metrics["divergence"][0]) == pytest.approx(float(2 * each[0, 0] + each[0, 2] + each[1, 4]), rel=1e-6)
    assert float(metrics["loss"][1]) == 4
    assert float(metrics["agreement"][1]) == 3


def test_agreement_is_of_the_most_likely_tokens():
    teacher, student = logits(0), logits(1).at[0, :, :].set(logits(0)[0])
    metrics = distillation(
        student, jnp.zeros((2, 5), jnp.int32), jnp.ones((2, 5)), of_all_tokens(teacher, student), reverse_kl, HALF
    )
    same = (np.argmax(teacher, -1) == np.argmax(student, -1)).sum()
    assert [float(x) for x in metrics["agreement"]] == [same, 10]
    assert 5 <= same < 10
    kept = of_most_likely(*most_likely(teacher, 2), student, 24)
    np.testing.assert_array_equal(kept.agrees, of_all_tokens(teacher, student).agrees)


def test_the_registry():
    assert get_objective("forward_kl") is DIVERGENCES["forward_kl"]
    assert all(map(distils, DIVERGENCES))
    assert not distils("cross_entropy")
    assert not distils("policy_gradient")
