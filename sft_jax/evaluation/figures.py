"""Figures as people read them: names of metrics, scores with their intervals, p-values.

Every table, page and verdict of an evaluation writes its numbers by these.
"""

from collections.abc import Mapping

SIGNIFICANCE = 0.05
METRIC_NAMES = {
    "field_f1": "field F1",
    "exact_match": "exact match",
    "valid_json": "valid JSON",
    "content_match": "content",
    "calls_match": "calls",
    "thinking_match": "thinking",
    "held_out_loss": "held-out loss",
    "macro_f1": "macro-F1",
    "stopped": "stop rate",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "chrf_plus_plus": "chrF++",
    "reciprocal_rank": "MRR",
    "preference_accuracy_per_token": "preference accuracy, per token",
    "preference_accuracy_over_reference": "preference accuracy, over reference",
    "kl_base_tuned": "KL(base || tuned)",
    "kl_tuned_base": "KL(tuned || base)",
}
ABSENT = "-"


def metric_name(metric: str) -> str:
    """As it is shown; a metric without a name of its own is shown without its underscores."""
    return METRIC_NAMES.get(metric, metric.replace("_", " "))


def score_text(score: Mapping[str, float] | None) -> str:
    """`{"value", "low", "high"}`, the limits optional, as `0.712 [0.640, 0.781]`."""
    if score is None:
        return ABSENT
    if "low" not in score:
        return f"{score['value']:.3f}"
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def difference_text(difference: Mapping[str, float]) -> str:
    """The same of a difference, every number with its sign: `+0.072 [-0.040, +0.181]`."""
    if "low" not in difference:
        return f"{difference['value']:+.3f}"
    return f"{difference['value']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}]"


def p_text(p_value: float) -> str:
    """`p = 0.042`; what would be rounded to 0 is `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"
