"""The cleaned data set: what is written reads back as the same records, and nothing is lost on the way."""

import dataclasses
import json

import pyarrow
import pytest
from etils import epath

from sft_jax.data.cleaning import Changed
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenExample, ToolCall
from sft_jax.data.reading import Reading
from sft_jax.data.records import DroppedRow, Record, read_records
from sft_jax.exports.data_set import check_free, data_files, reading_flags, write_data_set
from sft_jax.exports.directory import ExportError
from tests.command_line import flags_in, reading_by
from tests.data.files.arrow_types import IN_COLUMNS, STORED, arrow_file, stored

TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
ASK = Message("user", "a\u2028\n")
EXAMPLES = [
    Chat((Message("system", "s"), ASK, Message("assistant", "b", weight=0.5), ASK, Message("assistant", "c"))),
    Chat((ASK, Message("assistant", "b", reasoning="because"))),
    Chat((ASK, Message("assistant", "abcdef", ranges=((1, 2, 0.0), (4, 6, 0.5))))),
    Chat(
        (
            ASK,
            Message("assistant", "", tool_calls=(ToolCall("f", {"x": [1, "y"]}, "1"),)),
            Message("tool", "r", name="f", tool_call_id="1"),
            Message("assistant", "b"),
        ),
        tools=(TOOL,),
    ),
    Segments((Segment("a", 0.0), Segment("b", 0.25))),
    TokenExample([5, 6, 7], [0.0, 1.0, 0.5]),
    Preference((ASK,), (Message("assistant", "b"),), (Message("assistant", "c"),)),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_form_reads_back(tmp_path, example):
    record = Record("a.csv:3", example, {"text": "as read", "label": 7}, weight=2.0, group="g")
    out = epath.Path(tmp_path / "out")
    write_data_set(out, [record], [], [], {})
    reading = Reading(id_column="id", weight_column="weight", group_column="group")
    (again,) = read_records(out / "data.jsonl", reading)
    assert (again.id, again.weight, again.group) == ("a.csv:3", 2.0, "g")
    assert again.fields["label"] == 7
    assert dataclasses.replace(again, fields={}) == dataclasses.replace(record, fields={})


def read_back(out, records):
    """The records of what is written of these, read with the flags that the command prints."""
    write_data_set(out, records, [], [], {})
    again = []
    for name, of_file in data_files(records).items():
        flags = dict(flag.removeprefix("--config.data.reading.").split("=") for flag in reading_flags(of_file).split())
        again += read_records(out / name, Reading(**flags))
    return again


def plain(records):
    return sorted((dataclasses.replace(record, fields={}) for record in records), key=lambda record: record.id)


def test_texts_that_end_and_texts_that_do_not(tmp_path):
    """They are files of their own, each read with the option that it needs."""
    parts = (Segment("a", 0.0), Segment("b", 1.0))
    records = [Record(f"t:{number}", Segments(parts, ends=number == 1), {}) for number in range(3)]
    assert set(data_files(records)) == {"segments.jsonl", "segments_with_end.jsonl"}
    assert plain(read_back(epath.Path(tmp_path / "out"), records)) == plain(records)


def test_weights_and_groups_of_some_rows(tmp_path):
    """Rows of weight 1 and rows without a group stand beside others."""
    records = [Record(f"t:{number}", EXAMPLES[0], {}) for number in range(3)]
    records[1] = dataclasses.replace(records[1], weight=0.5, group="g")
    assert plain(read_back(epath.Path(tmp_path / "out"), records)) == plain(records)


def test_columns_that_say_something_else_stay(tmp_path):
    """A table's own column "weight" is no weight of rows."""
    record = Record("t:1", EXAMPLES[0], {"weight": "5 kg", "group": "fruit", "colour": "red"})
    (again,) = read_back(epath.Path(tmp_path / "out"), [record])
    assert (again.weight, again.group) == (1.0, "")
    assert {name: again.fields[name] for name in record.fields} == record.fields


def test_rows_of_annotation_tools_keep_their_annotations(tmp_path):
    fields = {"data": {"text": "a"}, "annotations": [{"completed_by": 1, "result": []}]}
    (again,) = read_back(epath.Path(tmp_path / "out"), [Record("t:1", EXAMPLES[0], fields)])
    assert again.example == EXAMPLES[0]
    assert {name: again.fields[name] for name in fields} == fields


def test_rows_of_several_forms_are_files_of_their_own(tmp_path):
    """As of a mixture: all rows of a file are of one form."""
    records = [Record(f"t:{number}", example, {}) for number, example in enumerate(EXAMPLES)]
    out = epath.Path(tmp_path / "out")
    assert plain(read_back(out, records)) == plain(records)
    names = {path.name for path in out.iterdir()} - {"dropped.jsonl", "changed.jsonl", "report.json"}
    assert names == {"messages.jsonl", "segments.jsonl", "tokens.jsonl", "preference.jsonl"}


def lines(path):
    return [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]


def test_what_is_left_out_and_changed_has_its_reason(tmp_path):
    out = epath.Path(tmp_path / "out")
    record = Record("t:1", EXAMPLES[1], {"messages": []})
    dropped, changed = DroppedRow("t:1", "step: why", "more"), Changed("t:1", "step", "how")
    unread = (None, DroppedRow("t:2", "not a valid row", "no role"))
    write_data_set(out, [record], [(record, dropped), unread], [(record, changed)], {"rows": 1})
    assert lines(out / "dropped.jsonl") == [
        {"id": "t:1", "reason": "step: why", "detail": "more", "row": {"messages": []}},
        {"id": "t:2", "reason": "not a valid row", "detail": "no role", "row": None},
    ]
    (change,) = lines(out / "changed.jsonl")
    assert (change["id"], change["step"], change["reason"]) == ("t:1", "step", "how")
    assert change["row"]["messages"][1]["reasoning_content"] == "because"
    assert json.loads((out / "report.json").read_text()) == {"rows": 1}


def test_nothing_is_overwritten(tmp_path):
    out, record = epath.Path(tmp_path / "out"), Record("t:1", EXAMPLES[0], {})
    write_data_set(out, [record], [], [], {})
    with pytest.raises(ExportError, match=r"--write=.*out exists; give another directory, or --force"):
        write_data_set(out, [], [], [], {})
    check_free(out, force=True)
    write_data_set(out, [record, record], [], [], {}, force=True)
    assert len(lines(out / "data.jsonl")) == 2
    other = epath.Path(tmp_path / "other")
    other.mkdir()
    (other / "mine.txt").write_text("kept")
    with pytest.raises(ExportError, match=r"has no report\.json, so it is no earlier export"):
        write_data_set(other, [], [], [], {}, force=True)


def test_a_row_that_cannot_be_written_leaves_nothing(tmp_path):
    out = epath.Path(tmp_path / "out")
    bad = Record("t:1", Chat((Message("user", "\ud800"),)), {})
    with pytest.raises(UnicodeEncodeError):
        write_data_set(out, [bad], [], [], {})
    assert list(tmp_path.iterdir()) == []


CASES = STORED + IN_COLUMNS


@pytest.mark.parametrize(("kind", "value"), [case[:2] for case in CASES], ids=[f"{k} {v}" for k, v, _ in CASES])
def test_every_type_of_an_unread_column_reads_back_or_is_refused(tmp_path, kind, value):
    """In rows that are kept and in rows that are dropped; what is refused is left out as advised."""
    columns = {"prompt": pyarrow.array(["a"]), "completion": pyarrow.array(["b"]), "v": stored(kind, value)}
    (tmp_path / "a.arrow").write_bytes(arrow_file(columns))
    (record,) = read_records(tmp_path / "a.arrow")
    out, dropped = epath.Path(tmp_path / "out"), [(record, DroppedRow("a.arrow:1", "long"))]
    try:
        write_data_set(out, [record], dropped, [], {})
        lost = set()
    except ExportError as error:
        assert "--write: a.arrow:1: 'v' holds " in str(error)  # noqa: PT017  most types are written
        assert list(tmp_path.iterdir()) == [tmp_path / "a.arrow"]
        (flag,) = flags_in(str(error))
        ignore = reading_by(flag).ignore
        write_data_set(out, [record], dropped, [], {}, ignore=ignore)
        lost = set(ignore)
    (again,) = read_records(out / "data.jsonl")
    kept = {name: found for name, found in record.fields.items() if name not in lost}
    assert again.example == record.example
    assert again.fields.get("v") == kept.get("v")
    assert lines(out / "dropped.jsonl")[0]["row"] == kept
    binary = pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind) or kind == pyarrow.binary_view()
    assert not binary or lost == {"v"}


def test_columns_to_ignore_stay_where_json_can_say_them(tmp_path):
    """Only what cannot be written is left out, in all rows; the others are read without by the same flag."""
    fields = {"image": {"bytes": b"x", "path": None}, "mood": "glad", "seen": 3}
    records = [Record("t:1", EXAMPLES[0], fields), Record("t:2", EXAMPLES[0], fields | {"image": "a.png"})]
    out = epath.Path(tmp_path / "out")
    with pytest.raises(ExportError, match=r"t:1: 'image' holds bytes: no value of JSON"):
        write_data_set(out, records, [], [], {}, ignore=("mood",))
    write_data_set(out, records, [], [], {}, ignore=("mood", "image"))
    assert [set(line) - {"messages", "id"} for line in lines(out / "data.jsonl")] == [{"mood", "seen"}] * 2
