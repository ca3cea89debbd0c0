"""The record format that docs/extending.md shows is found and read as it stands there; docs/data.md names them all."""

import re
import types
from pathlib import Path
from unittest import mock

import pytest

from sft_jax.data.conversations import Message
from sft_jax.data.files import CONTAINERS, DATA_SETS
from sft_jax.data.formats import FORMATS
from sft_jax.data.reading import OPTIONS
from sft_jax.data.records import RecordError, RecordReader, read_records

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def shown():
    """The format, entered by the line that the page shows."""
    (code,) = (
        c for c in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.S) if "FORM =" in c
    )
    (line,) = re.findall(r"^FORMATS\[.*$", (DOCS / "extending.md").read_text(), re.M)
    dialogue = types.ModuleType("dialogue")
    exec(compile(code, "extending.md", "exec"), dialogue.__dict__)
    with mock.patch.dict(FORMATS):
        exec(line, {"FORMATS": FORMATS, "dialogue": dialogue})
        yield


def test_its_rows_are_found_and_read(shown, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"dialogue": ["Hi", "Ho", "Hi!"]}\n')
    reader = RecordReader(tmp_path / "a.jsonl")
    (record,) = reader
    assert record.conversation == (Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "Hi!"))
    assert reader.notes == ["a.jsonl: JSONL, dialogue"]


def test_its_errors_name_the_row(shown, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"dialogue": "Hi"}\n')
    with pytest.raises(RecordError, match=r'a.jsonl:1: "dialogue": expected a list of what is said, got a string'):
        read_records(tmp_path / "a.jsonl")


def test_the_page_names_all_formats_containers_and_options():
    page = (DOCS / "data.md").read_text().partition("## Records and files")[2]
    named = set(re.findall(r"(?:`|\breading\.)(?:reading\.)?(\w+)", page))
    assert {*FORMATS, *CONTAINERS, *DATA_SETS, *OPTIONS} - named == set()
