"""Extraction: titles in new layouts, utterances, counts of faults, and the experiment from its first command on."""

import json
from collections import Counter
from pathlib import Path

import pytest

from experiments.document_extraction.by_layout import scores_of
from experiments.document_extraction.invented import ELSEWHERE, MADE_UP, OTHER_FIELD, origin_table, origins_of
from experiments.document_extraction.titles import KNOWN, NEW, NEW_FAMILIES, documents_of, forms, write_titles
from experiments.document_extraction.utterances import answer_of, write_utterances
from experiments.faults import Faults, fault_tables, faults_of
from experiments.quickstart.layouts import FAMILIES, STATES
from experiments.quickstart.titles import FIELDS
from experiments.rows import HELD_OUT, train_file
from sft_jax.evaluation.scorers import Case, make_scorer
from tests.experiments import smoke
from tests.experiments.smoke import rows_of


def document_of(row: dict) -> str:
    return row["messages"][0]["content"]


def test_new_layouts_are_never_trained():
    known, new = ({family for form in forms(layout) for family in form.families} for layout in (KNOWN, NEW))
    assert new == set(NEW_FAMILIES)
    assert known == set(FAMILIES) - new
    assert {form.heading for form in forms(KNOWN)} == {form.heading for form in STATES}


def test_titles(tmp_path):
    assert write_titles(tmp_path, sizes=(20, 40), held_out=30, seed=0) == FIELDS
    small, large, held_out = (rows_of(tmp_path / name) for name in (train_file(20), train_file(40), HELD_OUT))
    assert large[:20] == small
    assert {row["layout"] for row in large} == {KNOWN}
    assert sum(row["layout"] == NEW for row in held_out) == 15
    # In boxes the value stands alone on the line below its label, and in running text there are sentences.
    lines = lambda row: document_of(row).splitlines()
    in_boxes = lambda row: any(line.startswith("  ") for line in lines(row))
    in_prose = lambda row: "This certifies that" in document_of(row) or "described herein" in document_of(row)
    assert not any(in_boxes(row) or in_prose(row) for row in large)
    assert all(in_boxes(row) or in_prose(row) for row in held_out if row["layout"] == NEW)
    before = (tmp_path / HELD_OUT).read_bytes()
    write_titles(tmp_path, sizes=(5,), held_out=30, seed=0)
    assert (tmp_path / HELD_OUT).read_bytes() == before


def test_where_invented_values_come_from(tmp_path):
    right = {"vin": "V1", "make": "KIA", "model": None, "owner": None, "year": None}
    answers = [
        {"vin": None, "make": "OPEL", "model": "kia", "owner": "BIG  BANK", "year": 1999, "color": "red"},
        {"vin": "V1", "make": "KIA", "model": None, "owner": "", "year": "2,004"},
        "no object",
    ]
    texts = [answer if isinstance(answer, str) else json.dumps(answer) for answer in answers]
    rows = [{"id": "a", "reference": json.dumps(right), "answer": text} for text in texts]
    found = origins_of(rows, {"a": "V1 of KIA\nLien: Big Bank, 2,004"}, right)
    assert found == {
        ("model", OTHER_FIELD): 1,
        ("owner", ELSEWHERE): 1,
        ("year", MADE_UP): 1,
        ("year", ELSEWHERE): 1,
    }
    table = origin_table({"base": Counter(), "SFT": found}, ("year", "owner"))
    assert table.rows == (
        ("base", "0", "0", "0", "0"),
        ("SFT", "3", "0", "2", "1"),
        ("SFT, year", "2", "0", "1", "1"),
        ("SFT, owner", "1", "0", "1", "0"),
    )
    write_titles(tmp_path, sizes=(2,), held_out=4, seed=0)
    documents = documents_of(tmp_path)
    assert list(documents.values()) == [document_of(row) for row in rows_of(tmp_path / HELD_OUT)]


SAID = [
    ("we come tomorrow at 25 to 7 p.m.", None, {"date_from": ("tomorrow", {"day": 16, "month": 3, "year": 2022})}),
    ("a room for four nights", ["booking"], {"rooms": ("a room", 1), "date_period": ("four nights", None)}),
    ("at 7", ["when"], {"time": ("7", {"hour": 7, "minute": 0})}),
    ("no massage?", ["why", "spa"], None),
    ("hm", None, None),
]
ONTOLOGY = {
    "intents": {name: {} for name in ("why", "when", "spa", "booking", "restaurant")},
    "slots": {name: {} for name in ("time", "date_from", "date_period", "rooms", "kids")},
}


@pytest.fixture
def given(tmp_path) -> tuple[str, str]:
    """Ten rows in five folds, and the ontology."""
    rows = []
    for number in range(10):
        text, intents, slots = SAID[number % 5]
        row = {"text": f"{text} {number}", "fold": number // 2}
        row |= {"intents": intents} if intents else {}
        if slots:
            row["slots"] = {
                name: {"text": said} | ({"value": value} if value is not None else {})
                for name, (said, value) in slots.items()
            }
        rows.append(json.dumps(row))
    (tmp_path / "utterances.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    return str(tmp_path / "utterances.jsonl"), str(tmp_path / "ontology.json")


def test_utterances(given, tmp_path):
    fields = write_utterances(tmp_path / "data", *given, sizes=(3, 8))
    assert fields == ("intents", "time", "date_from", "date_period", "rooms")  # as the ontology has them; kids never
    trained, held_out = (rows_of(tmp_path / "data" / name) for name in (train_file(8), HELD_OUT))
    assert rows_of(tmp_path / "data" / train_file(3)) == trained[:3]
    assert [document_of(row)[-1] for row in (*trained, *held_out)] == list("0123456789")
    assert [row["messages"][1]["content"] for row in trained[:5]] == [
        '{"intents": [], "date_from": "2022-03-16"}',
        '{"intents": ["booking"], "rooms": 1, "date_period": "four nights"}',
        '{"intents": ["when"], "time": "07:00"}',
        '{"intents": ["why", "spa"]}',
        '{"intents": []}',
    ]
    assert "has a list of these: why, when, spa, booking. Its" in document_of(trained[0])


def test_utterances_that_do_not_fit(given, tmp_path):
    path, ontology = given
    with pytest.raises(ValueError, match="8 rows to train on, fewer than 9; give smaller --sizes"):
        write_utterances(tmp_path / "data", path, ontology, sizes=(9,))
    Path(ontology).write_text(json.dumps(ONTOLOGY | {"intents": {"why": {}, "spa": {}}}))
    with pytest.raises(ValueError, match=r"intents \['booking', 'when'\] are not in .*ontology.json"):
        write_utterances(tmp_path / "data", path, ontology, sizes=(3,))
    Path(path).write_text('{"text": "a", "fold": 0}\n')
    with pytest.raises(ValueError, match="1 folds, expected at least 5"):
        write_utterances(tmp_path / "data", path, ontology, sizes=(1,))
    Path(path).write_text('{"text": "a"}\n')
    with pytest.raises(ValueError, match=r"utterances.jsonl:1: the row has no 'fold'"):
        write_utterances(tmp_path / "data", path, ontology, sizes=(1,))


STATED = '{"vin": "A1", "year": 2012, "owner": null, "make": null}'


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        (STATED, {}),
        ('{"vin": "B2", "year": "2012"}', {"vin": {"wrong": 1}}),
        ('{"vin": "A1", "year": null}', {"year": {"missing": 1}}),
        ('{"vin": "A1", "year": 2012, "owner": "Ann"}', {"owner": {"invented": 1}}),
        ('{"vin": "A1", "year": 2012, "seller": "Ann", "color": "red"}', {"other names": {"invented": 2}}),
        ("no idea", {"vin": {"missing": 1}, "year": {"missing": 1}}),
    ],
)
def test_what_is_wrong_with_fields(answer, faults):
    outcome = make_scorer("json_fields")(answer, Case("0", STATED))
    expected = {"vin": Faults(said=1), "year": Faults(said=1), "owner": Faults(silent=1), "make": Faults(silent=1)}
    expected |= {name: expected.get(name, Faults()) + Faults(**counts) for name, counts in faults.items()}
    assert faults_of([outcome], ("vin", "year", "owner", "make")) == expected


def test_what_is_wrong_with_lists():
    """Of two intents one is given rightly and another one wrongly, of one two are given, and of none one."""
    answers = ["a", "c"], ["a", "b"], ["a"]
    rights = ["a", "b"], ["a"], []
    score = make_scorer("slots")
    outcomes = [
        score(json.dumps({"intents": answer}), Case("0", json.dumps({"intents": right})))
        for answer, right in zip(answers, rights, strict=True)
    ]
    assert faults_of(outcomes, ("intents",)) == {"intents": Faults(said=3, wrong=1, silent=1, invented=2)}
    (together, of_fields) = fault_tables({"SFT": faults_of(outcomes, ("intents", "date"))})
    assert together.rows == (("SFT", "3", "1 (33 %)", "0 (0 %)", "4", "2 (50 %)"),)
    assert of_fields.rows[1] == ("date", "0", "0", "0", "3", "0 (0 %)")


def test_scores_by_layout():
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    groups = [
        [metric, name, 9, 0.5, 0.4, 0.6, ""] for metric in ("field_f1", "exact_match") for name in ("new", "known")
    ]
    groups.append(["exact_match", "gap (p = 0.5)", 2, 0.0, 0.0, 0.1, ""])
    task = {"primary": "field_f1", "scores": {"sft": {"field_f1": score, "valid_json": score, "exact_match": score}}}
    task["details"] = {"sft": {"by group": {"columns": [], "rows": groups}}}
    names = ["field_f1", "exact_match", "exact match, new layouts", "exact match, known layouts"]
    assert scores_of(task, "sft") == dict.fromkeys(names, score)
    task["details"] = {"sft": {}}
    assert list(scores_of(task, "sft")) == names[:2]


def test_values():
    assert answer_of({"text": "x", "slots": {"kids": {"text": "none", "value": 0}}}) == '{"intents": [], "kids": 0}'


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    smoke.called(tmp_path, "document_extraction", "--sizes=4", "--held_out=4", "--steps=2")
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["field F1", "exact match", "exact match, known layouts", "exact match, new layouts"]
    assert [line[0] for line in lines] == ["base", "few-shot", "SFT on 4 rows"]
    text = (tmp_path / "out" / "table.md").read_text()
    stated = sum(
        value is not None
        for row in rows_of(tmp_path / "out" / "data" / HELD_OUT)
        for value in json.loads(row["messages"][1]["content"]).values()
    )
    assert f"| SFT on 4 rows | {stated} | 0 (0 %) | {stated} (100 %) | {24 - stated} |" in text  # it writes no JSON


@pytest.mark.slow
def test_utterances_from_the_first_command_to_the_table(given, tmp_path):
    files = [f"--{name}={path}" for name, path in zip(("utterances", "ontology"), given, strict=True)]
    smoke.called(tmp_path, "document_extraction", *files, "--sizes=4", "--steps=2")
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["slot f1", "exact match"]
    assert [line[0] for line in lines] == ["base", "few-shot", "SFT on 4 rows"]
    assert "| intents | " in (tmp_path / "out" / "table.md").read_text()
