"""The report as sections of text and tables of text, which markdown.py and page.py write out in their way.

`report_sections` is all that is known of the results: every metric, every comparison, details and notes.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_jax.evaluation.figures import ABSENT, difference_text, metric_name, p_text, score_text
from sft_jax.evaluation.metrics import higher_is_better
from sft_jax.evaluation.report.verdicts import best_untrained, called, gate_text, task_verdicts

# Ends of pairs of surrogates that have no pair, marks that turn the direction of text, and what has no shape at all.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
_NUMBER = re.compile(r"(< )?[+-]?\d[\d.,]*(e[+-]?\d+)?[kMGT]?( ?%)?( \[.*\])?")


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table whose cells are text.

    Attributes:
        title: above it; may be empty.
        columns: headers.
        rows: as many cells each as there are columns.
        is_detail: may be folded away where space is short.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    is_detail: bool = False

    def is_numeric(self, column: int) -> bool:
        """All cells of the column are numbers, which are aligned to the right."""
        cells = [row[column] for row in self.rows if row[column] != ABSENT]
        return bool(cells) and all(_NUMBER.fullmatch(cell) for cell in cells)


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading with what stands below it.

    Attributes:
        name: by which plots say where they belong: "methods", "task TASK", "forgetting TASK", "drift", …
        title: of the heading.
        facts: short statements of what was measured.
        verdicts: sentences of verdicts.py.
        tables: in order.
        notes: what else a reader should know.
    """

    name: str
    title: str
    facts: tuple[str, ...] = ()
    verdicts: tuple[str, ...] = ()
    tables: tuple[TextTable, ...] = ()
    notes: tuple[str, ...] = ()


def report_sections(results: Mapping[str, Any]) -> list[Section]:
    """The report in the order in which it is read; what was not measured has no section."""
    methods = results["methods"]
    sections = [task_section(f"task {name}", name, task, methods) for name, task in results["tasks"].items()]
    sections.append(Section("methods", "Methods and their cost", tables=(_method_table(methods),)))
    if results["retrieval"] is not None:
        sections.append(Section("retrieval", "Retrieval", tables=(_score_table(results["retrieval"]),)))
    for name, task in (results["forgetting"] or {}).items():
        sections.append(task_section(f"forgetting {name}", f"Forgetting: {name}", task, methods))
    if results["gate"] is not None:
        sections.append(Section("gate", "Gate", verdicts=(gate_text(results["gate"]),)))
    if results["divergence"] is not None:
        sections.append(
            Section("divergence", "Divergence from the base", tables=(_score_table(results["divergence"]),))
        )
    if results["drift"] is not None:
        sections.append(Section("drift", "How far the weights moved", tables=(_drift_table(results["drift"]),)))
    return sections


def task_section(name: str, title: str, task: Mapping[str, Any], methods: Mapping[str, Any]) -> Section:
    """Facts, verdicts, scores, comparisons, details and notes of a task."""
    facts = [f"{task['examples']:,} rows of {task['data']}", f"primary metric: {metric_name(task['primary'])}"]
    if higher_is_better(task["primary"]) is False:
        facts.append("lower is better")
    if task["dropped"]:
        facts.append(f"{task['dropped']:,} rows left out")
    facts.append("95 % intervals in brackets")
    tables = [_scores_table(task, methods)]
    tables += _comparison_tables(task)
    for method, details in task["details"].items():
        tables += [_detail_table(f"{method}: {title}", table) for title, table in details.items()]
    verdicts = task_verdicts(task, methods)
    best = best_untrained(task, methods)
    notes = list(task["notes"])
    if task["comparisons"] and best is not None and sum(methods[m]["weights"] == "base" for m in task["scores"]) > 1:
        notes.insert(0, f"The best untrained method here is {best}, by these very rows, which favours it.")
    return Section(name, title, tuple(facts), tuple(verdicts), tuple(tables), tuple(notes))


def metrics_shown(task: Mapping[str, Any]) -> list[str]:
    """The primary metric, then all others in the order in which they first occur."""
    return list(dict.fromkeys([task["primary"], *(metric for scores in task["scores"].values() for metric in scores)]))


def count_text(value: float) -> str:
    """A large count in three digits: 950, 12.3k, 1.2M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration_text(seconds: float) -> str:
    """`42 s`, `12 min`, `3.2 h`."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 9.95 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"


def training_text(method: Mapping[str, Any]) -> str:
    """Tokens and time that training a method took, short: `1.23M, 7 min`."""
    training = method["training"]
    if training is None:
        return "none" if method["weights"] == "base" else "unknown"
    return f"{count_text(training['tokens'])}, {duration_text(training['seconds'])}"


def changed_text(method: Mapping[str, Any]) -> str:
    """Which share of its weights a method changes."""
    training = method["training"]
    if training is None:
        return "none" if method["weights"] == "base" else "unknown"
    share = training["parameters_changed"] / training["parameters"]
    return f"{100 * share:.3g} %"


def visible(text: str) -> str:
    """The text with what cannot be seen or turns its direction written as code points, and nothing else changed."""
    return _INVISIBLE.sub(lambda found: f"\\u{ord(found.group()):04x}", text)


def _scores_table(task: Mapping[str, Any], methods: Mapping[str, Any]) -> TextTable:
    metrics = metrics_shown(task)
    rows = [
        (name, *(score_text(task["scores"][name].get(metric)) for metric in metrics))
        for name in methods
        if name in task["scores"]
    ]
    return TextTable("Scores", ("method", *map(metric_name, metrics)), tuple(rows))


def _comparison_tables(task: Mapping[str, Any]) -> Iterator[TextTable]:
    """Those on the primary metric, and as a detail those on all others."""
    primary = [pair for pair in task["comparisons"] if pair["metric"] == task["primary"]]
    others = [pair for pair in task["comparisons"] if pair["metric"] != task["primary"]]
    if primary:
        yield _comparison_table(f"{metric_name(task['primary'])}, compared on the same rows", primary, is_detail=False)
    if others:
        yield _comparison_table("Other metrics, compared on the same rows", others, is_detail=True)


def _comparison_table(title: str, pairs: Sequence[Mapping[str, Any]], is_detail: bool) -> TextTable:
    columns = ("method", "against", "metric", "difference", "p", "p (Holm)", "test", "the method is")
    rows = [
        (
            *(pair["second"], pair["first"], metric_name(pair["metric"]), difference_text(pair)),
            *(p_text(pair[key]).removeprefix("p ").removeprefix("= ") for key in ("p_value", "p_holm")),
            *(pair["test"], called(pair)),
        )
        for pair in pairs
    ]
    return TextTable(title, columns, tuple(rows), is_detail)


def _detail_table(title: str, table: Mapping[str, Any]) -> TextTable:
    rows = tuple(tuple(_cell(value) for value in row) for row in table["rows"])
    return TextTable(title, tuple(map(str, table["columns"])), rows, is_detail=True)


def _method_table(methods: Mapping[str, Any]) -> TextTable:
    columns = (
        *("method", "description", "model", "weights", "prompt tokens", "generated tokens", "seconds a request"),
        *("requests", "cut prompts", "training tokens, time", "supervised tokens", "steps", "weights changed"),
    )
    rows = [
        (
            *(name, method["description"], method["model"], method["weights"]),
            *(f"{method['prompt_tokens']:,.1f}", f"{method['generated_tokens']:,.1f}", f"{method['seconds']:.3g}"),
            *(f"{method['requests']:,}", f"{method['cut_prompts']:,}", training_text(method)),
            *(_cell((method["training"] or {}).get(key)) for key in ("supervised_tokens", "steps")),
            changed_text(method),
        )
        for name, method in methods.items()
    ]
    return TextTable("", columns, tuple(rows))


def _score_table(scores: Mapping[str, Any]) -> TextTable:
    rows = tuple((metric_name(name), score_text(score)) for name, score in scores.items())
    return TextTable("", ("", "value"), rows)


def _drift_table(drift: Sequence[Mapping[str, Any]]) -> TextTable:
    """A row for each layer, a column for each kind of parameter."""
    values = {(entry["layer"], entry["kind"]): entry["relative"] for entry in drift}
    layers, kinds = (list(dict.fromkeys(entry[key] for entry in drift)) for key in ("layer", "kind"))
    rows = tuple((layer, *(_cell(values.get((layer, kind))) for kind in kinds)) for layer in layers)
    title = "Norm of the change over the norm of the base's weights"
    return TextTable(title, ("layer", *kinds), rows, is_detail=True)


def _cell(value: Any) -> str:
    if value is None:
        return ABSENT
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
