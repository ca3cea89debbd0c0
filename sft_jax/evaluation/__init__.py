"""How good is it, and is the difference real: scoring of generated answers, prompt baselines, intervals and
paired tests, and the before/after tables. Pure functions on texts and numbers; they know nothing of models,
devices or files."""

from sft_jax.evaluation.baselines import choose_examples, with_examples
from sft_jax.evaluation.scoring import SCORERS, Comparison, Outcome, aggregate, compare, score_rows
from sft_jax.evaluation.statistics import Score
from sft_jax.evaluation.tables import build_results, markdown_table, terminal_table, verdict

__all__ = [
    "SCORERS",
    "Comparison",
    "Outcome",
    "Score",
    "aggregate",
    "build_results",
    "choose_examples",
    "compare",
    "markdown_table",
    "score_rows",
    "terminal_table",
    "verdict",
    "with_examples",
]
