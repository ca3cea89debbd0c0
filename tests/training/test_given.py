"""Data and a base that are given to several runs: read once, and the runs are what they would be without."""

import json

import pytest

from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from sft_jax.runs.base import base_of, open_base
from sft_jax.training import checked_run, run, trial
from tests import tiny

SHORT = {"duration": "2 steps", "evaluation.every": "1 steps"}


def history(workdir):
    lines = (json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.startswith("speed/")} for line in lines]


def nothing_is_read(*_, **__):
    raise AssertionError("it was read again")


@pytest.mark.slow
def test_runs_with_what_was_read_once(tmp_path, monkeypatch):
    """Rates differ, the data and the base do not; new tokens make rows of the base that are made once too."""
    rates = (1e-3, 1e-4)
    configs = [tiny.config(tmp_path, **SHORT, **{"optimizer.learning_rate": rate}) for rate in rates]
    for number, config in enumerate(configs):
        run(config, tmp_path / f"alone {number}")
    data, base = load_data(options_of(configs[0]), also=trial.run_findings), base_of(options_of(configs[0]).model)
    monkeypatch.setattr(trial, "load_data", nothing_is_read)
    monkeypatch.setattr(checked_run, "base_of", nothing_is_read)
    for number, config in enumerate(configs):
        run(config, tmp_path / f"together {number}", data=data, base=base)
        assert history(tmp_path / f"together {number}") == history(tmp_path / f"alone {number}")
        report = [
            json.loads((tmp_path / f"{of} {number}" / "data_report.json").read_text()) for of in ("alone", "together")
        ]
        assert report[0]["findings"] == report[1]["findings"]
    assert history(tmp_path / "together 0") != history(tmp_path / "together 1")
    run(configs[0], tmp_path / "alone 0", data=data, base=base)  # a finished run is found to be one


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 7}, ["seed"]),
        ({"data.sequence_length": 96, "batch.sequences": 16}, ["batch.sequences", "data.sequence_length"]),
        ({"objective.positions": "all"}, ["objective.positions"]),
        ({"data.masking.train_on": "all"}, ["data.masking.train_on"]),
        ({"data.date": "1999-01-01"}, ["data.date"]),
    ],
)
def test_data_of_another_config_are_refused(changes, named, tmp_path):
    data, other = load_data(options_of(tiny.config(tmp_path, **SHORT))), tiny.config(tmp_path, **SHORT | changes)
    with pytest.raises(
        ValueError, match=r"data that was given is of another config.*give load_data\(options\)"
    ) as error:
        run(other, tmp_path / "run", data=data)
    assert [f"--config.{name}" in str(error.value) for name in named] == [True] * len(named)
    assert not (tmp_path / "run").exists()


def test_what_is_refused_is_made_anew_as_advised(tmp_path):
    config, more = tiny.config(tmp_path, **SHORT), {"model.new_tokens": ("<|x|>",)}
    options = options_of(config)
    with pytest.raises(ValueError, match=r"give load_data\(options\)"):
        run(config, tmp_path / "run", data=load_data(options_of(tiny.config(tmp_path, **SHORT, seed=7))))
    others = (base_of(options_of(tiny.config(tmp_path, **SHORT, **more)).model), open_base(config.model.source))
    for base in others:
        with pytest.raises(
            ValueError, match=r"the base that was given, .*--config\.model\..*: give base_of\(options\.model\)"
        ):
            run(config, tmp_path / "run", base=base)
    assert run(config, tmp_path / "run", data=load_data(options), base=base_of(options.model)).step == 2
