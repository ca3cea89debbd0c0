"""What the comparisons of a task show, in words: the one place where a difference is called better or worse.

A difference is shown where its p-value, corrected for the number of comparisons (Holm 1979), is below 0.05. Everything
else is called "no difference shown", whichever way it points.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sft_jax.evaluation.figures import SIGNIFICANCE, metric_name, p_text
from sft_jax.evaluation.metrics import higher_is_better

BASE = "base"
BETTER, WORSE, UNDECIDED = "better", "WORSE", "no difference shown"
_CALLED = {
    BETTER: "better than",
    WORSE: "WORSE than",
    "higher": "higher than",
    "lower": "lower than",
    UNDECIDED: "no difference shown against",
}

Methods = Mapping[str, Mapping[str, Any]]
Task = Mapping[str, Any]
Comparison = Mapping[str, Any]


def called(comparison: Comparison) -> str:
    """What the second method is, compared with the first: "better", "WORSE" or "no difference shown".

    "higher" or "lower" for a metric that describes and does not judge.
    """
    return called_by(comparison["value"], comparison["p_holm"], higher_is_better(comparison["metric"]))


def called_by(difference: float, p_value: float, is_good: bool | None) -> str:
    """The same of any difference, where the higher is good, the lower (False), or neither (None)."""
    if p_value >= SIGNIFICANCE:
        return UNDECIDED
    is_higher = difference > 0
    if is_good is None:
        return "higher" if is_higher else "lower"
    return BETTER if is_higher == is_good else WORSE


def task_verdicts(task: Task, methods: Methods) -> list[str]:
    """A sentence for each tuned method (without one: for each that is not `base`) on the primary metric of a task.

        sft, field F1: better than base (+0.412, p < 0.001); no difference shown against rag (+0.010, p = 0.700;
        60 rows; about 400 would be needed)

    It names every method with the weights of the base that it was compared with. How many rows would be needed is
    said for the first sentence alone, whose difference that number is about.
    """
    judged, against = judged_methods(task, methods)
    if not against:
        return [f"{metric_name(task['primary'])}: there is nothing to compare {_listed(judged)} with"]
    return [
        _sentence(task, method, against, task["examples_needed"] if number == 0 else None)
        for number, method in enumerate(judged)
    ]


def judged_methods(task: Task, methods: Methods) -> tuple[list[str], list[str]]:
    """Those whose use is in question, and those they are judged against, of the methods that have scores.

    The tuned ones against the untrained; where all are of one kind, all others against the first.
    """
    scored = [name for name in methods if name in task["scores"]]
    tuned = [name for name in scored if methods[name]["weights"] == "tuned"]
    untrained = [name for name in scored if name not in tuned]
    if tuned and untrained:
        return tuned, untrained
    first = BASE if BASE in scored else scored[0]
    return [name for name in scored if name != first] or [first], [first] if len(scored) > 1 else []


def best_untrained(task: Task, methods: Methods) -> str | None:
    """The method with the base's weights whose primary score is best, of equal ones the one named first.

    None where there is no such method, or where neither direction of the metric is better. It is chosen on the rows on
    which it is judged, which favours it.
    """
    direction = higher_is_better(task["primary"])
    scores = {
        name: score[task["primary"]]["value"]
        for name, score in task["scores"].items()
        if methods[name]["weights"] == "base" and task["primary"] in score
    }
    if direction is None or not scores:
        return None
    in_order = [name for name in methods if name in scores]
    return max(in_order, key=lambda name: scores[name] if direction else -scores[name])


def key_comparisons(task: Task, methods: Methods) -> list[Comparison]:
    """On the primary metric: every method against `base`, then against the best untrained method, if that is another.

    Without either, all comparisons on the primary metric.
    """
    references = list(dict.fromkeys(name for name in (BASE, best_untrained(task, methods)) if name in task["scores"]))
    found = [
        comparison
        for reference in references
        for method in methods
        if method not in references[: references.index(reference) + 1]
        and (comparison := compared(task, reference, method)) is not None
    ]
    return found or [comparison for comparison in task["comparisons"] if comparison["metric"] == task["primary"]]


def compared(task: Task, first: str, second: str) -> Comparison | None:
    """The comparison `second - first` on the primary metric, turned round if it was made the other way."""
    for comparison in task["comparisons"]:
        if comparison["metric"] != task["primary"]:
            continue
        if (comparison["first"], comparison["second"]) == (first, second):
            return comparison
        if (comparison["first"], comparison["second"]) == (second, first):
            return _turned(comparison)
    return None


def gate_text(gate: Mapping[str, Any]) -> str:
    """Whether the gate against forgetting is passed."""
    bound = f"no score may fall by more than {gate['max_regression']:g}"
    return f"Gate ({bound}): FAILED: {', '.join(gate['failed'])}" if gate["failed"] else f"Gate ({bound}): passed"


def _turned(comparison: Comparison) -> Comparison:
    turned = {**comparison, "first": comparison["second"], "second": comparison["first"], "value": -comparison["value"]}
    if "low" in comparison:
        turned |= {"low": -comparison["high"], "high": -comparison["low"]}
    return turned


def _sentence(task: Task, method: str, against: Sequence[str], needed: int | None) -> str:
    found = [pair for name in against if (pair := compared(task, name, method)) is not None]
    before = f"{method}, {metric_name(task['primary'])}"
    if not found:
        return f"{before}: not compared with {_listed(against)}"
    return f"{before}: " + "; ".join(_parts(task, found, needed))


def _parts(task: Task, found: Sequence[Comparison], needed: int | None) -> Iterator[str]:
    """Those that are called alike together."""
    difference: Callable[[Comparison], str] = lambda pair: f"{pair['value']:+.3f}, {p_text(pair['p_holm'])}"
    for word, phrase in _CALLED.items():
        alike = [pair for pair in found if called(pair) == word]
        names = [f"{pair['first']} ({difference(pair)})" for pair in alike]
        if not names:
            continue
        if word == UNDECIDED:
            more = f"; about {needed:,} would be needed" if needed is not None else ""
            yield f"{phrase} {_listed(names)} ({task['examples']:,} rows{more})"
        else:
            yield f"{phrase} {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)
