"""What one answer is worth, as a number in [0, 1]: what answers are ranked by, and what can be a reward."""

from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.scorers.cases import Outcome, is_right


def worth_of(outcome: Outcome) -> float:
    """1 or 0 where the scorer calls an answer right or wrong, else its share.

    Raises:
        ValueError: there is neither: of BLEU, whose counts are of a whole corpus, or of an answer without a value.
    """
    if (right := is_right(outcome)) is not None:
        return float(right)
    if (name := share_of(outcome)) is None:
        raise ValueError(
            f"its columns, {', '.join(outcome)}, neither call an answer right or wrong nor have a share that is better "
            "the higher it is: what one answer is worth is not known"
        )
    return outcome[name]


def share_of(outcome: Outcome) -> str | None:
    """The first column with a share that is better the higher it is; None where there is none."""
    return next((name for name, value in outcome.items() if isinstance(value, float) and higher_is_better(name)), None)
