"""Corpora: what becomes a document, what is left out, and what is refused by name."""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from sft_jax.data.reading import RecordError
from sft_jax.retrieval.corpus import Document, read_corpus
from tests import buckets

FAQ = [{"question": "When?", "answer": "At nine."}, {"question": "Where?", "answer": "Here."}]
FAQ_TEXTS = ["When?\nAt nine.", "Where?\nHere."]
BOTH = "{question}\n{answer}"


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return str(path)


def write_faq(folder, name):
    path = folder / name
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(FAQ), path)
        return str(path)
    separator = "\t" if name.endswith(".tsv") else ","
    table = "\n".join(separator.join(row.values()) for row in FAQ)
    content = {
        "jsonl": "\n".join(map(json.dumps, FAQ)),
        "json": json.dumps(FAQ),
        "csv": f"question,answer\n{table}\n",
        "tsv": f"question\tanswer\n{table}\n",
    }[name.rpartition(".")[2]]
    return write(folder, name, content)


@pytest.mark.parametrize(
    ("name", "first"), [("f.jsonl", 1), ("f.json", 1), ("f.csv", 2), ("f.tsv", 2), ("f.parquet", 1)]
)
def test_rows_of_all_containers_through_a_template(name, first, tmp_path):
    documents, report = read_corpus(write_faq(tmp_path, name), BOTH)
    assert documents == [Document(f"{name}:{first + i}", text) for i, text in enumerate(FAQ_TEXTS)]
    assert report.note() == "2 documents"


def test_text_and_markdown_are_a_document_each(tmp_path):
    write(tmp_path, "a.txt", "\ufeffOne {brace}\n")
    write(tmp_path, "b.md", "# Two\n\ntext")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"Three"))
    documents, _ = read_corpus(str(tmp_path))
    assert documents == [
        Document("a.txt", "One {brace}\n"),
        Document("b.md", "# Two\n\ntext"),
        Document("c.txt.gz", "Three"),
    ]


def test_files_patterns_directories_and_lists(tmp_path):
    write(tmp_path, "docs/a.md", "a")
    write(tmp_path, "docs/below/a.md", "b")
    write(tmp_path, "docs/.hidden.md", "c")
    write(tmp_path, "docs/picture.png", "\x00\x01")
    rows = write(tmp_path, "rows.jsonl", '{"text": "d"}\n')
    documents, report = read_corpus(f"{tmp_path}/docs")
    assert [document.id for document in documents] == ["a.md", "below/a.md"]
    assert report.skipped == (f"{tmp_path}/docs/picture.png",)
    assert "1 neither text nor rows, left out: " in report.note()
    documents, _ = read_corpus(f"{tmp_path}/docs/*.md, {rows}")
    assert [(document.id, document.text) for document in documents] == [("a.md", "a"), ("rows.jsonl:1", "d")]


def test_ids_of_a_column(tmp_path):
    path = write(tmp_path, "r.jsonl", '{"text": "a", "id": "x"}\n{"text": "b", "id": 7}\n')
    with pytest.raises(
        RecordError, match=r"expected an id, a text or a whole number, in 'name' .*; the row has 'text', 'id'"
    ):
        read_corpus(path, id_column="name")
    documents, _ = read_corpus(path, id_column="id")
    assert [document.id for document in documents] == ["x", "7"]


def test_empty_documents_and_copies_are_counted_named_and_left_out(tmp_path):
    write(tmp_path, "a.txt", "One  two\n")
    write(tmp_path, "b.txt", " \n")
    write(tmp_path, "c.txt", "One\ntwo")
    documents, report = read_corpus(str(tmp_path))
    assert [document.id for document in documents] == ["a.txt"]
    assert (report.empty, report.duplicates) == (("b.txt",), (("c.txt", "a.txt"),))
    assert report.note() == (
        "1 document; 1 empty, left out: b.txt; 1 of the same text as another, left out: c.txt (as a.txt)"
    )


REFUSED = {
    "no such file": ("missing.txt", None, {}, "missing.txt: there is no such file"),
    "no document left": ("a.txt", " \n ", {}, "none of 1 documents has a text: a.txt"),
    "unknown column": (
        "a.jsonl",
        '{"text": "a"}\n{"body": "b"}\n',
        {},
        r"a\.jsonl:2: the row has no 'text', which --config\.data\.retrieval\.row_template names; it has 'body'",
    ),
    "bad row": ("a.jsonl", '{"text": "a"}\n{"text"\n', {}, r"a\.jsonl:2"),
    "no rows": ("a.csv", "text\n", {}, r"a\.csv: the file is empty"),
    "unknown kind": ("a.bin", "what", {}, r"a\.bin: neither suffix nor content says what it is. Expected text"),
    "no id": ("a.jsonl", '{"text": "a", "id": null}\n', {"id_column": "id"}, r"a\.jsonl:1: expected an id.* got null"),
    "one id twice": (
        "a.jsonl",
        '{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n',
        {"id_column": "id"},
        "the id '1' is that of two documents",
    ),
    "template without a column": ("a.jsonl", '{"text": "a"}\n', {"row_template": "{{text}}"}, "names no column"),
    "single brace": ("a.jsonl", '{"text": "a"}\n', {"row_template": "{text}}"}, r"retrieval\.row_template=.* a single"),
    "template of no rows": ("a.txt", "a", {"row_template": BOTH}, r"has no rows, so --config\.data\.retrieval\.row_"),
    "id of no rows": ("a.txt", "a", {"id_column": "id"}, r"has no rows, so --config\.data\.retrieval\.id_column='id'"),
    "other separator": ("a.csv", "a;text\n1;b\n", {}, "Of a corpus no such option is read"),
    "not UTF-8": ("a.txt", b"\xff\x00", {}, r"a\.txt: not UTF-8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_names_file_and_row(case, tmp_path):
    name, content, options, message = REFUSED[case]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_corpus(str(tmp_path / name), **options)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(RecordError, match="no file below this directory can be read"):
        read_corpus(str(tmp_path))


def test_a_corpus_in_a_bucket():
    bucket = buckets.empty("corpus")
    (bucket / "below").mkdir(parents=True, exist_ok=True)
    (bucket / "a.md").write_text("one")
    (bucket / "below" / "b.jsonl").write_text('{"text": "two"}\n')
    documents, _ = read_corpus(str(bucket))
    assert [(document.id, document.text) for document in documents] == [("a.md", "one"), ("b.jsonl:1", "two")]
