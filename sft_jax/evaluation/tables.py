"""Before and after: the figures of `results.json`, and the table and the verdict printed from them.

Last step of an evaluation. `build_results` turns outcomes into one plain dict; the tables read that dict
alone, so a later run can print them from the file.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from sft_jax.evaluation.figures import SIGNIFICANCE, difference_text, metric_name, p_text, score_text
from sft_jax.evaluation.scoring import Outcome, aggregate, compare, higher_is_better, metrics_of

Loss = float | Sequence[Outcome]

LOSS = "held_out_loss"
PROMPT_NAMES = {"zero_shot": "zero-shot", "two_examples": "two examples"}


def build_results(
    before: Mapping[str, Sequence[Outcome]],
    after: Sequence[Outcome],
    *,
    seed: int,
    held_out_loss: tuple[Loss, Loss] | None = None,
    primary: str | None = None,
) -> dict[str, Any]:
    """The figures of a comparison on the same examples, ready for `json.dumps`.

    `before` maps a prompt's name to the base model's outcomes with it ("zero_shot", "two_examples"); the
    prompt with the best `primary` metric (default: the first metric; ties go to the prompt named first)
    becomes "before". It is chosen on the very examples it is judged on, which favours the base model. `after`:
    the tuned model's outcomes, zero-shot. `held_out_loss` is (before, after), each one figure, or outcomes
    with `loss_sum` and `loss_weight` for intervals and a test.

        {"examples", "primary", "before_prompt", "before": {metric: {"value", "low", "high"}}, "after": {...},
         "difference": {metric: {"value", "low", "high", "p_value", "test"}}, "prompts": {prompt: {metric: ...}}}

    A loss given as one figure is `{"value"}` alone. Raises ValueError where the metrics or the numbers of examples
    differ.
    """
    if not before:
        raise ValueError("build_results: no outcomes of the base model; give at least {'zero_shot': outcomes}")
    primary = primary or metrics_of(after)[0]
    if primary not in metrics_of(after):
        raise ValueError(f"no metric named {primary!r}; there are {', '.join(metrics_of(after))}")
    prompts = {name: _as_dicts(aggregate(outcomes, seed)) for name, outcomes in before.items()}
    sign = 1 if higher_is_better(primary) else -1
    best = max(prompts, key=lambda name: sign * prompts[name][primary]["value"])
    results = {
        "examples": len(after),
        "primary": primary,
        "before_prompt": best,
        "before": dict(prompts[best]),
        "after": _as_dicts(aggregate(after, seed)),
        "difference": _as_dicts(compare(before[best], after, seed)),
        "prompts": prompts,
    }
    if held_out_loss is not None:
        _add_loss(results, *held_out_loss, seed=seed)
    return results


def verdict(results: Mapping[str, Any], metric: str | None = None) -> str:
    """One sentence on one metric (default: the primary one): better or worse only where the paired test says so."""
    metric = metric or results["primary"]
    difference = results["difference"][metric]
    name = metric_name(metric)
    against = PROMPT_NAMES.get(results["before_prompt"], results["before_prompt"])
    p_value = difference["p_value"]
    evidence = f"{p_text(p_value)}, {difference['test']} test, {results['examples']} examples"
    interval = difference_text(difference)
    if p_value >= SIGNIFICANCE:
        return f"{name}: no difference shown against the base model ({against}): {interval} ({evidence})"
    better = (difference["value"] > 0) == higher_is_better(metric)
    word = "better" if better else "WORSE"
    return f"{name}: {word} than the base model ({against}) by {interval} ({evidence})"


def terminal_table(results: Mapping[str, Any]) -> Table:
    """The table for a terminal, with the verdict as its caption."""
    header, *rows = _cells(results)
    table = Table(title=f"{results['examples']} held-out examples, 95 % confidence intervals", caption=verdict(results))
    for column, text in enumerate(header):
        table.add_column(text, justify="left" if column == 0 else "right", style="bold" if column == 0 else None)
    for row in rows:
        table.add_row(*row)
    return table


def markdown_table(results: Mapping[str, Any]) -> str:
    """The same table as Markdown, the verdict underneath."""
    header, *rows = _cells(results)
    rule = ["---", *["---:"] * (len(header) - 1)]
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, rule, *rows)]
    return "\n".join([*lines, "", verdict(results), ""])


def _cells(results: Mapping[str, Any]) -> list[list[str]]:
    """The header, and a row for each metric: base model by prompt, tuned model, difference to the best prompt."""
    prompts = results["prompts"]
    header = ["", *(f"base, {PROMPT_NAMES.get(name, name)}" for name in prompts), "tuned", "difference"]
    rows = [header]
    for metric, after in results["after"].items():
        base = [scores.get(metric) for scores in prompts.values()]
        cells = [score_text(score) for score in (*base, after)]
        rows.append([metric_name(metric), *cells, _difference_text(results, metric)])
    return rows


def _difference_text(results: Mapping[str, Any], metric: str) -> str:
    difference = results["difference"].get(metric)
    if difference is None:
        return f"{results['after'][metric]['value'] - results['before'][metric]['value']:+.3f}"
    return f"{difference_text(difference)} {p_text(difference['p_value'])}"


def _add_loss(results: dict[str, Any], before: Loss, after: Loss, *, seed: int) -> None:
    """Adds the loss to `before`, `after` and the zero-shot column, which is the prompt it is measured with."""
    if isinstance(before, float) != isinstance(after, float):
        raise ValueError("held-out loss: give two figures or two lists of outcomes, not one of each")
    if isinstance(before, float) and isinstance(after, float):
        scores = [{"value": before}, {"value": after}]
    else:
        scores = [aggregate(outcomes, seed)[LOSS].as_dict() for outcomes in (before, after)]
        results["difference"][LOSS] = compare(before, after, seed)[LOSS].as_dict()
    results["before"][LOSS], results["after"][LOSS] = scores
    if "zero_shot" in results["prompts"]:
        results["prompts"]["zero_shot"] = {**results["prompts"]["zero_shot"], LOSS: scores[0]}


def _as_dicts(scores: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {metric: score.as_dict() for metric, score in scores.items()}


def scores_table(name: str, scores: Mapping[str, Any]) -> Table:
    """One evaluation, from its `scores.json`."""
    table = Table("", "score [95 % interval]", title=f"{name}, {scores['examples']} examples")
    for metric, score in scores.items():
        if isinstance(score, Mapping):
            table.add_row(metric_name(metric), score_text(score))
    return table


def comparison_table(first: Sequence[Outcome], second: Sequence[Outcome], seed: int) -> Table:
    """Two evaluations of the same examples: scores, paired difference, and whether it is shown to be real."""
    table = Table(
        "", "compared with", "this", "difference", "paired test", title=f"{len(first)} examples, compared one by one"
    )
    before, after = aggregate(first, seed), aggregate(second, seed)
    for metric, comparison in compare(first, second, seed).items():
        difference = comparison.difference
        shown = comparison.p_value < SIGNIFICANCE
        better = (difference.value > 0) == higher_is_better(metric)
        word = ("better" if better else "WORSE") if shown else "no difference shown"
        table.add_row(
            metric_name(metric),
            score_text(before[metric].as_dict()),
            score_text(after[metric].as_dict()),
            difference_text(difference.as_dict()),
            f"{word} ({p_text(comparison.p_value)}, {comparison.test})",
        )
    return table
