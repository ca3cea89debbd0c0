"""The report for a terminal: for each task its scores beside what they cost, the comparisons that matter, the verdict.

What does not fit into the width of the terminal is in the files that write.py writes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sft_jax.evaluation.figures import ABSENT, difference_text, metric_name, p_text, score_text
from sft_jax.evaluation.report.tables import changed_text, metrics_shown, training_text, visible
from sft_jax.evaluation.report.verdicts import UNDECIDED, WORSE, called, gate_text, key_comparisons, task_verdicts

WIDTH = 120

Results = Mapping[str, Any]
Cost = tuple[str, Callable[[Mapping[str, Any]], str]]  # header, and what stands there of a method
_COSTS: tuple[Cost, ...] = (
    ("prompt\ntokens", lambda method: f"{method['prompt_tokens']:,.0f}"),
    ("new\ntokens", lambda method: f"{method['generated_tokens']:,.0f}"),
    ("seconds", lambda method: f"{method['seconds']:.2f}"),
    ("training\ntokens, time", training_text),
    ("weights\nchanged", changed_text),
)
_STYLES = {WORSE: "bold red", UNDECIDED: "dim"}


def terminal_report(results: Results, width: int = WIDTH) -> Group:
    """All tasks, then what was measured beside them; `Console.print` prints it.

    Args:
        results: of the package's form.
        width: columns of the terminal; of the metrics that are not primary, as many are shown as fit.
    """
    methods = results["methods"]
    parts: list[Any] = []
    for name, task in results["tasks"].items():
        parts += _task_parts(name, task, methods, width)
    if results["retrieval"] is not None:
        parts.append(_score_line("Retrieval", results["retrieval"]))
    for name, task in (results["forgetting"] or {}).items():
        parts += _task_parts(f"Forgetting: {name}", task, methods, width)
    if results["gate"] is not None:
        parts.append(Text(gate_text(results["gate"]), style="bold red" if results["gate"]["failed"] else "green"))
    if results["divergence"] is not None:
        parts.append(_score_line("Divergence from the base", results["divergence"]))
    return Group(*parts)


def scores_table(title: str, task: Mapping[str, Any], methods: Mapping[str, Any], width: int = WIDTH) -> Table:
    """A row for each method: primary metric with interval, as many others as `width` columns have space for, cost.

    Where there is no space for all of the cost either, that is cut, and not the names and the intervals.
    """
    others, costs = metrics_shown(task)[1:], len(_COSTS)
    console = Console(width=10_000)
    for shown, of_costs in [*((n, costs) for n in range(len(others), -1, -1)), *((0, n) for n in range(costs)[::-1])]:
        table = _scores_table(title, task, methods, others[:shown], _COSTS[:of_costs])
        if Measurement.get(console, console.options, table).maximum <= width:
            break
    return table


def comparisons_table(task: Mapping[str, Any], methods: Mapping[str, Any]) -> Table:
    """Every method against `base` and against the best untrained one, on the primary metric."""
    table = Table("method", "against", "difference [95 %]", "p (Holm)", "the method is", title_justify="left")
    table.title = Text(f"{metric_name(task['primary'])}, compared on the same rows")
    for pair in key_comparisons(task, methods):
        word = called(pair)
        cells = (pair["second"], pair["first"], difference_text(pair), p_text(pair["p_holm"]))
        table.add_row(*(Text(visible(cell)) for cell in cells), Text(word, style=_STYLES.get(word, "green")))
    return table


def _task_parts(title: str, task: Mapping[str, Any], methods: Mapping[str, Any], width: int) -> list[Any]:
    parts: list[Any] = [scores_table(title, task, methods, width)]
    if task["comparisons"]:
        parts.append(comparisons_table(task, methods))
    for sentence in task_verdicts(task, methods):
        parts.append(Text(visible(sentence), style="bold red" if WORSE in sentence else "bold"))
    return [*parts, Text("")]


def _scores_table(
    title: str, task: Mapping[str, Any], methods: Mapping[str, Any], others: Sequence[str], costs: Sequence[Cost]
) -> Table:
    table = Table(title=Text(visible(f"{title}: {task['examples']:,} rows, 95 % intervals")), title_justify="left")
    table.add_column("method", style="bold", no_wrap=True)
    table.add_column(Text(visible(metric_name(task["primary"]))), justify="right", no_wrap=True)
    for metric in others:
        table.add_column(Text(visible("\n".join(metric_name(metric).split()))), justify="right", no_wrap=True)
    for header, _ in costs:
        table.add_column(header, justify="right", no_wrap=True)
    for name, method in methods.items():
        if name not in task["scores"]:
            continue
        scores = task["scores"][name]
        cells = [name, score_text(scores.get(task["primary"]))]
        cells += [f"{scores[metric]['value']:.3f}" if metric in scores else ABSENT for metric in others]
        table.add_row(*(Text(visible(cell)) for cell in (*cells, *(text_of(method) for _, text_of in costs))))
    return table


def _score_line(title: str, scores: Mapping[str, Any]) -> Text:
    return Text(f"{title}: " + ", ".join(f"{metric_name(name)} {score_text(score)}" for name, score in scores.items()))
