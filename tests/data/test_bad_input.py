"""Broken rows and files: each stops with the file, the row, what was expected and what to do.

What a chat template has to say about a conversation is not of this table, see the tests of the rendering.
"""

import bz2
import gzip
import json
import lzma

import pytest

from sft_jax.data.files import jsonl
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, RecordReader, read_records

PAIR = b'{"prompt": "a", "completion": "b"}\n'


def messages(*turns, **more):
    """A row whose last message is the one that is not good."""
    return json.dumps({"messages": [*turns]} | more).encode()


USER = {"role": "user", "content": "a"}


def answer(**more):
    return messages(USER, {"role": "assistant", "content": "b"} | more)


def tool_call(**call):
    return messages(USER, {"role": "assistant", "content": "", "tool_calls": [call]})


ROWS = {  # name -> (row, words of the error, after "bad.jsonl:2: ")
    "an empty line": (b"", "the line is empty. Remove it"),
    "truncated JSON": (
        b'{"prompt": "a"',
        "not valid JSON (column 15: Expecting ',' delimiter). Expected one JSON object",
    ),
    "two objects on a line": (PAIR[:-1] + PAIR[:-1], "not valid JSON (column 35: Extra data)"),
    "a key given twice": (
        b'{"prompt": "a", "completion": "b", "prompt": "c"}',
        "not valid JSON (the key 'prompt' stands in an object twice, and one of its values would be lost)",
    ),
    "NaN": (b'{"prompt": "a", "completion": "b", "score": NaN}', "not valid JSON (NaN is not JSON; write null"),
    "a number of 5,000 digits": (b'{"prompt": ' + b"1" * 5000 + b"}", "not valid JSON (Exceeds the limit"),
    "deeply nested": (b'{"prompt": ' + b"[" * 100_000, "the JSON is nested too deeply"),
    "not UTF-8": (b'{"prompt": "\xff"}', "not UTF-8 (byte 13: invalid start byte). Convert the file to UTF-8"),
    "a NUL byte": (b'{"prompt": "a\0"}', "a NUL byte (character 14). The file is binary or damaged"),
    "a list": (b"[1]", "expected an object with the columns of a row, got a list"),
    "no known columns": (
        b'{"topic": 3}',
        "'completion' and 'prompt' are null or missing; row 1 is prompt_completion. Expected {\"prompt\": ...",
    ),
    "nothing at all": (b"{}", "'completion' and 'prompt' are null or missing"),
    "an answer that is null": (
        b'{"prompt": "a", "completion": null}',
        "'completion' is null or missing; row 1 is prompt_completion",
    ),
    "another format": (
        messages(USER),
        "this row is messages, row 1 is prompt_completion. All rows of a file are of one format",
    ),
    "two formats at once": (
        b'{"prompt": "a", "completion": "b", "messages": []}',
        "the columns fit messages and prompt_completion: 'completion', 'messages', 'prompt'. Force one",
    ),
    "a prompt that is a number": (
        b'{"prompt": 3, "completion": "b"}',
        '"prompt": expected a string or a list of messages, got a number',
    ),
    "a lone surrogate": (
        b'{"prompt": "a\\ud800", "completion": "b"}',
        '"prompt": character 2 is a lone surrogate, which is not text. Repair the escape',
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(tmp_path, name):
    row, words = ROWS[name]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(PAIR + row + b"\n" + PAIR)
    with pytest.raises(RecordError) as error:
        read_records(file)
    assert str(error.value).startswith(f"{file}:2: {words}")
    reader = RecordReader(file, Reading(on_bad_row="drop"))
    assert [record.id for record in reader] == ["bad.jsonl:1", "bad.jsonl:3"]
    counted = " 1 of 3 rows cannot be read. To leave such rows out: --config.data.reading.on_bad_row=drop"
    assert [(row.id, row.detail + counted) for row in reader.dropped] == [
        ("bad.jsonl:2", str(error.value).removeprefix(f"{tmp_path}/"))
    ]


OF_MESSAGES = 'expected a list of messages, {"role": ..., "content": ...}'
SOLE = {  # the same, for rows of other formats; after "bad.jsonl:1: "
    "messages: a string": (b'{"messages": "hello"}', f'"messages": {OF_MESSAGES}, got a string'),
    "messages: none": (b'{"messages": []}', f'"messages": {OF_MESSAGES}, got an empty list'),
    "messages: broken JSON": (b'{"messages": "[{]"}', '"messages": not valid JSON (column 3'),
    "a message that is a string": (
        messages("a"),
        '"messages"[0]: expected {"role": ..., "content": ...}, got a string',
    ),
    "no role": (messages({"content": "a"}), '"messages"[0]: "role" is missing'),
    "ShareGPT under messages": (
        messages({"from": "human", "value": "a"}),
        '"messages"[0]: "role" is missing. Expected {"role": ..., "content": ...}. "from" and "value" are ShareGPT\'s: '
        'call the column "conversations", --config.data.reading.columns=\'("conversations=messages",)\'',
    ),
    "no content": (messages({"role": "user"}), '"messages"[0]: "content" is missing'),
    "content null": (messages({"role": "user", "content": None}), '"messages"[0]: the content is null'),
    "content a number": (messages({"role": "user", "content": 1}), '"messages"[0]: the content must be a string or'),
    "unknown role": (
        messages({"role": "human", "content": "a"}),
        "\"messages\"[0]: unknown role 'human', expected one of system, developer, user, assistant, tool. Use 'user'",
    ),
    "a role that is a number": (messages({"role": 3, "content": "a"}), '"messages"[0]: unknown role 3'),
    "an image": (
        messages({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
        '"messages"[0]: "content"[0]: a part of type \'image_url\'; only text can be trained on',
    ),
    "a part without text": (
        messages({"role": "user", "content": [{"type": "text"}]}),
        '"messages"[0]: "content"[0]: expected one text',
    ),
    "a key of a part that would be lost": (
        answer(content=[{"text": "b", "citations": ["c"]}]),
        '"messages"[1]: "content"[0]: \'citations\' would be lost: a part has content, text',
    ),
    "a key of a call that would be lost": (
        tool_call(type="function", function={"name": "f", "arguments": {}}, result="5"),
        '"messages"[1]: "tool_calls"[0]: \'result\' would be lost: a call has function, id',
    ),
    "a key of a called function that would be lost": (
        tool_call(function={"name": "f", "arguments": {}, "output": "5"}),
        '"messages"[1]: "tool_calls"[0]: "function": \'output\' would be lost: a call has arguments, name',
    ),
    "ranges given twice": (
        answer(
            content=[{"text": "b", "weight": 1}],
            train_detail=[{"begin_offset": 0, "end_offset": 0, "train": False}],
        ),
        '"messages"[1]: has "train_detail" and parts with weights. Keep one of the two',
    ),
    "a history beside prompt and completion": (
        b'{"prompt": "a", "completion": "b", "history": [["c", "d"]]}',
        'the column "history" would be lost. As alpaca it is read',
    ),
    "an input that is 0": (
        b'{"instruction": "a", "input": 0, "output": "b"}',
        '"input": expected a string, got a number',
    ),
    "a key that would be lost": (
        messages(USER | {"mood": "x"}),
        "\"messages\"[0]: 'mood' would be lost: a message has content, function_call, name",
    ),
    "weight below 0": (answer(weight=-1), '"messages"[1]: "weight": expected a weight, a number of at least 0, got -1'),
    "weight of text": (
        answer(weight="1"),
        '"messages"[1]: "weight": expected a weight, a number of at least 0, got a str',
    ),
    "train that is a number": (answer(train=1), '"messages"[1]: "train": expected true or false, got a number'),
    "weight and train": (answer(weight=1, train=True), '"messages"[1]: has both "weight" and "train"'),
    "a range outside": (
        answer(train_detail=[{"begin_offset": 0, "end_offset": 1, "train": True}]),
        '"messages"[1]: "train_detail"[0]: characters 0 to 1 (inclusive) do not lie in the 1 of the content',
    ),
    "two thoughts": (answer(thinking="x", reasoning="y"), "\"messages\"[1]: 'reasoning', 'thinking' differ"),
    "a user who reasons": (
        messages(USER | {"reasoning": "x"}),
        '"messages"[0]: "reasoning" belongs to a message of role assistant, this one is user',
    ),
    "a call without a name": (
        tool_call(function={"arguments": {}}),
        '"messages"[1]: "tool_calls"[0]: the call has no name. Expected {"function": {"name": ..., "arguments"',
    ),
    "arguments that are not JSON": (
        tool_call(function={"name": "f", "arguments": "{a: 1}"}),
        '"messages"[1]: "tool_calls"[0]: "arguments": not valid JSON (column 2',
    ),
    "arguments that are a list": (
        tool_call(function={"name": "f", "arguments": []}),
        '"messages"[1]: "tool_calls"[0]: "arguments": expected an object, got a list',
    ),
    "no arguments": (
        tool_call(name="f"),
        '"messages"[1]: "tool_calls"[0]: "arguments" is missing. Write {} for a call',
    ),
    "arguments that are empty": (
        tool_call(name="f", arguments=" "),
        '"messages"[1]: "tool_calls"[0]: "arguments" is empty. Write {} for a call',
    ),
    "a result without a call": (
        messages(USER, {"role": "tool", "content": "x"}),
        '"messages"[1]: a tool\'s result without a call before it',
    ),
    "a result of another call": (
        messages(
            USER,
            {"role": "assistant", "tool_calls": [{"id": "1", "name": "f", "arguments": {}}]},
            {"role": "tool", "content": "x", "tool_call_id": "2"},
        ),
        "\"messages\"[2]: \"tool_call_id\" '2' is not the id of a call before it; there are: '1'",
    ),
    "a call of no tool": (
        messages(
            USER,
            {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
            tools=[{"type": "function", "function": {"name": "g"}}],
        ),
        "\"messages\"[1]: calls 'f', which is not among the tools of the row: 'g'",
    ),
    "tools by name": (
        messages(USER, tools=["f"]),
        '"messages": "tools"[0]: expected the definition of a tool, an object',
    ),
    "tools that are not JSON": (messages(USER, tools="f, g"), '"messages": "tools": not valid JSON'),
    "functions": (
        messages(USER, functions=[{"name": "f"}]),
        '"messages": the column "functions" of the row would be lost',
    ),
    "an unknown speaker": (
        b'{"conversations": [{"from": "bing", "value": "a"}]}',
        "\"conversations\"[0]: unknown role 'bing', expected one of system, human, user, gpt",
    ),
    "OpenAI's turns under conversations": (
        b'{"conversations": [{"role": "user", "content": "a"}]}',
        '"conversations"[0]: "from" is missing. Expected {"from": ..., "value": ...}. "role" and "content"',
    ),
    "alpaca: an output that is a list": (
        b'{"instruction": "a", "output": ["b"]}',
        '"output": expected a string, got a list',
    ),
    "alpaca: a history without pairs": (
        b'{"instruction": "a", "output": "b", "history": ["c"]}',
        '"history"[0]: expected a [user, assistant] pair, got a string',
    ),
    "empty text": (b'{"text": ""}', '"text" is empty'),
    "a segment of which nothing is said": (
        b'{"segments": [{"text": "a"}]}',
        '"segments"[0]: expected one of "train", "label" and "weight", got none',
    ),
    "ids of which nothing is said": (b'{"input_ids": [1, 2]}', "nothing says which tokens are trained. Give one of"),
    "labels of another length": (
        b'{"input_ids": [1, 2], "labels": [1]}',
        '"labels" has 1 entries for 2 tokens',
    ),
    "labels that are shifted": (
        b'{"input_ids": [1, 2], "labels": [2, -100]}',
        '"labels"[0] is 2, expected the token itself, 1, or -100; labels are not shifted',
    ),
    "ids that are words": (b'{"tokens": ["a"], "weights": [1]}', "\"tokens\"[0] is 'a', expected the id of a token"),
    "a mask of 2": (b'{"input_ids": [1], "loss_mask": [2]}', '"loss_mask"[0] is 2, expected 0 or 1'),
    "masks that disagree": (
        b'{"input_ids": [1, 2], "labels": [-100, 2], "loss_mask": [1, 1]}',
        '"labels" and "loss_mask" disagree at token 0',
    ),
    "padding": (
        b'{"input_ids": [1, 0], "labels": [1, -100], "attention_mask": [1, 0]}',
        '"attention_mask" has zeros, so the row is padded',
    ),
    "equal answers": (
        b'{"prompt": "a", "chosen": "b", "rejected": "b"}',
        '"chosen" and "rejected" are equal, so nothing is preferred',
    ),
    "answers without a prompt": (b'{"chosen": "b", "rejected": "c"}', "there is no prompt"),
}


@pytest.mark.parametrize("name", SOLE)
def test_rows_of_their_own_format(tmp_path, name):
    row, words = SOLE[name]
    file = tmp_path / "bad.jsonl"
    file.write_bytes(row)
    with pytest.raises(RecordError) as error:
        read_records(file)
    assert str(error.value).startswith(f"{file}:1: {words}")


TABLE = {"prompt_template": "{text}", "answer_template": "{label}"}
FILES = {  # name -> (file name, content, options, words of the error after the folder)
    "an empty file": ("a.jsonl", b"", {}, "a.jsonl: the file is empty"),
    "blank lines alone": ("a.jsonl", b" \n\n", {}, "a.jsonl: the file is empty"),
    "UTF-16": ("a.jsonl", "{}".encode("utf-16"), {}, "a.jsonl: the file is UTF-16. Convert it to UTF-8"),
    "an array under .jsonl": ("a.jsonl", b"[\n{}]", {}, "a.jsonl:1: not valid JSON"),
    "JSON that is cut off": ("a.json", b'[{"text": "a"},', {}, "a.json: not valid JSON (column 16"),
    "JSON without rows": (
        "a.json",
        b'{"a": [1]}',
        {},
        "a.json: expected an array of rows, or an object with arrays of",
    ),
    "JSON with two arrays": (
        "a.json",
        b'{"a": [{}], "b": [{}]}',
        {},
        "a.json: there are several arrays of rows; choose one by --config.data.reading.split: a (1 rows), b (1 rows)",
    ),
    "a row of JSON that is a number": (
        "a.json",
        b'[{"text": "a"}, 3]',
        {},
        "a.json:2: expected an object with the columns",
    ),
    "no suffix, no sign": ("a", b"hello", {}, "a: neither suffix nor content says what it is. Say so: "),
    "CSV with a short row": ("a.csv", b'text,label\n"a\nb",x\na\n', TABLE, "a.csv:4: 1 cells, the header has 2"),
    "CSV with a quote that never ends": (
        "a.csv",
        b'text,label\n"a,x\nb,y\n',
        TABLE,
        "a.csv:2: not valid CSV (unexpected end",
    ),
    "CSV with equal columns": ("a.csv", b"text,text\na,b\n", TABLE, "a.csv:1: the header has two columns 'text'"),
    "CSV with a column without a name": (
        "a.csv",
        b"text,\na,b\n",
        TABLE,
        "a.csv:1: the header has a column without a name",
    ),
    "CSV with columns without names": (
        "a.csv",
        b"text,,\na,b,c\n",
        TABLE | {"columns": ("id=",)},
        "a.csv:1: the header has several columns without a name. Expected a name of its own for each",
    ),
    "CSV with semicolons": (
        "a.csv",
        b"text;label\na;b\n",
        TABLE,
        "a.csv:1: the header is one column, 'text;label'; the cells seem to be separated by semicolons. Force it: "
        "--config.data.reading.container=csv_semicolon",
    ),
    "CSV in Latin-1": ("a.csv", b"text,label\n\xe9,b\n", TABLE, "a.csv:2: not UTF-8 (byte 1"),
    "CSV with NUL bytes": ("a.csv", b"text,label\na\0,b\n", TABLE, "a.csv:2: a NUL byte (character 2)"),
    "CSV with a header alone": ("a.csv", b"text,label\n", TABLE, "a.csv: the file is empty"),
    "a column that is missing": (
        "a.csv",
        b"text,intent\na,b\n",
        TABLE,
        "a.csv:2: the row has no 'label', which --config.data.reading.answer_template names; it has 'text', 'intent'",
    ),
    "a rename of nothing": (
        "a.csv",
        b"text\na\n",
        {"columns": ("text=body",)},
        "a.csv:2: has a column 'text' already; 'body' cannot be renamed to it",
    ),
    "a column to rename that is missing": (
        "a.jsonl",
        b'{"question": "a"}',
        {"columns": ("prompt=query",)},
        "a.jsonl:1: there is no column 'query' to be renamed 'prompt'; the columns are: 'question'",
    ),
    "a weight that is none": (
        "a.csv",
        b"text,w\na,much\n",
        {"weight_column": "w"},
        "a.csv:2: the weight 'much' in column 'w' is not a number",
    ),
    "an id that repeats": (
        "a.csv",
        b"text,id\na,1\nb,1\n",
        {"id_column": "id"},
        "a.csv:3: the id '1' stands in an earlier row too",
    ),
    "a group that is no text": (
        "a.jsonl",
        b'{"text": "a", "g": [1]}\n',
        {"group_column": "g"},
        "a.jsonl:1: the column 'g' must be text or a whole number, got a list",
    ),
    "a group that is missing": (
        "a.csv",
        b"text\na\n",
        {"group_column": "g"},
        "a.csv:2: the column 'g' must be text or",
    ),
    "a system message for text": (
        "a.csv",
        b"text\na\n",
        {"system": "S"},
        "a.csv:2: --config.data.reading.system is for con",
    ),
    "a split of a file": (
        "a.csv",
        b"text\na\n",
        {"split": "train"},
        "a.csv: the split 'train' is for data sets of the hub",
    ),
    "gzip that is none": ("a.jsonl.gz", PAIR, {}, "a.jsonl.gz: the suffix says gzip, but the content is not"),
    "gzip that is cut off": (
        "a.jsonl.gz",
        gzip.compress(PAIR * 99)[:-9],
        {},
        "a.jsonl.gz: the gzip file is cut off or damaged",
    ),
    "bzip2 that is cut off": (
        "a.jsonl.bz2",
        bz2.compress(PAIR * 99)[:-9],
        {},
        "a.jsonl.bz2: the bzip2 file is cut off",
    ),
    "bzip2 whose second stream is damaged": (
        "a.jsonl.bz2",
        bz2.compress(PAIR) + b"BZh9" + bytes(8) + bz2.compress(PAIR)[12:],
        {},
        "a.jsonl.bz2: the bzip2 file is cut off or damaged",
    ),
    "xz with something behind it": (
        "a.jsonl.xz",
        lzma.compress(PAIR) + PAIR,
        {},
        "a.jsonl.xz: the xz file is cut off or damaged",
    ),
    "xz that is damaged": (
        "a.jsonl.xz",
        lzma.compress(PAIR * 99)[:60] + b"x" * 40,
        {},
        "a.jsonl.xz: the xz file is cut off",
    ),
    "Parquet that is none": ("a.parquet", b"hello", {}, "a.parquet: not Parquet, or cut off"),
    "Arrow that is none": ("a.arrow", b"hello", {}, "a.arrow: not Arrow, or cut off"),
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path, name):
    file, content, options, words = FILES[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(RecordError) as error:
        read_records(tmp_path / file, Reading(**options))
    assert str(error.value).startswith(f"{tmp_path}/{words}")


def test_a_line_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MOST_BYTES", 2**20)
    (tmp_path / "a.jsonl").write_bytes(PAIR + b'{"prompt": "' + b"a" * 2**20)
    with pytest.raises(RecordError, match=r"a.jsonl:2: the line is longer than 1 MiB. Expected one JSON object"):
        read_records(tmp_path / "a.jsonl")


PATHS = [  # (path, words of the error after the folder)
    ("none.jsonl", "none.jsonl: there is no such file."),
    ("trian.jsonl", "trian.jsonl: there is no such file. Similar: train.jsonl."),
    ("nowhere/train.jsonl", "nowhere/train.jsonl: there is no such file. There is no directory"),
    ("*.csv", "*.csv: no file matches the pattern"),
    ("", ": is a directory, and not one made by save_to_disk. Expected files. For example"),
]


@pytest.mark.parametrize(("path", "words"), PATHS)
def test_paths(tmp_path, path, words):
    (tmp_path / "train.jsonl").write_bytes(PAIR)
    with pytest.raises(RecordError) as error:
        read_records(f"{tmp_path}/{path}" if path else tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/{words}" if path else f"{tmp_path}{words}")


def test_a_file_named_twice(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(PAIR)
    with pytest.raises(RecordError, match="is named twice"):
        read_records(f"{tmp_path}/train.jsonl,{tmp_path}/*.jsonl")
