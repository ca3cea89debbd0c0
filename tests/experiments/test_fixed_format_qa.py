"""Word problems: form, arithmetic and result apart, and the experiment from its first command to its table."""

import json
from fractions import Fraction

import pytest

from experiments.fixed_format_qa.scorer import is_right, steps_and_result, value_of
from sft_jax.evaluation.scorers.cases import Case
from tests.experiments import smoke

REFERENCE = "Half of 48 is 48/2 = <<48/2=24>>24.\nTogether 48+24 = <<48+24=72>>72.\n#### 72"


@pytest.mark.parametrize(
    ("calculation", "value"),
    [
        ("48/2", 24),
        ("2*(3+4)", 14),
        ("-3+5", 2),
        ("1,200*.5", 600),
        ("$20-5", 15),
        ("1/3", Fraction(1, 3)),
        ("10%", None),
        ("2**9999999", None),
        ("4/0", None),
        ("a+1", None),
        ("", None),
        ("1+" * 150 + "1", None),
        ("True+1", None),
        ("1;2", None),
    ],
)
def test_calculations(calculation, value):
    assert value_of(calculation) == value


def test_results_may_be_rounded():
    assert is_right("1/3", "0.33")
    assert is_right("2000/3", "666.67")
    assert not is_right("2/3", "0.6")
    assert not is_right("48/2", "")
    assert not is_right("x", "3")


@pytest.mark.parametrize(
    ("answer", "exact", "result", "form", "calculations"),
    [
        (REFERENCE, True, True, True, [2, 2]),
        (REFERENCE.replace("=24>>24", "=25>>25"), True, True, True, [1, 2]),
        (REFERENCE.replace("#### 72", "So it is 72"), False, True, False, [2, 2]),
        ("72", False, True, False, None),
        ("#### 71", False, False, True, None),
        ("#### 1\n#### 72", True, True, False, None),
        ("#### 72\nThat is it.", True, True, False, None),
        ("#### seventy", False, False, False, None),
        ("", False, False, False, None),
    ],
)
def test_the_scorer(answer, exact, result, form, calculations):
    assert steps_and_result(answer, Case("0", REFERENCE)) == {
        "exact_match": exact,
        "result_right": result,
        "form_right": form,
        "calculations": calculations and {"right": calculations},
    }


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    files = []
    for name, count in (("train", 6), ("test", 3)):
        rows = [{"question": f"{name}: 48 and half of it, plus {n}?", "answer": REFERENCE} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files.append(f"--{name}={tmp_path / name}.jsonl")
    small = ("--train_rows=5", "--held_out=2", "--steps=2", "--answer_tokens=8")
    smoke.called(tmp_path, "fixed_format_qa", *files, *small)
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["exact match", "result right", "form right"]  # random weights write no calculations
    assert [line[0] for line in lines] == ["base", "prompted", "few-shot", "prompted, few-shot", "SFT"]
    assert all(line[3].startswith("0.000 [") for line in lines)
