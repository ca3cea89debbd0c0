"""The page: one file, nothing from outside, and whatever data and models say stays text."""

import json
import re

import pytest

from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.page import report_page
from tests.evaluation.report.made_results import EVIL, comparison, everything, method, results_of, rows, task
from tests.parsed_page import Parsed


@pytest.fixture(scope="module")
def hostile():
    """A page on which every text that comes from elsewhere is hostile."""
    described = task({EVIL: 0.5, "sft": 0.4}, [comparison(EVIL, "sft", -0.1, 0.01, test=EVIL)], data=EVIL, notes=[EVIL])
    described["details"] = {EVIL: {EVIL: {"columns": [EVIL], "rows": [[EVIL]]}}}
    methods = {EVIL: method(description=EVIL, model=EVIL), "sft": "tuned"}
    drift = [{"layer": EVIL, "kind": EVIL, "relative": 0.1}]
    results = results_of(methods, {EVIL: described}, drift=drift, gate={"max_regression": 0.1, "failed": [EVIL]})
    messages = [{"role": EVIL, "content": EVIL}]
    answers = {EVIL: rows([EVIL], messages, EVIL, EVIL, EVIL), "sft": rows([EVIL], EVIL, EVIL, EVIL, EVIL)}
    return report_page(results, {EVIL: answers}, [Plot("a", "drift", EVIL, b"png")])


def test_nothing_gets_out_of_its_place(hostile):
    hostile.encode("utf-8")
    page = Parsed(hostile)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == len(page.scripts) == 2
    assert tags.count("img") == 1
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert page.text.count("<img src=x onerror=alert(1)>") >= 15
    assert "\u202e" not in page.text
    assert "<" not in page.scripts[0]
    assert "innerHTML" not in page.scripts[1]


def test_texts_are_embedded_as_they_are(hostile):
    data = json.loads(Parsed(hostile).scripts[0])
    assert data["texts"][0] == EVIL
    (described,) = data["tasks"]
    assert (described["name"], described["groups"], described["rows"][0]["id"]) == (EVIL, [EVIL], f"{EVIL}:1")


def test_nothing_comes_from_outside(hostile):
    page = Parsed(hostile)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert attributes.get("src", "data:image/png;base64,").startswith("data:image/png;base64,")
        assert attributes.get("href", "#").startswith("#")
    (policy,) = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def test_everything_is_there_in_order():
    text = report_page(everything(), {"extraction": {"sft": rows(["a"])}}, [Plot("a", "drift", "Change", b"png")])
    page = Parsed(text)
    headings = re.findall("<h2>([^<]*)</h2>", text)
    assert headings == [
        *("extraction", "Methods and their cost", "Retrieval", "Forgetting: arithmetic", "Gate"),
        *("Divergence from the base", "How far the weights moved", "Answers side by side"),
    ]
    ids = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"#{identifier}" for identifier in ids]
    assert [a["alt"] for tag, a in page.elements if tag == "img"] == ["Change"]
    for expected in ("0.500 [0.400, 0.600]", "A note.", "WORSE than rag (-0.200, p = 0.010)", "FAILED: arithmetic"):
        assert expected in page.text, expected


@pytest.mark.parametrize(
    ("pair", "style"),
    [
        (comparison("base", "sft", 0.1, 0.01), "good"),
        (comparison("base", "sft", 0.1, 0.5), "undecided"),
        (comparison("base", "sft", -0.1, 0.01), "error"),
        (None, "undecided"),
    ],
)
def test_the_colour_of_a_verdict(pair, style):
    described = task({"base": 0.5, "sft": 0.5}, [pair] if pair else [])
    page = Parsed(report_page(results_of({"base": "base", "sft": "tuned"}, {"t": described}), {}))
    assert [a["class"] for tag, a in page.elements if tag == "p" and "sentence" in a.get("class", "")] == [
        f"sentence {style}"
    ]


@pytest.mark.parametrize("count", [1, 8])
def test_any_number_of_methods(count):
    names = [f"m{number}" for number in range(count)]
    results = results_of(dict.fromkeys(names, "base"), {"t": task(dict.fromkeys(names, 0.5))})
    data = json.loads(Parsed(report_page(results, {"t": {name: rows(["a"]) for name in names}})).scripts[0])
    assert len({entry["color"] for entry in data["methods"]}) == count
    assert len(data["tasks"][0]["rows"][0]["answers"]) == count


def test_the_same_results_give_the_same_page():
    answers = {"extraction": {"sft": rows(["a", "b"])}}
    assert report_page(everything(), answers) == report_page(everything(), answers)
