"""The documents of a corpus: files of text, each a document, and rows of tables, made documents by a template.

The first step of retrieval, before chunks.py. Rows are read by the containers of `data/files`.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from etils import epath

from sft_jax.data.files import (
    COMPRESSIONS,
    CONTAINERS,
    Source,
    container_of,
    file_source,
    files_of,
    names_of,
    opened,
)
from sft_jax.data.files.jsonl import BOM, decoded_text, refuse_utf16
from sft_jax.data.formats.table import check_template, filled
from sft_jax.data.formats.values import kind
from sft_jax.data.reading import FLAGS, Reading, RecordError, under_flags_of

FLAG = "--config.data.retrieval."  # what the flags that choose a corpus begin with, in messages
ROW_TEMPLATE = "{text}"

_TEXT = (".txt", ".text", ".md", ".markdown")
_READING = Reading(flags=FLAG)
_HEAD = 2**16  # bytes by which a file is recognised


@dataclasses.dataclass(frozen=True)
class Document:
    """A text that passages are taken from.

    Attributes:
        id: file ("notes.md"), file and row ("faq.csv:12"), or what the row says; unique in its corpus.
        text: of it; Markdown as it was written.
    """

    id: str
    text: str


@dataclasses.dataclass(frozen=True)
class CorpusReport:
    """What became of the files and rows of a corpus: read = documents + empty + duplicates.

    Attributes:
        documents: that are there to be found.
        empty: ids of those without a word or with nothing but white space.
        duplicates: (id, id of the earlier document with the same text, but for white space).
        skipped: files of a directory that are neither text nor rows.
    """

    documents: int
    empty: tuple[str, ...]
    duplicates: tuple[tuple[str, str], ...]
    skipped: tuple[str, ...]

    def note(self) -> str:
        """In words: "120 documents; 1 empty, left out: b.txt"."""
        copies = [f"{copy} (as {first})" for copy, first in self.duplicates]
        parts = (
            ("empty", self.empty),
            ("of the same text as another", copies),
            ("neither text nor rows", self.skipped),
        )
        left_out = [f"{len(names):,} {what}, left out: {_some(names)}" for what, names in parts if names]
        return "; ".join([f"{self.documents:,} document{'s' if self.documents != 1 else ''}", *left_out])


def read_corpus(
    path: str, row_template: str = ROW_TEMPLATE, id_column: str = ""
) -> tuple[list[Document], CorpusReport]:
    """Reads a corpus.

    Args:
        path: a file, a pattern, a directory with all that lies below it, or several of these separated by commas; may
            lie in a bucket. Plain text and Markdown (.txt, .md) are a document each; every row of JSONL, JSON, CSV,
            TSV, Parquet and Arrow is one.
        row_template: the text of a row, with its columns in braces: "{question}\\n{answer}".
        id_column: column with the id of a row; empty: file and number of the row.

    Returns:
        The documents in the order of files and rows, and what was left out.

    Raises:
        RecordError: there are no files, or no document in them; a file or a row that cannot be read, that lacks a
            column, or whose id is empty or that of another; an option of rows where there are none.
    """
    with _advice_of_a_corpus():
        check_row_template(row_template)
        files, skipped = _files_of(path)
        names = names_of([str(file) for file in files])
        found: list[Document] = []
        has_rows = False
        for file, name in zip(files, names, strict=True):
            source = _rows_of(file, name)
            has_rows |= source is not None
            found += [_text_document(file, name)] if source is None else _documents(source, row_template, id_column)
    if not has_rows and (row_template != ROW_TEMPLATE or id_column):
        option = "id_column" if id_column else "row_template"
        value = id_column or row_template
        raise RecordError(f"{path}: has no rows, so {FLAG}{option}={value!r} is not read; leave it out.")
    return _distinct(found, path, skipped)


def check_row_template(template: str, flags: str = FLAG) -> None:
    """Checks the template of rows on its own; `flags` is what the flag that sets it begins with.

    Raises:
        ValueError: it names no column, or has a brace that belongs to none.
    """
    with under_flags_of(Reading(flags=flags)):
        check_template(template, "row_template")
    if "{" not in template.replace("{{", ""):
        raise ValueError(f"{flags}row_template={template!r} names no column; all rows would have the same text.")


def _files_of(path: str) -> tuple[list[epath.Path], list[str]]:
    """The files of a path, and names of those of a directory that are not read."""
    files: list[epath.Path] = []
    skipped: list[str] = []
    parts = [path] if epath.Path(path).exists() else [part.strip() for part in path.split(",") if part.strip()]
    for part in parts:
        directory = epath.Path(part)
        if not directory.is_dir():
            files += files_of(part)
            continue
        below = list(_below(directory))
        readable = [file for file in below if _is_text(file) or _container(file) is not None]
        if not readable:
            raise RecordError(f"{part}: no file below this directory can be read. Expected {_EXPECTED}.")
        files += readable
        skipped += [str(file) for file in below if file not in readable]
    if not files:
        raise RecordError(f"{path!r} names no file of a corpus.")
    return files, skipped


def _below(directory: epath.Path) -> Iterator[epath.Path]:
    """The files below a directory in alphabetical order, but hidden ones."""
    for child in sorted(directory.iterdir(), key=lambda child: child.name):
        if child.name.startswith("."):
            continue
        if child.is_dir():
            yield from _below(child)
        else:
            yield child


_EXPECTED = f"text ({', '.join(_TEXT)}) or rows ({', '.join(CONTAINERS)})"


def _is_text(file: epath.Path) -> bool:
    path = PurePosixPath(file.name)
    suffix = PurePosixPath(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return suffix.lower() in _TEXT


def _container(file: epath.Path) -> str | None:
    with opened(file) as stream:
        return container_of(file.name, stream.read(_HEAD))


def _rows_of(file: epath.Path, name: str) -> Source | None:
    """The rows of a file; None for one of text.

    Raises:
        RecordError: it is neither.
    """
    if _is_text(file):
        return None
    if _container(file) is None:
        raise RecordError(f"{file}: neither suffix nor content says what it is. Expected {_EXPECTED}.")
    return file_source(file, name, _READING)


def _text_document(file: epath.Path, name: str) -> Document:
    with opened(file) as stream:
        content = stream.read()
    refuse_utf16(content, str(file))
    return Document(name, decoded_text(content.removeprefix(BOM), str(file)))


def _documents(source: Source, row_template: str, id_column: str) -> Iterator[Document]:
    count = 0
    for row in source.rows():
        count += 1
        where = f"{source.where}:{row.number}"
        if isinstance(row.content, RecordError):
            raise row.content
        if not isinstance(row.content, dict):
            raise RecordError(f"{where}: expected an object with the columns of a row, got {kind(row.content)}.")
        text = filled(row_template, "row_template", row.content, where)
        name = _id(row.content, id_column, where) if id_column else f"{source.name}:{row.number}"
        yield Document(name, text)
    if not count:
        raise RecordError(f"{source.where}: the file is empty. Expected rows.")


def _id(fields: dict, column: str, where: str) -> str:
    value = fields.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        present = ", ".join(map(repr, fields))
        raise RecordError(
            f"{where}: expected an id, a text or a whole number, in {column!r} ({FLAG}id_column), got {kind(value)}; "
            f"the row has {present}."
        )
    return str(value)


def _distinct(found: Sequence[Document], path: str, skipped: Sequence[str]) -> tuple[list[Document], CorpusReport]:
    """The documents that are left without empty ones and copies."""
    ids: set[str] = set()
    first: dict[str, str] = {}  # text without the form of its white space -> id
    kept, empty, duplicates = [], [], []
    for document in found:
        if document.id in ids:
            raise RecordError(f"{path}: the id {document.id!r} is that of two documents. Expected ids of their own.")
        ids.add(document.id)
        text = " ".join(document.text.split())
        if not text:
            empty.append(document.id)
        elif text in first:
            duplicates.append((document.id, first[text]))
        else:
            first[text] = document.id
            kept.append(document)
    if not kept:
        raise RecordError(f"{path}: none of {len(found)} documents has a text: {_some(empty)}.")
    return kept, CorpusReport(len(kept), tuple(empty), tuple(duplicates), tuple(skipped))


@contextlib.contextmanager
def _advice_of_a_corpus() -> Iterator[None]:
    """Errors name the flags of retrieval; where they advise an option that only training rows have, they say so."""
    try:
        yield
    except RecordError as error:
        text = str(error).replace(f"{FLAGS}row_template", f"{FLAG}row_template")
        if FLAGS in text:
            text += " (Of a corpus no such option is read: store it so that it needs none, as JSONL for example.)"
        raise RecordError(text) from error


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
