"""Columns that fit no format: what the error suggests is taken out of it, given to the command, and reads every row."""

import json
import re

import pytest

from sft_jax.data import records as reading_rows
from sft_jax.data.conversations import Chat, Preference, Segments
from sft_jax.data.files import Row, Source
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, RecordReader, read_prompts, read_records
from tests.command_line import flags_in, reading_by

SUGGESTED = [  # (columns, the options that are suggested first, what nothing reads then)
    ("instruction, input, response", """columns='("output=response",)'""", ""),
    ("instruction, response", """columns='("output=response",)'""", ""),
    ("instruction, context, response, category", """columns='("input=context","output=response",)'""", "category"),
    ("question, context, answer", """columns='("instruction=question","input=context","output=answer",)'""", ""),
    ("question, answer", """columns='("prompt=question","completion=answer",)'""", ""),
    ("Question, Answer", """columns='("prompt=Question","completion=Answer",)'""", ""),
    ("questions, answers", """columns='("prompt=questions","completion=answers",)'""", ""),
    ("prompts, completions", """columns='("prompt=prompts","completion=completions",)'""", ""),
    ("promt, completion", """columns='("prompt=promt",)'""", ""),
    ("query, response", """columns='("prompt=query","completion=response",)'""", ""),
    ("prompt, response", """columns='("completion=response",)'""", ""),
    ("question, response, id", """columns='("prompt=question","completion=response",)'""", "id"),
    ("input, output", """columns='("prompt=input","completion=output",)'""", ""),
    ("user, assistant, system", """columns='("prompt=user","completion=assistant",)'""", ""),
    ("question, accepted, rejected", """columns='("prompt=question","chosen=accepted",)'""", ""),
    ("text, label", "prompt_template='{text}' answer_template='{label}'", ""),
    ("id, sentence, intent", "prompt_template='{sentence}' answer_template='{intent}'", "id"),
    ("text, dump, token_count", "format=text", "dump, token_count"),
    ("context", """columns='("text=context",)'""", ""),
    ("content, url", """columns='("text=content",)'""", "url"),
    ("article, summary", "prompt_template='{article}' answer_template='{summary}'", ""),
    ("what's asked, reply", """prompt_template='{what'"'"'s asked}' answer_template='{reply}'""", ""),
    ('a, "reply"', "prompt_template='{a}' answer_template='{\"reply\"}'", ""),
    (
        "question, best_answer, incorrect_answers",
        "prompt_template='{question}' answer_template='{best_answer}'",
        "incorrect_answers",
    ),
    (
        "type, question, bestAnswer, correctAnswers, badAnswers",
        "prompt_template='{question}' answer_template='{bestAnswer}'",
        "type, correctAnswers, badAnswers",
    ),
    (
        "premise, answer_options, model_response",
        "prompt_template='{premise} {answer_options}' answer_template='{model_response}'",
        "",
    ),
    ("premise, answer_text", "prompt_template='{premise}' answer_template='{answer_text}'", ""),
    ("question, chosen, rejected", """columns='("prompt=question",)'""", ""),
    ("problem, hint, solution", """columns='("prompt=problem","completion=solution",)'""", "hint"),
]


def said_by(path, rows, reading=Reading(), read=read_records):  # noqa: B008  frozen
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    with pytest.raises(RecordError) as error:
        read(path, reading)
    return str(error.value)


def values_in(record):
    """Every text that is in an example."""
    example = record.example
    if isinstance(example, Chat):
        return " ".join(message.content for message in example.messages)
    if isinstance(example, Preference):
        return " ".join(m.content for m in (*example.prompt, *example.chosen, *example.rejected))
    assert isinstance(example, Segments)
    return " ".join(segment.text for segment in example.parts)


@pytest.mark.parametrize(("columns", "options", "unread"), SUGGESTED, ids=[columns for columns, _, _ in SUGGESTED])
def test_the_nearest_format_and_its_flags(columns, options, unread, tmp_path):
    names, unread = columns.split(", "), [name for name in unread.split(", ") if name]
    path, rows = tmp_path / "d.jsonl", [{name: f"<{name} {i}>" for name in names} for i in range(3)]
    said = said_by(path, rows)
    flags = " ".join(re.sub(r"(^| )(?=\w+=)", r"\1--config.data.reading.", options).split("\n"))
    known = {"chosen", "rejected"} <= set(names)
    why = "there is no prompt." if known else f"no format fits the columns: {', '.join(map(repr, sorted(names)))}."
    assert why in said
    assert "Nearest is " in said or "A table reads any columns, for example " in said
    assert f" {flags}" in said
    records = read_records(path, reading_by(*flags_in(flags)))
    assert len(records) == 3
    for record, row in zip(records, rows, strict=True):
        assert all(value in values_in(record) for name, value in row.items() if name not in unread)
    assert ("(not read then: " in said) == bool(unread)
    assert all(repr(name) in said for name in unread)


def test_a_column_that_would_be_lost_has_flags_that_keep_it(tmp_path):
    path, rows = tmp_path / "d.jsonl", [{"problem": "p", "hint": "h", "solution": "s"}]
    _, *flags = flags_in(said_by(path, rows))
    (record,) = read_records(path, reading_by(*flags))
    assert values_in(record) == "p h s"


def test_what_was_tried_on_the_rows_and_failed_is_not_suggested(tmp_path):
    path = tmp_path / "d.jsonl"
    rows = [{"question": "q", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}}]  # as in SQuAD
    said = said_by(path, rows)
    assert "columns=" not in said
    (record,) = read_records(path, reading_by(*flags_in(said)))
    assert values_in(record) == 'q c {"text": ["a"], "answer_start": [0]}'


TURNS = [  # (turns, the column they stand in, the format that is found under the suggested name)
    ([{"role": "user", "content": "<a>"}, {"role": "assistant", "content": "<b>"}], "conversation", "messages"),
    ([{"role": "user", "content": "<a>"}, {"role": "assistant", "content": "<b>"}], "dialog", "messages"),
    ([{"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"}], "conversation", "sharegpt"),
    ([{"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"}], "dialogue", "sharegpt"),
]


@pytest.mark.parametrize(("turns", "column", "found"), TURNS)
def test_conversations_are_told_apart_by_what_they_hold(turns, column, found, tmp_path):
    said = said_by(tmp_path / "d.jsonl", [{column: turns}])
    assert f"Nearest is {found}: " in said
    (record,) = read_records(tmp_path / "d.jsonl", reading_by(*flags_in(said)))
    assert values_in(record) == "<a> <b>"


def test_renames_that_were_given_stay(tmp_path):
    rows = [{"frage": "<a>", "reply": "<b>"}]
    said = said_by(tmp_path / "d.jsonl", rows, Reading(columns=("question=frage",)))
    assert """columns='("question=frage","prompt=question","completion=reply",)'""" in said
    (record,) = read_records(tmp_path / "d.jsonl", reading_by(*flags_in(said)))
    assert values_in(record) == "<a> <b>"


def test_rows_to_be_answered_need_no_answer(tmp_path):
    reading = Reading(flags="--reading.")
    said = said_by(tmp_path / "d.jsonl", [{"question": "<a>"}], reading, read_prompts)
    assert """Nearest is prompt_completion: --reading.columns='("prompt=question",)'""" in said
    (record,) = read_prompts(tmp_path / "d.jsonl", Reading(columns=("prompt=question",)))
    assert values_in(record) == "<a>"


def test_a_question_without_an_answer_gets_no_flag(tmp_path):
    assert flags_in(said_by(tmp_path / "d.jsonl", [{"prompt": "a"}])) == []
    said = said_by(tmp_path / "d.jsonl", [{"x": [1]}])
    assert "Formats are: messages, prompt_completion, labelled, alpaca," in said
    assert flags_in(said) == []


@pytest.mark.parametrize("columns", ["a, b", "question, wrong_answer", "question, negative", "premise, hypothesis"])
def test_no_column_is_taken_for_an_answer_that_is_not_named_like_one(columns, tmp_path):
    said = said_by(tmp_path / "d.jsonl", [{name: f"<{name}>" for name in columns.split(", ")}])
    assert "Formats are: messages, prompt_completion, labelled, alpaca," in said
    assert flags_in(said) == []


def test_of_two_answers_neither_is_asked(tmp_path):
    said = said_by(tmp_path / "d.jsonl", [{"chosen": "a", "rejected": "b"}])
    assert "there is no prompt" in said
    assert flags_in(said) == []


@pytest.mark.parametrize("place", [0, 1])
def test_cells_are_empty_and_values_null(place, tmp_path):
    lines = ["a,b", "c,d", "e,f"]
    lines[place] = ",d"
    (tmp_path / "d.csv").write_text("prompt,completion\n" + "\n".join(lines))
    with pytest.raises(RecordError, match=rf"d.csv:{place + 2}: 'prompt' is empty"):
        read_records(tmp_path / "d.csv")


LABELLED, UNLABELLED = ["a,x", "b,y"], ["c,", "d,", "e,"]


@pytest.mark.parametrize("lines", [LABELLED + UNLABELLED, UNLABELLED + LABELLED])
def test_rows_of_a_table_without_their_label_are_no_plain_text(lines, tmp_path):
    path = tmp_path / "d.csv"
    path.write_text("text,category\n" + "\n".join(lines))
    for on_bad_row in ("error", "drop"):
        with pytest.raises(RecordError) as error:
            list(RecordReader(path, Reading(on_bad_row=on_bad_row)))
        said = str(error.value)
        assert "no format fits the columns: 'category" in said
        assert "on_bad_row" not in said
        flags = flags_in(said)
        assert [flag.partition("=")[0][-8:] for flag in flags] == ["template"] * 2
        reader = RecordReader(path, reading_by(*flags, "--config.data.reading.on_bad_row=drop"))
        assert sorted(values_in(record) for record in reader) == ["a x", "b y"]
        assert len(reader.dropped) == 3


def test_an_empty_cell_is_named_where_it_hides_the_format(tmp_path):
    (tmp_path / "d.csv").write_text("text,category\na,\n")
    with pytest.raises(RecordError, match=r"no format fits the columns: 'category' \(empty\), 'text'\."):
        read_records(tmp_path / "d.csv")


def test_a_column_that_is_empty_in_every_row_can_be_left_out(tmp_path):
    (tmp_path / "d.csv").write_text("text,notes,title\na,,t\nb,,\n")
    with pytest.raises(RecordError, match="Nearest is text: ") as error:
        read_records(tmp_path / "d.csv")
    assert [
        values_in(record) for record in read_records(tmp_path / "d.csv", reading_by(*flags_in(str(error.value))))
    ] == [
        "a",
        "b",
    ]


@pytest.mark.parametrize("value", ["t", None])
def test_columns_that_not_all_rows_have(value, tmp_path):
    rows = [{"text": "a"}, {"text": "b", "title": value}, {"text": "c", "date": None}]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [values_in(record) for record in read_records(tmp_path / "d.jsonl")] == ["a", "b", "c"]
    rows = [{"messages": TURNS[0][0]}, {"messages": TURNS[0][0], "tools": None, "topic": value}]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert [values_in(record) for record in read_records(tmp_path / "d.jsonl")] == ["<a> <b>"] * 2


@pytest.mark.parametrize("place", [0, 2])
def test_the_nearest_format_comes_before_leaving_rows_out(place, tmp_path):
    rows = [{"text": "c"}] * 3
    rows[place:place] = [{"text": "a", "category": "x"}] * 2
    said = said_by(tmp_path / "d.jsonl", rows)
    assert "no format fits the columns: 'category', 'text'. Nearest is table: " in said
    assert said.endswith(" 2 of 5 rows cannot be read. To leave such rows out: --config.data.reading.on_bad_row=drop")
    *flags, _ = flags_in(said)
    reader = RecordReader(tmp_path / "d.jsonl", reading_by(*flags, "--config.data.reading.on_bad_row=drop"))
    assert [values_in(record) for record in reader] == ["a x"] * 2


GOOD = {"instruction": "do", "input": "x", "output": "b"}
ODD = {  # the odd one among rows of alpaca -> what is said of it
    "null": ({"instruction": None, "input": "x", "output": "b"}, "'instruction' is null"),
    "missing": ({"input": "x", "output": "b"}, "no format fits the columns: 'input', 'output'"),
    "a number": (GOOD | {"output": 3}, '"output": expected a string, got a number'),
    "a list": ([], "expected an object"),
}


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("kind", ODD)
def test_one_bad_row_is_counted_and_can_be_dropped(kind, place, tmp_path):
    bad, words = ODD[kind]
    rows = [GOOD] * 4
    rows[place] = bad
    said = said_by(tmp_path / "d.jsonl", rows)
    if place and kind in ("null", "missing"):
        words = "'instruction' is null or missing; row 1 is alpaca"
    assert said.startswith(f"{tmp_path / 'd.jsonl'}:{place + 1}: {words}")
    assert said.endswith(" 1 of 4 rows cannot be read. To leave such rows out: --config.data.reading.on_bad_row=drop")
    reader = RecordReader(tmp_path / "d.jsonl", reading_by(*flags_in(said)))
    assert [values_in(record) for record in reader] == ["do\nx b"] * 3
    assert [row.id for row in reader.dropped] == [f"d.jsonl:{place + 1}"]


def test_a_null_in_the_first_of_two_rows(tmp_path):
    said = said_by(tmp_path / "d.jsonl", [GOOD | {"instruction": None}, GOOD])
    assert "d.jsonl:1: 'instruction' is null. Expected" in said
    assert "columns=" not in said
    assert "1 of 2 rows cannot be read" in said


def test_where_all_rows_are_measured_none_is_left_out(tmp_path):
    said = said_by(tmp_path / "d.jsonl", [GOOD, [], GOOD], Reading(flags="--reading."))
    assert said.endswith("1 of 3 rows cannot be read.")


def test_where_most_rows_are_bad_nothing_is_advised_that_loses_them(tmp_path):
    assert "on_bad_row" not in said_by(tmp_path / "d.jsonl", [GOOD, {}, {}])


def test_rows_that_cannot_be_read_in_any_file(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    with pytest.raises(RecordError, match=r"none of 1 rows can be read.*Nearest is prompt_completion: ") as error:
        list(RecordReader(tmp_path / "a.jsonl", Reading(on_bad_row="drop")))
    assert len(read_records(tmp_path / "a.jsonl", reading_by(*flags_in(str(error.value))))) == 1


def test_a_suggestion_does_not_take_the_place_of_its_error(tmp_path):
    (tmp_path / "d.jsonl").write_text(json.dumps({"question": "a", "answer": "b"}) + "\n")
    with pytest.raises(RecordError, match=r"none of 1 rows can be read. The first: .* no column 'foo' to be renamed"):
        list(RecordReader(tmp_path / "d.jsonl", Reading(columns=("prompt=foo",), on_bad_row="drop")))


class Streamed:
    """Rows of the network: of which a few may be fetched once more, and which may be gone by then."""

    def __init__(self, rows, broken_after=None):
        self.rows, self.broken_after, self.fetched, self.passes = rows, broken_after, 0, 0

    def __call__(self):
        self.passes += 1
        for number, content in enumerate(self.rows, 1):
            if self.passes > 1 and number == self.broken_after:
                raise OSError("connection reset")
            self.fetched += 1
            yield Row(number, content)

    def read(self, monkeypatch):
        source = Source("set", "owner/set", "data set of the hub", self)
        monkeypatch.setattr(reading_rows, "sources_of", lambda path, reading: [source])
        with pytest.raises(RecordError) as error:
            read_records("owner/set")
        return str(error.value)


def test_of_streamed_rows_few_are_fetched_again(monkeypatch):
    streamed = Streamed([GOOD | {"output": 3}] + [GOOD] * 10_000)
    said = streamed.read(monkeypatch)
    assert said.startswith('owner/set:1: "output": expected a string, got a number')
    assert " 1 of the first 200 rows cannot be read." in said
    assert streamed.fetched <= 1 + 200


@pytest.mark.parametrize("bad", [GOOD | {"output": 3}, {"question": "a"}])
def test_an_error_stays_where_rows_cannot_be_fetched_again(bad, monkeypatch):
    said = Streamed([bad] + [GOOD] * 10, broken_after=3).read(monkeypatch)
    assert said.startswith("owner/set:1: ")
    assert "connection" not in said


def test_a_source_of_a_mixture_has_flags_of_its_own(tmp_path):
    reading = Reading(flags="--config.data.mixture.code.reading.")
    said = said_by(tmp_path / "d.jsonl", [{"question": "a", "answer": "b"}], reading)
    assert "--config.data.mixture.code.reading.columns=" in said
    assert "--config.data.reading" not in said
