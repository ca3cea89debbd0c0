"""Writes the report into a directory: the last step of an evaluation by methods."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from sft_jax.evaluation.report.markdown import markdown_report
from sft_jax.evaluation.report.page import report_page
from sft_jax.evaluation.report.plots import draw_plots
from sft_jax.evaluation.report.rows import Rows
from sft_jax.evaluation.report.tensorboard import log_scalars, log_texts
from sft_jax.runs.metric_log import MetricLog
from sft_jax.runs.workdir import write_whole

RESULTS, MARKDOWN, PAGE, PLOTS = "results.json", "report.md", "report.html", "plots"


def write_report(
    results: Mapping[str, Any], answers: Mapping[str, Mapping[str, Rows]], directory: epath.PathLike
) -> list[epath.Path]:
    """Writes `results.json`, `report.md`, `report.html` and `plots/*.png`, each whole; returns their paths in order.

    Args:
        results: of the package's form.
        answers: by task and method; may be empty.
        directory: made where it is not there; may be in a bucket. Other files in it stay.

    Raises:
        ValueError: a number in the results is not finite, which JSON cannot hold, or the methods of a task do not have
            the same rows in the same order. Nothing is written then.
    """
    directory = epath.Path(directory)
    plots = draw_plots(results)
    files: dict[str, str | bytes] = {
        RESULTS: json.dumps(results, indent=2, allow_nan=False) + "\n",
        MARKDOWN: markdown_report(results, plots, PLOTS),
        PAGE: report_page(results, answers, plots),
        **{f"{PLOTS}/{plot.name}.png": plot.png for plot in plots},
    }
    (directory / PLOTS).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_whole(directory / name, content)
    return [directory / name for name in files]


def log_report(results: Mapping[str, Any], directory: epath.PathLike, step: int) -> None:
    """Writes scores, costs and sections of the report for TensorBoard, in the place of what an earlier call wrote.

    Args:
        results: of the package's form.
        directory: of the report; they go below it, as those of a run.
        step: at which they stand, so that evaluations of several checkpoints make a curve.
    """
    log = MetricLog(epath.Path(directory), -1)
    try:
        log.scalars(step, dict(log_scalars(results)))
        for tag, markdown in log_texts(results):
            log.text(step, tag, markdown)
    finally:
        log.close()
