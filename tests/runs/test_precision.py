"""Dtypes that a config leaves to the platform: found when a run begins, and kept wherever it goes on."""

import json

import pytest

from configs import sft
from sft_jax.runs.base import open_run
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.precision import with_dtypes
from sft_jax.runs.workdir import WorkdirError, differences, flatten
from sft_jax.training import checked_run, run
from sft_jax.training.checks import check_config
from tests import tiny


def dtypes(config):
    return config.precision.activations, config.precision.frozen


@pytest.mark.parametrize(("platform", "expected"), [("cpu", "float32"), ("tpu", "bfloat16"), ("gpu", "bfloat16")])
def test_auto_is_the_platforms(platform, expected):
    config = sft.get_config("lora")
    assert dtypes(config) == ("auto", "auto")
    assert dtypes(with_dtypes(config, platform)) == (expected, expected)
    assert dtypes(config) == ("auto", "auto"), "the config that was given is left as it is"


def test_what_is_asked_for_stays_and_what_the_run_has_comes_first():
    config = sft.get_config("lora").copy_and_resolve_references()
    config.precision.activations = "float32"
    there = {"precision": {"activations": "bfloat16", "frozen": "float16"}}
    assert dtypes(with_dtypes(config, "tpu")) == ("float32", "bfloat16")
    assert dtypes(with_dtypes(config, "tpu", there)) == ("float32", "float16")


@pytest.mark.parametrize("arg", ["full", "lora"])
@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_a_recorded_config_can_be_given_again(tmp_path, arg, platform):
    """Of full fine-tuning, which has no frozen weights, it does not look as if their dtype had been asked for."""
    made = sft.get_config(arg).copy_and_resolve_references()
    made.data.train = "x"
    recorded = with_dtypes(made.lock(), platform)
    check_config(recorded)
    assert with_dtypes(recorded, "gpu") == recorded


def test_auto_differs_from_nothing_and_a_dtype_from_another():
    here = flatten(with_dtypes(sft.get_config("lora"), "tpu").to_dict())
    assert not differences(here, flatten(sft.get_config("lora").to_dict()))
    asked = flatten(with_dtypes(sft.get_config("lora"), "cpu").to_dict())
    assert [line.split(":")[0] for line in differences(here, asked)] == ["precision.activations", "precision.frozen"]


def left_to_the_platform(root, arg, **overrides):
    config = tiny.config(root, arg, **overrides).unlock()
    config.precision.activations = config.precision.frozen = config.defaults.precision.frozen = "auto"
    return config.lock()


@pytest.mark.slow
def test_a_run_that_began_on_an_accelerator_goes_on_elsewhere_as_it_began(tmp_path, monkeypatch, capsys):
    """The CPU here is taken for a TPU at the first start alone; the same as if bfloat16 had been asked for."""
    config = left_to_the_platform(tmp_path, "lora", **{"precision.matmul": "bfloat16"})
    workdir = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(checked_run, "platform_of", lambda mesh: "tpu")
        run(config, workdir, stop_after=2)
    assert "Chosen for cpu: activations bfloat16, frozen weights bfloat16, layers " in capsys.readouterr().out
    run(config, workdir)
    asked = tiny.config(
        tmp_path, "lora", **dict.fromkeys(("precision.matmul", "precision.activations", "precision.frozen"), "bfloat16")
    )
    run(asked, tmp_path / "asked")
    losses = lambda path: [line["train/loss"] for line in read_metrics(path / "metrics.jsonl") if "train/loss" in line]
    assert losses(workdir) == losses(tmp_path / "asked")
    assert json.loads((workdir / "config.json").read_text())["precision"]["frozen"] == "bfloat16"
    assert open_run(str(workdir)).options.precision.frozen == "bfloat16"
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["chosen"]["activations"] == "bfloat16"
    assert environment["chosen"].keys() == {
        *("activations", "frozen weights", "layers", "remat", "attention", "deterministic")
    }
    other = tiny.config(tmp_path, "lora", **{"precision.matmul": "bfloat16", "precision.frozen": "float32"})
    with pytest.raises(WorkdirError, match=r"precision\.frozen: 'bfloat16' there, 'float32' asked for"):
        run(other, workdir)
