"""A model responds to requests: the same as asked by hand, in any order, and nothing is computed twice."""

import copy
import dataclasses

import numpy as np
import pytest
from etils import epath

from sft_jax.data.conversations import Message
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.evaluation.answer_store import AnswerStore
from sft_jax.evaluation.requests import Generate, LogLikelihood
from sft_jax.generation import Sampler, Sampling, loglikelihoods, prepare
from tests.data.rendering.chat_formats import FORMATS
from tests.evaluation.asking import count_computed, respondent

QUESTIONS = ["red", "blue cat", "I and seven"]
PROMPTS = [(Message("user", text),) for text in QUESTIONS]
WRITE = [Generate(prompt, 4) for prompt in PROMPTS]
JUDGE = [LogLikelihood(prompt, ("yes", "no, never")) for prompt in PROMPTS]
pytestmark = pytest.mark.usefixtures("on_mesh")


def test_responses_are_those_of_sampler_and_likelihood(loaded):
    """Of requests of several kinds, each in its place."""
    mixed = [JUDGE[0], WRITE[0], JUDGE[1], WRITE[1]]
    found = respondent(loaded)(mixed, QUESTIONS[:2] * 2)
    prepared = prepare(loaded.model, loaded.variables)
    ids = [loaded.renderer.render_prompt(prompt) for prompt in PROMPTS[:2]]
    written = Sampler(loaded.renderer.stop_ids).generate(prepared, ids, max_new_tokens=4)
    for response, (answer,) in zip(found[1::2], written, strict=True):
        (one,) = response.answers
        assert one.text == loaded.renderer.written_text(answer.tokens)
        assert (one.tokens, one.finish_reason) == (len(answer.tokens), answer.finish_reason)
        assert one.logprob == pytest.approx(float(answer.logprobs.sum()))
    # One token a byte: an answer is its bytes and <|im_end|>, id 2.
    tokens = [np.array([*loaded.renderer.tokenizer.encode(text), 2], np.int32) for text in JUDGE[0].continuations]
    likelihoods = loglikelihoods(prepared, ids, [tokens, tokens])
    for response, expected in zip(found[::2], likelihoods, strict=True):
        assert [one.tokens for one in response.answers] == [4, 10]
        assert [one.logprob for one in response.answers] == pytest.approx([one.logprob for one in expected])
    assert [response.prompt_tokens for response in found] == [len(ids[0]), len(ids[0]), len(ids[1]), len(ids[1])]
    assert all(response.seconds >= 0 for response in found)


def test_positions_that_are_needed(loaded):
    asked, prompt = respondent(loaded), len(loaded.renderer.render_prompt(PROMPTS[0]))
    assert asked.positions_needed(WRITE[0], "a:1") == prompt + 4
    assert asked.positions_needed(JUDGE[0], "a:1") == prompt + len("no, never") + 1


@pytest.mark.parametrize("requests", [WRITE, JUDGE, [*JUDGE, *WRITE]])
def test_a_second_start_computes_nothing(loaded, tmp_path, monkeypatch, requests):
    names = [str(number) for number in range(len(requests))]
    directory = epath.Path(tmp_path)
    counts = count_computed(monkeypatch)
    first = respondent(loaded, store=AnswerStore(directory, "m"))(requests, names)
    assert sum(counts.values()) == len(requests)
    second = respondent(loaded, store=AnswerStore(directory, "m"))(requests, names)
    assert sum(counts.values()) == len(requests)
    assert second == first


@pytest.mark.parametrize("requests", [WRITE, JUDGE])
def test_killed_and_started_again_no_answer_is_computed_twice(loaded, tmp_path, monkeypatch, requests):
    directory, put = epath.Path(tmp_path), AnswerStore.put

    def killed(self, key, value):
        put(self, key, value)
        if len((directory / "m.jsonl").read_text().splitlines()) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(AnswerStore, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            respondent(loaded, store=AnswerStore(directory, "m"), slots=1)(requests, QUESTIONS)
    counts = count_computed(monkeypatch)
    found = respondent(loaded, store=AnswerStore(directory, "m"))(requests, QUESTIONS)
    assert sum(counts.values()) == 1
    alone = respondent(loaded)(requests, QUESTIONS)
    said = lambda responses: [[getattr(a, "text", a.tokens) for a in response.answers] for response in responses]
    assert said(found) == said(alone)


def test_what_an_answer_depends_on_is_asked_anew(loaded, tmp_path, monkeypatch):
    store, counts = AnswerStore(epath.Path(tmp_path), "m"), count_computed(monkeypatch)
    drawn = Sampling(temperature=1.0)
    requests = [Generate(PROMPTS[0], 4), Generate(PROMPTS[0], 5), Generate(PROMPTS[0], 4, sampling=drawn)]
    for asked in [*requests, Generate(PROMPTS[0], 4, samples=2, sampling=drawn)]:
        respondent(loaded, store=store)([asked], ["a"])
    assert counts["written"] == 4
    respondent(loaded, store=store, seed=1)([requests[0]], ["a"])
    assert counts["written"] == 4  # without drawing, the seed is nothing to it
    respondent(loaded, store=store, seed=1)([requests[2]], ["a"])
    assert counts["written"] == 5


def test_the_same_request_twice_is_computed_once_unless_it_is_drawn(loaded, monkeypatch):
    counts = count_computed(monkeypatch)
    for requests in ([WRITE[0]] * 3, [JUDGE[0]] * 3):
        first, *others = respondent(loaded)(requests, QUESTIONS)
        assert others == [first, first]
    assert counts == {"written": 1, "judged": 1}
    drawn = Generate(PROMPTS[0], 8, samples=2, sampling=Sampling(temperature=1.0))
    texts = {answer.text for response in respondent(loaded)([drawn] * 2, ["a", "b"]) for answer in response.answers}
    assert counts["written"] == 3
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            Generate((Message("user", "a" * 600),), 4),
            r"the prompt of a:7 has \d+ tokens; the model knows 512 positions",
        ),
        (
            LogLikelihood((Message("user", "a"),), ("b" * 600,)),
            r"the prompt of a:7 has \d+ tokens, and its answer 'b+' 601; the model knows 512 positions. .*max_posit",
        ),
        (Generate((Message("user", "a"), Message("assistant", "b")), 4), "a:7: a prompt must not end with"),
    ],
)
def test_what_cannot_be_asked_names_its_record(loaded, request_, message):
    with pytest.raises(ValueError, match=message):
        respondent(loaded)([request_], ["a:7"])


def test_a_template_that_writes_answers_otherwise_is_refused(loaded):
    """Judged behind another prompt than the one that is answered, a likelihood would be of something else."""
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nWell: ' }}{% endif %}"
    other = dataclasses.replace(loaded, renderer=ConversationRenderer(loaded.renderer.tokenizer, template))
    with pytest.raises(ValueError, match="a:1, answer 'yes': "):
        respondent(other)([JUDGE[0]], ["a:1"])


def test_a_token_that_reaches_over_the_edge_is_judged_with_the_answer(loaded):
    """As tokenizers have one for a line break and the spaces behind it, which answers may begin with."""
    tokenizer = copy.deepcopy(loaded.renderer.tokenizer)
    tokenizer.add_tokens(["\n  "])
    (reaching,) = tokenizer.encode("\n  ", add_special_tokens=False)
    other = dataclasses.replace(loaded, renderer=ConversationRenderer(tokenizer))
    assert reaching < loaded.model.config.vocab_size
    request = LogLikelihood(PROMPTS[0], ("  yes", "no"))
    (found,) = respondent(other)([request], ["a:1"])
    prompt = other.renderer.render_prompt(PROMPTS[0])
    before, line_break, end = prompt[:-1], prompt[-1], 2
    given = [[reaching, *tokenizer.encode("yes"), end], [line_break, *tokenizer.encode("no"), end]]
    (expected,) = loglikelihoods(
        prepare(loaded.model, loaded.variables), [before], [[np.array(ids, np.int32) for ids in given]]
    )
    assert [one.tokens for one in found.answers] == [5, 4]
    assert [one.logprob for one in found.answers] == pytest.approx([one.logprob for one in expected])
    assert respondent(other).positions_needed(request, "a:1") == len(prompt) + 4


def test_a_thought_that_begins_in_such_a_token_is_refused(loaded):
    """The prompt ends within a thought, which the template closes before the answer: that is no part of it."""
    tokenizer = copy.deepcopy(loaded.renderer.tokenizer)
    tokenizer.add_tokens(["\n\n"])
    template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    template += (
        "{{ ('<think>\n\n</think>' if m.role == 'assistant' else '') + m.content + '<|im_end|>\n' }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    other = dataclasses.replace(loaded, renderer=ConversationRenderer(tokenizer, template))
    with pytest.raises(ValueError, match="a:1, answer 'yes': the chat template does not write it behind the prompt"):
        respondent(other)([JUDGE[0]], ["a:1"])


@pytest.mark.parametrize("masking", [Masking(end_of_turn="none"), Masking(train_on="user"), Masking(train_on="all")])
def test_what_a_run_trains_changes_no_judgement(loaded, masking):
    """A run measures tasks with its own renderer."""
    tokenizer = loaded.renderer.tokenizer
    other = dataclasses.replace(loaded, renderer=ConversationRenderer(tokenizer, masking=masking))
    told = lambda model: [response.answers for response in respondent(model)(JUDGE, QUESTIONS)]
    assert told(other) == told(loaded)


def test_what_was_said_before_is_no_part_of_what_is_judged(loaded):
    """Qwen 3 leaves thinking out of earlier turns, which could not all be trained at once."""
    tokenizer = FORMATS["Qwen 3"].tokenizer()
    history = (Message("user", "a"), Message("assistant", "b", reasoning="Hm."), Message("user", "c"))
    asked = respondent(dataclasses.replace(loaded, renderer=ConversationRenderer(tokenizer)))
    needed = asked.positions_needed(LogLikelihood(history, ("yes", "no, never")), "a:1")
    prompt = len(asked.renderer.render_prompt(history))
    assert needed > prompt + 1
