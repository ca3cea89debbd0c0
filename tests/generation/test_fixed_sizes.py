"""A sampler of fixed sizes, and log-probabilities of what tokens are drawn from."""

import jax
import numpy as np
import pytest

from sft_jax.generation import Sampler, Sampling, Sizes, loglikelihoods, prepare
from sft_jax.models import DecoderConfig, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.initial import init_params
from sft_jax.sharding import inference_mesh, placement
from tests.training.test_programs import compilations

STOPS = (2, 5, 7)
SIZES = Sizes(32, 128, 16)


def prepared_on(mesh):
    config = DecoderConfig(64, 2, 32, 4, 2, 8, 48, max_positions=256)
    params = init_params(config, "scan", "float32", placement(mesh), seed=0, deviation=0.3)
    model = Decoder(config, Execution(matmul_dtype="float32", layer_layout="scan"))
    return prepare(model, {"params": params})


@pytest.fixture(scope="module")
def prepared():
    return prepared_on(inference_mesh(jax.devices()[:1]))


def prompts(*sizes):
    draw = np.random.default_rng(sum(sizes))
    return [draw.integers(8, 64, size).astype(np.int32) for size in sizes]


def sampler(temperature=1.0, slots=4, sizes=SIZES, tempered=True):
    return Sampler(STOPS, sampling=Sampling(temperature, tempered=tempered), slots=slots, sizes=sizes)


def drawn(prepared, asked, made):
    groups = made.generate(prepared, asked, max_new_tokens=10, samples=3, seed=5)
    return [answer for group in groups for answer in group]


def test_the_same_answers_as_by_sizes_that_are_chosen(prepared):
    asked = prompts(9, 20, 14, 31)
    fixed, chosen = drawn(prepared, asked, sampler()), drawn(prepared, asked, sampler(sizes=None))
    assert [one.chosen.tolist() for one in fixed] == [one.chosen.tolist() for one in chosen]
    for one, other in zip(fixed, chosen, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)


@pytest.mark.parametrize(("devices", "tensor"), [(1, 1), (8, 1), (8, 2)])
def test_whatever_is_asked_three_programs(devices, tensor):
    """Slots that are filled again are those that `decode` gave, on the same devices as those that `begin` made."""
    asking = [prompts(9, 20, 14, 31), prompts(5), prompts(32, 3, 4, 5, 6, 7), prompts(*[12] * 9)]
    mesh, made = inference_mesh(jax.devices()[:devices], tensor), sampler(slots=6)
    with jax.set_mesh(mesh), compilations() as seen:
        prepared = prepared_on(mesh)
        for asked in asking:
            drawn(prepared, asked, made)
    of_sampler = [name for name in seen if name in {f"jit({part})" for part in ("begin", "fill", "decode")}]
    assert sorted(of_sampler) == ["jit(begin)", "jit(decode)", "jit(fill)"]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_log_probabilities_are_at_the_temperature(prepared, temperature):
    """Against those of a whole row; each token that was chosen has one, the stop token too."""
    asked = prompts(9, 20, 14)
    answers = drawn(prepared, asked, sampler(temperature))
    assert {one.stop_token for one in answers} - {None}
    for number, one in enumerate(answers):
        prompt = asked[number // 3]
        row = np.concatenate([prompt, one.chosen])[None]
        places = np.arange(row.shape[1], dtype=np.int32)[None]
        hidden, _ = prepared.model.apply(prepared.variables, row, places, np.ones_like(row), method="hidden")
        logits = np.asarray(prepared.model.apply(prepared.variables, hidden, method="head"))[0] / temperature
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = logs[np.arange(len(prompt) - 1, row.shape[1] - 1), one.chosen]
        np.testing.assert_allclose(one.logprobs, expected, atol=1e-4)
    plain = drawn(prepared, asked, sampler(temperature, tempered=False))
    assert [one.chosen.tolist() for one in plain] == [one.chosen.tolist() for one in answers]
    if temperature != 1:
        assert abs(np.concatenate([one.logprobs for one in plain])).mean() != pytest.approx(
            abs(np.concatenate([one.logprobs for one in answers])).mean(), rel=1e-3
        )


def test_the_stop_token_is_the_one_that_ended_it(prepared):
    """Of several; an answer that was cut has none."""
    answers = drawn(prepared, prompts(9, 20, 14, 31, 8, 11), sampler(1.6))
    assert len({one.stop_token for one in answers if one.stopped}) > 1
    for one in answers:
        assert (one.stop_token in STOPS) == one.stopped
        assert one.chosen.tolist() == one.tokens.tolist() + [one.stop_token] * one.stopped
        assert len(one.chosen) == len(one.logprobs)
        assert not set(one.tokens.tolist()) & set(STOPS)


def test_sizes_for_prompts():
    assert Sizes.for_prompts([10, 20, 30], 8, 12) == Sizes(32, 256, 16)
    assert Sizes.for_prompts([2000, 20, 30], 8, 100) == Sizes(2048, 2048, 128)


def test_likelihoods_are_those_of_the_untempered_model(prepared):
    """Temperature is the sampler's alone."""
    (prompt,) = prompts(9)
    (answer,) = Sampler(STOPS, sampling=Sampling(0.7)).generate(prepared, [prompt], max_new_tokens=6, seed=1)[0]
    ((likelihood,),) = loglikelihoods(prepared, [prompt], [[answer.chosen]])
    assert likelihood.logprob == pytest.approx(float(answer.logprobs.sum()), abs=1e-4)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5}])
def test_tempered_log_probabilities_are_of_all_tokens(options):
    with pytest.raises(ValueError, match="tempered log-probabilities are of all tokens"):
        Sampling(**{"temperature": 1.0, **options}, tempered=True)
