"""Messages and classes: balanced samples, tables, and the experiment from its first command to its table."""

import csv
from pathlib import Path

import pytest

from experiments.classification.rows import write_data
from experiments.classification.tables import by_group, confusions, score_lines
from experiments.rows import HELD_OUT, train_file
from sft_jax.data.reading import Reading
from sft_jax.data.records import RecordError, read_records
from sft_jax.evaluation.scorers.cases import LABELS
from sft_jax.evaluation.scoring import aggregate, detail_tables
from tests.experiments import smoke

READING = Reading(prompt_template="{text}", answer_template="{category}")
COUNTS = {"refund": 9, "card lost": 7, "greeting": 3}


def write_csv(path: Path, copies: int = 1) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "category"])
        for name, count in COUNTS.items():
            for number in range(count * copies):
                words = " ".join(["please"] * (number % 3 * 9))
                writer.writerow([f"{path.stem} {name}, number {number} {words}".strip(), name])
    return path


@pytest.fixture
def records(tmp_path):
    return [read_records(write_csv(tmp_path / f"{name}.csv"), READING) for name in ("train", "test")]


def rows_of(path: Path) -> list[dict]:
    """With question and answer as columns."""
    rows = smoke.rows_of(path)
    turns = [[turn["content"] for turn in row["messages"]] for row in rows]
    return [row | {"prompt": asked, "completion": label} for row, (asked, label) in zip(rows, turns, strict=True)]


def test_samples_are_balanced_nested_and_list_all_classes(records, tmp_path):
    assert write_data(tmp_path, *records, classes=2, sizes=(2, 5), held_out=4, seed=0) == ["card lost", "refund"]
    small, large, held_out = (rows_of(tmp_path / file) for file in (train_file(2), train_file(5), HELD_OUT))
    for rows, size in ((small, 2), (large, 5), (held_out, 4)):
        assert [row["completion"] for row in rows] == ["card lost"] * size + ["refund"] * size
        assert all("\n\nClasses: card lost, refund\n\nMessage: t" in row["prompt"] for row in rows)
    assert all(row in large for row in small)
    assert all(": train " in row["prompt"] for row in large)
    assert all(": test " in row["prompt"] for row in held_out)
    texts = [row["prompt"].rpartition("Message: ")[2] for row in (*large, *held_out)]
    assert len(set(texts)) == len(texts)


def test_samples_follow_from_the_seed_and_not_from_other_classes(records, tmp_path):
    for directory, classes, seed in (("a", 2, 0), ("b", 3, 0), ("c", 2, 1)):
        write_data(tmp_path / directory, *records, classes=classes, sizes=(3,), held_out=4, seed=seed)
    drawn = {d: [row["id"] for row in rows_of(tmp_path / d / train_file(3))] for d in "abc"}
    assert [name for name in drawn["b"] if name in drawn["a"]] == drawn["a"]
    assert drawn["c"] != drawn["a"]


def test_groups_are_the_users_or_the_lengths_of_messages(records, tmp_path):
    write_data(tmp_path, *records, classes=0, sizes=(3,), held_out=9, seed=0)
    groups = {len(row["prompt"].rpartition(": ")[2].split()): row["group"] for row in rows_of(tmp_path / HELD_OUT)}
    assert groups[5] == "up to 8 words"
    assert groups[14] == "9 to 16 words"
    assert groups[23] == "17 words and more"
    reading = Reading(prompt_template="{text}", answer_template="{category}", group_column="category")
    records = [read_records(tmp_path / f"{name}.csv", reading) for name in ("train", "test")]
    write_data(tmp_path, *records, classes=0, sizes=(3,), held_out=9, seed=0)
    assert {row["group"] for row in rows_of(tmp_path / HELD_OUT)} == set(COUNTS)


def test_classes_with_too_few_rows_are_refused(records, tmp_path):
    with pytest.raises(ValueError, match="class 'greeting' has 3 rows to train on, fewer than 4"):
        write_data(tmp_path, *records, classes=3, sizes=(2, 4), held_out=4, seed=0)
    with pytest.raises(ValueError, match="class 'refund' of --train has no row in --test"):
        write_data(tmp_path, records[0], records[1][9:], classes=2, sizes=(2,), held_out=4, seed=0)


def test_rows_that_are_no_message_with_a_class_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "assistant", "content": "hi"}]}\n')
    with pytest.raises(RecordError, match=r"a.jsonl:1: expected one question and its answer.*\['assistant'\]"):
        write_data(tmp_path, read_records(tmp_path / "a.jsonl"), [], classes=0, sizes=(1,), held_out=1, seed=0)


def task_of(pairs: list[tuple[str, str]]) -> dict:
    """As `results.json` has it, of (class, answer)."""
    outcomes = [{"accuracy": a == b, LABELS[0]: b, LABELS[1]: a} for a, b in pairs]
    confusion = detail_tables(outcomes)["confusion"]
    columns = ["", *next(iter(confusion.values()))]
    rows = [[name, *counts.values()] for name, counts in confusion.items()]
    scores = {name: score.as_dict() for name, score in aggregate(outcomes, seed=0).items()}
    groups = [["accuracy", "short", 2, 0.5, 0.1, 0.9, "worst"], ["macro_f1", "short", 2, 0.4, 0.1, 0.9, ""]]
    groups += [["accuracy", f"gap (p = 0.{len(pairs)})", 2, 0.25, 0.0, 0.5, ""]]
    details = {"confusion": {"columns": columns, "rows": rows}, "by group": {"columns": [], "rows": groups}}
    return {"scores": {"sft": scores}, "details": {"sft": details}}


def test_tables():
    written = task_of([("a", "a"), ("a", "b"), ("b", "none of them"), ("b", "a"), ("a", "b")])
    chosen = task_of([("a", "a"), ("b", "b")])
    table = confusions(written, "sft", "")
    assert table.rows == (("a", "b", "2"), ("b", "(other)", "1"), ("b", "a", "1"))
    assert confusions(written, "sft", "", most=1).rows == (("a", "b", "2"),)
    lines = score_lines({2: {"generate": written, "choose": chosen}})
    assert list(lines) == ["SFT on 2 a class"]
    assert lines["SFT on 2 a class"]["accuracy, written"]["value"] == pytest.approx(0.2)
    # F1 of a: 1 hit, 2 answered, 3 there; of b: no hit.
    assert lines["SFT on 2 a class"]["macro-F1, written"]["value"] == pytest.approx((2 / 5 + 0) / 2)
    assert lines["SFT on 2 a class"]["macro-F1, chosen"]["value"] == 1.0
    groups = by_group({"generate": written, "choose": chosen}, "sft", "")
    assert groups.columns == ("group", "accuracy, written", "accuracy, chosen")
    assert groups.rows == (
        ("short", "0.500 [0.100, 0.900]", "0.500 [0.100, 0.900]"),
        ("gap", "0.250 [0.000, 0.500]", "0.250 [0.000, 0.500]"),
    )


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    files = [f"--{name}={write_csv(tmp_path / f'{name}.csv', copies=3)}" for name in ("train", "test")]
    small = ("--classes=2", "--sizes=2", "--held_out=8", "--steps=2")
    smoke.called(tmp_path, "classification", *files, *small)
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["accuracy, written", "macro-F1, written", "accuracy, chosen", "macro-F1, chosen"]
    assert [line[0] for line in lines] == ["base", "few-shot of 2 a class", "SFT on 2 a class"]
    assert all("[" in cell for line in lines for cell in line[1:])
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| up to 8 words |" in text
    assert "Mistakes, chosen, SFT on 2 a class" in text
    # Random weights write no class.
    assert "| card lost | (other) | 8 |" in text
