"""A model's own answers to prompts as rows to train on: the best of several, or a better and a worse one.

Stands behind `python -m sft_jax.generate`: a respondent answers each prompt several times, a scorer says what each
answer is worth, and what is kept becomes rows that `configs/sft.py` (`best`; rejection sampling, Yuan et al. 2023) or
`configs/preference.py` (`pairs`) reads.

Answers that were cut or are empty are never kept: a model would learn to write them. Of equally good answers the
likelier one counts, by the sum of its log-probabilities, and of equally likely ones the first sample. So the answers of
a pair are those that the model is most inclined to give among its best and among its worst.
"""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sft_jax.data.conversations import Chat, Conversation, Message, Preference
from sft_jax.data.reading import Reading
from sft_jax.data.records import Record, read_prompts, read_records
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.written_rows import example_fields
from sft_jax.evaluation.parts import PartScorer
from sft_jax.evaluation.requests import Written
from sft_jax.evaluation.scorers import Case, make_scorer, needs_reference
from sft_jax.evaluation.scoring import score_examples
from sft_jax.evaluation.tasks.generating import question_of
from sft_jax.evaluation.worth import worth_of
from sft_jax.generation import STOP

ALL, BEST, PAIRS = KEPT = ("all", "best", "pairs")
_GAVE, _NONE_ABOVE, _ALL_EQUAL, _TOO_FEW = "gave a row", "have no answer above", "have equal answers", "have too few"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An answer that may be kept.

    Attributes:
        sample: its number.
        written: as the model wrote it.
        message: the same in parts.
        worth: by the scorer, in [0, 1]; None where there is none.
    """

    sample: int
    written: Written
    message: Message
    worth: float | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the model ended it itself, and said or called something."""
        return self.written.finish_reason == STOP and bool(self.message.content.strip() or self.message.tool_calls)


class Judge:
    """What answers to records are worth, by a scorer."""

    def __init__(
        self,
        records: Sequence[Record],
        renderer: ConversationRenderer,
        scorer: str,
        options: Mapping[str, Any],
        match_thinking: bool = False,
    ):
        """Reads the references, where the scorer compares with them.

        Args:
            records: that are answered.
            renderer: whose template tells the parts of an answer apart.
            scorer: its name.
            options: of it.
            match_thinking: an exact match wants the thinking to be that of the reference too.

        Raises:
            ValueError: there is no such scorer, it cannot use a reference (named by its row), or it does not say what
                one answer is worth.
        """
        self._scorer, self._renderer, self._parts = make_scorer(scorer, options), renderer, None
        if needs_reference(scorer, options):
            self._parts = PartScorer(self._scorer, records, renderer, match_thinking)
        elif match_thinking:
            raise ValueError(f"match_thinking: scorer {scorer!r} looks at no reference; leave it out")
        try:
            self(records[0], "")
        except ValueError as error:
            raise ValueError(f"scorer {scorer!r}: {error}") from error

    def read(self, record: Record, text: str) -> Message:
        """An answer in parts."""
        parts = (
            self._parts.read(record, text) if self._parts else self._renderer.read_answer(text, record.example.tools)
        )
        return Message("assistant", parts.content, reasoning=parts.thinking, tool_calls=parts.calls)

    def __call__(self, record: Record, text: str) -> float:
        """What an answer to a record is worth.

        Raises:
            ValueError: the scorer refuses it, or has no value for it; names the row.
        """
        outcome = self._outcome(record, text)
        try:
            return worth_of(outcome)
        except ValueError as error:
            raise ValueError(f"row {record.id}: {error}") from error

    def _outcome(self, record: Record, text: str) -> Mapping[str, Any]:
        if self._parts is not None:
            return self._parts(record, text)
        content = self.read(record, text).content
        return score_examples(self._scorer, [content], [Case(record.id, "", record.fields)])[0]


def prompts_of(
    path: str, reading: Reading, scorer: str, options: Mapping[str, Any]
) -> tuple[list[Record], list[Conversation]]:
    """The rows of a path, and what is asked by each: a final answer is left out of it.

    Args:
        path: of the rows.
        reading: how they are read.
        scorer: of the answers; empty for none.
        options: of it.

    Raises:
        RecordError: a row that cannot be read, or has nothing but an answer.
        ValueError: the scorer compares with references, and a row has none.
    """
    if not scorer or not needs_reference(scorer, options):
        records = read_prompts(path, reading)
        return records, [record.conversation for record in records]
    records = read_records(path, reading)
    for record in records:
        if record.conversation[-1].role != "assistant":
            raise ValueError(
                f"{record.id}: scorer {scorer!r} compares with the row's own answer, and this row has none"
            )
    return records, [question_of(record) for record in records]


def candidates_of(record: Record, answers: Sequence[Written], judge: Judge | None) -> list[Candidate]:
    """The answers to a record with what they are worth; without a judge they are not told apart into parts."""
    if judge is None:
        return [Candidate(number, one, Message("assistant", one.text)) for number, one in enumerate(answers)]
    return [
        Candidate(number, one, judge.read(record, one.text), judge(record, one.text))
        for number, one in enumerate(answers)
    ]


def best_of(candidates: Iterable[Candidate], above: float) -> tuple[Candidate | None, str]:
    """The best whole answer that is worth more than `above`, and what is to be said of the prompt."""
    whole = [one for one in candidates if one.is_whole]
    if not whole:
        return None, _TOO_FEW
    best = _likeliest(whole, max(one.worth for one in whole))
    return (best, _GAVE) if best.worth > above else (None, _NONE_ABOVE)


def pair_of(candidates: Iterable[Candidate], above: float) -> tuple[tuple[Candidate, Candidate] | None, str]:
    """A better and a worse whole answer, the better one worth more than `above`, and what is to be said of the prompt.

    Answers that say the same are never a pair, whatever a scorer makes of them.
    """
    whole = [one for one in candidates if one.is_whole]
    if len(whole) < 2:
        return None, _TOO_FEW
    best = _likeliest(whole, max(one.worth for one in whole))
    others = [one for one in whole if one.worth < best.worth and one.message != best.message]
    if not others:
        return None, _ALL_EQUAL
    if best.worth <= above:
        return None, _NONE_ABOVE
    return (best, _likeliest(others, min(one.worth for one in others))), _GAVE


def _likeliest(candidates: Iterable[Candidate], worth: float) -> Candidate:
    """Of those of this worth; of equally likely ones the first."""
    return max((one for one in candidates if one.worth == worth), key=lambda one: one.written.logprob)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that were made, and a word on the prompts that they came of."""

    rows: tuple[dict[str, Any], ...]
    summary: str


def rows_of(
    records: Sequence[Record],
    prompts: Sequence[Conversation],
    candidates: Sequence[Sequence[Candidate]],
    keep: str,
    above: float = 0.0,
) -> Rows:
    """The rows that are written.

    Args:
        records: that were answered.
        prompts: of them.
        candidates: the answers to each, in the order of their samples.
        keep: one of `KEPT`.
        above: what a kept or chosen answer must be worth more than.
    """
    answered = list(zip(records, prompts, candidates, strict=True))
    if keep == ALL:
        rows = [_sample_row(record, one) for record, _, of_prompt in answered for one in of_prompt]
        return Rows(tuple(rows), f"{len(rows):,} answers to {len(records):,} prompts")
    choose, make = {BEST: (best_of, _best_row), PAIRS: (pair_of, _pair_row)}[keep]
    rows, said = [], collections.Counter()
    for record, prompt, of_prompt in answered:
        found, reason = choose(of_prompt, above)
        said[reason] += 1
        if found is not None:
            rows.append(make(record, prompt, found))
    return Rows(tuple(rows), _summary(said, keep, above))


def _sample_row(record: Record, one: Candidate) -> dict[str, Any]:
    written = one.written
    row = {"id": record.id, "sample": one.sample, "answer": written.text, "ended": written.finish_reason == STOP}
    row |= {"finish_reason": written.finish_reason, "logprob": written.logprob}
    return row if one.worth is None else row | {"score": one.worth}


def _best_row(record: Record, prompt: Conversation, best: Candidate) -> dict[str, Any]:
    # Of the prompt nothing is trained: its answers are not the model's own.
    asked = tuple(
        message._replace(weight=0.0, ranges=()) if message.role == "assistant" else message for message in prompt
    )
    example = Chat((*asked, best.message), record.example.tools)
    return {"id": record.id, **example_fields(example), "score": best.worth}


def _pair_row(record: Record, prompt: Conversation, pair: tuple[Candidate, Candidate]) -> dict[str, Any]:
    chosen, rejected = pair
    example = Preference(prompt, (chosen.message,), (rejected.message,), record.example.tools)
    scores = {"chosen_score": chosen.worth, "rejected_score": rejected.worth}
    return {"id": record.id, **example_fields(example), **scores}


def _summary(said: Mapping[str, int], keep: str, above: float) -> str:
    """How many prompts gave what, in words."""
    what = "an answer" if keep == BEST else "a pair"
    words = {
        _GAVE: f"gave {what}",
        _NONE_ABOVE: f"have no answer with a score above {above:g}",
        _ALL_EQUAL: "have answers of one score alone",
        _TOO_FEW: "have no whole answer" if keep == BEST else "have fewer than two whole answers",
    }
    counted = "; ".join(f"{said[reason]:,} {text}" for reason, text in words.items() if said[reason] or reason == _GAVE)
    return f"Of {sum(said.values()):,} prompts: {counted}"
