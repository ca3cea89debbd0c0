"""Numbers of a finding as HTML."""

import pytest

from sft_jax.audit.preview.numbers import numbers_html

CASES = [
    ({}, ""),
    ({"copies": 1234, "share": 0.123456}, '<p class="numbers">copies 1,234 · share 0.1235</p>'),
    ({"rows": {"<a>": 2, "b": 1}}, '<p class="numbers">rows: &lt;a&gt; 2 · b 1</p>'),
    ({"words": ["<a>", "b"]}, '<p class="numbers">words: &lt;a&gt;, b</p>'),
    (
        {"by_size": {128: {"too_long": 3}}},
        '<table class="bars"><tr><th>by size</th><th class="number">too long</th></tr>'
        '<tr><th>128</th><td class="number">3</td></tr></table>',
    ),
    ({"histogram": {"edges": [1, 2], "examples": [3]}}, ""),
]


@pytest.mark.parametrize(("numbers", "expected"), CASES, ids=range(len(CASES)))
def test_numbers(numbers, expected):
    assert numbers_html(numbers) == expected


def test_many_are_bars():
    drawn = numbers_html({"rows": {f"<{n}>": n for n in range(1, 21)}})
    assert drawn.count("<tr>") == 12
    assert drawn.index("&lt;20&gt;") < drawn.index("&lt;19&gt;")
    assert 'style="width:100.0%"' in drawn
    assert drawn.endswith('<p class="numbers">and 8 more, down to 1</p>')
