"""Notes of consultations: dialogues, right notes, what the scorer sees, and the experiment from start to table."""

import random

import pytest

from experiments.clinical_notes.consultations import (
    COMPLAINTS,
    DRUGS,
    NEW_COMPLAINTS,
    NEW_DRUGS,
    SECTIONS,
    invent,
)
from experiments.clinical_notes.rows import KNOWN, NEW, write_data
from experiments.clinical_notes.scorer import claims, note, sections
from experiments.rows import HELD_OUT, train_file
from sft_jax.evaluation.scorers.cases import Case
from tests.experiments import smoke
from tests.experiments.smoke import rows_of


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[list[dict], list[dict]]:
    directory = tmp_path_factory.mktemp("notes")
    write_data(directory, train_rows=60, held_out=40, seed=0)
    return rows_of(directory / train_file(60)), rows_of(directory / HELD_OUT)


def scored(answer: str, row: dict) -> dict:
    return note(answer, Case(row["id"], row["messages"][1]["content"], row))


def test_what_the_note_says_is_said_in_the_dialogue(data):
    for row in (*data[0], *data[1]):
        asked, right = (turn["content"] for turn in row["messages"])
        # Times a day are said in words there.
        said = claims(asked) | {"1", "2", "3", "10"}
        assert claims(right) <= said, row
        outcome = scored(right, row)
        assert outcome.pop("facts_kept") == {name: [len(f), len(f)] for name, f in row["facts"].items() if f}
        assert all(value in (True, None) for value in outcome.values()), row


def test_held_out_dialogues_are_in_other_words_and_half_of_them_of_other_matters(data):
    trained, held_out = data
    line = lambda row, number: row["messages"][0]["content"].splitlines()[number]
    assert not {line(row, 2) for row in trained} & {line(row, 2) for row in held_out}  # the first question
    assert [row["terms"] for row in held_out] == [KNOWN, NEW] * 20
    assert {row["terms"] for row in trained} == {KNOWN}
    new = set(NEW_COMPLAINTS) | set(NEW_DRUGS)
    assert not any(new & claims(row["messages"][0]["content"]) for row in trained)
    for row in held_out:
        known = (set(COMPLAINTS) | set(DRUGS)) & claims(row["messages"][1]["content"])
        assert bool(known) == (row["terms"] == KNOWN)


def test_dialogues_vary_and_follow_from_the_seed(data, tmp_path):
    trained, held_out = data
    assert len({row["messages"][0]["content"] for row in trained}) == 60
    for name in ("MEDICATION", "ALLERGIES", "FINDINGS"):
        assert 10 < sum(bool(row["facts"][name]) for row in trained) < 50
    write_data(tmp_path, train_rows=5, held_out=40, seed=0)
    assert rows_of(tmp_path / HELD_OUT) == held_out
    drawn = [invent(random.Random(seed), held_out=False, new=False).note for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


RIGHT = (
    "COMPLAINT: cough, 5 days, severity 6/10\nMEDICATION: none reported\nALLERGIES: latex\nFINDINGS: not measured\n"
    "PLAN: naproxen 40 mg, 2x daily, for 7 days, review in 20 days"
)
ROW = {
    "id": "0",
    "messages": [{}, {"role": "assistant", "content": RIGHT}],
    "facts": {
        "COMPLAINT": ["cough", "5 days", "severity 6/10"],
        "MEDICATION": [],
        "ALLERGIES": ["latex"],
        "FINDINGS": [],
        "PLAN": ["naproxen 40 mg", "2x daily", "for 7 days", "review in 20 days"],
    },
}


@pytest.mark.parametrize(
    ("answer", "kept", "wrong"),
    [
        (RIGHT, 8, set()),
        (RIGHT.lower(), 0, {"sections_complete", "house_wording"}),
        (f"Here it is:\n{RIGHT}", 8, {"sections_complete"}),
        (RIGHT.replace("ALLERGIES: latex\n", ""), 7, {"sections_complete"}),
        (RIGHT.replace("latex", "Latex, iodine"), 8, {"nothing_invented"}),
        (RIGHT.replace("5 days", "15 days"), 7, {"nothing_invented"}),
        (RIGHT.replace("latex", "none").replace("cough", "cough and latex"), 7, set()),  # not in its section
        (RIGHT.replace("2x daily", "twice a day"), 7, set()),
        (RIGHT.replace("not measured", "none reported"), 8, {"house_wording"}),
        ("", 0, {"sections_complete", "house_wording"}),
    ],
)
def test_the_scorer(answer, kept, wrong):
    outcome = scored(answer, ROW)
    counts = outcome.pop("facts_kept")
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == [kept, 8]
    expected = wrong | ({"exact_match"} if wrong or kept < 8 else set())
    assert {name for name, right in outcome.items() if not right} == expected


def test_a_note_of_everything_has_no_words_for_nothing():
    facts = {name: ["x"] for name in SECTIONS}
    assert scored(RIGHT, ROW | {"facts": facts})["house_wording"] is None
    assert list(sections(RIGHT)) == list(SECTIONS)
    assert sections("A: 1\n2\nB:\nA: 3") == {"A": "1\n2", "B": ""}


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    smoke.called(tmp_path, "clinical_notes", "--train_rows=4", "--held_out=4", "--steps=2")
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["exact match", "sections complete", "facts kept", "nothing invented", "house wording"]
    assert [line[0] for line in lines] == ["base", "prompted", "few-shot", "prompted, few-shot", "SFT"]
    assert all(line[2].startswith("0.000 [") for line in lines)  # random weights write no note
    assert "| base | 0.000 [" in (tmp_path / "out" / "table.md").read_text().split("known")[1]
