"""Histograms: every example is counted once, and the SVG is well formed."""

import xml.etree.ElementTree

import numpy as np
import pytest

from sft_jax.audit.preview.histogram import edges_of, histogram_svg

SIZES = [
    [5],
    [0, 0, 3],
    list(range(10, 500)),
    [1] * 900 + [100_000],
    [0] * 900 + [7, 90_000],
]


@pytest.mark.parametrize("sizes", SIZES, ids=range(len(SIZES)))
def test_every_example_is_in_one_bar(sizes):
    sizes = np.array(sizes)
    edges = edges_of(sizes)
    assert (np.diff(edges) >= 1).all()
    assert edges[0] == sizes.min()
    assert edges[-1] == sizes.max() + 1
    assert len(edges) <= 34
    drawn = xml.etree.ElementTree.fromstring(histogram_svg(sizes, "<tokens>"))
    titles = [title.text for title in drawn.iter() if title.tag.endswith("title")]
    assert sum(int(title.split(" example")[0].replace(",", "")) for title in titles) == len(sizes)
    assert all(title.endswith("<tokens>") for title in titles)


def test_no_examples():
    assert histogram_svg(np.zeros(0, int), "tokens") == ""
