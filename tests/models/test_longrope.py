"""LongRoPE: each text has the frequencies of its own length, as in torch, where it is a batch of its own."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.generation import Sampler, Sampling, loglikelihoods, prepare
from sft_jax.models import Execution, load_pretrained
from sft_jax.models.cache import init_cache
from tests.models import families, reference

SHORT, TOLERANCE = 10, 1e-4
LENGTHS = (SHORT - 1, SHORT, SHORT + 1, 17)


@pytest.fixture(scope="module")
def torch_model():
    return families.torch_model("phi3 long texts")


@pytest.fixture(scope="module")
def directory(torch_model, tmp_path_factory):
    return families.save(torch_model, tmp_path_factory.mktemp("longrope"))


@pytest.fixture(scope="module")
def model_and_params(directory):
    return load_pretrained(directory)


@pytest.fixture(scope="module")
def texts():
    draw = np.random.default_rng(0)
    return [draw.integers(3, 320, length).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(torch_model, texts):
    """Torch's logits of each text, one after the other."""
    return np.concatenate([families.torch_logits(torch_model, text[None])[0] for text in texts])


def places(texts):
    positions = np.concatenate([np.arange(len(text), dtype=np.int32) for text in texts])
    segments = np.concatenate([np.full(len(text), number, np.int32) for number, text in enumerate(texts, 1)])
    return positions, segments


@pytest.mark.parametrize("backend", ["reference", "blocked", "splash", "triton"])
def test_short_and_long_texts_share_a_row(directory, texts, expected, backend):
    """Padding behind them counts on, far beyond the limit."""
    model, params = load_pretrained(directory, execution=Execution(attention_backend=backend))
    positions, segments = places(texts)
    pad = lambda array, with_: np.concatenate([array, np.full(128 - len(array), with_, np.int32)])[None]
    row = pad(np.concatenate(texts), 0), pad(positions, 200), pad(segments, 0)
    found = reference.logits_of(model, params, *row)[0, : len(expected)]
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


def test_a_cache_is_for_texts_of_one_kind_of_length(model_and_params):
    model, params = model_and_params
    cache = init_cache(model.config, model.execution, 1, 4)
    with pytest.raises(ValueError, match=r"length of a text is not known.*rope\.of_length"):
        model.apply({"params": params}, jnp.ones((1, 1), jnp.int32), cache=cache, method="hidden")


def test_answers_become_long_texts_as_in_torch(torch_model, model_and_params, texts):
    """Greedily: answers that stay short, that pass the limit, and that begin behind it."""
    model, params = model_and_params
    prompts, prepared = [texts[0][:3], texts[0], texts[1], texts[2], texts[3]], None
    prepared = prepare(model, {"params": params})
    answers = Sampler((), slots=2).generate(prepared, prompts, max_new_tokens=6)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        with torch.no_grad():
            theirs = torch_model.generate(
                torch.from_numpy(prompt).long()[None],
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
        assert answer.tokens.tolist() == theirs
        assert len(answer.logprobs) == 6
        assert answer.finish_reason == "max_new_tokens"
        *_, streamed = Sampler(()).stream(prepared, prompt, max_new_tokens=6, steps=2)
        assert streamed.tokens.tolist() == theirs


def test_samples_do_not_depend_on_the_slots_beside_them(model_and_params, texts):
    prepared = prepare(model_and_params[0], {"params": model_and_params[1]})

    def sampled(slots, prompts, ids):
        made = Sampler((), sampling=Sampling(temperature=1.0), slots=slots)
        found = made.generate(prepared, prompts, max_new_tokens=6, samples=2, example_ids=ids)
        return [[answer.tokens.tolist() for answer in answers] for answers in found]

    together = sampled(4, texts, range(len(texts)))
    assert [sampled(1, [text], [number])[0] for number, text in enumerate(texts)] == together
    assert all(one != other for one, other in together)


def test_an_answer_ends_at_a_stop_token_on_either_side(model_and_params, texts):
    prepared = prepare(model_and_params[0], {"params": model_and_params[1]})
    ((answer,),) = Sampler(()).generate(prepared, [texts[0]], max_new_tokens=6)
    for end in (0, 4):
        stop = int(answer.tokens[end])
        until = answer.tokens.tolist().index(stop)
        ((stopped,),) = Sampler([stop]).generate(prepared, [texts[0]], max_new_tokens=6)
        assert (stopped.tokens.tolist(), stopped.finish_reason) == (answer.tokens.tolist()[:until], "stop")
        np.testing.assert_allclose(stopped.logprobs, answer.logprobs[: until + 1], atol=TOLERANCE)


def test_continuations_on_both_sides_of_the_limit(torch_model, model_and_params, texts):
    prompt, continuations = texts[0][:7], [texts[3][:8], texts[3][8:10], texts[3][10:17], texts[2][:4]]
    prepared = prepare(model_and_params[0], {"params": model_and_params[1]})
    (found,) = loglikelihoods(prepared, [prompt], [continuations])
    for continuation, likelihood in zip(continuations, found, strict=True):
        read = np.concatenate([prompt, continuation[:-1]])
        logits = torch.from_numpy(families.torch_logits(torch_model, read[None])[0, len(prompt) - 1 :])
        chosen = torch.log_softmax(logits, -1)[torch.arange(len(continuation)), torch.from_numpy(continuation).long()]
        np.testing.assert_allclose(likelihood.logprob, float(chosen.sum()), atol=1e-3)
