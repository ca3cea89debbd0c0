"""JSON files of several arrays, and of rows that are arrays: which is read, and what its columns are called."""

import json

import pytest

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, read_records
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from tests import tiny
from tests.command_line import SFT, config_of, flags_in, reading_by

PAIRS = {
    "train": [["pay my bill", "bill"], ["book a table", "table"], ['a, "b"\nc', "é"]],
    "val": [["cancel it", "cancel"]],
    "oos_test": [],
    "version": 1,
    "names": ["bill", "table"],
}
TEMPLATES = {"prompt_template": "Which intent? {0}", "answer_template": "{1}"}
RENAMES = {"columns": ("prompt=0", "completion=1")}


def read(path, value, **options):
    path.write_text(json.dumps(value))
    return read_records(path, Reading(**options))


def turns(*texts):
    return [Chat((Message("user", question), Message("assistant", answer))) for question, answer in texts]


def test_pairs_of_a_named_array(tmp_path):
    records = read(tmp_path / "d.json", PAIRS, split="train", **RENAMES)
    assert [record.example for record in records] == turns(*PAIRS["train"])
    assert [record.id for record in records] == ["d.json/train:1", "d.json/train:2", "d.json/train:3"]
    assert records[0].fields == {"prompt": "pay my bill", "completion": "bill"}
    records = read(tmp_path / "d.json", PAIRS, split="val", **TEMPLATES)
    assert [record.example for record in records] == turns(("Which intent? cancel it", "cancel"))


def test_one_array_needs_no_name(tmp_path):
    for value in (PAIRS["train"], {"data": PAIRS["train"]}, {"version": 1, "data": PAIRS["train"], "none": []}):
        records = read(tmp_path / "d.json", value, **RENAMES)
        assert [record.example for record in records] == turns(*PAIRS["train"])
        assert [record.id for record in records] == ["d.json:1", "d.json:2", "d.json:3"]
    assert read(tmp_path / "d.json", {"data": PAIRS["train"]}, split="data", **RENAMES)[0].id == "d.json/data:1"


def test_objects_under_several_names(tmp_path):
    value = {"train": [{"prompt": "a", "completion": "b"}], "test": [{"prompt": "c", "completion": "d"}]}
    assert [record.example for record in read(tmp_path / "d.json", value, split="test")] == turns(("c", "d"))


def test_numbers_stay_what_they_are(tmp_path):
    (record,) = read(tmp_path / "d.json", [["how warm", 21.5, None]], **TEMPLATES)
    assert record.fields == {"0": "how warm", "1": 21.5, "2": None}
    assert record.example == turns(("Which intent? how warm", "21.5"))[0]


def test_a_row_of_another_length_is_named(tmp_path):
    with pytest.raises(RecordError, match=r"d.json/train:2: 3 entries, the first such row has 2\. 1 of 2 rows"):
        read(tmp_path / "d.json", {"train": [["a", "b"], ["a", "b", "c"]]}, split="train", **RENAMES)


SPLITS = [  # (content, split, words of the error, the flag that leads on)
    (
        PAIRS,
        "",
        r"d.json: there are several arrays of rows; choose one by .*: train \(3 rows\), val \(1 rows\)",
        "",
    ),
    (PAIRS, "dev", r"d.json: there is no array 'dev'; choose one by .*: train \(3 rows\), val \(1 rows\)", ""),
    (PAIRS, "names", r"d.json: there is no array 'names'; choose one by", ""),
    (PAIRS, "oos_test", r"d.json/oos_test: the file is empty", ""),
    (
        PAIRS["val"],
        "val",
        r"d.json: is one array, there is no split 'val'. Leave --config",
        "",
    ),
    ({"a": 1}, "", r"d.json: expected an array of rows, .* object without one\. One object .*=jsonl$", "jsonl"),
]


@pytest.mark.parametrize(("content", "split", "words", "container"), SPLITS)
def test_what_cannot_be_chosen(content, split, words, container, tmp_path):
    with pytest.raises(RecordError, match=words) as error:
        read(tmp_path / "d.json", content, split=split)
    assert [reading_by(flag).container for flag in flags_in(str(error.value)) if "container" in flag] == (
        [container] if container else []
    )


def test_an_object_over_several_lines_is_not_said_to_be_jsonl(tmp_path):
    (tmp_path / "d.json").write_text('{\n"a": 1\n}')
    with pytest.raises(RecordError, match=r"got an object without one\.$"):
        read_records(tmp_path / "d.json")


def test_what_is_advised_for_pairs_reads_them(tmp_path):
    with pytest.raises(RecordError) as error:
        read(tmp_path / "d.json", PAIRS, split="train")
    reading = reading_by("--config.data.reading.split=train", *flags_in(str(error.value)))
    assert [record.example for record in read_records(tmp_path / "d.json", reading)] == turns(*PAIRS["train"])


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_other_files_have_no_splits(name, tmp_path):
    (tmp_path / name).write_text("prompt,completion\na,b\n" if name.endswith("csv") else '{"prompt": "a"}')
    with pytest.raises(
        RecordError, match=r"the split 'train' is for data sets of the hub, saved ones and JSON files of"
    ):
        read_records(tmp_path / name, Reading(split="train"))


def test_a_run_trains_on_one_array_and_measures_on_another(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps(PAIRS | {"train": [[f"ask {i}", f"answer {i}"] for i in range(9)]}))
    options = {"data.reading.columns": RENAMES["columns"], "data.reading.split": "train"}
    config = tiny.config(tmp_path, **options, **{"data.reading.held_out_split": "val"}).unlock()
    config.data.train = config.data.held_out = str(path)
    data = load_data(options_of(config))
    assert data.report.numbers["examples"] == 9
    assert [record.id for record in data.held_out_records] == ["d.json/val:1"]


def test_held_out_rows_without_splits_beside_training_rows_with_some(tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"train": [["a", "b"]] * 9, "val": [["c", "d"]]}))
    (tmp_path / "h.json").write_text(json.dumps([["e", "f"]]))
    options = {"data.reading.columns": RENAMES["columns"], "data.reading.split": "train"}
    config = tiny.config(tmp_path, **options).unlock()
    config.data.train, config.data.held_out = str(tmp_path / "d.json"), str(tmp_path / "h.json")
    config.data.fail_on = "never"
    with pytest.raises(RecordError) as error:
        load_data(options_of(config))
    (flag,) = flags_in(str(error.value))
    assert flag == "--config.data.reading.held_out_split=none"
    config.data.reading.held_out_split = config_of(f"--config={SFT}", flag).data.reading.held_out_split
    assert [record.id for record in load_data(options_of(config)).held_out_records] == ["h.json:1"]


@pytest.mark.parametrize("asked", ["", "validation"])
def test_the_split_of_held_out_rows_is_chosen_by_its_own_flag(asked, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps({"train": [["a", "b"]] * 9, "val": [["c", "d"]]}))
    (tmp_path / "h.json").write_text(json.dumps({"val": [["e", "f"]], "test": [["g", "h"]]}))
    options = {"data.reading.columns": RENAMES["columns"], "data.reading.split": "train"}
    config = tiny.config(tmp_path, **options, **{"data.reading.held_out_split": asked}).unlock()
    config.data.train, config.data.held_out = str(tmp_path / "d.json"), str(tmp_path / "h.json")
    with pytest.raises(RecordError, match=rf"h.json: there is no array '{asked or 'train'}'") as error:
        load_data(options_of(config))
    assert "choose one by --config.data.reading.held_out_split: val (1 rows), test (1 rows)" in str(error.value)
    config.data.reading.held_out_split = "val"
    assert [record.id for record in load_data(options_of(config)).held_out_records] == ["h.json/val:1"]
