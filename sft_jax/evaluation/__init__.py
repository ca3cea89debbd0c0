"""How good a model is, and whether a difference is real: scores of generated answers, prompt baselines, intervals and
paired tests, and the before/after tables.

What is exported here are pure functions on texts and numbers, without models, devices or files; `held_out.py` and
`held_out_loss.py` run a model.
"""

from sft_jax.evaluation.baselines import choose_examples, with_examples
from sft_jax.evaluation.scorers import SCORERS, Case, Outcome, Scorer, make_scorer
from sft_jax.evaluation.scoring import Comparison, aggregate, check_cases, compare, detail_tables, score_examples
from sft_jax.evaluation.statistics import Score
from sft_jax.evaluation.tables import build_results, markdown_table, terminal_table, verdict

__all__ = [
    "SCORERS",
    "Case",
    "Comparison",
    "Outcome",
    "Score",
    "Scorer",
    "aggregate",
    "build_results",
    "check_cases",
    "choose_examples",
    "compare",
    "detail_tables",
    "make_scorer",
    "markdown_table",
    "score_examples",
    "terminal_table",
    "verdict",
    "with_examples",
]
