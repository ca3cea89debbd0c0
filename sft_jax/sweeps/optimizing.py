"""Trials that Optuna proposes: asked for in groups, run, and told of.

Optuna keeps nothing: what it is told is in `search.json`, and its sampler begins anew with every group, seeded by the
number of trials before it. So a search that was killed proposes what it would have proposed.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.runs.result import read_result
from sft_jax.sweeps.combinators import product
from sft_jax.sweeps.directory import SweepDirectory
from sft_jax.sweeps.distributions import Choice, Distribution, Integers, Uniform
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import Overrides, runs_of
from sft_jax.sweeps.search import Optuna
from sft_jax.sweeps.search_record import GOES_ON, Launch, check_measured, finite, has_failed, read_record, write_record

KIND = "trials"
_INSTALL = "pip install -r requirements-optuna.txt"

Claim = Callable[[Sequence[Overrides]], SweepDirectory]
Trial = dict[str, Any]  # {"overrides": …}, and "value" when its runs have ended: None where one failed


def check_trials(search: Optuna, base: ConfigDict, beside: Sequence[Overrides]) -> None:
    """Checks what a search may propose, by the ends of its distributions.

    Args:
        search: with its space.
        base: the config of all runs.
        beside: what each trial is run with.

    Raises:
        SweepError: fields that there are not, or values that they cannot have.
        ValueError: what it decides by is not measured.
    """
    ends = {_key(run): run for quantile in (0.0, 1 - 2**-53) for run in trials_at(search, quantile, beside)}
    for run in runs_of(base, list(ends.values())):
        check_measured(search.metric, run.config)


def trials_at(search: Optuna, quantile: float, beside: Sequence[Overrides]) -> list[Overrides]:
    """The runs of a trial whose values all lie at a quantile of their distributions."""
    values = {field: distribution.at(quantile) for field, distribution in search.space.items()}
    return _with({"overrides": values}, beside)


def optimize(
    search: Optuna, root: epath.Path, beside: Sequence[Overrides], claim: Claim, launch: Launch, console: Console
) -> int:
    """Runs the trials that Optuna proposes, or goes on with them.

    Args:
        search: how.
        root: of the sweep.
        beside: what each trial is run with: the overrides of `get_sweep()`, or one with none.
        claim: adds runs to the sweep.
        launch: see `halving.halve`.
        console: where is shown what is best so far.

    Returns:
        exit status: that of the launch after which runs were neither done nor failed, since it was ended or came back
        at once; at the end 1 where trials failed.

    Raises:
        SweepError: Optuna is not installed.
        WorkdirError: `search.json` is damaged.
    """
    optuna, trials = _optuna(), read_record(root, KIND)
    while True:
        if all(map(_is_told, trials)):
            if len(trials) >= search.trials:
                break
            count = min(search.at_once, search.trials - len(trials))
            trials = [*trials, *({"overrides": made} for made in _propose(optuna, search, trials, count))]
        sweep = claim(list(_runs(trials, beside).values()))
        write_record(root, KIND, trials)
        status = _run_open(search, sweep, trials, beside, launch)
        write_record(root, KIND, trials)
        if not all(map(_is_told, trials)):
            console.print(GOES_ON)
            return status
        console.print(_best_text(search, trials), soft_wrap=True, highlight=False)
    return int(any(trial["value"] is None for trial in trials))


def _is_told(trial: Trial) -> bool:
    return "value" in trial


def _key(overrides: Overrides) -> str:
    return json.dumps(overrides, sort_keys=True, default=list)


def _runs(trials: Sequence[Trial], beside: Sequence[Overrides]) -> dict[str, Overrides]:
    """The runs of all trials by what they set; a trial that is proposed again has the same ones."""
    return {_key(run): run for trial in trials for run in _with(trial, beside)}


def _with(trial: Trial, beside: Sequence[Overrides]) -> list[Overrides]:
    return product([trial["overrides"]], [dict(overrides) for overrides in beside])


def _run_open(
    search: Optuna, sweep: SweepDirectory, trials: Sequence[Trial], beside: Sequence[Overrides], launch: Launch
) -> int:
    """Launches the runs of trials that have no value yet, and gives them one where those have ended."""
    names = dict(zip(_runs(trials, beside), sweep.stated, strict=True))
    open_trials = [trial for trial in trials if not _is_told(trial)]
    wanted = dict.fromkeys(names[_key(run)] for trial in open_trials for run in _with(trial, beside))
    todo = [run for run in sweep.stated_runs if run.name in wanted and not _is_done(sweep, run.name)]
    status = launch(sweep, todo, None) if todo else 0
    for trial in open_trials:
        ended = [names[_key(run)] for run in _with(trial, beside)]
        if all(_is_done(sweep, name) or has_failed(sweep, name) for name in ended):
            trial["value"] = _value(search, sweep, ended)
    return status


def _is_done(sweep: SweepDirectory, name: str) -> bool:
    end = read_result(sweep.run_dir(name))
    return end is not None and end.done


def _value(search: Optuna, sweep: SweepDirectory, names: Sequence[str]) -> float | None:
    """The mean over the runs of a trial of what each measured at its end; None where one has not."""
    ends = [read_result(sweep.run_dir(name)) for name in names]
    values = [finite(end.metrics.get(search.metric)) if end.done else None for end in ends]
    return None if None in values else statistics.fmean(values)


def _best_text(search: Optuna, trials: Sequence[Trial]) -> str:
    measured = [trial for trial in trials if trial["value"] is not None]
    text = f"{len(trials)} of {search.trials} trials, {len(measured)} of them measured"
    if not measured:
        return text
    best = min(measured, key=lambda trial: search.badness(trial["value"]))
    sets = ", ".join(f"{field}={value}" for field, value in best["overrides"].items())
    return f"{text}; best {search.metric} {best['value']:.4f}: {sets}"


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        if error.name != "optuna":
            raise
        raise SweepError(f"get_search() asks for Optuna, which is not installed: {_INSTALL}") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _propose(optuna: Any, search: Optuna, trials: Sequence[Mapping[str, Any]], count: int) -> list[Overrides]:
    """What to try next, `count` times, after trials with values."""
    space = {field: _as_optuna(optuna, distribution) for field, distribution in search.space.items()}
    sampler = optuna.samplers.TPESampler(seed=search.seed + len(trials), constant_liar=True)
    study = optuna.create_study(sampler=sampler, direction="minimize" if search.mode == "min" else "maximize")
    for trial in trials:
        told = {
            field: _to_optuna(distribution, trial["overrides"][field]) for field, distribution in search.space.items()
        }
        state = optuna.trial.TrialState.FAIL if trial["value"] is None else optuna.trial.TrialState.COMPLETE
        study.add_trial(optuna.trial.create_trial(params=told, distributions=space, value=trial["value"], state=state))
    asked = [study.ask(space).params for _ in range(count)]
    return [
        {field: _from_optuna(distribution, params[field]) for field, distribution in search.space.items()}
        for params in asked
    ]


def _as_optuna(optuna: Any, distribution: Distribution) -> Any:
    kinds = optuna.distributions
    if isinstance(distribution, Choice):  # by number: of values it takes some kinds alone
        return kinds.CategoricalDistribution(range(len(distribution.choices)))
    if isinstance(distribution, Integers):
        return kinds.IntDistribution(distribution.low, distribution.high)
    return kinds.FloatDistribution(float(distribution.low), float(distribution.high), log=distribution.log)


def _to_optuna(distribution: Distribution, value: Any) -> Any:
    if isinstance(distribution, Choice):
        return [_key({"": choice}) for choice in distribution.choices].index(_key({"": value}))
    return value


def _from_optuna(distribution: Distribution, value: Any) -> Any:
    if isinstance(distribution, Choice):
        return distribution.choices[value]
    return distribution.rounded(value) if isinstance(distribution, Uniform) else value
