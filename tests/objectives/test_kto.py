"""KTO against numbers worked out elsewhere, in one part and in several, and its gradient against finite differences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.objectives import PreferenceSettings, get_objective, has_reference, judges_answers, judges_one_by_one
from sft_jax.objectives.kto import KL, answer_weights, kto, mean_divergence

SETTINGS = PreferenceSettings(beta=0.5, desirable_weight=1.0, undesirable_weight=1.0)
RATIOS, LABELS, OTHERS = (2.0, 1.0, -1.0, 0.5), (1, 0, 1, 0), (3.0, 2.0, -2.5, -2.0)
LOSSES = (0.281406, 0.607663, 0.637031, 0.546738)


def slots(numbers, width=0, weights=(1.0,) * 4, tokens=3):
    """Answers with labels in one sequence: each log-ratio spread over some tokens, that of another answer over two."""
    rows = {"policy": [], "weights": [], "branches": []}
    for place, number in enumerate(numbers):
        side = 1 if LABELS[number] else 2
        for ratio, count, branch in ((RATIOS[number], tokens, side), (OTHERS[number], 2, side + 2)):
            shares = np.linspace(1.0, 2.0, count) / np.linspace(1.0, 2.0, count).sum()
            rows["policy"] += (ratio * shares).tolist()
            rows["weights"] += [weights[number]] * count
            rows["branches"] += [4 * place + branch] * count
    empty = max(width - len(rows["policy"]), 0)
    policy, weights, branches = (np.array([values + [0] * empty]) for values in rows.values())
    reference = np.where(weights > 0, -2.0, 0.0)
    arrays = (jnp.asarray(x, jnp.float32) for x in (policy + reference, reference, weights))
    return *arrays, jnp.asarray(branches, jnp.int32)


def totals(parts, settings=SETTINGS, **how):
    found = [kto(*slots(part, width=24, **how), settings) for part in parts]
    return {name: [float(sum(one[name][i] for one in found)) for i in (0, 1)] for name in found[0]}


def test_each_answer():
    point = mean_divergence(kto(*slots(range(4)), SETTINGS)[KL])
    assert float(point) == pytest.approx(0.125, abs=1e-6)
    known = dataclasses.replace(SETTINGS, kl=point)
    found = [totals([[number]], known)["loss"][0] for number in range(4)]
    assert found == pytest.approx(LOSSES, abs=1e-5)


@pytest.mark.parametrize("parts", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_the_divergence_is_that_of_the_step(parts):
    """One, two and four micro-batches; with a divergence of its own, a part clamps what others would have made up."""
    total, count = totals(parts)[KL]
    settings = dataclasses.replace(SETTINGS, kl=mean_divergence((jnp.float32(total), jnp.float32(count))))
    loss, answers = totals(parts, settings)["loss"]
    assert answers == 4
    assert loss / answers == pytest.approx(0.518209, abs=1e-5)
    if len(parts) == 2:
        apart, _ = totals(parts)["loss"]
        assert apart / 4 == pytest.approx(0.516908, abs=1e-5)


def test_without_parts_it_is_that_of_the_batch():
    loss, count = totals([[0, 1, 2, 3]])["loss"]
    assert loss / count == pytest.approx(0.518209, abs=1e-5)


def test_metrics():
    found = totals([[0, 1, 2, 3]], weights=(1.0, 2.0, 1.0, 1.0))
    mean = (3 + 2 * 2 - 2.5 - 2) / 5
    assert found[KL] == pytest.approx([5 * mean, 5], abs=1e-5)
    assert found["loss"][1] == 5
    assert found["chosen_reward"] == pytest.approx([0.5 * (2 - 1), 2], abs=1e-6)
    assert found["rejected_reward"] == pytest.approx([0.5 * (2 * 1 + 0.5), 3], abs=1e-6)
    assert found["accuracy"] == pytest.approx([1, 5])  # z = 0.5: 2 is above; 1 and 0.5 are not below
    assert found["nll"] == pytest.approx([12 - 1, 6], abs=1e-5)  # two answers of three tokens of -2, less their ratios


def test_weights_of_the_two_sides():
    settings = dataclasses.replace(SETTINGS, desirable_weight=2.0, undesirable_weight=0.5)
    loss, count = totals([[0, 1, 2, 3]], settings)["loss"]
    assert (loss, count) == (pytest.approx(2 * (LOSSES[0] + LOSSES[2]) + 0.5 * (LOSSES[1] + LOSSES[3]), abs=2e-5), 4)


def test_where_policy_and_reference_are_the_same():
    policy, reference, *others = slots(range(4))
    found = kto(reference, reference, *others, SETTINGS)
    assert float(found["loss"][0] / found["loss"][1]) == pytest.approx(0.5, abs=1e-7)
    assert policy.shape == reference.shape


def test_a_pair_is_two_answers():
    """Both branches of a trunk, each with another answer behind it, are what two examples are."""
    values = jnp.asarray([[0.5, 0.25, -0.5, 0.75, 0.0, 0.0]], jnp.float32)
    weights = jnp.asarray([[1, 1, 1, 1, 0, 0]], jnp.float32)
    arrays = (values, jnp.zeros_like(values), weights)
    pair = kto(*arrays, jnp.asarray([[1, 2, 3, 4, 0, 0]]), SETTINGS)
    order = jnp.asarray([0, 2, 1, 3, 4, 5])
    apart = kto(*(x[:, order] for x in arrays), jnp.asarray([[1, 3, 6, 8, 0, 0]]), SETTINGS)
    for name, (total, count) in pair.items():
        assert (float(total), float(count)) == pytest.approx([float(x) for x in apart[name]], abs=1e-7), name


def test_the_gradient_is_that_of_finite_differences():
    policy, *others = slots(range(4), width=24, weights=(1.0, 2.0, 1.0, 1.0))
    gradient = np.asarray(jax.grad(lambda values: kto(values, *others, SETTINGS)["loss"][0])(policy))[0]
    settings = dataclasses.replace(SETTINGS, kl=mean_divergence(kto(policy, *others, SETTINGS)[KL]))
    loss, step = (lambda values: float(kto(values, *others, settings)["loss"][0])), 1e-2
    for slot in (0, 2, 5, 10, 17, 23):
        moved = [loss(policy.at[0, slot].add(sign * step)) for sign in (1, -1)]
        assert gradient[slot] == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=5e-3, abs=1e-5)
    own = np.asarray(others[2])[0] % 4
    assert np.abs(gradient[(own == 1) | (own == 2)]).min() > 0.05
    assert not gradient[:20][(own[:20] == 3) | (own[:20] == 0)].any(), "other answers have none"


def test_gradients_are_those_of_torch():
    """The formula of the paper, as TRL has it, in torch: beta (r - z) with z detached and clamped."""
    torch = pytest.importorskip("torch")
    policy, *others = slots(range(4))
    loss = lambda values: kto(values, *others, SETTINGS)["loss"][0] / 4
    values = torch.tensor(np.asarray(policy)[0], requires_grad=True)
    ratios, branches = values - torch.tensor(np.asarray(others[0])[0]), np.asarray(others[2])[0]
    of_branch = lambda branch: ratios[torch.tensor(branches == branch)].sum()
    sides = [1 if label else 2 for label in LABELS]
    own = torch.stack([of_branch(4 * place + side) for place, side in enumerate(sides)])
    other = torch.stack([of_branch(4 * place + side + 2) for place, side in enumerate(sides)])
    point = other.mean().clamp(min=0).detach()
    wanted = torch.tensor(LABELS).bool()
    chosen = 1 - torch.sigmoid(0.5 * (own[wanted] - point))
    rejected = 1 - torch.sigmoid(0.5 * (point - own[~wanted]))
    theirs = torch.cat((chosen, rejected)).nanmean()
    theirs.backward()
    assert float(loss(policy)) == pytest.approx(theirs.item(), rel=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(policy)[0], values.grad.numpy(), rtol=1e-5, atol=1e-8)


def test_what_it_has():
    assert judges_answers("kto")
    assert judges_one_by_one("kto")
    assert has_reference("kto")
    assert get_objective("kto") is kto
    weights = np.asarray(answer_weights(*slots(range(4))[2:]))
    assert weights.sum() == 4
    assert weights[0, :4].argmax(axis=1).tolist() == [0, 1, 0, 1]
