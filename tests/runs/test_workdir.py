"""Files of a run directory that are either as they were or complete."""

import os

import pytest

from sft_jax.runs.workdir import write_whole


@pytest.mark.parametrize("content", ["a\r\né", b"\x89PNG\r\n\xff", ""])
def test_a_file_holds_what_was_written(tmp_path, content):
    for name in ("new", "old"):
        (tmp_path / "old").write_text("other")
        write_whole(tmp_path / name, content)
        assert (tmp_path / name).read_bytes() == (content.encode("utf-8") if isinstance(content, str) else content)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


@pytest.mark.parametrize("content", ["é", b"\xff"])
def test_a_file_that_is_equal_is_left_alone(tmp_path, content):
    path = tmp_path / "file"
    write_whole(path, content)
    os.utime(path, (1, 1))
    write_whole(path, content)
    assert path.stat().st_mtime == 1


def test_a_file_stays_as_it_was_where_the_writer_ends(tmp_path, monkeypatch):
    def end(*paths):
        raise KeyboardInterrupt

    path = tmp_path / "file"
    write_whole(path, "before")
    monkeypatch.setattr(os, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, "after")
    assert path.read_text() == "before"
