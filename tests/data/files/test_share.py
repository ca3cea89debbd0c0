"""How much of the data has been read: by rows where their number is known, else by bytes; never more than there is."""

import gzip
import hashlib
import json

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from sft_jax.data.mixed_records import MixedReader
from sft_jax.data.reading import DEFAULT, Reading
from sft_jax.data.records import RecordReader

ROWS = [{"prompt": f"{n:04}", "completion": "a"} for n in range(10)]


def write(path, rows=ROWS):
    """The rows in the container that the suffix names."""
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        path.write_text("prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in rows))
    elif path.suffix == ".saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


def shares(reader):
    return [reader.share for _ in reader]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.saved"])
def test_of_one_file(tmp_path, name):
    reader = RecordReader(write(tmp_path / name))
    assert reader.share == 0
    for _ in range(2):  # each pass begins anew
        assert shares(reader) == pytest.approx([n / 10 for n in range(1, 11)])
        assert reader.share == 1


def test_of_a_table_the_header_counts(tmp_path):
    assert shares(RecordReader(write(tmp_path / "a.csv"))) == pytest.approx([(18 + 7 * n) / 88 for n in range(1, 11)])


def test_of_compressed_bytes(tmp_path):
    # Python's gzip reads 128 KiB at once, from 3.12 on; what is compressed must be longer.
    rows = [{"prompt": hashlib.sha256(b"%d" % n).hexdigest(), "completion": "a"} for n in range(9000)]
    found = shares(RecordReader(write(tmp_path / "a.jsonl.gz", rows)))
    assert found == sorted(found)
    assert 0 < found[0] < 0.8
    assert found[-1] == 1


def test_of_several_files_by_their_bytes(tmp_path):
    write(tmp_path / "a.jsonl"), write(tmp_path / "b.jsonl", ROWS * 3)
    found = shares(RecordReader(f"{tmp_path}/*.jsonl"))
    assert found == pytest.approx([n / 40 for n in range(1, 41)])


def test_of_the_sources_of_a_mixture(tmp_path):
    paths = {"x": write(tmp_path / "a.jsonl"), "y": write(tmp_path / "b.jsonl", ROWS * 3)}
    reader = MixedReader({name: (path, DEFAULT) for name, path in paths.items()})
    for _ in range(2):
        assert shares(reader) == pytest.approx([n / 40 for n in range(1, 41)])


def test_of_what_comes_over_the_network_nobody_knows(tmp_path, monkeypatch):
    streamed = datasets.Dataset.from_list(ROWS).to_iterable_dataset()
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: streamed)
    options = {"split": "train", "streaming": True}
    reader = RecordReader("owner/name", Reading(**options))
    assert set(shares(reader)) == {None}
    mixed = MixedReader({"x": (write(tmp_path / "a.jsonl"), DEFAULT), "y": ("owner/name", Reading(**options))})
    assert set(shares(mixed)) == {None}
