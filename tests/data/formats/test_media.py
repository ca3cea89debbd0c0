"""Columns of images and sound are never lost without a word."""

import pyarrow
import pyarrow.parquet
import pytest

from sft_jax.data.reading import Reading, RecordError
from sft_jax.data.records import read_prompts, read_records
from sft_jax.exports.data_set import reading_flags

TURNS = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "A cat."}]
STORED = {"bytes": b"\x89PNG", "path": None}
ROWS = [  # (row, column, options)
    ({"messages": TURNS, "images": ["a.jpg"]}, "images", {}),
    ({"messages": TURNS, "photo": STORED}, "photo", {}),
    ({"messages": TURNS, "photos": [STORED]}, "photos", {}),
    ({"prompt": "a", "completion": "b", "image": "a.jpg"}, "image", {}),
    ({"instruction": "a", "output": "b", "audio": "a.wav"}, "audio", {}),
    ({"conversations": [{"from": "gpt", "value": "a"}], "videos": ["a.mp4"]}, "videos", {}),
    ({"prompt": "a", "chosen": "b", "rejected": "c", "images": ["a.jpg"]}, "images", {}),
    ({"text": "a", "image": "a.jpg"}, "image", {"format": "text"}),
    ({"segments": [{"text": "a", "train": True}], "audios": ["a.wav"]}, "audios", {}),
    ({"input_ids": [1], "labels": [1], "pixel_values": [[0.5]]}, "pixel_values", {}),
    ({"a": "b", "image": STORED}, "image", {"prompt_template": "{a}", "answer_template": "{a}"}),
]


@pytest.mark.parametrize(("row", "column", "options"), ROWS)
def test_they_are_refused_by_name(tmp_path, row, column, options):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), file)
    words = rf"a\.parquet:1: the column '{column}' would be lost: only text .*ignore=\"\('{column}',\)\""
    for read in (read_records, read_prompts) if "rejected" not in row and "text" not in row else (read_records,):
        with pytest.raises(RecordError, match=words):
            read(file, Reading(**options))
    (record,) = read_records(file, Reading(**options, ignore=(column,)))
    assert f"--config.data.reading.ignore=\"('{column}',)\"" in reading_flags([record])


@pytest.mark.parametrize("nothing", ["null", "[]", '""'])
def test_a_row_without_one(tmp_path, nothing):
    (tmp_path / "a.json").write_text(f'[{{"text": "a", "images": {nothing}}}]')
    assert read_records(tmp_path / "a.json", Reading(format="text"))


def test_a_table_that_reads_a_column_of_that_name(tmp_path):
    (tmp_path / "a.csv").write_text("image,tag\nubuntu,24.04\n")
    (record,) = read_records(tmp_path / "a.csv", Reading(prompt_template="{image}", answer_template="{tag}"))
    assert record.conversation[0].content == "ubuntu"
