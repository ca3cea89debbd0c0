"""Answers scored by part: what a model that memorised the examples writes is right, and silence is not."""

import pytest

from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.rendering.answers import Answer
from sft_jax.evaluation.parts import PartScorer, reference_of
from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scoring import aggregate, compare
from tests.data.rendering.chat_formats import FORMATS

WEATHER = ToolCall("weather", {"city": "Rome", "days": 2})
RECORDS = [
    Record("a:1", Chat((Message("user", "2+2?"), Message("assistant", "4"))), {}),
    Record("a:2", Chat((Message("user", "Norway?"), Message("assistant", "Oslo", reasoning="I know it."))), {}),
    Record("a:3", Chat((Message("user", "Rome?"), Message("assistant", "", tool_calls=(WEATHER,)))), {}),
]


@pytest.fixture(scope="module")
def renderer():
    return ConversationRenderer(FORMATS["Qwen 3"].tokenizer(), masking=Masking(train_on="last"))


def memorised(renderer, record):
    """The trained tokens of a record without the end of turn: what a model that memorised it writes."""
    example = renderer.render(record.conversation)
    return example.tokens[example.weights > 0][:-1]


def scorer_of(renderer, records=RECORDS, scorer="exact_match", **options):
    return PartScorer(make_scorer(scorer), records, renderer, **options)


def outcomes_of(renderer, texts, **options):
    score = scorer_of(renderer, **options)
    return [score(record, text) for record, text in zip(RECORDS, texts, strict=True)]


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


def test_scorers_see_contents_alone(renderer):
    """An example whose reference is only a call has no JSON fields."""
    records = [Record("a:1", Chat((Message("user", "Car?"), Message("assistant", '{"make": "Ford"}'))), {}), RECORDS[2]]
    score = scorer_of(renderer, records, "json_extraction")
    outcomes = [score(record, score.references[record.id].text) for record in records]
    assert [outcome["exact_match"] for outcome in outcomes] == [True, True]
    assert [outcome["valid_json"] for outcome in outcomes] == [True, None]
    silent = [score(record, "") for record in records]
    assert aggregate(outcomes, 0)["field_f1"].value == 1
    assert compare(silent, outcomes, 0)["valid_json"].difference.value == 1
    assert [outcome["exact_match"] for outcome in silent] == [False, False]
    assert [outcome["calls_match"] for outcome in silent] == [None, False]


def test_plain_answers_have_no_parts(renderer):
    records = [Record("a:1", Chat((Message("user", "?"), Message("assistant", "a b"))), {})]
    score = scorer_of(renderer, records)
    assert score(records[0], "a  b") == {"exact_match": True}
    assert score(records[0], f"a b\n{CALL}") == {"exact_match": False}


@pytest.mark.parametrize("scorer", ["exact_match", "json_extraction"])
def test_answers_that_are_calls_alone(renderer, scorer):
    """There are no contents to compare: the calls are scored, and compared with those of another evaluation."""
    score = scorer_of(renderer, RECORDS[2:], scorer)
    right, silent = ([score(RECORDS[2], text)] for text in (score.references["a:3"].text, ""))
    assert right == [{"exact_match": True, "content_match": None, "calls_match": True}]
    compared = compare(silent, right, 0)
    assert {name: one.difference.value for name, one in compared.items()} == {"exact_match": 1, "calls_match": 1}


def test_which_parts_differ(renderer):
    score = scorer_of(renderer)
    assert [score.differing(record, "") for record in RECORDS] == [["content"], ["thinking", "content"], ["calls"]]
    assert all(score.differing(record, score.references[record.id].text) == [] for record in RECORDS)


def test_what_a_scorer_cannot_read_or_stumbles_over_is_named_at_once(renderer):
    with pytest.raises(ValueError, match="row a:1: json_extraction: the reference is not a JSON object"):
        scorer_of(renderer, scorer="json_extraction")

    def stumbles(answer, case):
        if not answer:
            raise ValueError("silence")
        return {"exact_match": True}

    with pytest.raises(ValueError, match="row a:1: silence"):
        PartScorer(stumbles, RECORDS[:1], renderer)


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
    score = scorer_of(renderer, RECORDS[2:])
    for text, right in (("<f=weather> <city>Rome<days>2", False), (reference.text, True), ("", False)):
        assert score(RECORDS[2], text) == {"exact_match": right}
    assert score.note().startswith("The calls of 1 of 1 references cannot be read back")


def test_a_row_that_the_template_refuses_is_named(renderer):
    record = Record("a:9", Chat((Message("user", "a"), Message("assistant", "b", reasoning="r")), ()), {})
    with pytest.raises(ValueError, match="a:9: the chat template refuses"):
        reference_of(ConversationRenderer(FORMATS["ChatML"].tokenizer(), "{{ raise_exception('no') }}"), record)
