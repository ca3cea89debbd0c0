"""Advice about rows and the options of reading: the option is taken out of what is said, and every row is read then."""

import json
import re

import datasets
import pytest

from sft_jax.data.files import jsonl
from sft_jax.data.reading import DEFAULT, Reading
from sft_jax.data.records import RecordError, RecordReader, check_reading, read_records
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from tests import tiny
from tests.command_line import flags_in, reading_by

USER, ANSWER = {"role": "user", "content": "<a>"}, {"role": "assistant", "content": "<b>"}
PAIR = {"prompt": "<a>", "completion": "<b>"}


def line(**fields):
    return json.dumps(fields) + "\n"


ROWS = {  # (file, part of its advice) -> (name of a file, content, options given beside the advice)
    ("sft_jax/data/files/csv_table.py", "Force it: "): ("a.csv", "prompt;completion\n<a>;<b>\n", {}),
    ("sft_jax/data/formats/__init__.py", "--config.data.reading.format={name}"): (
        "a.jsonl",
        line(**PAIR, messages=[USER, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/media.py", "train without it by"): ("a.jsonl", line(**PAIR, image={"url": "x"}), {}),
    ("sft_jax/data/formats/messages.py", "leave it out by"): (
        "a.jsonl",
        line(messages=[USER | {"reasoning": "x"}, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/messages.py", "are ShareGPT's: call the column"): (
        "a.jsonl",
        line(messages=[{"from": "human", "value": "<a>"}, {"from": "gpt", "value": "<b>"}]),
        {},
    ),
    ("sft_jax/data/formats/sharegpt.py", "are OpenAI's: call the column"): (
        "a.jsonl",
        line(conversations=[USER, ANSWER]),
        {},
    ),
    ("sft_jax/data/formats/prompt_completion.py", "As alpaca it is read"): (
        "a.jsonl",
        line(**PAIR, history=[["c", "d"]]),
        {},
    ),
    ("sft_jax/data/formats/prompt_completion.py", "Say that it means something else by"): (
        "a.jsonl",
        line(**PAIR, label=False),
        {"format": "prompt_completion"},
    ),
    ("sft_jax/data/formats/values.py", "leave it out by"): (
        "a.jsonl",
        line(messages=[USER | {"mood": "x"}, ANSWER]),
        {},
    ),
    ("sft_jax/data/files/json_array.py", "One object on each line is read by"): ("a.json", line(**PAIR), {}),
    ("sft_jax/data/records.py", "To leave such rows out"): ("a.jsonl", line(**PAIR) * 2 + line(prompt="c"), {}),
}


@pytest.mark.parametrize("key", ROWS, ids=[": ".join(key) for key in ROWS])
def test_rows_are_read_as_advised(key, tmp_path):
    name, content, options = ROWS[key]
    (tmp_path / name).write_text(content)
    with pytest.raises(RecordError) as error:
        read_records(tmp_path / name, Reading(**options))
    flags = flags_in(str(error.value))
    kept = [flag for flag in flags if not flag.endswith("on_bad_row=drop")]
    for flag in kept or flags:
        records = list(RecordReader(tmp_path / name, reading_by(flag)))
        assert records
        for record in records:
            assert "<a> <b>" in " ".join(message.content for message in record.conversation)


def test_unwanted_rows_are_left_out_and_listed(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(line(**PAIR, label=label) for label in (True, False, True)))
    form = {"format": "prompt_completion"}  # by themselves they are answers with labels
    with pytest.raises(RecordError, match="To leave such rows out: ") as error:
        read_records(tmp_path / "a.jsonl", Reading(**form))
    (flag,) = [flag for flag in flags_in(str(error.value)) if "on_bad_row" in flag]  # said once
    reader = RecordReader(tmp_path / "a.jsonl", reading_by(flag, "--config.data.reading.format=prompt_completion"))
    assert [record.id for record in reader] == ["a.jsonl:1", "a.jsonl:3"]
    assert [row.id for row in reader.dropped] == ["a.jsonl:2"]
    (tmp_path / "a.jsonl").write_text(line(**PAIR, label=False))
    for reading in (Reading(**form), Reading(**form, flags="--reading.")):  # none is left then, or none is left out
        with pytest.raises(RecordError, match="Say that it means something else by --") as error:
            read_records(tmp_path / "a.jsonl", reading)
        assert "on_bad_row" not in str(error.value)


RECORDS, ROW_PARSER = "sft_jax/data/records.py", "sft_jax/data/row_parser.py"
OPTIONS = {  # (file, part of its advice) -> (name of a file, content, what was given, what is given instead, texts)
    ("sft_jax/data/reading.py", "Leave {reading.split_flag} empty"): (
        *("a.jsonl", line(**PAIR)),
        *({"split": "train"}, {"split": ""}),
        ["<a>", "<b>"],
    ),
    (ROW_PARSER, ": --config.data.reading.system is for conversations, this"): (
        *("a.jsonl", line(text="<a> <b>")),
        *({"system": "Be brief."}, {"system": ""}),
        ["<a> <b>"],
    ),
    (ROW_PARSER, "this row is {name}. Leave it at {DEFAULT.label}."): (
        *("a.csv", "prompt,completion\n<a>,<b>\n"),
        *({"label": "majority"}, {"label": "unanimous"}),
        ["<a>", "<b>"],
    ),
    (ROW_PARSER, '--config.data.reading.columns: {text} is no rename; expected "new=old"'): (
        *("a.jsonl", line(question="<a>", completion="<b>")),
        *({"columns": ("prompt",)}, {"columns": ("prompt=question",)}),
        ["<a>", "<b>"],
    ),
    (RECORDS, "is not read by --config.data.reading.format="): (
        *("a.csv", "prompt,completion\n<a>,<b>\n"),
        *(
            {"format": "alpaca", "prompt_template": "Say {prompt}"},
            {"format": "prompt_completion", "prompt_template": ""},
        ),
        ["<a>", "<b>"],
    ),
    ("sft_jax/data/formats/table.py", ". Write {found[0] * 2} for a brace, {column} for a column."): (
        *("a.csv", "text,label\n<a>,<b>\n"),
        *(
            {"prompt_template": "{ of {text}", "answer_template": "{label}"},
            {"prompt_template": "{{ of {text}", "answer_template": "{label}"},
        ),
        ["{ of <a>", "<b>"],
    ),
}


def texts_of(record):
    if hasattr(record.example, "parts"):
        return [part.text for part in record.example.parts]
    return [message.content for message in record.conversation]


@pytest.mark.parametrize("key", OPTIONS, ids=[": ".join(key) for key in OPTIONS])
def test_options_are_given_as_advised(key, tmp_path):
    name, content, given, instead, texts = OPTIONS[key]
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=r"--config\.data\.reading\.") as error:
        read_records(tmp_path / name, Reading(**given))
    assert any(f"--config.data.reading.{option}" in str(error.value) for option in instead)
    (record,) = read_records(tmp_path / name, Reading(**given | instead))
    assert texts_of(record) == texts


OF_THE_HUB = ("sft_jax/data/files/locate.py", "is for data sets of the hub; leave it out for files.")


@pytest.mark.parametrize("option", [{"subset": "en"}, {"revision": "main"}, {"streaming": True}])
def test_options_of_the_hub_are_left_out_for_files(option, tmp_path):
    (tmp_path / "a.jsonl").write_text(line(**PAIR))
    with pytest.raises(RecordError, match="is for data sets of the hub; leave it out"):
        read_records(tmp_path / "a.jsonl", Reading(**option))
    assert [texts_of(record) for record in read_records(tmp_path / "a.jsonl")] == [["<a>", "<b>"]]


@pytest.mark.parametrize("name", ["format", "container", "label", "ties", "preference", "text_end", "on_bad_row"])
def test_every_value_that_is_listed_is_one(name):
    with pytest.raises(ValueError, match=rf"reading\.{name}='other' must be one of ") as error:
        check_reading(Reading(**{name: "other"}))
    values = str(error.value).partition(" must be one of ")[2].split(", ")
    assert getattr(DEFAULT, name) in values
    assert len(values) > 1
    for value in values:
        check_reading(Reading(**{"label": "majority"} | {name: value}))


@pytest.mark.parametrize(("name", "value"), [("ties", "first"), ("adjudicator", "x")])
def test_an_option_has_the_label_that_reads_it(name, value):
    with pytest.raises(ValueError, match=rf"reading\.{name} is read by --config") as error:
        check_reading(Reading(**{name: value}))
    (flag,) = flags_in(str(error.value))
    check_reading(Reading(label=reading_by(flag).label, **{name: value}))


SPLITS = {  # (file, part of its advice) -> what makes something with the splits "a" of 2 rows and "b" of 1
    ("sft_jax/data/files/data_sets.py", "; choose one by {reading.split_flag}:"): lambda path, rows: (
        datasets.DatasetDict({name: datasets.Dataset.from_list(some) for name, some in rows.items()}).save_to_disk(path)
    ),
    ("sft_jax/data/files/json_array.py", "; choose one by {reading.split_flag}:"): lambda path, rows: path.write_text(
        json.dumps(rows)
    ),
}


@pytest.mark.parametrize("key", SPLITS, ids=[key[0] for key in SPLITS])
@pytest.mark.parametrize("split", ["", "c"])
def test_each_split_that_is_listed_can_be_chosen(key, split, tmp_path):
    SPLITS[key](tmp_path / "a.json", {"a": [PAIR] * 2, "b": [PAIR]})
    with pytest.raises(RecordError, match="choose one by") as error:
        read_records(tmp_path / "a.json", Reading(split=split))
    listed = str(error.value).partition("; choose one by --config.data.reading.split:")[2]
    names = re.findall(r"\b[a-z]\b", listed)
    assert names == ["a", "b"]
    sizes = [
        len(read_records(tmp_path / "a.json", reading_by(f"--config.data.reading.split={name}"))) for name in names
    ]
    assert sizes == [2, 1]


CONTAINERS = {  # what a file without a suffix holds -> the container that reads it
    "prompt,completion\n<a>,<b>\n": "csv",
    "prompt;completion\n<a>;<b>\n": "csv_semicolon",
    "prompt\tcompletion\n<a>\t<b>\n": "tsv",
}
SAID_SO = ("sft_jax/data/files/locate.py", ": neither suffix nor content says what it is. Say so:")


@pytest.mark.parametrize("content", CONTAINERS)
def test_what_no_suffix_says_is_said(content, tmp_path):
    (tmp_path / "a").write_text(content)
    with pytest.raises(RecordError, match="Say so: ") as error:
        read_records(tmp_path / "a")
    flag, listed = re.search(r"Say so: (--\S+=), one of (.*)\.", str(error.value)).groups()
    assert CONTAINERS[content] in listed.split(", ")
    (record,) = read_records(tmp_path / "a", reading_by(flag + CONTAINERS[content]))
    assert texts_of(record) == ["<a>", "<b>"]


LONG_LINE = ("sft_jax/data/files/jsonl.py", "MiB. Expected one JSON object on each line; a JSON array is")


def test_an_array_on_one_long_line(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "MOST_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(json.dumps([PAIR] * 9))
    with pytest.raises(RecordError, match="the line is longer than") as error:
        read_records(tmp_path / "a.jsonl")
    assert len(read_records(tmp_path / "a.jsonl", reading_by(*flags_in(str(error.value))))) == 9


WEIGHTS = ("sft_jax/data/rendering/masking.py", "); name the role in --config.data.masking.train_on, or")


def test_a_weight_on_a_turn_that_is_not_trained(tmp_path):
    (tmp_path / "a.jsonl").write_text(line(messages=[USER | {"weight": 1}, ANSWER | {"weight": 1}]))
    (record,) = read_records(tmp_path / "a.jsonl")
    with pytest.raises(ExampleError, match=r"message 0 \(user\); name the role in") as error:
        ConversationRenderer(tiny.tokenizer()).render(record.conversation)
    by_role = ConversationRenderer(tiny.tokenizer(), masking=Masking(train_on="user,assistant"))
    assert by_role.render(record.conversation).weights.sum() > len("<a><b>")
    (flag,) = flags_in(str(error.value))
    (without,) = read_records(tmp_path / "a.jsonl", reading_by(flag))
    assert texts_of(without) == texts_of(record)
    assert ConversationRenderer(tiny.tokenizer()).render(without.conversation).weights.sum() == len("<b>") + 1


FOLLOWED = {  # by the tests of this module
    *(*ROWS, *OPTIONS, *SPLITS, OF_THE_HUB, SAID_SO, LONG_LINE, WEIGHTS),
    (RECORDS, "--config.data.reading.{name}={getattr(reading, name)} must be one of {', '.join(values)}"),
    (RECORDS, "--config.data.reading.{name} is read by --config.data.reading.label={label}, not by {reading.label}"),
}
