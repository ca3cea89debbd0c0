"""Agreement of annotators, where rows come from an annotation tool with labels of several people."""

import collections
from collections.abc import Mapping, Sequence

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, places
from sft_jax.audit.kappa import cohen_kappa, confusions, fleiss_kappa, ratings_table
from sft_jax.data.formats import annotations_of

_CONFUSIONS = 20  # pairs of labels in the numbers

Labelled = tuple[str, Mapping[str, str]]  # id of a row; annotator -> label


def agreement(data: CheckedData) -> list[Observation]:
    """For each question that several people answered: kappa, the rows on which they differ, the labels they confuse.

    Cohen's kappa where the same two people labelled all of these rows, else Fleiss'.
    """
    by_question: dict[str, list[Labelled]] = collections.defaultdict(list)
    for record in data.records:
        for question, labels in annotations_of(record.fields).items():
            if len(labels) > 1:
                by_question[question].append((record.id, labels))
    return [_agreement(question, rows) for question, rows in by_question.items()]


def _agreement(question: str, rows: Sequence[Labelled]) -> Observation:
    kind, kappa = _kappa([labels for _, labels in rows])
    differ = [(row_id, labels) for row_id, labels in rows if len(set(labels.values())) > 1]
    pairs = confusions([list(labels.values()) for _, labels in rows])
    confused = [(f"{one} / {other}", count) for (one, other), count in pairs.items()][:_CONFUSIONS]
    most = f", most often {confused[0][0]}" if confused else ""
    says = "; ".join
    return Observation(
        f"Annotators of {question!r} differ on {len(differ):,} of {counted(len(rows), 'row', 'rows')} that several "
        f"labelled{most}: {kind}'s kappa {kappa:.2f}",
        len(differ),
        len(differ) / len(rows),
        places((row_id, says(f"{who}: {label}" for who, label in labels.items())) for row_id, labels in differ),
        "Look at what they confuse: make the guideline clearer, join labels, or let somebody decide such rows.",
        {"question": question, "kappa": kappa, "kind": kind, "rows": len(rows), "confusions": dict(confused)},
    )


def _kappa(rows: Sequence[Mapping[str, str]]) -> tuple[str, float]:
    people = {frozenset(labels) for labels in rows}
    if len(people) == 1 and len(rows[0]) == 2:
        first, second = sorted(rows[0])
        return "Cohen", cohen_kappa([labels[first] for labels in rows], [labels[second] for labels in rows])
    table, _ = ratings_table([list(labels.values()) for labels in rows])
    return "Fleiss", fleiss_kappa(table)
