"""The page: one file, nothing from outside, and whatever stands in the data stays text."""

import json

import pytest

from sft_jax.audit.checks import Finding, Place, Reason, Verdict
from sft_jax.audit.preview.page import embedded_json, page_html
from sft_jax.audit.preview.selection import select_examples
from sft_jax.audit.report import data_report
from sft_jax.data.cleaning import CleaningLog, cleaning_values
from sft_jax.data.packing import packing_report
from sft_jax.data.records import DroppedRow
from tests.parsed_page import Parsed

EVIL = "</script><script>alert('x')</script><!-- <img src=x onerror=alert(1)> & \u2028 \"'`${x}"


class Preview(Parsed):
    """The page of a preview."""

    @property
    def examples(self):
        return json.loads(self.scripts[0])["examples"]


@pytest.fixture(scope="module")
def page(renderer, record, checked):
    """A page on which every text that comes from the data is hostile."""
    records = [record(1, EVIL, EVIL), record(2, "fine")]
    made = checked(records)
    finding = Finding("c", "error", EVIL, 1, (Place("t:1", f"also t:2, t:9: {EVIL}"),), EVIL, {"evil": {"x": EVIL}})
    log = CleaningLog()
    log.note_change(records[0], "step", EVIL)
    dropped = DroppedRow("t:3", EVIL, EVIL)
    report = data_report(
        made.examples,
        [dropped],
        packing_report(made.examples, sequence_length=1000, sequence_targets=1000),
        cleaning=cleaning_values(log),
        findings=[finding],
        verdict=Verdict("clean_first", (Reason(EVIL, "clean_first"),)),
    )
    shown = select_examples(made, renderer, [(record(3, EVIL), dropped)], [finding], {"t:1": EVIL}, 10)
    return Preview(page_html(EVIL, EVIL, report, made.examples, shown))


def test_nothing_gets_out_of_its_place(page):
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == len(page.scripts) == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("alert('x')") >= 8  # title, subtitle, finding, example, advice, numbers, dropped, verdict


def test_nothing_comes_from_outside(page):
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_examples_are_embedded(page):
    first, second, dropped = page.examples
    assert "".join(first["pieces"]).count(EVIL) == 2
    assert (first["note"], second["id"], dropped["kind"]) == (EVIL, "t:2", "dropped")
    assert "<" not in page.scripts[0]
    assert "innerHTML" not in page.scripts[1]


def test_findings_link_to_rows_that_are_there(page):
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a" and "#row=" in attributes["href"]]
    assert links == ["#row=t%3A1%0At%3A2", "#row=t%3A2"]  # t:9 is not on the page


def test_the_verdict_stands_last(page):
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["summary", "findings", "lengths", "changes", "examples", "verdict"]
    assert page.text.index("Clean it first.") > page.text.index("Findings")


def test_json_in_a_script():
    half = embedded_json("\ud83d")  # of an emoji, which UTF-8 cannot hold
    assert (half, json.loads(half)) == ('"\\ud83d"', "\ud83d")
    assert embedded_json("👍") == '"👍"'
    assert embedded_json({"a": "</script>&\u2028"}) == '{"a":"\\u003c/script\\u003e\\u0026\\u2028"}'
