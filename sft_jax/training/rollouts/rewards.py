"""What sampled answers are worth: scorers of evaluations, weighted and added up."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.parts import PartScorer
from sft_jax.evaluation.scorers import Outcome, make_scorer
from sft_jax.evaluation.scorers.cases import JUDGEMENTS, ScorerFailedError
from sft_jax.evaluation.scoring import score_values
from sft_jax.options import RewardOptions
from sft_jax.training.rollouts.checks import FLAG


@dataclasses.dataclass(frozen=True)
class Reward:
    """What an answer is worth.

    Attributes:
        parts: by the name of an entry of `config.rollouts.rewards`, before its weight; 0 where its scorer failed.
        failed: entries whose scorer failed.
        total: the weighted sum of the parts.
    """

    parts: Mapping[str, float]
    failed: tuple[str, ...]
    total: float


class Rewards:
    """Judges answers to records as evaluations do: of an answer's content, thinking and calls apart."""

    def __init__(self, entries: Mapping[str, RewardOptions], records: Sequence[Record], renderer: ConversationRenderer):
        """Reads the references, so that what cannot be judged is known before anything is sampled.

        Args:
            entries: what is judged.
            records: conversations that end with the reference answer.
            renderer: whose template tells the parts of an answer apart.

        Raises:
            ValueError: a row without a reference, or one that a scorer refuses; names it. Or a scorer has no such
                metric.
        """
        for record in records:
            if not record.conversation or record.conversation[-1].role != "assistant":
                raise ValueError(
                    f"{record.id}: sampled answers are judged by the row's last answer, and this row has none. Give "
                    "conversations that end with the assistant's answer"
                )
        self._entries = dict(entries)
        self._scorers, self._metrics = {}, {}
        for name, entry in entries.items():
            try:
                scorer = PartScorer(make_scorer(entry.scorer, entry.scorer_options), records, renderer)
                self._scorers[name], self._metrics[name] = scorer, _metric_of(entry.metric, scorer, records)
            except ValueError as error:
                raise ValueError(f"{FLAG}.{name}: {error}") from error

    @property
    def names(self) -> list[str]:
        """Of the entries."""
        return list(self._entries)

    def __call__(self, record: Record, text: str) -> Reward:
        """What one answer is worth.

        A scorer that raises, that a deeply nested answer exhausts, or whose bound on work an answer exceeds, gives 0:
        its failure is told apart.

        Args:
            record: that it answers.
            text: the whole answer, as `ConversationRenderer.written_text` gives it.

        Raises:
            ValueError: the reward is not finite, or what a scorer returned is no outcome; names the row and the entry.
        """
        parts, failed = {}, []
        for name, scorer in self._scorers.items():
            try:
                outcome = scorer(record, text)
                parts[name] = score_values([outcome]).get(self._metrics[name], 0.0)
                failed += [name] if outcome.get("exceeded") is True else []
            except RecursionError:
                failed.append(name)
            except ValueError as error:
                if not _was_raised_by_a_scorer(error):
                    raise ValueError(f"{FLAG}.{name}: {error}") from error
                failed.append(name)
        parts |= dict.fromkeys(failed, 0.0)
        total = sum(self._entries[name].weight * parts[name] for name in self._entries)
        if not math.isfinite(total):
            raise ValueError(f"{record.id}: the reward of an answer is {total}: {parts}; rewards must be finite")
        return Reward({name: parts[name] for name in self._entries}, tuple(failed), total)


def _metric_of(asked: str, scorer: PartScorer, records: Sequence[Record]) -> str:
    """The metric that is the reward; by default whether an answer is right, or else the first that is better high."""
    found = [(record, score_values([_of_reference(scorer, record)])) for record in records]
    there = found[0][1]
    right = [name for name in JUDGEMENTS if name in there]
    name = asked or next(iter([*right, *filter(higher_is_better, there)]), "")
    if name not in there:
        raise ValueError(f"metric={asked!r} is not measured; there are {', '.join(there)}")
    for record, values in found:
        if name not in values:
            raise ValueError(f"row {record.id}: {name!r} has no value for it; leave such rows out, or give a metric")
    return name


def _of_reference(scorer: PartScorer, record: Record) -> Outcome:
    return scorer(record, scorer.references[record.id].text)


def _was_raised_by_a_scorer(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ScorerFailedError):
            return True
        error = error.__cause__
    return False
