"""The report as scalars and texts of a log, for `MetricLog` (`runs/metric_log.py`) or any writer like it.

for tag, markdown in log_texts(results):
    log.text(step, tag, markdown)
log.scalars(step, dict(log_scalars(results)))
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sft_jax.evaluation.report.markdown import section_lines
from sft_jax.evaluation.report.tables import report_sections, visible

_COSTS = ("prompt_tokens", "generated_tokens", "seconds")


def log_scalars(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, value) of every score, and of the cost of each method a request.

    Tags are `evaluation/TASK/METHOD/METRIC`, `forgetting/TASK/METHOD/METRIC`, `evaluation_cost/METHOD/prompt_tokens`,
    `retrieval/METRIC` and `divergence/NAME`.
    """
    for kind, tasks in (("evaluation", results["tasks"]), ("forgetting", results["forgetting"] or {})):
        for task, described in tasks.items():
            for method, scores in described["scores"].items():
                for metric, score in scores.items():
                    yield f"{kind}/{task}/{method}/{metric}", float(score["value"])
    for method, described in results["methods"].items():
        for cost in _COSTS:
            yield f"evaluation_cost/{method}/{cost}", float(described[cost])
    for kind in ("retrieval", "divergence"):
        for name, score in (results[kind] or {}).items():
            yield f"{kind}/{name}", float(score["value"])


def log_texts(results: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(tag, Markdown) of every section of the report: verdicts, all tables and notes."""
    for section in report_sections(results):
        yield f"evaluation/{visible(section.title)}", "\n".join(section_lines(section))
