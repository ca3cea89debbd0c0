"""Log-likelihoods equal those of each text read by itself."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from sft_jax.generation import likelihood, loglikelihoods, prepare
from sft_jax.models import Decoder, DecoderConfig, Execution
from sft_jax.sharding import make_mesh
from tests.generation.brute_force import log_probabilities

CONFIG = DecoderConfig(320, 2, 32, 4, 2, 8, 48, max_positions=96)


@pytest.fixture(scope="module", params=["unrolled", "scan"])
def model(request):
    made = Decoder(CONFIG, Execution(layer_layout=request.param))
    return made, jax.jit(made.init)(jax.random.key(1), np.ones((1, 4), np.int32))


def texts(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(3, 320, length).astype(np.int32) for length in lengths]


PROMPTS = texts(5, 40, 1, 17)
CONTINUATIONS = [texts(3, 1, 8), texts(20), texts(2, 2, 2, 2), texts(9, 30)]


def by_brute_force(model, variables, prompt, continuation):
    of_tokens = log_probabilities(model, variables, np.concatenate([prompt, continuation]))[len(prompt) - 1 : -1]
    best = of_tokens.argmax(1) == continuation
    return float(of_tokens[np.arange(len(continuation)), continuation].sum()), bool(best.all())


@pytest.mark.parametrize("row_tokens", [1024, 64, 8])  # all in one row; several rows; one of each prompt
def test_equals_a_sum_by_brute_force(model, monkeypatch, row_tokens):
    monkeypatch.setattr(likelihood, "_ROW_TOKENS", row_tokens)
    monkeypatch.setattr(likelihood, "rounded_size", lambda size: size)
    seen = []
    found = loglikelihoods(
        prepare(*model), PROMPTS, CONTINUATIONS, progress=lambda done, total: seen.append((done, total))
    )
    for prompt, of_prompt, likelihoods in zip(PROMPTS, CONTINUATIONS, found, strict=True):
        for continuation, one in zip(of_prompt, likelihoods, strict=True):
            expected, is_greedy = by_brute_force(*model, prompt, continuation)
            assert one.logprob == pytest.approx(expected, abs=1e-4)
            assert (one.tokens, one.is_greedy) == (len(continuation), is_greedy)
    assert seen[-1] == (10, 10)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["splash", "triton"])
def test_kernels_read_the_same(model, backend):
    made, variables = model
    of = lambda name: made.clone(execution=dataclasses.replace(made.execution, attention_backend=name))
    found, blocks = (
        loglikelihoods(prepare(of(name), variables), PROMPTS, CONTINUATIONS) for name in (backend, "blocked")
    )
    for ours, theirs in zip(found, blocks, strict=True):
        assert [one.logprob for one in ours] == pytest.approx([one.logprob for one in theirs], abs=1e-4)
        assert [one.is_greedy for one in ours] == [one.is_greedy for one in theirs]


def test_the_greedy_continuation_is_greedy(model):
    made, variables = model
    prompt, answer = PROMPTS[0], []
    for _ in range(3):
        answer.append(int(log_probabilities(made, variables, [*prompt, *answer])[-1].argmax()))
    other = [*answer[:2], (answer[2] + 1) % 320]
    (found,) = loglikelihoods(prepare(*model), [prompt], [[np.asarray(ids, np.int32) for ids in (answer, other)]])
    assert [one.is_greedy for one in found] == [True, False]


@pytest.mark.parametrize(("fsdp", "tensor"), [(8, 1), (2, 4)])
def test_a_mesh_changes_nothing(model, fsdp, tensor):
    alone = loglikelihoods(prepare(*model), PROMPTS, CONTINUATIONS)
    mesh = make_mesh({"replica": 1, "fsdp": fsdp, "expert": 1, "tensor": tensor}, jax.devices())
    with jax.set_mesh(mesh):
        found = loglikelihoods(prepare(*model), PROMPTS, CONTINUATIONS)
    for one, other in zip(itertools.chain(*found), itertools.chain(*alone), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.mark.parametrize("size", [1, 7, 96])
def test_all_positions_can_be_read(model, size):
    """The last token of a continuation is not read: it may stand behind the last position."""
    (text,) = texts(97)
    prompt, continuation = text[:-size], text[-size:]
    ((found,),) = loglikelihoods(prepare(*model), [prompt], [[continuation]])
    of_tokens = log_probabilities(*model, text[:-1])[len(prompt) - 1 :]
    expected = float(of_tokens[np.arange(size), continuation].sum())
    assert found.logprob == pytest.approx(expected, rel=1e-5, abs=1e-4)


def test_nothing_to_do(model):
    assert loglikelihoods(prepare(*model), [], []) == []
    assert loglikelihoods(prepare(*model), PROMPTS[:1], [[]]) == [[]]


@pytest.mark.parametrize(
    ("prompts", "continuations", "message"),
    [
        ([[1]], [], r"0 lists of continuations for 1 prompts"),
        ([[]], [[[1]]], r"prompts \[0\] are empty"),
        ([[1]], [[[2], []]], "continuation 1 of prompt 0 is empty"),
        ([[1]], [[[320]]], "continuation 0 of prompt 0 has token 320; the model has embeddings of 320"),
        (
            [[1] * 90],
            [[[1] * 8]],
            "prompt 0 has 90 tokens and its continuation 0 has 8, .* knows 96 positions",
        ),
        ([[1] * 97], [[[1]]], "prompt 0 has 97 tokens and its continuation 0 has 1"),
    ],
)
def test_bad_calls_are_refused(model, prompts, continuations, message):
    as_array = lambda ids: np.asarray(ids, np.int32)
    with pytest.raises(ValueError, match=message):
        loglikelihoods(
            prepare(*model),
            [as_array(ids) for ids in prompts],
            [[as_array(ids) for ids in of_prompt] for of_prompt in continuations],
        )
