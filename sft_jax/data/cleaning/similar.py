"""Cleaning steps that drop near duplicates, and records that overlap with held-out or benchmark data.

They find what the checks of the same names find (audit/checks/), so that a finding is gone after its step. For that
they keep all records in memory. Records that came as tokens have no text and stay.
"""

from collections.abc import Callable, Mapping, Sequence

from sft_jax.data.cleaning.steps import Act, Context, Drop, Step
from sft_jax.data.conversations import TokenExample
from sft_jax.data.labels import labels_of
from sft_jax.data.records import Record
from sft_jax.data.similarity.groups import similar_groups, texts_compared
from sft_jax.data.similarity.ngrams import texts_with_ngrams_of
from sft_jax.data.similarity.shingles import words
from sft_jax.data.views import PromptTemplate, view_of

HOW = ("exact", "words", "ngrams")

_Decide = Callable[[Sequence[Record]], Mapping[str, Drop]]


def drop_near_duplicates(_: Context, similarity: float) -> Step:
    """Drops a record to which an earlier one is nearly the same (Jaccard similarity of 5-character pieces).

    Where answers are labels, prompts are compared, and only records of the same label are dropped: a step does not
    decide which of two labels is right.
    """

    def decide(records: Sequence[Record]) -> dict[str, Drop]:
        views, drops = [view_of(record) for record in records], {}
        labels = labels_of(views) or [""] * len(records)
        for group in similar_groups(texts_compared(views, PromptTemplate.of_views(views)), similarity):
            firsts: dict[str, int] = {}
            for number in group:
                first = firsts.setdefault(labels[number], number)
                if first != number:
                    drops[records[number].id] = Drop("nearly the same as a row before it", records[first].id)
        return drops

    return _looking(decide)


def drop_held_out_overlap(context: Context, how: str) -> Step:
    """Drops a record that is also held out."""
    return _overlapping(context.held_out, how, "also held out")


def drop_benchmark_overlap(context: Context, how: str) -> Step:
    """Drops a record that is also a benchmark's prompt."""
    return _overlapping(context.benchmarks, how, "also in a benchmark")


def _overlapping(measured: Sequence[Record], how: str, what: str) -> Step:
    """Drops what is asked in the measured records, word for word, in the same words, or with a rare n-gram of them."""

    def decide(records: Sequence[Record]) -> dict[str, Drop]:
        trained, views = [view_of(record) for record in records], [view_of(record) for record in _with_text(measured)]
        template = PromptTemplate.of_views(trained)
        main = [template.main(view) for view in views]
        key = (lambda text: text) if how == "exact" else lambda text: tuple(words(text))
        asked = {key(text): view.id for text, view in zip(main, views, strict=True) if key(text)}
        drops = {}
        for view in trained:
            twin = next((asked[key(text)] for text in template.asked_texts(view) if key(text) in asked), None)
            if twin is not None:
                drops[view.id] = Drop(what, twin)
        if how == "ngrams":
            shared = texts_with_ngrams_of([template.text(view) for view in trained], main)
            for number, at in shared.items():
                drops.setdefault(records[number].id, Drop(f"shares an n-gram with what is {what}", views[at].id))
        return drops

    return _looking(decide)


def _looking(decide: _Decide) -> Step:
    """A step that decides about all records at once."""
    records: list[Record] = []

    def begin() -> Act:
        drops = decide(records)
        return lambda record: drops.get(record.id)

    def look(record: Record) -> None:
        if not isinstance(record.example, TokenExample):
            records.append(record)

    return Step(begin, look)


def _with_text(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if not isinstance(record.example, TokenExample)]
