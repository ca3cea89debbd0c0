"""The directory of an export: never half there, never in the place of something else."""

import pytest
from etils import epath

from sft_jax.exports.directory import ExportError, filled
from tests import buckets


@pytest.fixture(params=["local", "bucket"])
def out(request, tmp_path):
    parent = epath.Path(tmp_path) if request.param == "local" else buckets.empty(tmp_path.name)
    parent.mkdir(parents=True, exist_ok=True)
    return parent / "out"


def fill(out, force=False, **files):
    with filled(out, force) as staging:
        assert not any(staging.iterdir())
        for name, text in files.items():
            if not isinstance(text, str):
                raise text
            (staging / f"{name}.json").write_text(text)


def content(out):
    return {file.name: file.read_text() for file in out.iterdir()}


def test_it_gets_its_name_at_the_end(out):
    with filled(out, False) as staging:
        (staging / "config.json").write_text("{}")
        assert not out.exists()
    assert content(out) == {"config.json": "{}"}
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_failure_leaves_nothing(out, error):
    with pytest.raises(error):
        fill(out, config="{}", model=error)
    assert not out.exists()
    assert not list(out.parent.iterdir())


def test_what_a_killed_export_left_is_removed(out):
    left = out.parent / ".out.partial"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_text("half")
    fill(out, config="{}")
    assert content(out) == {"config.json": "{}"}


def test_an_earlier_export_is_replaced_only_by_force(out):
    fill(out, golden="1", old="1")
    with pytest.raises(ExportError, match="exists; give another directory, or --force"):
        fill(out, golden="2")
    assert content(out) == {"golden.json": "1", "old.json": "1"}
    fill(out.parent / "another", golden="2")
    assert content(out.parent / "another") == {"golden.json": "2"}
    fill(out, force=True, golden="2")
    assert content(out) == {"golden.json": "2"}
    with pytest.raises(RuntimeError):
        fill(out, force=True, golden="3", model=RuntimeError)
    assert content(out) == {"golden.json": "2"}
    assert sorted(path.name for path in out.parent.iterdir()) == ["another", "out"]


def test_something_else_is_never_replaced(out):
    out.mkdir()
    (out / "thesis.txt").write_text("three years")
    with pytest.raises(ExportError, match=r"so it is no earlier export: --force .*; give another directory"):
        fill(out, force=True, golden="1")
    fill(out.parent / "another", golden="1")
    assert content(out) == {"thesis.txt": "three years"}


def test_a_file_is_not_a_place(out):
    out.write_text("x")
    with pytest.raises(ExportError, match="is a file"):
        fill(out, force=True, golden="1")
