"""What is wrong in the pairs that DPO learns from, and in what models write: value by value, by right answers."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from experiments.faults import Faults, faults_of
from experiments.quickstart.titles import FIELDS
from sft_jax.data.records import read_records
from sft_jax.evaluation.scorers import make_scorer
from sft_jax.evaluation.scorers.cases import Case


def faults_in(answers: Iterable[tuple[str, str]]) -> Mapping[str, Faults]:
    """Of (right answer, answer), by field. An answer that is no JSON object gives no value."""
    score = make_scorer("json_fields", {})
    return faults_of([score(answer, Case("", right)) for right, answer in answers], FIELDS)


def rejected_answers(pairs: Path, documents: Path) -> list[tuple[str, str]]:
    """(Right answer, rejected answer) of each pair; the right one is that of the document with the pair's id."""
    right = {record.id: record.conversation[-1].content for record in read_records(documents)}
    rows = map(json.loads, pairs.read_text(encoding="utf-8").rstrip("\n").split("\n"))
    return [(right[row["id"]], row["rejected"][-1]["content"]) for row in rows]
