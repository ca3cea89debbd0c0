"""The shop's letters: records, right answers, what the scorer sees in them, and the commands of the experiment."""

import json
from pathlib import Path

import pytest

from experiments.order_support import methods
from experiments.order_support.letters import CLOSING, ESCALATION, OPENING, POLICY
from experiments.order_support.rows import (
    HELD_OUT,
    HELD_OUT_POLICIES,
    LATER,
    RECORDS,
    RECORDS_LATER,
    TRAIN,
    VALIDATION,
    write_data,
)
from experiments.order_support.scorer import claims, letter, with_days
from experiments.order_support.shop import STATES, invent_orders, later, order_record
from sft_jax.evaluation.scorers.cases import Case
from sft_jax.evaluation.scoring import aggregate
from tests.experiments import smoke
from tests.experiments.smoke import rows_of


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("letters")
    write_data(directory, train_rows=60, held_out_rows=40, seed=0)
    return directory


def question_of(row: dict) -> str:
    return row["messages"][0]["content"]


def answer_of(row: dict) -> str:
    return row["messages"][1]["content"]


def scored(answer: str, row: dict) -> dict[str, bool]:
    return letter(answer, Case(row["id"], answer_of(row), row))


def test_the_data_are_the_same_each_time_and_more_training_rows_leave_held_out_orders_alone(data, tmp_path):
    write_data(tmp_path, train_rows=60, held_out_rows=40, seed=0)
    for path in data.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    write_data(tmp_path, train_rows=61, held_out_rows=40, seed=1)
    assert (tmp_path / HELD_OUT).read_bytes() != (data / HELD_OUT).read_bytes()
    with pytest.raises(ValueError, match="train_rows=0"):
        write_data(tmp_path, train_rows=0, held_out_rows=40, seed=0)


def test_held_out_letters_are_about_other_orders_in_other_words(data):
    train, held_out = rows_of(data / TRAIN), rows_of(data / HELD_OUT)
    assert not {question_of(row) for row in train} & {question_of(row) for row in held_out}
    numbers = [{claim for row in part for claim in claims(question_of(row))} for part in (train, held_out)]
    assert all(numbers)
    assert not numbers[0] & numbers[1]
    asked = [question_of(row) for row in held_out if row["kind"] == POLICY]
    assert len(asked) == len(set(asked)) == len(HELD_OUT_POLICIES)


def test_nothing_is_trained_and_measured(tmp_path):
    """In as many rows as the command writes: with so few policies the same question comes often."""
    write_data(tmp_path, train_rows=400, held_out_rows=120, seed=0)
    asked = [{question_of(row) for row in rows_of(tmp_path / name)} for name in (TRAIN, VALIDATION, HELD_OUT)]
    assert sum(map(len, asked)) == len(set.union(*asked))


def test_right_answers_are_right_and_say_what_stands_in_the_record(data):
    for name in (TRAIN, HELD_OUT, LATER):
        for row in rows_of(data / name):
            assert all(scored(answer_of(row), row).values()), row
            assert all(fact in row["record"] or fact == "pack" for fact in row["facts"])
    records = {row["id"]: row["text"] for row in rows_of(data / RECORDS)}
    assert all(row["record"] in records.values() for row in rows_of(data / HELD_OUT))


def test_later_rows_are_the_held_out_questions_whose_answer_has_changed(data):
    before = {row["id"]: row for row in rows_of(data / HELD_OUT)}
    changed = rows_of(data / LATER)
    assert 10 < len(changed) < len(before)
    records = {row["text"] for row in rows_of(data / RECORDS_LATER)}
    for row in changed:
        assert question_of(row) == question_of(before[row["id"]])
        assert row["record"] in records
        assert not scored(answer_of(before[row["id"]]), row)["exact_match"], row
    assert {row["kind"] for row in changed} == {"where", POLICY}


def test_orders_move_on():
    orders = invent_orders(200, seed=0)
    assert len({order.number for order in orders}) == 200
    assert {order.state for order in orders} == set(STATES)
    for order in orders:
        moved = later(order, seed=0)
        assert (moved == order) == (order.state == "delivered")
        assert moved == order or order_record(moved) != order_record(order)
        assert moved.return_until == order.return_until
    with pytest.raises(ValueError, match="between 0 and 90000, got 90001"):
        invent_orders(90_001, seed=0)


ROW = {
    "id": "held_out/0",
    "messages": [{"role": "user", "content": "Where is FW-12345?"}, {"role": "assistant", "content": "…"}],
    "facts": ["Northline", "NO1234567", "9 May"],
    "escalated": False,
    "record": "Order FW-12345: sun hat. State: shipped with Northline, tracking number NO1234567, expected on 9 May.",
}
SAID = "It is with Northline, NO1234567, and arrives on May 9th."


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (f"{OPENING} {SAID} {CLOSING}", set()),
        (SAID, {"house_style"}),
        (f"{OPENING} {SAID.replace('9th', '10th')} {CLOSING}", {"facts_right", "nothing_invented"}),
        (f"{OPENING} {SAID} Or with Swift Parcel. {CLOSING}", {"nothing_invented"}),
        (f"{OPENING} {SAID} {ESCALATION} {CLOSING}", {"escalated_rightly"}),
        (f"{OPENING} It is on its way. {CLOSING}", {"facts_right"}),
        ("", {"facts_right", "house_style"}),
    ],
)
def test_the_scorer(answer, wrong):
    outcome = scored(answer, ROW)
    assert {name for name, right in outcome.items() if not right} == wrong | ({"exact_match"} if wrong else set())


@pytest.mark.parametrize(
    ("answer", "wrong"),
    [
        (f"{OPENING} Sorry, Northline is late. {ESCALATION} {CLOSING}", set()),
        (f"{OPENING} Sorry, Northline is late. {CLOSING}", {"escalated_rightly", "house_style"}),
        (f"{OPENING} Sorry, Northline brings it on 9 May. {ESCALATION} {CLOSING}", {"escalated_rightly"}),
        (f"{OPENING} Sorry, Northline is late. Our care team will call. {CLOSING}", {"house_style"}),
    ],
)
def test_what_must_be_escalated_names_no_day(answer, wrong):
    outcome = scored(answer, ROW | {"facts": ["Northline"], "escalated": True})
    assert {name for name, right in outcome.items() if not right} == wrong | ({"exact_match"} if wrong else set())


def test_days_are_the_same_however_they_are_written():
    written = ("9 May", "May 9", "May 9th", "9th of May", "09 May", "the 9th May")
    assert {with_days(text).removeprefix("the ") for text in written} == {"9 May"}
    assert claims("FW-12345 with Bluebird Post on June 3rd, BL7654321") == {
        *("FW-12345", "Bluebird Post", "3 June", "BL7654321"),
    }


def test_the_table_has_a_line_for_each_method_of_both_evaluations(data, tmp_path):
    """Of evaluations as the command writes them, here with right answers before the change and none after it."""
    for file in (HELD_OUT, LATER):
        for name in (methods.PLAIN, methods.WITH_PASSAGES):
            directory = methods.evaluation_of(tmp_path, name, file)
            directory.mkdir(parents=True)
            outcomes = [scored(answer_of(row) if file == HELD_OUT else "", row) for row in rows_of(data / file)]
            scores = {metric: score.as_dict() for metric, score in aggregate(outcomes, seed=0).items()}
            measured = methods.METHODS if name == methods.PLAIN else ("sft+rag",)
            results = {"tasks": {"letters": {"scores": dict.fromkeys(measured, scores)}}, "forgetting": None}
            (directory / "results.json").write_text(json.dumps(results))
    results = {file: methods.read_results(tmp_path, file) for file in (HELD_OUT, LATER)}
    lines = methods.table_of(results).rows
    assert [line[0] for line in lines] == list(methods.ROWS)
    assert all(cell.startswith("1.000 [") for line in lines for cell in line[1:-1])
    assert all(line[-1].startswith("0.000 [") for line in lines)
    assert methods.plot_of(results).startswith(b"\x89PNG")


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    smoke.called(tmp_path, "order_support", "--train_rows=6", "--held_out_rows=2", "--steps=2")
    header, *lines = smoke.table_of(tmp_path)
    assert header[-1] == "exact match after the change"
    assert [line[0] for line in lines] == list(methods.ROWS)
    assert all(line[header.index("house style")].startswith("0.000 [") for line in lines)  # of random weights
