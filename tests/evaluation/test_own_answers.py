"""Rows of a model's own answers: which are kept, and that training reads them."""

import json

import numpy as np
import pytest

from sft_jax.data.conversations import Chat, Message, Preference, ToolCall
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record, RecordError, read_records
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.data.written_rows import lines_of
from sft_jax.evaluation.own_answers import (
    ALL,
    BEST,
    PAIRS,
    Candidate,
    Judge,
    best_of,
    candidates_of,
    pair_of,
    prompts_of,
    rows_of,
)
from sft_jax.evaluation.requests import Written
from tests import tiny
from tests.data.rendering.chat_formats import FORMATS
from tests.evaluation.asking import record, write_rows


def candidates(*answers: tuple) -> list[Candidate]:
    """Of (text, worth, logprob, finish reason); the last two may be left out."""
    made = []
    for number, (text, worth, *rest) in enumerate(answers):
        logprob, reason = (*rest, *(-1.0, "stop")[len(rest) :])
        written = Written(text, len(text), logprob, reason)
        made.append(Candidate(number, written, Message("assistant", text), worth))
    return made


@pytest.mark.parametrize(
    ("answers", "above", "sample", "said"),
    [
        ([("a", 0.2), ("b", 0.9), ("c", 0.5)], 0.0, 1, "gave a row"),
        ([("a", 1.0, -3.0), ("b", 1.0, -2.0), ("c", 1.0, -2.0)], 0.0, 1, "gave a row"),  # the likelier, then the first
        ([("a", 0.0), ("b", 0.0)], 0.0, None, "have no answer above"),
        ([("a", 0.5), ("b", 0.4)], 0.5, None, "have no answer above"),
        ([("a", 1.0, -1.0, "max_new_tokens"), ("b", 0.1)], 0.0, 1, "gave a row"),
        ([("a", 1.0, -1.0, "max_positions"), (" \n", 1.0)], 0.0, None, "have too few"),
    ],
)
def test_the_best_answer(answers, above, sample, said):
    found, reason = best_of(candidates(*answers), above)
    assert (None if found is None else found.sample, reason) == (sample, said)


@pytest.mark.parametrize(
    ("answers", "above", "samples", "said"),
    [
        ([("a", 0.2), ("b", 0.9), ("c", 0.5)], 0.0, (1, 0), "gave a row"),
        # Of equally good and of equally bad ones those that the model is most inclined to give.
        ([("a", 0.0, -9.0), ("b", 1.0, -9.0), ("c", 1.0, -8.0), ("d", 0.0, -8.0)], 0.0, (2, 3), "gave a row"),
        ([("a", 1.0), ("b", 1.0)], 0.0, None, "have equal answers"),
        ([("a", 1.0), ("a", 0.5)], 0.0, None, "have equal answers"),  # the same text, whatever a scorer makes of it
        ([("a", 0.5), ("b", 0.4)], 0.5, None, "have no answer above"),
        ([("a", 1.0), ("b", 0.0, -1.0, "max_new_tokens")], 0.0, None, "have too few"),
        ([("a", 1.0), ("", 0.0)], 0.0, None, "have too few"),
    ],
)
def test_a_pair_of_answers(answers, above, samples, said):
    found, reason = pair_of(candidates(*answers), above)
    assert (None if found is None else tuple(one.sample for one in found), reason) == (samples, said)


ASKED = (
    record(1, "red cat", "cat red", system="Be brief."),
    record(2, "blue", "blue"),
    record(3, "and", "and"),
)
PROMPTS = [one.conversation[:-1] for one in ASKED]
ANSWERED = [
    candidates(("cat red", 1.0), ("cat", 0.0)),
    candidates(("green", 0.0), ("tree", 0.0)),
    candidates(("and", 1.0, -1.0, "max_new_tokens"), ("or", 0.0)),
]


def read_back(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text(lines_of(rows))
    return read_records(str(path), DEFAULT)


def tokenized(records):
    """As training has them."""
    renderer = ConversationRenderer(tiny.tokenizer(), masking=Masking())
    examples, dropped = tokenize_records(records, renderer, max_example_tokens=512)
    assert not dropped
    return renderer.tokenizer, examples


def test_all_answers():
    made = rows_of(ASKED, PROMPTS, ANSWERED, ALL)
    assert made.summary == "6 answers to 3 prompts"
    assert made.rows[4] == {
        "id": "rows:3",
        "sample": 0,
        "answer": "and",
        "ended": False,
        "finish_reason": "max_new_tokens",
        "logprob": -1.0,
        "score": 1.0,
    }


def test_the_best_are_rows_of_conversations(tmp_path):
    made = rows_of(ASKED, PROMPTS, ANSWERED, BEST)
    assert made.summary == "Of 3 prompts: 1 gave an answer; 2 have no answer with a score above 0"
    (found,) = read_back(tmp_path, made.rows)
    assert found.example == Chat((*PROMPTS[0], Message("assistant", "cat red")))
    tokenizer, examples = tokenized([found])
    trained = examples.tokens[np.flatnonzero(examples.weights)]
    assert tokenizer.decode(trained) == "cat red<|im_end|>"


def test_pairs_are_rows_of_preferences(tmp_path):
    made = rows_of(ASKED, PROMPTS, ANSWERED, PAIRS)
    assert made.summary == (
        "Of 3 prompts: 1 gave a pair; 1 have answers of one score alone; 1 have fewer than two whole answers"
    )
    (found,) = read_back(tmp_path, made.rows)
    assert found.example == Preference(PROMPTS[0], (Message("assistant", "cat red"),), (Message("assistant", "cat"),))
    assert (found.fields["chosen_score"], found.fields["rejected_score"]) == (1.0, 0.0)
    _, examples = tokenized([found])
    assert set(examples.branches.tolist()) == {0, 1, 2}


CALL = ToolCall("weather", {"city": "Rome"})
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)


def test_thinking_and_calls_are_kept_as_such(tmp_path):
    turns = (Message("user", "Oslo?"), Message("assistant", "Cold."), Message("user", "Rome?"))
    asked = Record("a:1", Chat((*turns, Message("assistant", "", tool_calls=(CALL,))), TOOLS), {})
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer())
    judge = Judge([asked], renderer, "exact_match", {})
    answers = [Written(text, 9, -1.0, "stop") for text in ("Warm.", f"<think>\nI ask.\n</think>\n\n{CALLED}")]
    found = candidates_of(asked, answers, judge)
    assert [one.worth for one in found] == [0.0, 1.0]
    made = rows_of([asked], [turns], [found], BEST)
    (best,) = read_back(tmp_path, made.rows)
    # Earlier answers are not the model's own, and are not trained.
    earlier = turns[1]._replace(weight=0.0)
    answer = Message("assistant", "", reasoning="I ask.", tool_calls=(CALL,))
    assert best.example == Chat((turns[0], earlier, turns[2], answer), TOOLS)
    made = rows_of([asked], [turns], [found], PAIRS)
    (pair,) = read_back(tmp_path, made.rows)
    assert pair.example == Preference(turns, (answer,), (Message("assistant", "Warm."),), TOOLS)


@pytest.fixture(scope="module")
def renderer():
    return ConversationRenderer(tiny.tokenizer())


def test_a_scorer_that_needs_no_reference(renderer, tmp_path):
    path = write_rows(tmp_path / "asked.jsonl", [{"prompt": "red"}, {"prompt": "blue"}])
    options = {"most": 3}
    records, prompts = prompts_of(path, DEFAULT, "length", options)
    assert prompts == [(Message("user", "red"),), (Message("user", "blue"),)]
    judge = Judge(records, renderer, "length", options)
    assert [judge(records[0], text) for text in ("cat", "tree")] == [1.0, 0.0]
    with pytest.raises(ValueError, match="scorer 'length' looks at no reference; leave it out"):
        Judge(records, renderer, "length", options, match_thinking=True)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "red"}, r"asked.jsonl:1"),
        (
            {"messages": [{"role": "user", "content": "red"}]},
            "asked.jsonl:1: scorer 'exact_match' compares with the row's own answer, and this row has none",
        ),
    ],
)
def test_a_scorer_without_a_reference_is_refused_with_the_row(tmp_path, row, message):
    path = write_rows(tmp_path / "asked.jsonl", [row])
    with pytest.raises((ValueError, RecordError), match=message):
        prompts_of(path, DEFAULT, "exact_match", {})


def test_without_a_scorer_any_prompt_is_answered(tmp_path):
    path = write_rows(tmp_path / "asked.jsonl", [{"prompt": "red", "chosen": "a", "rejected": "b"}])
    (found,), prompts = prompts_of(path, DEFAULT, "", {})
    assert prompts == [(Message("user", "red"),)]
    assert json.loads(lines_of(rows_of([found], prompts, [candidates(("a", None))], ALL).rows)) == {
        "id": "asked.jsonl:1",
        "sample": 0,
        "answer": "a",
        "ended": True,
        "finish_reason": "stop",
        "logprob": -1.0,
    }


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ("numeric", "row rows:1: numeric: the reference has no number"),
        ("bleu", "scorer 'bleu': row rows:1: its columns, bleu, neither call an answer right or wrong"),
        ("best", "no scorer named 'best'"),
    ],
)
def test_what_cannot_judge_is_refused(renderer, scorer, message):
    with pytest.raises(ValueError, match=message):
        Judge(ASKED, renderer, scorer, {})
