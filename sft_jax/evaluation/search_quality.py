"""How good the search of the method rag is, by itself: for rows that say which documents answer them."""

from collections.abc import Sequence

from sft_jax.data.records import Record
from sft_jax.evaluation.measuring import Entry
from sft_jax.evaluation.scoring import aggregate
from sft_jax.evaluation.tasks.generating import question_of
from sft_jax.preparation.retrieved import Retriever
from sft_jax.retrieval import query_of
from sft_jax.retrieval.quality import outcomes_of

AT = (1, 3, 5, 10)  # passages that are looked at


def search_quality(entries: Sequence[Entry], retriever: Retriever, seed: int) -> dict[str, dict[str, float]] | None:
    """Recall and hits among the first passages, and the reciprocal rank (its mean is the MRR), each with an interval.

    Args:
        entries: the tasks; those with a `relevant_column` say which documents answer their rows.
        retriever: of the method.
        seed: of the bootstrap.

    Returns:
        Metric -> score; None where no task says it.

    Raises:
        ValueError: a row that names no document, or one that the corpus does not have.
    """
    asked = [
        (record, _relevant(record, entry.options.relevant_column))
        for entry in entries
        if entry.options.relevant_column
        for record in entry.records
    ]
    if not asked:
        return None
    found = retriever.index.search([query_of(question_of(record)) for record, _ in asked], max(AT))
    try:
        outcomes = outcomes_of(found, [documents for _, documents in asked], retriever.document_ids, AT)
    except ValueError as error:
        raise ValueError(f"relevant_column, counting the rows of all tasks that have one: {error}") from error
    return {metric: score.as_dict() for metric, score in aggregate(outcomes, seed).items()}


def _relevant(record: Record, column: str) -> list[str]:
    """The ids of the documents that answer a row: a list, or one alone."""
    value = record.fields.get(column)
    if value is None:
        there = ", ".join(sorted(record.fields))
        raise ValueError(f"{record.id}: column {column!r} (relevant_column) is missing or empty; the row has {there}")
    return [str(one) for one in value] if isinstance(value, list | tuple) else [str(value)]
