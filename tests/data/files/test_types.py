"""Every type that a container can hold, in every place a value can go: as JSONL says it, or an error of its row."""

import datetime
import decimal
import io
import json

import numpy as np
import pyarrow
import pytest

from sft_jax.data.files import CONTAINERS, Row, Source
from sft_jax.data.reading import Reading, RecordError
from sft_jax.data.records import RecordReader, read_records

NO = object()  # no value of JSON says this: an error wherever it is read
STORED = [
    (pyarrow.string(), "Hi", "Hi"),
    (pyarrow.large_string(), "Hi", "Hi"),
    (pyarrow.string_view(), "Hi", "Hi"),
    (pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), "Hi", "Hi"),
    (pyarrow.run_end_encoded(pyarrow.int32(), pyarrow.string()), "Hi", "Hi"),
    (pyarrow.json_(), '{"a": 1}', '{"a": 1}'),
    (pyarrow.string(), "", ""),
    (pyarrow.bool_(), True, True),
    (pyarrow.bool_(), False, False),
    (pyarrow.bool8(), 1, True),
    (pyarrow.int8(), -3, -3),
    (pyarrow.uint64(), 2**63, 2**63),
    (pyarrow.float64(), 0.5, 0.5),
    (pyarrow.float64(), 3.0, 3.0),
    (pyarrow.float32(), 0.1, 0.1),
    (pyarrow.float16(), np.float16(0.1), 0.1),
    (pyarrow.float64(), float("inf"), NO),
    (pyarrow.binary(), b"Hi", NO),
    (pyarrow.large_binary(), b"Hi", NO),
    (pyarrow.binary_view(), b"Hi", NO),
    (pyarrow.binary(2), b"Hi", NO),
    (pyarrow.date32(), datetime.date(2026, 1, 31), "2026-01-31"),
    (pyarrow.date64(), datetime.date(2026, 1, 31), "2026-01-31"),
    (pyarrow.timestamp("s"), datetime.datetime(2026, 1, 31, 9, 5), "2026-01-31T09:05:00"),
    (pyarrow.timestamp("ns"), 1, "1970-01-01T00:00:00.000000001"),
    (pyarrow.timestamp("ms", "+02:00"), 0, "1970-01-01T02:00:00+02:00"),
    (pyarrow.time32("s"), datetime.time(9, 5), "09:05:00"),
    (pyarrow.time64("us"), datetime.time(9, 5, 0, 7), "09:05:00.000007"),
    (pyarrow.duration("s"), datetime.timedelta(1), NO),
    (pyarrow.month_day_nano_interval(), (1, 2, 3), NO),
    (pyarrow.uuid(), bytes(16), "00000000-0000-0000-0000-000000000000"),
    (pyarrow.list_(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.large_list(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.list_(pyarrow.int32(), 2), [5, 6], [5, 6]),
    (pyarrow.list_view(pyarrow.int32()), [5, 6], [5, 6]),
    (pyarrow.list_(pyarrow.int32()), [5, None], [5, None]),
    (pyarrow.list_(pyarrow.float32()), [0.1, 1.0], [0.1, 1.0]),
    (pyarrow.list_(pyarrow.float64()), [float("nan")], NO),
    (pyarrow.list_(pyarrow.decimal128(5, 2)), [decimal.Decimal("1.50")], NO),
    (pyarrow.struct([("a", pyarrow.float32())]), {"a": 0.1}, {"a": 0.1}),
    (pyarrow.struct([("a", pyarrow.int8()), ("b", pyarrow.int8())]), {"a": 1}, NO),
    (pyarrow.struct([("a", pyarrow.float64())]), {"a": float("nan")}, NO),
    (pyarrow.struct([("a", pyarrow.binary())]), {"a": b"Hi"}, NO),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), {"a": 1}, {"a": 1}),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), {"a": None}, {"a": None}),
    (pyarrow.map_(pyarrow.int8(), pyarrow.int8()), [(1, 2)], NO),
    (pyarrow.map_(pyarrow.string(), pyarrow.int8()), [("a", 1), ("a", 2)], NO),
]
IN_COLUMNS = [  # what differs under the name of a column, where null is nothing
    (pyarrow.null(), None, None),
    (pyarrow.string(), None, None),
    (pyarrow.float64(), float("nan"), None),
    (pyarrow.float32(), float("nan"), None),
    (pyarrow.struct([("a", pyarrow.int8())]), None, None),
    (pyarrow.decimal128(5, 2), decimal.Decimal("1.50"), "1.50"),
    (pyarrow.decimal256(9, 7), decimal.Decimal("0.0000001"), "0.0000001"),
    (pyarrow.time64("ns"), 1_500, "00:00:00.0000015"),
]
IN_OBJECTS = [  # and under a key whose value is data: null may be that of other rows
    (pyarrow.null(), None, NO),
    (pyarrow.string(), None, NO),
    (pyarrow.float64(), float("nan"), NO),
    (pyarrow.decimal128(5, 2), decimal.Decimal("1.50"), NO),
    (pyarrow.time64("ns"), 1_500, NO),
]
UNREAD = {"label", "a key that nothing reads", "tools"}  # of tools, what Arrow adds is left out: see below


class InJson:
    """Makes the values of a row of JSONL."""

    def text(self, value):
        return value

    def object(self, **values):
        return values

    def list(self, value):
        return [value]


class InArrow:
    """Makes the same values as arrays of one row."""

    def text(self, value):
        return pyarrow.array([value])

    def object(self, **values):
        return pyarrow.StructArray.from_arrays(list(values.values()), list(values))

    def list(self, value):
        return pyarrow.ListArray.from_arrays([0, 1], value)


def message(make, role="assistant", **fields):
    return {"messages": make.list(make.object(role=make.text(role), **fields))}


def call(make, **fields):
    return message(make, content=make.text(""), tool_calls=make.list(make.object(**fields)))


def pair(make, **fields):
    return {"prompt": make.text("a"), "completion": make.text("b")} | fields


def tools(make, **parameters):
    inner = make.object(name=make.text("f"), parameters=make.object(**parameters))
    return message(make, content=make.text("a")) | {"tools": make.list(make.object(function=inner))}


TABLE = {"prompt_template": "{v}", "answer_template": "b"}
COLUMNS = {  # place -> (columns of the row, options)
    "a table": (lambda make, v: {"v": v}, TABLE),
    "a table with a default": (lambda make, v: {"v": v}, TABLE | {"prompt_template": "{v|none}"}),
    "an answer": (lambda make, v: {"v": v}, {"prompt_template": "a", "answer_template": "{v}"}),
    "text": (lambda make, v: {"text": v}, {"format": "text"}),
    "prompt": (lambda make, v: pair(make, prompt=v), {"format": "prompt_completion"}),
    "completion": (lambda make, v: pair(make, completion=v), {"format": "prompt_completion"}),
    "label": (lambda make, v: pair(make, label=v), {}),
    "system": (lambda make, v: pair(make, system=v), {}),
    "input": (lambda make, v: {"instruction": make.text("a"), "input": v, "output": make.text("b")}, {}),
    "output": (lambda make, v: {"instruction": make.text("a"), "output": v}, {"format": "alpaca"}),
    "messages": (lambda make, v: {"messages": v}, {"format": "messages"}),
    "conversations": (lambda make, v: {"conversations": v}, {"format": "sharegpt"}),
    "tools": (lambda make, v: message(make, content=make.text("a")) | {"tools": v}, {}),
    "chosen": (
        lambda make, v: {"prompt": make.text("a"), "chosen": v, "rejected": make.text("b")},
        {"format": "preference"},
    ),
    "segments": (lambda make, v: {"segments": v}, {"format": "segments"}),
    "ids": (lambda make, v: {"input_ids": v, "labels": v}, {"format": "tokens"}),
    "attention_mask": (
        lambda make, v: {"input_ids": make.list(make.text(5)), "labels": make.list(make.text(5)), "attention_mask": v},
        {},
    ),
    "id": (lambda make, v: pair(make, v=v), {"id_column": "v"}),
    "weight": (lambda make, v: pair(make, v=v), {"weight_column": "v"}),
    "group": (lambda make, v: pair(make, v=v), {"group_column": "v"}),
}
KEYS = {
    "role": lambda make, v: (
        message(make, content=make.text("a")) | {"messages": make.list(make.object(role=v, content=make.text("a")))}
    ),
    "content": lambda make, v: message(make, content=v),
    "a part": lambda make, v: message(make, content=make.list(make.object(type=make.text("text"), text=v))),
    "the type of a part": lambda make, v: message(make, content=make.list(make.object(type=v, text=make.text("a")))),
    "the weight of a message": lambda make, v: message(make, content=make.text("a"), weight=v),
    "train": lambda make, v: message(make, content=make.text("a"), train=v),
    "reasoning_content": lambda make, v: message(make, content=make.text("a"), reasoning_content=v),
    "a key that nothing reads": lambda make, v: message(make, content=make.text("a"), mood=v),
    "tool_calls": lambda make, v: message(make, content=make.text("a"), tool_calls=v),
    "the id of a call": lambda make, v: call(make, id=v, name=make.text("f"), arguments=make.text("{}")),
    "the name of a call": lambda make, v: call(make, name=v, arguments=make.text("{}")),
    "the function of a call": lambda make, v: call(make, name=make.text("f"), arguments=make.text("{}"), function=v),
    "arguments": lambda make, v: call(make, name=make.text("f"), arguments=v),
    "the text of a segment": lambda make, v: {"segments": make.list(make.object(text=v, train=make.text(True)))},
    "the weight of a segment": lambda make, v: {"segments": make.list(make.object(text=make.text("a"), weight=v))},
    "from": lambda make, v: {"conversations": make.list(make.object(**{"from": v, "value": make.text("a")}))},
    "value": lambda make, v: {"conversations": make.list(make.object(**{"from": make.text("gpt"), "value": v}))},
    "a token": lambda make, v: {"input_ids": make.list(v), "labels": make.list(v)},
    "a weight of a token": lambda make, v: {"input_ids": make.list(make.text(5)), "weights": make.list(v)},
    "a mask of a token": lambda make, v: {"input_ids": make.list(make.text(5)), "loss_mask": make.list(v)},
}
OBJECTS = {
    "an argument": (lambda make, v: call(make, name=make.text("f"), arguments=make.object(x=v)), {}),
    "a default": (lambda make, v: tools(make, properties=make.object(x=make.object(default=v))), {}),
    "an example in a definition": (
        lambda make, v: tools(make, properties=make.object(x=make.object(examples=make.list(make.object(y=v))))),
        {},
    ),
    "a key in a table": (lambda make, v: {"v": make.object(x=v)}, TABLE),
    "a key in a list in a table": (lambda make, v: {"v": make.list(make.object(x=v))}, TABLE),
}
PLACES = [(name, *place, STORED + IN_COLUMNS) for name, place in COLUMNS.items()]
PLACES += [(name, place, {}, STORED) for name, place in KEYS.items()]
PLACES += [(name, *place, STORED + IN_OBJECTS) for name, place in OBJECTS.items()]


def stored(kind, value):
    if isinstance(kind, pyarrow.BaseExtensionType):
        return pyarrow.ExtensionArray.from_storage(kind, pyarrow.array([value], kind.storage_type))
    if pyarrow.types.is_dictionary(kind) or pyarrow.types.is_run_end_encoded(kind):
        plain = pyarrow.array([value])
        return plain.dictionary_encode() if pyarrow.types.is_dictionary(kind) else pyarrow.compute.run_end_encode(plain)
    return pyarrow.array([value], kind)


def arrow_row(columns):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_file(sink, (content := pyarrow.table(columns)).schema) as writer:
        writer.write_table(content)
    (row,) = CONTAINERS["arrow"].rows(io.BytesIO(sink.getvalue()), "a")
    return row.content


def outcomes(contents, options, monkeypatch):
    """What is trained of each row, and how it is named, weighed and grouped; or that it is an error."""
    rows = [Row(number, content) for number, content in enumerate(contents)]
    monkeypatch.setattr("sft_jax.data.records.sources_of", lambda *_: [Source("a", "a", "rows", lambda: iter(rows))])
    reader = RecordReader("a", Reading(on_bad_row="drop", **options))
    try:
        records = list(reader)
    except RecordError:  # not one of them can be read
        records = []
    bad = {row.id for row in reader.dropped}
    assert all(row.detail.startswith(f"{row.id}: ") for row in reader.dropped)
    good = (f"{record.example} {record.weight} {record.group}" for record in records)
    return ["an error" if f"a:{number}" in bad else next(good) for number in range(len(rows))]


@pytest.mark.parametrize(("name", "place", "options", "values"), PLACES, ids=[name for name, *_ in PLACES])
def test_every_type_in_every_place(monkeypatch, name, place, options, values):
    """What Arrow holds gives what the same row of JSONL gives; what JSONL cannot say is an error of its row."""
    if name in UNREAD:
        values = [case for case in values if case[2] is not NO]
    in_arrow = [arrow_row(place(InArrow(), stored(kind, value))) for kind, value, _ in values]
    in_json = [
        RecordError(f"a:{number}: not JSON") if twin is NO else place(InJson(), twin)
        for number, (_, _, twin) in enumerate(values)
    ]
    pairs = zip(outcomes(in_arrow, options, monkeypatch), outcomes(in_json, options, monkeypatch), strict=True)
    for (kind, value, _), (found, expected) in zip(values, pairs, strict=True):
        assert found == expected, (kind, value)


def test_a_union_is_refused():
    union = pyarrow.UnionArray.from_sparse(pyarrow.array([0], pyarrow.int8()), [pyarrow.array(["a"])])
    with pytest.raises(RecordError, match=r'a: "v": values of type sparse_union.* cannot be read. Store .* JSON str'):
        arrow_row({"v": union})


def test_a_year_that_nobody_can_name():
    with pytest.raises(RecordError, match=r'a: "v": values of type date32\[day\] cannot be read .* Store them as text'):
        arrow_row({"v": pyarrow.array([10**8], pyarrow.date32())})


F = {"type": "function", "function": {"name": "f", "description": "d", "strict": True}}
G = {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}}


def schema(**properties):
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": "f", "parameters": parameters}}


DEFINITIONS = [  # (definitions of the tool of each row, words of the error)
    ([F, G, schema(x={"type": "string"})], ""),
    ([schema(x={"type": "string"}), schema(y={"type": "integer", "minimum": 1}), schema(x={"enum": ["a", None]})], ""),
    ([schema(x={"type": "array", "items": {"type": "string"}}), schema(x={"type": "object", "required": ["a"]})], ""),
    ([schema(default={"type": "string"}, const={"type": "string"}), schema(x={"type": "string"})], ""),
    ([schema(x={"default": {"a": 1}}), schema(y={"type": "string"})], ""),
    ([{"name": "f", "input_schema": {"type": "object"}}, {"name": "g", "description": "d"}], ""),
    ([schema(x={"type": "string", "default": "a"}), schema(x={"type": "integer"})], "'default' is null in an object"),
    ([schema(x={"type": "string"}), schema(x={"const": 3})], "'const' is null in an object"),
    ([schema(x={"default": {"a": 1}}), schema(x={"default": {"b": 1}})], "'b' is null in an object"),
    ([schema(x={"examples": [{"a": 1}]}), schema(x={"examples": [{"b": 1}]})], "'b' is null in an object"),
]


@pytest.mark.parametrize(("definitions", "words"), DEFINITIONS)
def test_keys_that_arrow_added_to_definitions(tmp_path, definitions, words):
    """They are left out where a null says nothing; where it might, the row and the remedy are named."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": turns, "tools": [definition]} for definition in definitions]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    if words:
        with pytest.raises(RecordError, match=rf'a\.parquet:\d: "messages": "tools"\[0\]: {words}.* as JSON strings'):
            read_records(tmp_path / "a.parquet")
    else:
        found = [record.example.tools for record in read_records(tmp_path / "a.parquet")]
        assert found == [(definition,) for definition in definitions]


NULLS = [  # messages of rows that are not alike: what is null in one is not there
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "weight": 0.5, "reasoning_content": "c"},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "name": "f", "arguments": "{}"}]},
        {"role": "tool", "content": "d", "name": "f", "tool_call_id": "1"},
    ],
    [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}],
]
PARTS = [
    [{"role": "user", "content": [{"text": "a"}]}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}],
    [{"role": "user", "content": [{"type": "text", "content": "a", "weight": 0}]}],
]


@pytest.mark.parametrize("conversations", [NULLS, PARTS])
def test_keys_that_arrow_added_to_messages(tmp_path, conversations):
    rows = [{"messages": messages} for messages in conversations]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, expected = (read_records(tmp_path / name) for name in ("a.parquet", "a.jsonl"))
    assert [record.example for record in found] == [record.example for record in expected]


CELLS = [  # (file, options, question and answer, or words of the error)
    ("v,w\n,b\n", {"prompt_template": "{v|none}", "answer_template": "{w}"}, ("none", "b")),
    ('v,w\n"",b\n', {"prompt_template": "{v|none}", "answer_template": "{w}"}, ("none", "b")),
    ("v,w\nnan,b\n", {"prompt_template": "{v|none}", "answer_template": "{w}"}, ("nan", "b")),
    ("v,w\n,b\n", {"prompt_template": "{v}", "answer_template": "{w}"}, "the row has no 'v'"),
    ("instruction,input,output\na,,b\n", {}, ("a", "b")),
    ("prompt,completion,system,tools\na,b,,\n", {}, ("a", "b")),
    ("prompt,completion,g\na,b,\n", {"group_column": "g"}, ("a", "b")),
    ("prompt,completion\na,\n", {"format": "prompt_completion"}, '"completion" is missing'),
    ("prompt,completion,label\na,b,False\n", {}, '"label" is false'),
    ("prompt,completion,w\na,b,\n", {"weight_column": "w"}, '"w": expected a weight'),
]


@pytest.mark.parametrize(("content", "options", "expected"), CELLS)
def test_cells_of_csv(tmp_path, content, options, expected):
    """An empty one is no value."""
    (tmp_path / "a.csv").write_text(content)
    if isinstance(expected, str):
        with pytest.raises(RecordError, match=expected):
            read_records(tmp_path / "a.csv", Reading(**options))
    else:
        (record,) = read_records(tmp_path / "a.csv", Reading(**options))
        assert tuple(turn.content for turn in record.conversation) == expected


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": {"x": "BIG"}}]}]},
        {"messages": [{"role": "assistant", "content": "a"}], "tools": [{"name": "f", "x": "BIG"}]},
        {"text": "BIG", "label": "a"},
    ],
)
def test_numbers_that_are_too_large_for_a_float(tmp_path, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row).replace('"BIG"', "1e999"))
    templates = {"prompt_template": "{text}", "answer_template": "{label}"} if "text" in row else {}
    with pytest.raises(RecordError, match=r"a\.jsonl:1: .* holds inf, which is no value of JSON"):
        read_records(tmp_path / "a.jsonl", Reading(**templates))
