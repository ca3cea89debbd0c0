"""Records: their names, columns with a use of their own, renames, rows that are dropped, prompts."""

import gzip
import json

import pytest

from sft_jax.data.conversations import Message
from sft_jax.data.reading import DEFAULT, Reading
from sft_jax.data.records import DroppedRow, RecordError, RecordReader, iter_records, read_prompts, read_records

PAIR = {"prompt": "Hi", "completion": "Ho"}
TURNS = (Message("user", "Hi"), Message("assistant", "Ho"))


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSONL, returns the path."""

    def make(*rows, name="train.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return make


def test_files_that_share_a_name_with_others(tmp_path):
    """As training and held-out rows in folders of their own: ids tell them apart. The same file keeps its ids."""
    for folder in ("a/x", "b/x"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "rows.jsonl").write_text('{"text": "Once"}\n')
    train = RecordReader(tmp_path / "a/x/rows.jsonl")
    names = {
        name: [record.id for record in RecordReader(tmp_path / name / "x/rows.jsonl", DEFAULT, train.files)]
        for name in "ab"
    }
    assert names == {"a": ["rows.jsonl:1"], "b": ["x/rows.jsonl:1"]}
    both = [*train.files, ("x/rows.jsonl", train.files[0][1])]
    assert [r.id for r in RecordReader(tmp_path / "b/x/rows.jsonl", DEFAULT, both)] == ["b/x/rows.jsonl:1"]


def test_a_record_is_named_by_file_and_row(write):
    path = write(PAIR, PAIR | {"topic": 3})
    first, second = read_records(path)
    assert (first.id, second.id) == ("train.jsonl:1", "train.jsonl:2")
    assert first.conversation == second.conversation == TURNS
    assert second.fields == PAIR | {"topic": 3}
    assert (first.weight, first.group, first.source) == (1.0, "", "")


def test_columns_with_a_use_of_their_own(write):
    path = write(PAIR | {"key": 7, "w": 0.5, "topic": "a"}, PAIR | {"key": "x", "w": 2, "topic": 3})
    reading = Reading(id_column="key", weight_column="w", group_column="topic")
    assert [(r.id, r.weight, r.group) for r in read_records(path, reading)] == [("7", 0.5, "a"), ("x", 2.0, "3")]


def test_they_do_not_count_for_the_format(write):
    (record,) = read_records(write({"text": "Once", "topic": "a"}), Reading(group_column="topic"))
    assert record.group == "a"
    (record,) = read_records(write({"text": "Once", "topic": None}), Reading(group_column="topic"))
    assert record.group == ""


def test_renames(write):
    path = write({"question": "Hi", "data": {"answer": "Ho", "more": 1}, "prompt": None})
    reading = Reading(columns=("prompt=question", "completion=data.answer"))
    (record,) = read_records(path, reading)
    assert record.conversation == TURNS
    assert record.fields == {"prompt": "Hi", "completion": "Ho", "data": {"answer": "Ho", "more": 1}}


def test_a_system_message_for_those_that_have_none(write):
    path = write(
        {"messages": [{"role": "system", "content": "A"}, {"role": "user", "content": "Hi"}]},
        {"messages": [{"role": "user", "content": "Hi"}]},
    )
    starts = [record.conversation[0] for record in read_records(path, Reading(system="B"))]
    assert starts == [Message("system", "A"), Message("system", "B")]


def test_rows_that_cannot_be_read_are_dropped_by_name(write):
    path = write(PAIR, "{", "", {"prompt": "Hi"}, PAIR)
    reader = RecordReader(path, Reading(on_bad_row="drop"))
    assert [record.id for record in reader] == ["train.jsonl:1", "train.jsonl:5"]
    assert (reader.rows, reader.records) == (5, 2)
    assert [(row.id, row.reason) for row in reader.dropped] == [
        (f"train.jsonl:{n}", "not a valid row") for n in (2, 3, 4)
    ]
    assert "train.jsonl:2: not valid JSON (column 2" in reader.dropped[0].detail
    assert isinstance(reader.dropped[0], DroppedRow)
    assert [record.id for record in reader] == ["train.jsonl:1", "train.jsonl:5"]  # reading begins anew
    assert (reader.rows, len(reader.dropped)) == (5, 3)


def test_details_of_dropped_rows_do_not_change_where_files_move(tmp_path):
    rows = (
        '{"prompt": 3, "completion": "a"}\n{"prompt": "a", "completion": "b"}\n{\n',
        "prompt,completion\na,b\na,b,c\n",
    )
    details = []
    for folder in ("here", "there"):
        for name, text in zip(("a.jsonl", "a.csv"), rows, strict=True):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / name).write_text(text)
        reader = RecordReader(tmp_path / folder / "a.*", Reading(on_bad_row="drop"))
        assert len(list(reader)) == 2
        details.append([row.detail for row in reader.dropped])
    assert details[0] == details[1]
    assert [detail.split(" ")[0] for detail in details[0]] == ["a.csv:3:", "a.jsonl:1:", "a.jsonl:3:"]


def test_a_list_alone_would_lose_dropped_rows(write):
    with pytest.raises(ValueError, match="iterate over RecordReader, and look"):
        iter_records(write(PAIR), Reading(on_bad_row="drop"))


def test_nothing_left(write):
    with pytest.raises(RecordError, match=r"none of 2 rows can be read. The first: .*train.jsonl:1: no format"):
        list(RecordReader(write({"a": 1}, "x"), Reading(on_bad_row="drop")))


def test_what_was_read_is_said(write, tmp_path):
    write(PAIR, name="a.jsonl"), write(PAIR, name="b.jsonl")
    (tmp_path / "c.csv").write_text("text\nOnce\n")
    (tmp_path / "d.json").write_text(json.dumps([{"instruction": "Hi", "output": "Ho"}]))
    reader = RecordReader(tmp_path / "*.*")
    assert [record.id for record in reader] == ["a.jsonl:1", "b.jsonl:1", "c.csv:2", "d.json:1"]
    assert reader.notes == [
        "2 files (a.jsonl … b.jsonl): JSONL, prompt_completion",
        "c.csv: CSV, text",
        "d.json: JSON, alpaca",
    ]


def test_reading_is_streamed(write):
    """A million rows would never be held: the second row is not looked at before it is asked for."""
    records = iter_records(write(PAIR, "broken"))
    assert next(records).id == "train.jsonl:1"
    with pytest.raises(RecordError, match=r"train.jsonl:2: not valid JSON"):
        next(records)


def test_prompts(write):
    path = write(
        {"prompt": "Hi"},
        {"prompt": "Hi", "completion": "Ho"},
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    )
    assert [record.conversation for record in read_prompts(path)] == [TURNS[:1]] * 3
    path = write({"instruction": "Hi", "input": ""})
    assert [record.conversation for record in read_prompts(path)] == [TURNS[:1]]
    path = write({"text": "Hi"})
    assert [record.conversation for record in read_prompts(path, Reading(prompt_template="{text}"))] == [TURNS[:1]]


def test_a_prompt_must_be_left(write):
    path = write({"messages": [{"role": "assistant", "content": "Ho"}]})
    with pytest.raises(RecordError, match=r"row train.jsonl:1 holds nothing but an answer"):
        read_prompts(path)


OPTIONS = [
    ({"format": "alpacka"}, "format='alpacka' must be one of auto, messages"),
    ({"container": "xls"}, "container='xls' must be one of auto, jsonl"),
    ({"on_bad_row": "skip"}, "on_bad_row='skip' must be one of error, drop"),
    ({"columns": ("a",)}, r"columns: 'a' is no rename; expected .new=old."),
    ({"prompt_template": "{a"}, r"prompt_template='{a': a single '{' at character 1"),
    ({"format": "alpaca", "prompt_template": "{a}"}, "prompt_template is not read by .*format=alpaca"),
]


@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_options_without_meaning(write, options, words):
    with pytest.raises(ValueError, match=words):
        RecordReader(write(PAIR), Reading(**options))


def test_compressed(tmp_path):
    (tmp_path / "train.jsonl.gz").write_bytes(gzip.compress(json.dumps(PAIR).encode()))
    assert [record.id for record in read_records(tmp_path / "train.jsonl.gz")] == ["train.jsonl.gz:1"]
