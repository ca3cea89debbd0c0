"""Whatever lies in a row or a file: it is read, or the error is one that names it."""

import datetime
import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data.conversations import Chat, Preference, Segments, TokenExample
from sft_jax.data.files import CONTAINERS
from sft_jax.data.formats import FORMATS, annotations_of
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, RecordReader

# Every word that a format looks for, so that random objects come near to being rows.
WORDS = [
    "messages",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "conversations",
    "from",
    "value",
    "chosen",
    "rejected",
    "text",
    "segments",
    "train",
    "label",
    "weight",
    "input_ids",
    "tokens",
    "labels",
    "weights",
    "loss_mask",
    "attention_mask",
    "role",
    "content",
    "type",
    "tool_calls",
    "function",
    "function_call",
    "name",
    "arguments",
    "id",
    "tools",
    "reasoning",
    "thinking",
    "tool_call_id",
    "train_detail",
    "begin_offset",
    "end_offset",
    "data",
    "annotations",
    "result",
    "completed_by",
    "from_name",
    "fields",
    "responses",
    "user_id",
    "status",
    "values",
    "q.responses",
    "q.responses.users",
    "user",
    "assistant",
    "tool",
    "human",
    "gpt",
    "choices",
    "submitted",
]
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 9),
    st.floats(),
    st.sampled_from([*WORDS, "", "[", "{}", "[1]", "\ud800"]),
    st.sampled_from([b"x", datetime.date(2020, 1, 1)]),  # of Parquet files
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(WORDS), VALUES, max_size=6)
READINGS = st.sampled_from(
    [
        Reading(),
        Reading(prompts_only=True),
        Reading(prompt_template="{text}", answer_template="{label|x}"),
        Reading(prompt_template="{text|}", answer_template="{q|}", label="majority", ties="first"),
    ]
)


def outcome(call):
    """What it returns, or the message of its RecordError; any other error is a failure."""
    try:
        return call()
    except RecordError as error:
        return str(error)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=120, deadline=None, derandomize=True)
@given(fields=ROWS, reading=READINGS)
def test_rows(name, fields, reading):
    parsed = outcome(lambda: FORMATS[name].parse(fields, "here", reading))
    assert isinstance(parsed, Chat | Segments | TokenExample | Preference) or parsed.startswith("here: ")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(fields=ROWS)
def test_annotations(fields):
    found = outcome(lambda: annotations_of(fields))
    assert isinstance(found, dict) or found.startswith("the row: ")


PAIRS = [{"prompt": f"question {i}", "completion": 'an answer, "so"\nit is'} for i in range(5)]


def parquet():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PAIRS), sink)
    return sink.getvalue().to_pybytes()


def arrow():
    sink, table = pyarrow.BufferOutputStream(), pyarrow.Table.from_pylist(PAIRS)
    with pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


JSONL = "".join(json.dumps(pair) + "\n" for pair in PAIRS).encode()
CSV = ("prompt,completion\n" + 'q,"a, ""so""\nit is"\n' * 5).encode()
FILES = {
    "jsonl": JSONL,
    "json": json.dumps(PAIRS).encode(),
    "csv": CSV,
    "csv_semicolon": CSV.replace(b",", b";"),
    "tsv": CSV.replace(b",", b"\t"),
    "parquet": parquet(),
    "arrow": arrow(),
}


def test_every_container_is_damaged():
    assert FILES.keys() == CONTAINERS.keys()


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("container", FILES)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_files(tmp_path_factory, container, compressed, data):
    """A byte is changed, or the end is missing: rows are read, or the file is named."""
    content = bytearray(gzip.compress(FILES[container]) if compressed else FILES[container])
    place = data.draw(st.integers(0, len(content) - 1))
    if container != "arrow" and data.draw(st.booleans()):  # whose metadata pyarrow reads without checking it
        content[place] = data.draw(st.integers(0, 255))
    else:
        del content[place:]
    file = tmp_path_factory.mktemp("damaged") / "a.bin"
    file.write_bytes(content)
    read = outcome(lambda: list(RecordReader(file, Reading(container=container))))
    assert isinstance(read, list) or str(file) in read
