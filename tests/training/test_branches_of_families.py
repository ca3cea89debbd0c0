"""Every family: two answers that share their prompt are what two whole texts are, and what torch makes of these.

In one batch answers are branches of one trunk, in the other each is a text of its own with the trunk before it. Some
answers stand in other blocks of attention, and in other chunks of the delta rule, than the trunk that they go on from.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from sft_jax.data.batches import assemble
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.models.delta import net
from sft_jax.options import options_of
from sft_jax.runs.base import open_base
from sft_jax.sharding import batch_sharding, make_mesh, put_batch, shardings_of
from sft_jax.training import setup
from sft_jax.training.forward import Randomness, target_log_probabilities
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.step import gradients
from tests import preferences
from tests.models import families
from tests.training.test_invariance import REFERENCE, mesh

TOLERANCE, OF_TORCH = 1e-5, 1e-4
# Of gradients where rounding is more: through decays of the delta rule, where those of the same texts, 9 slots further,
# differ by up to 2.3e-5; and in sums that several devices make.
ROUNDED = 5e-5
PAIRS = ((12, 9, 15), (70, 30, 45), (40, 66, 7))  # tokens of a trunk and of its answers; LongRoPE: one is short
LENGTH, SLOTS = 272, 112
ZERO = 1e-6  # of a gradient: rounding
QUICK = ("gemma2", "phi3 short texts", "gpt_oss", "qwen3_next")  # windows and caps, LongRoPE, sinks, the delta rule
# With them one of each kind of attention: also keys of other layers, queries that grow, and latent keys.
KINDS = (*QUICK, "mistral", "gemma4_text with shared keys", "ministral3", "deepseek_v3")
# A wrapper's text model is that of another case.
ALL = list({repr(families.decoder(case)): case for case in (*families.CASES, *KINDS)}.values())
slow = lambda *values: pytest.param(*values, marks=pytest.mark.slow)
CASES = [
    *((case, "blocked") if case in QUICK else slow(case, "blocked") for case in ALL),
    *(slow(case, "reference") for case in KINDS),
]


@functools.cache
def together():
    """Pairs whose answers share their trunk; two in a sequence, and one."""
    rows, branches = [], []
    for trunk, *answers in map(_texts, range(len(PAIRS))):
        rows.append(_answered(trunk, *answers))
        branches.append(np.repeat(np.arange(3, dtype=np.uint8), [len(text) for text in (trunk, *answers)]))
    return _batch(rows, [[0, 1], [2]], branches)


@functools.cache
def apart():
    """The same answers, each behind a trunk of its own."""
    rows = [_answered(trunk, answer) for trunk, *answers in map(_texts, range(len(PAIRS))) for answer in answers]
    batch = _batch(rows, [[0, 1, 2, 3], [4, 5]])
    return batch | {"parents": batch["segment_ids"], "branches": together()["branches"]}


def _texts(number):
    """Trunk, chosen and rejected answer of a pair."""
    rng = np.random.default_rng(number)
    return [rng.integers(3, 300, size).astype(np.int32) for size in PAIRS[number]]


def _answered(trunk, *answers):
    """Tokens, and weights: 1 in answers."""
    tokens = np.concatenate([trunk, *answers])
    return tokens, (np.arange(len(tokens)) >= len(trunk)).astype(np.float32)


def _batch(rows, bins, branches=()):
    examples = TokenizedExamples.from_examples(rows, [str(number) for number in range(len(rows))], branches=branches)
    bins = [np.array(members) for members in bins]
    batch = assemble(examples, bins, sequence_length=LENGTH, sequence_targets=SLOTS)
    drawn = np.random.default_rng(0).uniform(-9, -3, batch["weights"].shape).astype(np.float32)
    return batch | {"reference": np.where(batch["weights"] > 0, drawn, np.float32(0))}


def by_torch(model):
    """The log-probability of each target, by a forward pass over each text."""
    found = []
    for trunk, *answers in map(_texts, range(len(PAIRS))):
        for answer in answers:
            ids = np.concatenate([trunk, answer])[None]
            logs = torch.log_softmax(torch.from_numpy(families.torch_logits(model, ids)).double()[0, :-1], -1)
            found.append(logs.gather(1, torch.from_numpy(ids[0, 1:, None]).long())[len(trunk) - 1 :, 0].numpy())
    return np.concatenate(found)


def compiled(root, differentiated=True, **overrides):
    """The function from a batch to log-probabilities of its targets, and metrics and gradients of DPO."""
    # All but the loss that spreads tokens over experts: it counts those of a trunk that is read twice, twice.
    numbers = {"experts.balance_loss": 0.0, "objective.beta": 0.02, "batch.sequences": 2}
    config = preferences.config(root, **(REFERENCE | numbers | overrides))
    options, base = options_of(config), open_base(config.model.source)
    devices = make_mesh(config.mesh.to_dict(), jax.devices()[: np.prod(list(config.mesh.values()))])
    model, settings = setup.make_model(options, base.decoder, devices), setup.step_settings(options, devices)
    with jax.set_mesh(devices):
        state = setup.init_state(options, base, model, devices, hyperparameters(options, 0, 10))
    shardings = shardings_of(state, devices)
    constrain = lambda gradient: jax.lax.with_sharding_constraint(gradient, shardings.trained)

    def measured(state, batch):
        found, _ = target_log_probabilities(model, settings.head_chunk, state.trained, state, batch, Randomness())
        return (found, *(gradients(model, settings, state, batch, constrain) if differentiated else ()))

    step = jax.jit(measured, in_shardings=(shardings, batch_sharding(devices)))

    def compute(batch):
        with jax.set_mesh(devices):
            found, *more = jax.device_get(step(state, put_batch(batch, devices)))
        return found[batch["weights"] > 0], *more

    return compute


def assert_same(found, expected, of_gradients=TOLERANCE):
    """Values of each target, metrics and gradients; a margin relative to the rewards whose difference it is."""
    (values, metrics, gradient), (expected_values, expected_metrics, expected_gradient) = found, expected
    assert len(values) == sum(sum(answers) for _, *answers in PAIRS)
    np.testing.assert_allclose(values, expected_values, rtol=TOLERANCE)
    assert metrics.keys() == expected_metrics.keys()
    of_rewards = abs(expected_metrics["chosen_reward"][0]) + abs(expected_metrics["rejected_reward"][0])
    for name, pair in expected_metrics.items():
        least = TOLERANCE * of_rewards if name == "margin" else 0.0
        np.testing.assert_allclose(metrics[name], pair, rtol=TOLERANCE, atol=least, err_msg=name)
    gradient, expected_gradient = (flatten_dict(tree, sep="/") for tree in (gradient, expected_gradient))
    assert gradient.keys() == expected_gradient.keys()
    bound = ROUNDED if any("/delta/" in path for path in gradient) else of_gradients
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        if norm <= ZERO:  # biases of keys that do not rotate: a number added to all scores of a query
            assert path.endswith("key/bias")
            assert np.linalg.norm(gradient[path]) <= ZERO
            continue
        assert np.linalg.norm(gradient[path] - leaf) <= bound * norm, path


def assert_far(found, expected):
    """Values that a hundred tolerances, relative to the largest, would not let through."""
    assert np.abs(found - expected).max() >= 100 * TOLERANCE * np.abs(expected).max()


def without_parents(batch):
    """Answers see themselves alone."""
    return batch | {"parents": batch["segment_ids"]}


def leaking(batch):
    """Rejected answers go on from chosen ones."""
    rejected = batch["segment_ids"] - batch["parents"] == 2
    return batch | {"segment_ids": batch["segment_ids"] - rejected}


@pytest.mark.parametrize(("case", "attention"), CASES)
def test_a_shared_trunk_is_two_whole_texts(case, attention, tmp_path):
    model = families.torch_model(case)
    families.save(model, tmp_path / "model")
    compute = compiled(tmp_path, **{"execution.attention": attention})
    found, expected = compute(together()), compute(apart())
    assert_same(found, expected)
    np.testing.assert_allclose(found[0], by_torch(model), rtol=OF_TORCH)
    for changed in (without_parents, leaking):
        assert_far(compute(changed(together()))[0], expected[0])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["gemma4_text with shared keys", "gpt_oss", "deepseek_v3", "qwen3_next"])
def test_on_a_mesh(case, tmp_path):
    families.save(families.torch_model(case), tmp_path / "model")
    of = lambda **overrides: compiled(tmp_path, **{"execution.attention": "blocked"} | overrides)
    assert_same(of(**mesh(fsdp=2, context=2, tensor=2))(together()), of()(apart()), of_gradients=ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["convolved", "on_each_device"])
def test_convolution_and_state_both_go_on_from_the_trunk(part, tmp_path, monkeypatch):
    """Either of them begun anew in each branch is seen."""
    families.save(families.torch_model("qwen3_5_text"), tmp_path / "model")
    expected = compiled(tmp_path, differentiated=False)(together())[0]
    plain = getattr(net, part)

    def begun_anew(*args):
        cut = [dataclasses.replace(arg, parents=None) if isinstance(arg, net.Order) else arg for arg in args]
        return plain(*cut)

    monkeypatch.setattr(net, part, begun_anew)
    assert_far(compiled(tmp_path, differentiated=False)(together())[0], expected)
