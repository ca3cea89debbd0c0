"""How good the search of rag is, for rows that say which documents answer them."""

import dataclasses

import pytest

from configs import sft
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record
from sft_jax.evaluation.measuring import Entry
from sft_jax.evaluation.search_quality import search_quality
from sft_jax.options import RetrievalOptions, TaskOptions
from sft_jax.preparation.retrieved import Retriever

OPTIONS = TaskOptions("rows.jsonl", DEFAULT, relevant_column="doc")


def row(number, question, **fields):
    return Record(f"a:{number}", Chat((Message("user", question), Message("assistant", "yes"))), fields)


@pytest.fixture
def retriever(tmp_path):
    texts = {"library": "The library opens at nine.", "park": "Dogs run in the park.", "pool": "The pool is cold."}
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text)
    options = sft.get_config().evaluation.retrieval.to_dict() | {"corpus": str(tmp_path)}
    return Retriever(RetrievalOptions(**options), None)


def test_by_hand(retriever):
    """One is found first, one is not what its words say, and one is answered by two documents."""
    rows = (
        row(1, "When does the library open?", doc="library.txt"),
        row(2, "Where do dogs run?", doc=["pool.txt"]),
        row(3, "Do dogs run in the park?", doc=["park.txt", "library.txt"]),
    )
    found = search_quality([Entry("asked", OPTIONS, rows)], retriever, 0)
    assert found["hit@1"]["value"] == pytest.approx(2 / 3)
    assert found["recall@1"]["value"] == pytest.approx((1 + 0 + 1 / 2) / 3)
    assert found["reciprocal_rank"]["value"] == pytest.approx(2 / 3)
    assert 0 < found["hit@1"]["low"] < found["hit@1"]["high"] < 1


def test_tasks_without_the_column_are_not_asked(retriever):
    plain = dataclasses.replace(OPTIONS, relevant_column="")
    assert search_quality([Entry("plain", plain, (row(1, "When?"),))], retriever, 0) is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"other": "library.txt"}, r"a:1: column 'doc' \(relevant_column\) is missing or empty; the row has other"),
        ({"doc": "museum.txt"}, "question 1 is answered by documents that the corpus does not have: museum.txt"),
        ({"doc": []}, "question 1 is answered by no document"),
    ],
)
def test_rows_that_nothing_can_answer_are_refused(retriever, fields, message):
    with pytest.raises(ValueError, match=message):
        search_quality([Entry("asked", OPTIONS, (row(1, "When?", **fields),))], retriever, 0)
