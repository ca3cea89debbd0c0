"""How good a model is, and whether a difference is real: scores of generated answers, prompt baselines, intervals and
paired tests, and the before/after tables.

What is exported here are pure functions on texts and numbers, without models, devices or files; `held_out.py` and
`held_out_loss.py` run a model.
"""

from sft_jax.evaluation.baselines import choose_examples, with_examples
from sft_jax.evaluation.scoring import SCORERS, Comparison, Outcome, aggregate, compare, score_examples
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
    "score_examples",
    "terminal_table",
    "verdict",
    "with_examples",
]
