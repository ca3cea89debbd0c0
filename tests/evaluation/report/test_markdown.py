"""The report as Markdown, read by a parser that nobody here wrote."""

import pytest
from markdown_it import MarkdownIt

from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.markdown import escaped, markdown_report
from tests.evaluation.report.made_results import EVIL, comparison, everything, results_of, task


def parsed(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text)


def plain_text(tokens):
    """The text that is shown, which must be text alone."""
    children = [child for token in tokens for child in token.children or []]
    assert {child.type for child in children} <= {"text", "text_special", "strong_open", "strong_close", "image"}
    return "".join(child.content for child in children)


def test_everything_is_there():
    text = markdown_report(everything())
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [
        *("## extraction", "## Methods and their cost", "## Retrieval", "## Forgetting: arithmetic", "## Gate"),
        *("## Divergence from the base", "## How far the weights moved"),
    ]
    assert "| method | exact match | held-out loss |\n| --- | ---: | ---: |\n" in text
    assert "| sft | 0.500 [0.400, 0.600] | 0.750 |\n" in text
    assert "- **sft, exact match: better than base (+0.400, p < 0.001); WORSE than rag (-0.200, p = 0.010)**\n" in text
    assert "### sft: confusion\n\n| expected | yes | no |\n| --- | ---: | ---: |\n| yes | 12 | 1 |\n" in text
    assert "- A note.\n" in text


def test_tables_are_tables():
    tokens = parsed(markdown_report(everything()))
    # Scores (2), comparisons (2, and of other metrics), confusion, methods, retrieval, divergence, drift.
    assert sum(token.type == "table_open" for token in tokens) == 10
    cells = [token for token in tokens if token.type in ("th_open", "td_open")]
    assert len(cells) == 4 * 3 + 3 * 8 + 2 * 8 + 3 * 3 + 4 * 13 + 2 * 2 + 3 * 2 + 2 * 8 + 2 * 2 + 4 * 3


@pytest.mark.parametrize(
    "text",
    [EVIL, "a | b", "**a**", "_a_ snake_case __b__", "~~a~~", "[a](b)", "![a](b)", "<b>a</b>", "&lt; &amp; a & b",
     "`a`", "a\\|b", "# a", "> a", "- a", "+ a", "1 < 2", "[^1]: a", "<!-- a -->", "http://a"],
)  # fmt: skip
def test_text_stays_text(text):
    shown = plain_text(parsed(f"| {escaped(text)} |\n| --- |\n"))
    assert shown == " ".join(text.split()).replace("\u202e", "\\u202e").replace("\ud800", "\\ud800")
    assert plain_text(parsed(escaped(text))) == shown


def test_line_breaks_do_not_end_a_cell():
    assert escaped("a\nb\r\n c") == "a b c"


def test_hostile_names_stay_in_their_place():
    described = task({EVIL: 0.5, "sft": 0.4}, [comparison(EVIL, "sft", -0.1, 0.01)], notes=[EVIL], data=EVIL)
    described["details"] = {EVIL: {EVIL: {"columns": [EVIL], "rows": [[EVIL]]}}}
    text = markdown_report(results_of({EVIL: "base", "sft": "tuned"}, {EVIL: described}))
    text.encode("utf-8")
    tokens = parsed(text)
    assert not any(token.type.startswith("html") for token in tokens)
    assert plain_text(tokens).count("<img src=x onerror=alert(1)>") == 11
    assert "\u202e" not in text


def test_plots_stand_in_their_sections():
    plots = [Plot("drift", "drift", "Change by layer", b""), Plot("a", "task extraction", "Scores [x](y) [", b"")]
    text = markdown_report(everything(), plots, "figures")
    assert text.index("(figures/a.png)") < text.index("## Methods") < text.index("(figures/drift.png)")
    images = [child for token in parsed(text) for child in token.children or [] if child.type == "image"]
    assert [image.attrs["src"] for image in images] == ["figures/a.png", "figures/drift.png"]


def test_the_same_results_give_the_same_text():
    assert markdown_report(everything()) == markdown_report(everything())
