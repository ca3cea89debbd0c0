"""Exports of annotation tools: whose label counts, what is refused, and everybody's labels for agreement."""

import json

import pytest

from sft_jax.data.formats import annotations_of
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, RecordReader, read_prompts, read_records


def choice(name, *labels):
    return {"from_name": name, "to_name": "text", "type": "choices", "value": {"choices": [*labels]}}


def annotated(who, *results, **more):
    return {"completed_by": who, "result": [*results], "was_cancelled": False} | more


def label_studio(*annotations):
    return {"id": 1, "data": {"text": "Hi"}, "annotations": [*annotations], "predictions": []}


def votes_in_label_studio(*labels):
    return label_studio(*(annotated(number, choice("mood", label)) for number, label in enumerate(labels)))


def votes_in_argilla(*labels):
    given = [{"value": label, "user_id": str(number), "status": "submitted"} for number, label in enumerate(labels)]
    given.append({"value": "draft", "user_id": "drafter", "status": "draft"})
    return {"id": "1", "fields": {"text": "Hi"}, "metadata": {}, "responses": {"mood": given}, "suggestions": {}}


def votes_of_argillas_server(*labels):
    return {
        "fields": {"text": "Hi"},
        "responses": [
            *(
                {"user_id": i, "status": "submitted", "values": {"mood": {"value": label}}}
                for i, label in enumerate(labels)
            ),
            {"user_id": "who discarded it", "status": "discarded", "values": None},
        ],
    }


def votes_in_columns(*labels):
    return {
        "text": "Hi",
        "mood.responses": [*labels],
        "mood.responses.users": [str(number) for number in range(len(labels))],
        "mood.responses.status": ["submitted"] * len(labels),
        "mood.suggestion": "draft",
    }


TOOLS = [votes_in_label_studio, votes_in_argilla, votes_of_argillas_server, votes_in_columns]
TEMPLATES = {"prompt_template": "Mood of {text}?", "answer_template": "{mood}"}


def answer(tmp_path, row, **options):
    (tmp_path / "export.json").write_text(json.dumps([row]))
    (record,) = read_records(tmp_path / "export.json", Reading(**TEMPLATES | options))
    question, reply = record.conversation
    assert question.content == "Mood of Hi?"
    return reply.content


COUNTING = [  # (labels by annotators 0, 1, …, options, the label that counts or words of the error)
    (["good"], {}, "good"),
    (["good", "good"], {}, "good"),
    (
        ["good", "bad"],
        {},
        "annotators differ on 'mood': 'good' 1, 'bad' 1. Decide: --config.data.reading.label=majority",
    ),
    (["bad", "good", "good"], {"label": "majority"}, "good"),
    (["good", "bad"], {"label": "majority"}, "no majority on 'mood': 'good' 1, 'bad' 1. Adjudicate it"),
    (["bad", "good"], {"label": "majority", "ties": "first"}, "bad"),
    (["so", "bad", "good", "bad", "good"], {"label": "majority", "ties": "first"}, "bad"),
    (["bad", "good", "bad"], {"label": "adjudicated", "adjudicator": "1"}, "good"),
    (
        ["bad", "good"],
        {"label": "adjudicated", "adjudicator": "2"},
        "expected one annotation of annotator '2', there are 0",
    ),
    (["bad", "good"], {"label": "adjudicated"}, "expected one annotation of a ground truth, there are 0"),
    ([], {}, "nobody annotated the row"),
]


@pytest.mark.parametrize(("labels", "options", "expected"), COUNTING)
@pytest.mark.parametrize("tool", TOOLS)
def test_whose_label_counts(tmp_path, tool, labels, options, expected):
    if " " not in expected:
        assert answer(tmp_path, tool(*labels), **options) == expected
        return
    with pytest.raises(RecordError) as error:
        answer(tmp_path, tool(*labels), **options)
    assert str(error.value).startswith(f"{tmp_path}/export.json:1: {expected}")


ADVISED = [  # (labels by annotators 0, 1, …, options, flags that are advised one after the other, whose label counts)
    (["good", "bad", "bad"], {}, ["label=majority"], "bad"),
    (["good", "bad"], {}, ["label=majority", "ties=first"], "good"),
    (["good", "bad"], {}, ["label=adjudicated", "adjudicator=1"], "bad"),
    (["good", "bad"], {"label": "majority"}, ["label=adjudicated", "adjudicator=0"], "good"),
    (["good", "bad"], {"label": "adjudicated"}, ["adjudicator=1"], "bad"),
]


@pytest.mark.parametrize(("labels", "options", "advised", "expected"), ADVISED)
@pytest.mark.parametrize("tool", TOOLS)
def test_where_annotators_differ_it_is_decided_as_advised(tmp_path, tool, labels, options, advised, expected):
    for flag in advised:
        with pytest.raises(RecordError) as error:
            answer(tmp_path, tool(*labels), **options)
        said, (name, value) = str(error.value), flag.split("=")
        if name == "adjudicator":
            assert "name who adjudicates: --config.data.reading.adjudicator." in said
            assert f"{value!r}" in said.partition("annotators are: ")[2]
        else:
            assert value in said.lower()  # "majority or adjudicated", "Adjudicate it", "ties=first"
        options = options | {name: value}
    assert answer(tmp_path, tool(*labels), **options) == expected


@pytest.mark.parametrize("tool", TOOLS)
def test_everybodys_labels(tool):
    assert annotations_of(tool("good", "bad")) == {"mood": {"0": "good", "1": "bad"}}


def test_other_rows_have_no_annotations():
    assert annotations_of({"text": "Hi", "mood": "good"}) == {}


def test_ground_truth_of_label_studio(tmp_path):
    row = label_studio(annotated(1, choice("mood", "bad")), annotated(2, choice("mood", "good"), ground_truth=True))
    assert answer(tmp_path, row, label="adjudicated") == "good"


def test_cancelled_annotations_do_not_count(tmp_path):
    row = label_studio(annotated(1, choice("mood", "bad"), was_cancelled=True), annotated(2, choice("mood", "good")))
    assert answer(tmp_path, row) == "good"


def piece(start, text, label):
    value = {"start": start, "end": start + len(text), "text": text, "labels": [label]}
    return {"from_name": "mood", "to_name": "text", "type": "labels", "value": value}


RESULTS = [  # (results of one annotator, the answer)
    ([choice("mood", "b", "a")], '["a", "b"]'),
    ([{"from_name": "mood", "type": "textarea", "value": {"text": ["One."]}}], "One."),
    ([{"from_name": "mood", "type": "textarea", "value": {"text": ["One.", "Two."]}}], '["One.", "Two."]'),
    ([{"from_name": "mood", "type": "rating", "value": {"rating": 4}}], "4"),
    (
        [piece(9, "b", "Y"), piece(2, "a", "X")],
        '[{"start": 2, "end": 3, "text": "a", "labels": ["X"]}, {"start": 9, "end": 10, "text": "b", "labels": ["Y"]}]',
    ),
]


@pytest.mark.parametrize(("results", "expected"), RESULTS)
def test_kinds_of_results(tmp_path, results, expected):
    assert answer(tmp_path, label_studio(annotated(1, *results), annotated(2, *reversed(results)))) == expected


def test_several_questions(tmp_path):
    row = label_studio(annotated({"id": 1, "email": "a@b"}, choice("mood", "good"), choice("topic", "x")))
    assert answer(tmp_path, row, answer_template='{{"mood": "{mood}", "topic": "{topic}"}}') == (
        '{"mood": "good", "topic": "x"}'
    )
    assert annotations_of(row) == {"mood": {"a@b": "good"}, "topic": {"a@b": "x"}}


BROKEN = [  # (row, words of the error)
    (
        label_studio(annotated(1, {"from_name": "mood", "type": "brushlabels", "value": {}})),
        "type 'brushlabels' cannot",
    ),
    (label_studio(annotated(1, {"from_name": "mood", "type": "choices", "value": {}})), 'has no "choices"'),
    (label_studio(annotated(1, {"value": {}})), 'expected "from_name", "type" and "value"'),
    (label_studio({"completed_by": 1}), '"annotations"[0]: "result": expected a list of results, got null'),
    (label_studio(3), '"annotations"[0]: expected an annotation, an object, got a number'),
    (label_studio(annotated(1, choice("text", "a"))), "'text' is a column and a question"),
    (label_studio(*[annotated(1, choice("mood", "a"))] * 2), "annotator '1' annotated the row twice"),
    (
        label_studio(annotated(1, choice("tone", "a"))),
        "the row has no 'mood', which --config.data.reading.answer_template",
    ),
    ({"data": "Hi", "annotations": []}, '"data": expected an object with the columns of the task, got a string'),
    ({"fields": "Hi", "responses": {}}, '"fields": expected an object, got a string'),
    ({"fields": {}, "responses": 3}, '"responses": expected an object or a list, got a number'),
    ({"fields": {}, "responses": [{"user_id": 1}]}, '"responses"[0]: expected a response with "values", got an object'),
    ({"text": "Hi", "mood.responses": ["a"], "mood.responses.users": ["1", "2"]}, "are not of one length"),
    ({"fields": {}, "responses": {"mood": [{"value": 1, "user_id": 1}] * 2}}, "annotator '1' answered 'mood' twice"),
]


@pytest.mark.parametrize(("row", "words"), BROKEN)
def test_what_is_broken(tmp_path, row, words):
    with pytest.raises(RecordError) as error:
        answer(tmp_path, row)
    assert str(error.value).startswith(f"{tmp_path}/export.json:1: ")
    assert words in str(error.value)


def test_rows_without_a_majority_can_be_dropped(tmp_path):
    rows = [votes_in_label_studio("good", "bad"), votes_in_label_studio("good", "good", "bad")]
    (tmp_path / "export.json").write_text(json.dumps(rows))
    reader = RecordReader(tmp_path / "export.json", Reading(label="majority", on_bad_row="drop", **TEMPLATES))
    assert [record.id for record in reader] == ["export.json:2"]
    assert [row.id for row in reader.dropped] == ["export.json:1"]
    assert reader.notes == ["export.json: JSON, label_studio"]


def test_prompts_need_no_annotation(tmp_path):
    (tmp_path / "export.json").write_text(json.dumps([label_studio()]))
    (record,) = read_prompts(tmp_path / "export.json", Reading(**TEMPLATES))
    assert [message.content for message in record.conversation] == ["Mood of Hi?"]


def test_a_choice_of_label_for_rows_that_have_one():
    with pytest.raises(ValueError, match=r"ties is read by --config.data.reading.label=majority, not by unanimous"):
        RecordReader("x", Reading(ties="first"))


def test_it_is_not_ignored_elsewhere(tmp_path):
    (tmp_path / "a.csv").write_text("text,mood\nHi,good\n")
    with pytest.raises(RecordError, match=r"label=majority is for label_studio and argilla, this row is table"):
        read_records(tmp_path / "a.csv", Reading(label="majority", **TEMPLATES))
