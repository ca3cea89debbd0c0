"""The report of a sweep in words and tables: what `found` says, for terminal, Markdown and page."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_jax.evaluation.figures import ABSENT, p_text
from sft_jax.evaluation.report.tables import Section, TextTable, count_text, duration_text
from sft_jax.evaluation.report.verdicts import UNDECIDED, called_by
from sft_jax.sweeps.names import short_keys
from sft_jax.sweeps.report.analysis import LEAST_SEEDS
from sft_jax.sweeps.report.plots import COST, COST_NAMES, SETTINGS, VARIED
from sft_jax.sweeps.settings import exact_text

Found = Mapping[str, Any]
_ROUNDING = 1e-12  # float64 sums of seeds and rows differ by less than this
_STATES = ("finished", "running", "waiting", "paused", "interrupted", "failed", "diverged", "damaged")
_MOST_LEVELS = 12


def sections_of(found: Found) -> list[Section]:
    """The report in the order in which it is read."""
    sections = [
        Section(
            SETTINGS,
            "Settings",
            facts=tuple(_facts(found)),
            verdicts=tuple(verdicts_of(found)),
            tables=(settings_table(found),),
            notes=tuple(found["notes"]),
        )
    ]
    if found["failed"]:
        sections.append(Section("failed", "Runs that failed", tables=(_failed_table(found),)))
    if found["factors"]:
        sections.append(Section(VARIED, "What was varied", facts=tuple(_varied(found))))
    if found["fronts"]:
        sections.append(Section(COST, "Quality against cost", tables=(_front_table(found),)))
    sections.append(Section("runs", "Runs", tables=(_runs_table(found),)))
    return sections


def verdicts_of(found: Found) -> Iterator[str]:
    """What is shown and what is not, in sentences."""
    if found["failed"]:
        yield f"FAILED: {len(found['failed'])} of {sum(found['states'].values())} runs"
    best = found["best"]
    if best is None:
        if not any(setting["score"] for setting in found["settings"]):
            yield f"There is nothing to compare yet: no run has {found['metric']} ({found['at']})"
        return
    score = next(one["score"] for one in found["settings"] if one["name"] == best["setting"])
    yield f"Best by {found['metric']}: {best['setting']}, {number_text(score)}"
    if best["next"] is not None:
        yield _against_next(best["setting"], best["next"], better=found["better"] == "higher")


def _against_next(best: str, following: Found, *, better: bool) -> str:
    seeds = following["seeds"]
    if seeds < LEAST_SEEDS:
        shared = f"{seeds} seed{'' if seeds == 1 else 's'}"
        return (
            f"It cannot be told whether it is better than the next, {following['setting']}: "
            f"they have {shared} in common, and it takes {LEAST_SEEDS}"
        )
    rows = f" and {following['rows']:,} rows" if following["rows"] else ""
    over = f"{seeds} seeds{rows}; {p_text(following['p_value'])}"
    called = called_by(following["value"], following["p_value"], better)
    told = f"{UNDECIDED} against" if called == UNDECIDED else f"{called} than"
    return f"{best}: {told} the next, {following['setting']}, {number_text(following, signed=True)} over {over}"


def settings_table(found: Found) -> TextTable:
    """A row for each setting, in the order of the sweep."""
    keys, costs = short_keys(found["factors"]), _costs(found)
    columns = (
        *(keys[factor] for factor in found["factors"]),
        *(found["metric"], *found["also"], "seeds", "difference", "p", "p (Holm)", "the setting is"),
        *(COST_NAMES[cost] for cost in costs),
    )
    rows = tuple(setting_cells(found, one, costs) for one in found["settings"])
    return TextTable("", columns if found["factors"] else ("setting", *columns), rows)


def setting_cells(found: Found, setting: Found, costs: Sequence[str]) -> tuple[str, ...]:
    """A row of the table of settings."""
    counted = sum(run["value"] is not None for run in setting["runs"])
    of_all = "" if counted == len(setting["runs"]) else f" of {len(setting['runs'])}"
    return (
        *([exact_text(setting["values"][factor]) for factor in found["factors"]] or [setting["name"]]),
        number_text(setting["score"]),
        *(number_text(setting["also"][other]) for other in found["also"]),
        f"{counted}{of_all}",
        *_difference_cells(found, setting),
        *(cost_text(cost, setting["costs"].get(cost)) for cost in costs),
    )


def _difference_cells(found: Found, setting: Found) -> tuple[str, ...]:
    if setting["name"] == found["baseline"]:
        return (ABSENT, ABSENT, ABSENT, "baseline")
    difference = setting["difference"]
    if difference is None:
        return (ABSENT,) * 4
    values = (_p_cell(difference[key]) for key in ("p_value", "p_holm"))
    return (number_text(difference, signed=True), *values, difference["called"] or "too few seeds")


def _p_cell(value: float | None) -> str:
    return ABSENT if value is None else p_text(value).removeprefix("p ").removeprefix("= ")


def number_text(score: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    """`1.076 [1.013, 1.140]`, in four digits, whatever its size; what is rounding beside the largest is 0."""
    if score is None or score["value"] is None:
        return ABSENT
    sign = "+" if signed else ""
    numbers = [score[key] for key in ("value", "low", "high") if score.get(key) is not None]
    rounding = _ROUNDING * max(map(abs, numbers))
    text = lambda value: f"{0.0 if abs(value) < rounding else value:{sign}.4g}"
    return (
        text(score["value"])
        if score["low"] is None
        else f"{text(score['value'])} [{text(score['low'])}, {text(score['high'])}]"
    )


def cost_text(cost: str, value: float | None) -> str:
    """A cost in few characters."""
    if value is None:
        return ABSENT
    return duration_text(value) if cost == "seconds" else count_text(value)


def _costs(found: Found) -> list[str]:
    """Those that some setting has."""
    return [cost for cost in COST_NAMES if any(cost in one["costs"] for one in found["settings"])]


def _facts(found: Found) -> Iterator[str]:
    states = [f"{found['states'][state]} {state}" for state in _STATES if state in found["states"]]
    yield f"{sum(found['states'].values())} runs: {', '.join(states)}"
    yield f"{len(found['settings'])} settings"
    yield f"{found['metric']}, {found['at']}"
    if found["better"]:
        yield f"{found['better']} is better"
    yield "means over seeds, with 95 % intervals in brackets"
    if found["baseline"]:
        yield f"differences to {found['baseline']}, over the seeds of both"


def _varied(found: Found) -> Iterator[str]:
    for factor in found["factors"]:
        levels = list(dict.fromkeys(exact_text(one["values"][factor]) for one in found["settings"]))
        more = f", … ({len(levels)} values)" if len(levels) > _MOST_LEVELS else ""
        yield f"{factor}: {', '.join(levels[:_MOST_LEVELS])}{more}"


def _failed_table(found: Found) -> TextTable:
    rows = tuple(
        (run["name"], run["state"], ABSENT if run["step"] is None else f"{run['step']:,}", run["error"] or "unknown")
        for run in found["failed"]
    )
    return TextTable("", ("run", "state", "step", "error"), rows)


def _front_table(found: Found) -> TextTable:
    by_name = {one["name"]: one for one in found["settings"]}
    rows = tuple(
        (COST_NAMES[cost], name, number_text(by_name[name]["score"]), cost_text(cost, by_name[name]["costs"][cost]))
        for cost, front in found["fronts"].items()
        for name in sorted(front, key=lambda name: by_name[name]["costs"][cost])
    )
    return TextTable("Settings that nothing beats in both", ("cost", "setting", found["metric"], "costs"), rows)


def _runs_table(found: Found) -> TextTable:
    rows = tuple(
        (
            *(run["name"], run["state"], ABSENT if run["seed"] is None else str(run["seed"])),
            *(ABSENT if run["step"] is None else f"{run['step']:,}", number_text({"value": run["value"], "low": None})),
        )
        for setting in found["settings"]
        for run in setting["runs"]
    )
    return TextTable("All runs", ("run", "state", "seed", "step", found["metric"]), rows, is_detail=True)
