"""Writes the report of a sweep into a directory."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.markdown import markdown_sections
from sft_jax.evaluation.report.page import sections_page
from sft_jax.evaluation.report.tables import Section
from sft_jax.runs.workdir import write_whole
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.report.plots import COST_NAMES
from sft_jax.sweeps.report.sections import sections_of
from sft_jax.sweeps.settings import exact_text

RESULTS, MARKDOWN, PAGE, PLOTS = "report.json", "report.md", "report.html", "plots"
RUNS, SETTINGS = "runs.csv", "settings.csv"


def write_sweep_report(
    found: Mapping[str, Any], plots: Sequence[Plot], directory: epath.PathLike
) -> dict[str, epath.Path]:
    """Writes report.html, report.md, report.json, runs.csv, settings.csv and plots/*.png, each whole.

    Args:
        found: of the package's form.
        plots: of it.
        directory: made where it is not there.

    Returns:
        The paths by name.
    """
    title, words = f"Sweep {found['sweep']}", f"{found['root']}, {found['created']}"
    tables = {RUNS: _runs_csv(found), SETTINGS: _settings_csv(found)}
    return write_files(title, words, "Sweep", sections_of(found), plots, found, directory, tables)


def write_files(
    title: str,
    words: str,
    kind: str,
    sections: Sequence[Section],
    plots: Sequence[Plot],
    found: Mapping[str, Any],
    directory: epath.PathLike,
    tables: Mapping[str, str],
    rows: Mapping[str, Any] | None = None,
) -> dict[str, epath.Path]:
    """Writes a report of sections; see `sections_page` for what they are. `tables` are more files by name."""
    directory = epath.Path(directory)
    files: dict[str, str | bytes] = {
        RESULTS: json.dumps(found, indent=2, allow_nan=False) + "\n",
        MARKDOWN: markdown_sections(title, words, sections, plots, PLOTS),
        PAGE: sections_page(kind, title, words, sections, plots, rows),
        **tables,
        **{f"{PLOTS}/{plot.name}.png": plot.png for plot in plots},
    }
    (directory / PLOTS).mkdir(parents=True, exist_ok=True)
    for path in (directory / PLOTS).glob("*.png"):  # of an earlier report, of other settings
        if f"{PLOTS}/{path.name}" not in files:
            path.unlink()
    for name, content in files.items():
        write_whole(directory / name, content)
    return {name: directory / name for name in files}


def _runs_csv(found: Mapping[str, Any]) -> str:
    keys = short_keys(found["factors"])
    rows = [
        {
            "run": run["name"],
            "state": run["state"],
            "seed": run["seed"],
            **{keys[factor]: exact_text(value) for factor, value in setting["values"].items()},
            "step": run["step"],
            found["metric"]: run["value"],
            **run["also"],
            **run["costs"],
        }
        for setting in found["settings"]
        for run in setting["runs"]
    ]
    return _csv(["run", "state", "seed", *keys.values(), "step", found["metric"], *found["also"], *COST_NAMES], rows)


def _settings_csv(found: Mapping[str, Any]) -> str:
    keys, score = short_keys(found["factors"]), ("value", "low", "high")
    difference = ("value", "low", "high", "seeds", "p_value", "p_holm", "called")
    rows = [
        {
            "setting": setting["name"],
            **{keys[factor]: exact_text(value) for factor, value in setting["values"].items()},
            **{name: (setting["score"] or {}).get(name) for name in score},
            **{other: (score_of or {}).get("value") for other, score_of in setting["also"].items()},
            "seeds": sum(run["value"] is not None for run in setting["runs"]),
            **{f"difference_{name}": (setting["difference"] or {}).get(name) for name in difference},
            **setting["costs"],
        }
        for setting in found["settings"]
    ]
    columns = [
        "setting",
        *keys.values(),
        *score,
        *found["also"],
        "seeds",
        *(f"difference_{name}" for name in difference),
    ]
    return _csv([*columns, *COST_NAMES], rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(columns)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
