"""Columns of text."""

import pytest

from sft_jax.data.tokenized.columns import Labels, TextColumn


def test_text_column():
    texts = ["a", "", "漢字", "\ud800", "b:1"]
    column = TextColumn.of(texts)
    assert list(column) == texts
    assert [column[-1], column[-5], column[1:3]] == ["b:1", "a", ["", "漢字"]]
    assert column.index("b:1") == 4
    for index in (5, -6):
        with pytest.raises(IndexError, match=f"text {index} of 5"):
            column[index]
    assert list(TextColumn.of([])) == []


def test_labels():
    labels = Labels.of(["x", "y", "x"])
    assert (labels.codes.tolist(), labels.names) == ([0, 1, 0], ("x", "y"))
    assert [labels[index] for index in range(len(labels))] == ["x", "y", "x"]
