"""Reading JSONL: what is accepted, and that everything else stops with file, line and what was expected."""

import json

import pytest

from sft_jax.data.conversations import Message
from sft_jax.data.records import RecordError, read_records

ACCEPTED = [  # (line, conversation)
    (
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}], "label": 3},
        (("user", "Hi"), ("assistant", "Ho")),
    ),
    ({"prompt": "Hi", "completion": "Ho"}, (("user", "Hi"), ("assistant", "Ho"))),
    (
        {"prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "completion": "Ho"},
        (("system", "S"), ("user", "Hi"), ("assistant", "Ho")),
    ),
    (
        {"prompt": "Hi", "completion": [{"role": "assistant", "content": "Ho"}]},
        (("user", "Hi"), ("assistant", "Ho")),
    ),
    ({"prompt": "", "completion": "\u2028 \x85"}, (("user", ""), ("assistant", "\u2028 \x85"))),
]


@pytest.mark.parametrize(("fields", "turns"), ACCEPTED)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_accepted(tmp_path, fields, turns, ascii_only):
    file = tmp_path / "train.jsonl"
    line = json.dumps(fields, ensure_ascii=ascii_only)
    file.write_text(f"{line}\n{line}\r\n\n", encoding="utf-8", newline="")
    first, second = read_records(file)
    assert first.conversation == second.conversation == tuple(Message(*turn) for turn in turns)
    assert (first.id, second.id) == ("train.jsonl:1", "train.jsonl:2")
    assert second.fields == fields


GOOD = b'{"prompt": "a", "completion": "b"}\n'
REFUSED = [  # (bytes of the file, words of the error)
    (b"", "bad.jsonl: the file is empty"),
    (b" \n\n", "bad.jsonl: the file is empty"),
    (GOOD + b"\n" + GOOD, r"bad.jsonl:2: the line is empty"),
    (GOOD + b'{"prompt": "a"', r"bad.jsonl:2: not valid JSON \(column 15"),
    (GOOD + b'{"prompt": "\xff"}', r"bad.jsonl:2: not UTF-8 \(byte 13"),
    (b"[1]", r"bad.jsonl:1: expected a JSON object.*got a list"),
    (b'{"text": "a"}', r"bad.jsonl:1: expected .*the keys are: 'text'"),
    (b'{"prompt": "a"}', r'bad.jsonl:1: "completion" is missing'),
    (b'{"completion": "a"}', r'bad.jsonl:1: "prompt" is missing'),
    (b'{"prompt": null, "completion": "b"}', r'"prompt": expected a string or a list of messages, got null'),
    (b'{"prompt": "a", "completion": "b", "messages": []}', r"has both"),
    (b'{"messages": "hello"}', r'"messages": expected a list of messages, got a string'),
    (b'{"messages": []}', r"got an empty list"),
    (b'{"messages": ["hello"]}', r'"messages"\[0\]: expected .*got a string'),
    (b'{"messages": [{"role": "user"}]}', r'"messages"\[0\]: "content" is missing'),
    (b'{"messages": [{"from": "human", "value": "a"}]}', r'"role" is missing. Rename "from" to "role"'),
    (b'{"messages": [{"role": "human", "content": "a"}]}', r"unknown role 'human'.*Use 'user'"),
    (b'{"messages": [{"role": "gpt", "content": "a"}]}', r"unknown role 'gpt'.*Use 'assistant'"),
    (b'{"messages": [{"role": 3, "content": "a"}]}', r"unknown role 3"),
    (b'{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', r"must be a string, got a list"),
    (b'{"messages": [{"role": "user", "content": null}]}', r"must be a string, got null"),
    (b'{"messages": [{"role": "user", "content": "a", "tool_calls": []}]}', r"'tool_calls' would be lost"),
    (b'{"messages": [{"role": "user", "content": "a"}], "tools": []}', r'"tools" would be ignored'),
    (b'{"prompt": "a\\ud800", "completion": "b"}', r"character 2 is a lone surrogate"),
    (b"\xef\xbb\xbf" + GOOD, r"bad.jsonl:1: not valid JSON .*BOM"),
]


@pytest.mark.parametrize(("content", "words"), REFUSED)
def test_refused(tmp_path, content, words):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(content)
    with pytest.raises(RecordError, match=words):
        read_records(file)


def test_no_such_file(tmp_path):
    with pytest.raises(RecordError, match="no such file"):
        read_records(tmp_path / "none.jsonl")
