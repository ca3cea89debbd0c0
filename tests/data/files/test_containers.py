"""Containers, compression and paths: the same rows, whatever they lie in."""

import bz2
import gzip
import io
import json
import lzma

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from sft_jax.data.files import CONTAINERS, sources_of
from sft_jax.data.files.containers import container_of
from sft_jax.data.reading import DEFAULT, Reading, RecordError
from sft_jax.data.records import RecordReader, read_records
from tests import buckets

ROWS = [{"prompt": f"q{i}", "completion": 'a, \u2028é\n"b"'} for i in range(3)]
BOM = b"\xef\xbb\xbf"


def jsonl(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(separator=","):
    cells = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in ROWS)]
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in cells]
    return "\r\n".join(quoted).encode()


def in_arrow(write):
    sink = pyarrow.BufferOutputStream()
    write(pyarrow.Table.from_pylist(ROWS), sink)
    return sink.getvalue().to_pybytes()


def stream(content, sink):
    with pyarrow.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)


def file(content, sink):
    with pyarrow.ipc.new_file(sink, content.schema) as writer:
        writer.write_table(content)


def zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as compressed:
        compressed.write(content)
    return sink.getvalue().to_pybytes()


FILES = [  # (name, content, what it is taken for, numbers of its rows)
    ("a.jsonl", jsonl(), "JSONL", (1, 2, 3)),
    ("a.ndjson", jsonl(), "JSONL", (1, 2, 3)),
    ("a.jsonl", BOM + jsonl().replace(b"\n", b"\r\n") + b"\n \n", "JSONL", (1, 2, 3)),
    ("a.json", jsonl(), "JSONL", (1, 2, 3)),
    ("a", jsonl(), "JSONL", (1, 2, 3)),
    ("a.json", json.dumps(ROWS).encode(), "JSON", (1, 2, 3)),
    ("a.json", BOM + json.dumps({"version": 1, "data": ROWS}, indent=2).encode(), "JSON", (1, 2, 3)),
    ("a.json", json.dumps({"data": ROWS}).encode(), "JSON", (1, 2, 3)),
    ("a.csv", table(), "CSV", (2, 4, 6)),
    ("a.CSV", BOM + table() + b"\r\n\r\n", "CSV", (2, 4, 6)),
    ("a.tsv", table("\t"), "TSV", (2, 4, 6)),
    ("a.parquet", in_arrow(pyarrow.parquet.write_table), "Parquet", (1, 2, 3)),
    ("a.bin", in_arrow(pyarrow.parquet.write_table), "Parquet", (1, 2, 3)),
    ("a.arrow", in_arrow(stream), "Arrow", (1, 2, 3)),
    ("a.arrow", in_arrow(file), "Arrow", (1, 2, 3)),
    ("a.feather", in_arrow(pyarrow.feather.write_feather), "Arrow", (1, 2, 3)),
    ("a.jsonl.gz", gzip.compress(jsonl()), "JSONL", (1, 2, 3)),
    ("a.jsonl", gzip.compress(jsonl()), "JSONL", (1, 2, 3)),
    ("a.jsonl.bz2", bz2.compress(jsonl()), "JSONL", (1, 2, 3)),
    ("a.csv.xz", lzma.compress(table()), "CSV", (2, 4, 6)),
    ("a.jsonl.bz2", bytes(4).join(map(bz2.compress, jsonl().splitlines(True))) + bytes(8), "JSONL", (1, 2, 3)),
    ("a.jsonl.xz", b"".join(map(lzma.compress, jsonl().splitlines(True))), "JSONL", (1, 2, 3)),
    ("a.jsonl.zst", zstd(jsonl()), "JSONL", (1, 2, 3)),
    ("a.json.zst", zstd(json.dumps(ROWS).encode()), "JSON", (1, 2, 3)),
    ("a.parquet.gz", gzip.compress(in_arrow(pyarrow.parquet.write_table)), "Parquet", (1, 2, 3)),
]


# Names of their own: compressed bytes hold the time, and workers must agree on the names of tests.
@pytest.mark.parametrize(
    ("name", "content", "title", "numbers"), FILES, ids=[f"{name} {number}" for number, (name, *_) in enumerate(FILES)]
)
@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_the_same_rows(tmp_path, name, content, title, numbers, place):
    folder = tmp_path if place == "disk" else buckets.empty("rows")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    reader = RecordReader(folder / name)
    records = list(reader)
    assert [record.fields["completion"].replace("\r\n", "\n") for record in records] == [r["completion"] for r in ROWS]
    assert [record.fields["prompt"] for record in records] == ["q0", "q1", "q2"]
    assert [record.id for record in records] == [f"{name}:{number}" for number in numbers]
    assert reader.notes == [f"{name}: {title}, prompt_completion"]


def test_a_container_that_is_forced(tmp_path):
    (tmp_path / "a.txt").write_bytes(table(";"))
    records = read_records(tmp_path / "a.txt", Reading(container="csv_semicolon"))
    assert [record.fields for record in records] == ROWS


def test_zstd_that_is_cut_off(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(zstd(jsonl() * 99)[:-9])
    with pytest.raises(RecordError, match=r"a.jsonl.zst: the zstd file is cut off or damaged"):
        read_records(tmp_path / "a.jsonl.zst")


def test_every_container_is_known_by_a_suffix_or_forced():
    names = {container_of(f"a{suffix}", b"") for suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")}
    assert names | {"csv_semicolon"} == set(CONTAINERS)


def test_long_cells(tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert len(read_records(tmp_path / "a.csv")[0].fields["text"]) == 200_000


@pytest.mark.parametrize("place", ["disk", "bucket"])
def test_patterns_and_lists(tmp_path, place):
    folder = tmp_path if place == "disk" else buckets.empty("rows")
    for name in ("b/train.jsonl", "a/train.jsonl", "a/more.jsonl", "a/notes.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jsonl(ROWS[:1]))

    def ids(path):
        return [record.id for record in read_records(path)]

    assert ids(f"{folder}/a/*.jsonl") == ["more.jsonl:1", "train.jsonl:1"]
    assert ids(f"{folder}/*/train.jsonl") == ["a/train.jsonl:1", "b/train.jsonl:1"]
    assert ids(f"{folder}/b/train.jsonl,{folder}/a/train.jsonl") == ["b/train.jsonl:1", "a/train.jsonl:1"]


def test_a_name_with_the_signs_of_a_pattern(tmp_path):
    (tmp_path / "a[1],b.jsonl").write_bytes(jsonl())
    assert len(read_records(tmp_path / "a[1],b.jsonl")) == 3


CALLS = [  # (arguments of the calls of two rows, words of the error)
    ([{"city": "Oslo"}, {"city": "Rome"}], ""),
    (
        [{"city": "Oslo"}, {"day": 3}],
        'a.parquet:1: "messages"[0]: "tool_calls"[0]: "arguments": \'day\' is null in an object of a Parquet or Arrow',
    ),
    (['{"city": "Oslo"}', '{"day": 3}'], ""),
]


@pytest.mark.parametrize(("arguments", "words"), CALLS)
def test_keys_that_arrow_added_are_not_taken_for_arguments(tmp_path, arguments, words):
    rows = [
        {"messages": [{"role": "assistant", "content": "", "tool_calls": [{"name": "f", "arguments": given}]}]}
        for given in arguments
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    if words:
        with pytest.raises(RecordError) as error:
            read_records(tmp_path / "a.parquet")
        assert str(error.value).startswith(f"{tmp_path}/{words}")
    else:
        found = [record.conversation[0].tool_calls[0].arguments for record in read_records(tmp_path / "a.parquet")]
        assert found == [given if isinstance(given, dict) else json.loads(given) for given in arguments]


@pytest.fixture
def labelled():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    return datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)


TEMPLATES = {"prompt_template": "{text}", "answer_template": "{label}"}


def test_saved_data_sets(tmp_path, labelled):
    """Numbers of classes become their names."""
    labelled.save_to_disk(tmp_path / "one")
    reader = RecordReader(tmp_path / "one", Reading(**TEMPLATES))
    assert [(r.id, r.conversation[1].content) for r in reader] == [("one:1", "yes"), ("one:2", "no")]
    assert reader.notes == ["one: saved data set, table"]
    datasets.DatasetDict({"train": labelled, "test": labelled.select([1])}).save_to_disk(tmp_path / "two")
    records = read_records(tmp_path / "two", Reading(split="test", **TEMPLATES))
    assert [(r.id, r.conversation[1].content) for r in records] == [("two/test:1", "no")]
    datasets.DatasetDict({"train": labelled}).save_to_disk(tmp_path / "three")
    assert [r.id for r in read_records(tmp_path / "three", Reading(**TEMPLATES))] == ["three/train:1", "three/train:2"]


def test_a_class_that_is_not_known_is_none(tmp_path, labelled):
    """Its number is -1, which in a list of names would be the last one."""
    labels = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=labelled.features)
    labels.save_to_disk(tmp_path / "one")
    with pytest.raises(RecordError, match=r"one:2: the row has no 'label'"):
        read_records(tmp_path / "one", Reading(**TEMPLATES))
    only_text = Reading(prompt_template="{text}", answer_template="{label|none}")
    assert [r.conversation[1].content for r in read_records(tmp_path / "one", only_text)] == ["yes", "none"]


def test_lists_of_classes(tmp_path):
    tags = datasets.Sequence(datasets.ClassLabel(names=["noun", "verb"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": tags})
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [[1, 0, -1], []]}, features=features)
    made.save_to_disk(tmp_path / "one")
    found = [record.conversation[1].content for record in read_records(tmp_path / "one", Reading(**TEMPLATES))]
    assert found == ['["verb", "noun", null]', "[]"]


def test_a_group_of_rows_is_not_read_at_once(tmp_path):
    rows = {"text": [f"{number}" * 1000 for number in range(3000)]}
    pyarrow.parquet.write_table(pyarrow.table(rows), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    content, sizes = (tmp_path / "a.parquet").read_bytes(), []

    class Noting(io.BytesIO):
        def read(self, size=-1):
            sizes.append(size)
            return super().read(size)

    found = CONTAINERS["parquet"].rows(Noting(content), "a.parquet")
    assert [row.content["text"] for row in found] == rows["text"]
    assert 3 * max(sizes) < len(content)  # a page of a column at most


def twice_on_top():
    return pyarrow.Table.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"])


def twice_inside():
    return pyarrow.table({"x": pyarrow.StructArray.from_arrays([pyarrow.array(["a"])] * 2, ["text", "text"])})


@pytest.mark.parametrize("content", [twice_on_top, twice_inside])
def test_columns_of_one_name(tmp_path, content):
    pyarrow.parquet.write_table(content(), tmp_path / "a.parquet")
    with pytest.raises(RecordError, match=r"a\.parquet: has two columns 'text'"):
        read_records(tmp_path / "a.parquet")


SPLITS = [
    ("one", "train", "has no splits. Leave --config.data.reading.split empty"),
    ("two", "", "there are several splits; choose one by --config.data.reading.split: train, test"),
    ("two", "dev", "there is no split 'dev'; choose one by --config.data.reading.split: train, test"),
]


@pytest.mark.parametrize(("name", "split", "words"), SPLITS)
def test_splits(tmp_path, labelled, name, split, words):
    both = datasets.DatasetDict({"train": labelled, "test": labelled})
    (labelled if name == "one" else both).save_to_disk(tmp_path / name)
    with pytest.raises(RecordError, match=words):
        sources_of(tmp_path / name, Reading(split=split))


def test_a_directory_that_is_no_data_set(tmp_path):
    with pytest.raises(RecordError, match="not a directory made by save_to_disk"):
        sources_of(tmp_path, Reading(container="saved"))
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(RecordError, match="cannot be read"):
        sources_of(tmp_path, DEFAULT)


def test_names_of_the_hub(monkeypatch, labelled):
    """What is asked of the `datasets` library; a name is taken for one of the hub only where nothing lies there."""
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return labelled.to_iterable_dataset() if options["streaming"] else labelled

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, **options: ["train"])
    records = read_records("owner/set", Reading(**TEMPLATES))
    assert [(r.id, r.conversation[1].content) for r in records] == [
        ("owner/set/train:1", "yes"),
        ("owner/set/train:2", "no"),
    ]
    reading = Reading(container="hub", subset="main", split="test", revision="abc", streaming=True, **TEMPLATES)
    assert [r.id for r in read_records("set", reading)] == ["set/test:1", "set/test:2"]
    options = {"split": "train", "revision": None, "streaming": False}
    assert asked == [
        (("owner/set", None), options),
        (("set", "main"), {"split": "test", "revision": "abc", "streaming": True}),
    ]


def test_a_hub_that_is_lost_on_the_way(monkeypatch, labelled):
    class Lost:
        features, cache_files = None, ()

        def with_format(self, name):
            return self

        def iter(self, batch_size):
            raise ConnectionError("gone")

    monkeypatch.setattr(datasets, "load_dataset", lambda *names, **options: Lost())
    with pytest.raises(RecordError, match=r"owner/set/train: reading stopped \(gone\)"):
        read_records("owner/set", Reading(split="train"))


def test_a_hub_that_cannot_be_reached(monkeypatch):
    def fails(*names, **options):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fails)
    words = "owner/set: there is no such file or directory, and no data set of this name .*Couldn't reach the Hub"
    with pytest.raises(RecordError, match=words):
        read_records("owner/set")
