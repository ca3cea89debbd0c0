"""The report in a terminal of 120 columns."""

import io

import pytest
from rich.console import Console

from sft_jax.evaluation.report.terminal import scores_table, terminal_report
from tests.evaluation.report.made_results import EVIL, comparison, everything, results_of, score, task


def printed(results, width=120):
    console = Console(file=io.StringIO(), width=width)
    console.print(terminal_report(results, width))
    return console.file.getvalue()


def test_everything_is_said():
    text = printed(everything())
    for expected in (
        "extraction: 60 rows",
        "0.500 [0.400, 0.600]",
        "1.23M, 7 min",
        "1 %",
        "-0.200 [-0.300, -0.100]",
        "p = 0.010",
        "WORSE than rag (-0.200, p = 0.010)",
        "Retrieval: recall@1 0.800 [0.700, 0.900]",
        "Forgetting: arithmetic: 60 rows",
        "no difference shown against base (-0.100, p = 0.200) (60 rows; about 1,400 would be needed)",
        "Gate (no score may fall by more than 0.02): FAILED: arithmetic",
        "Divergence from the base: KL(base || tuned) 0.200 [0.100, 0.300]",
    ):
        assert expected in " ".join(text.split()), expected


@pytest.mark.parametrize(("width", "expected"), [(60, 0), (100, 0), (102, 1), (120, 3), (1_000, 9)])
def test_as_many_metrics_as_fit(width, expected):
    names = ["base", "prompted", "few_shot", "rag", "sft", "sft+prompted", "sft+rag"]
    metrics = {f"metric_{letter}": score(0.5) for letter in "abcdefghi"}
    described = task({name: {"exact_match": score(0.5), **metrics} for name in names})
    methods = results_of({name: "tuned" if "sft" in name else "base" for name in names}, {})["methods"]
    table = scores_table("t", described, methods, width)
    headers = [str(column.header) for column in table.columns]
    assert headers[1] == "exact match"
    assert sum(header.startswith("metric\n") for header in headers) == expected
    results = results_of(methods, {"t": described})
    assert all(len(line.rstrip()) <= width for line in printed(results, width).splitlines())
    assert "…" not in printed(results, width)  # neither names nor intervals are cut
    assert sum(header in ("seconds", "weights\nchanged") for header in headers) == (2 if width > 60 else 0)


def test_names_are_no_markup():
    name = "[bold]x[/bold] \u202e"
    described = task({name: 0.5, "sft": 0.4}, [comparison(name, "sft", -0.1, 0.01)])
    text = printed(results_of({name: "base", "sft": "tuned"}, {EVIL: described}))
    assert text.count("[bold]x[/bold] \\u202e") == 3  # scores, comparison, verdict
    assert "\u202e" not in text


def test_one_method():
    text = printed(results_of({"base": "base"}, {"t": task({"base": {"exact_match": score(0.5, None)}})}))
    assert "0.500" in text
    assert "[" not in text
    assert "there is nothing to compare base with" in text
    assert "compared on the same rows" not in text
