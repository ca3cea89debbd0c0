"""Every type that a container can hold, in every place a value can go: as JSONL says it, or an error of its row."""

import decimal
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from sft_jax.data.files import CONTAINERS, Row, Source
from sft_jax.data.reading import Reading, RecordError
from sft_jax.data.records import RecordReader, read_records
from tests.data.files.arrow_types import IN_COLUMNS, NO, STORED, arrow_file, stored

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


def arrow_row(columns):
    (row,) = CONTAINERS["arrow"].rows(io.BytesIO(arrow_file(columns)), "a")
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
    ("prompt,completion,label\na,b,False\n", {"format": "prompt_completion"}, '"label" is false'),
    ("prompt,completion,label\na,b,False\n", {}, ("a", "b")),
    ("prompt,completion,label\na,b,x\n", {}, '"label": expected true or false'),
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
