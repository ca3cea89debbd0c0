"""Answers scored by part: what a model that memorised the examples writes is right, and silence is not."""

import json

import numpy as np
import pytest
from etils import epath

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.rendering.answers import Answer
from sft_jax.evaluation import held_out, tables
from sft_jax.evaluation.parts import read_parts, reference_of, score_parts
from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scoring import aggregate, compare
from sft_jax.generation import Generated
from tests.data.rendering.chat_formats import FORMATS

WEATHER = ToolCall("weather", {"city": "Rome", "days": 2})
RECORDS = [
    Record("a:1", Chat((Message("user", "2+2?"), Message("assistant", "4"))), {}),
    Record("a:2", Chat((Message("user", "Norway?"), Message("assistant", "Oslo", reasoning="I know it."))), {}),
    Record("a:3", Chat((Message("user", "Rome?"), Message("assistant", "", tool_calls=(WEATHER,)))), {}),
]
IDS = [record.id for record in RECORDS]
WRITTEN = Generated(np.zeros(0, np.int32), "", "stop")


@pytest.fixture(scope="module")
def renderer():
    return ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=Masking(train_on="last"))


def memorised(renderer, record):
    """The trained tokens of a record without the end of turn: what a model that memorised it writes."""
    example = renderer.render(record.conversation)
    return example.tokens[example.weights > 0][:-1]


def outcomes_of(renderer, texts, scorer="exact_match", **options):
    references = [reference_of(renderer, record) for record in RECORDS]
    parts = [read_parts(renderer, *each) for each in zip(texts, RECORDS, references, strict=True)]
    return score_parts(make_scorer(scorer), parts, [reference.parts for reference in references], IDS, **options)


def test_a_model_that_memorised_the_examples_is_right(renderer):
    texts = [renderer.written_text(memorised(renderer, record)) for record in RECORDS]
    assert texts == [reference_of(renderer, record).text for record in RECORDS]
    outcomes = outcomes_of(renderer, texts)
    assert [outcome["exact_match"] for outcome in outcomes] == [True, True, True]
    assert [outcome["calls_match"] for outcome in outcomes] == [None, None, True]
    assert [outcome["thinking_match"] for outcome in outcomes] == [None, True, None]
    assert [outcome["content_match"] for outcome in outcomes] == [True, True, None]
    scores = aggregate(outcomes, seed=0)
    assert {name: score.value for name, score in scores.items()} == dict.fromkeys(outcomes[0], 1.0)
    assert scores["calls_match"].low < scores["exact_match"].low < 1  # of one example, of three


def test_a_silent_model_is_wrong(renderer):
    assert [outcome["exact_match"] for outcome in outcomes_of(renderer, ["", "", ""])] == [False, False, False]


CALL = '<tool_call>\n{"arguments": {"days": 2.0, "city":"Rome"},"name":"weather"}\n</tool_call>'


@pytest.mark.parametrize(
    ("number", "text", "right"),
    [
        (0, "4", True),  # the empty thinking is left out
        (0, f"4\n{CALL}", False),  # nobody asked for a call
        (1, "<think>\nOtherwise.\n</think>\n\nOslo", True),
        (1, "<think>\nOslo", False),
        (2, CALL, True),
        (2, CALL.replace("Rome", "Oslo"), False),
        (2, CALL.replace("2.0", "true"), False),
        (2, f"{CALL}\n{CALL}", False),
        (2, f"Wait.\n{CALL}", False),
    ],
)
def test_what_is_right(renderer, number, text, right):
    texts = [""] * 3
    texts[number] = text
    assert outcomes_of(renderer, texts)[number]["exact_match"] is right


def test_thinking_counts_where_that_is_asked_for(renderer):
    texts = ["4", "<think>\nOtherwise.\n</think>\n\nOslo", CALL]
    assert [one["exact_match"] for one in outcomes_of(renderer, texts)] == [True, True, True]
    found = outcomes_of(renderer, texts, match_thinking=True)
    assert [one["exact_match"] for one in found] == [True, False, True]


def test_scorers_see_contents_alone():
    """An example whose reference is only a call has no JSON fields."""
    reference = [Answer(content='{"make": "Ford"}'), Answer(calls=(WEATHER,))]
    outcomes = score_parts(make_scorer("json_extraction"), reference, reference, ["a:1", "a:2"])
    assert [outcome["exact_match"] for outcome in outcomes] == [True, True]
    assert [outcome["valid_json"] for outcome in outcomes] == [True, None]
    silent = score_parts(make_scorer("json_extraction"), [Answer(), Answer()], reference, ["a:1", "a:2"])
    assert aggregate(outcomes, 0)["field_f1"].value == 1
    assert compare(silent, outcomes, 0)["valid_json"].difference.value == 1
    assert [outcome["exact_match"] for outcome in silent] == [False, False]
    assert [outcome["calls_match"] for outcome in silent] == [None, False]


def test_plain_answers_have_no_parts():
    reference = [Answer(content="a b")]
    assert score_parts(make_scorer("exact_match"), [Answer(content="a  b")], reference, ["a:1"]) == [
        {"exact_match": True}
    ]
    called = Answer(content="a b", calls=(WEATHER,))
    assert score_parts(make_scorer("exact_match"), [called], reference, ["a:1"]) == [{"exact_match": False}]


TAGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}<f={{ c.function.name }}>"
    "{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_calls_that_cannot_be_read_back_are_compared_as_text():
    renderer = ConversationRenderer(FORMATS["ChatML"].tokenizer(), TAGS)
    reference = reference_of(renderer, RECORDS[2])
    assert not reference.reads_calls
    assert reference.parts == Answer(content="<f=weather><city>Rome<days>2")
    for text, right in (("<f=weather> <city>Rome<days>2", False), (reference.text, True), ("", False)):
        parts = read_parts(renderer, text, RECORDS[2], reference)
        assert score_parts(make_scorer("exact_match"), [parts], [reference.parts], ["a:3"]) == [{"exact_match": right}]
    answers = held_out.Answers([""], [WRITTEN], [Answer()], [reference])
    assert answers.note().startswith("The calls of 1 of 1 references cannot be read back")


def test_what_is_written_and_read_again(renderer, tmp_path):
    """Whole answers, their parts, which of them differ, and scores of two evaluations in the columns that both have."""
    task = held_out.Task(RECORDS, "exact_match")
    references = [reference_of(renderer, record) for record in RECORDS]
    for name, texts in (("right", [one.text for one in references]), ("silent", ["", "", ""])):
        parts = [read_parts(renderer, *each) for each in zip(texts, RECORDS, references, strict=True)]
        answers = held_out.Answers(texts, [WRITTEN] * 3, parts, references)
        outcomes = held_out.score_answers(task, answers)
        scores = held_out.write_evaluation(epath.Path(tmp_path / name), task, answers, outcomes)
    assert scores["calls_match"]["value"] == 0
    tables.scores_table("silent", scores | {"note": "a note"})
    lines = [json.loads(line) for line in (tmp_path / "silent" / "predictions.jsonl").read_text().splitlines()]
    assert [line["differs"] for line in lines] == [["content"], ["thinking", "content"], ["calls"]]
    assert lines[2]["reference"].endswith("</tool_call>")
    expected = {"thinking": "", "content": "", "calls": [{"name": "weather", "arguments": WEATHER.arguments}]}
    assert lines[2]["reference_parts"] == expected
    first, second = held_out.comparable(epath.Path(tmp_path / "silent"), epath.Path(tmp_path / "right"))
    assert compare(first, second, 0)["exact_match"].difference.value == 1
    path = tmp_path / "right" / "predictions.jsonl"
    plain = [
        line | {"outcome": {"exact_match": line["outcome"]["exact_match"]}}
        for line in map(json.loads, path.read_text().splitlines())
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in plain))
    first, second = held_out.comparable(epath.Path(tmp_path / "silent"), epath.Path(tmp_path / "right"))
    assert list(first[0]) == list(second[0]) == ["exact_match"]


def test_a_row_that_the_template_refuses_is_named(renderer):
    record = Record("a:9", Chat((Message("user", "a"), Message("assistant", "b", reasoning="r")), ()), {})
    with pytest.raises(ValueError, match="a:9: the chat template refuses"):
        reference_of(ConversationRenderer(FORMATS["ChatML"].tokenizer(), "{{ raise_exception('no') }}"), record)
