"""The cleaned data set: what is written reads back as the same rows, and nothing is lost on the way."""

import dataclasses
import json

import pytest
from etils import epath

from sft_jax.data.cleaning import Changed
from sft_jax.data.conversations import Chat, Message, Preference, Segment, Segments, TokenRow, ToolCall
from sft_jax.data.reading import Reading
from sft_jax.data.records import DroppedRow, Record, read_records
from sft_jax.exports.data_set import check_free, reading_flags, row_fields, write_data_set
from sft_jax.exports.directory import ExportError

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
    TokenRow([5, 6, 7], [0.0, 1.0, 0.5]),
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


def test_flags_to_read_it_with():
    record = Record("t:1", EXAMPLES[0], {})
    assert reading_flags([record]) == "--config.data.reading.id_column=id"
    weighted = dataclasses.replace(record, weight=0.5)
    assert reading_flags([record, weighted]).endswith("id_column=id --config.data.reading.weight_column=weight")
    assert row_fields(record).keys() == {"messages", "id"}


def lines(path):
    return [json.loads(line) for line in path.read_text().rstrip("\n").split("\n")]


def test_what_is_left_out_and_changed_has_its_reason(tmp_path):
    out = epath.Path(tmp_path / "out")
    record = Record("t:1", EXAMPLES[1], {"messages": []})
    dropped, changed = DroppedRow("t:1", "step: why", "more"), Changed("t:1", "step", "how")
    write_data_set(out, [record], [(record, dropped)], [(record, changed)], {"rows": 1})
    assert lines(out / "dropped.jsonl") == [
        {"id": "t:1", "reason": "step: why", "detail": "more", "row": {"messages": []}}
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
