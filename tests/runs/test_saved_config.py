"""A run whose config was written by other code is put to use, or refused with the fields that are wrong."""

import functools
import importlib.util
import json
import re
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

from sft_jax.exports import model_card
from sft_jax.exports.source import open_source
from sft_jax.runs import saved_config
from sft_jax.runs.base import open_base, open_run
from sft_jax.runs.restore import load_for_inference
from sft_jax.runs.saved_config import read_config
from sft_jax.runs.workdir import WorkdirError, flatten
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from tests import tiny


def inputs(root):
    return tiny.config(
        root, "lora", duration="1 steps", **{"ema.decay": 0.5, "data.held_out": "", "batch.sequences": 8}
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and what its config says."""
    root = tmp_path_factory.mktemp("saved_config")
    run(inputs(root), root / "run")
    return root / "run", (root / "run" / "config.json").read_text()


@pytest.fixture(autouse=True)
def as_it_was(trained):
    yield
    workdir, text = trained
    (workdir / "config.json").write_text(text)


def edit(workdir, changes=(), without=()):
    """The config of the run, with fields set and removed by hand."""
    fields = json.loads((workdir / "config.json").read_text())

    def section_of(name):
        return functools.reduce(lambda section, part: section[part], name.split(".")[:-1], fields)

    for name, value in dict(changes).items():
        section_of(name)[name.split(".")[-1]] = value
    for name in without:
        del section_of(name)[name.split(".")[-1]]
    (workdir / "config.json").write_text(json.dumps(fields))


def put_to_use(workdir):
    """All that is done with a finished run: its weights and tokenizer, and what an export says of it."""
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = [load_for_inference(str(workdir), mesh, weights=weights) for weights in ("trained", "ema")]
    model_card._config(open_source(str(workdir)))
    open_base(str(workdir))
    return jax.tree.leaves([one.variables for one in loaded])


def advised(message):
    """The fields that a message lists, with their values."""
    return {name: json.loads(value) for name, value in re.findall(r"^  ([\w.]+): (.*)$", message, re.MULTILINE)}


def test_a_field_that_came_later_is_added_as_advised(trained):
    workdir, _ = trained
    edit(workdir, without=["model.max_positions", "adapter.train_new_tokens"])
    with pytest.raises(
        ValueError, match=r"run/config\.json: the run has no adapter\.train_new_tokens, model\.max_p"
    ) as error:
        open_run(str(workdir))
    fields = advised(str(error.value))
    assert fields == {"model.max_positions": 0, "adapter.train_new_tokens": False}
    edit(workdir, fields)
    assert put_to_use(workdir)


def test_a_field_that_went_is_removed_as_advised(trained):
    workdir, _ = trained
    edit(workdir, {"adapter.gate": 2.0, "data.own": 1})
    with pytest.raises(ValueError, match=r"run/config\.json: the run has fields that are not") as error:
        open_run(str(workdir))
    assert advised(str(error.value)) == {"adapter.gate": 2.0}
    edit(workdir, without=["adapter.gate"])
    assert put_to_use(workdir)


def test_a_project_with_configs_of_its_own(trained, monkeypatch):
    workdir, _ = trained
    monkeypatch.setitem(sys.modules, "configs", types.ModuleType("configs"))
    spec = importlib.util.spec_from_file_location("saved_config_elsewhere", saved_config.__file__)
    elsewhere = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(elsewhere)
    assert elsewhere.read_config(epath.Path(workdir)) == read_config(epath.Path(workdir))


def test_every_field_that_is_read_is_missed_by_name(trained):
    """Each of them is refused alone; without all the others the result is put to use as it was."""
    workdir, text = trained
    expected, read, others = put_to_use(workdir), set(), set()
    for name in flatten(json.loads(text)):
        edit(workdir, without=[name])
        try:
            read_config(epath.Path(workdir))
            others.add(name)
        except ValueError as error:
            assert list(advised(str(error))) == [name]  # noqa: PT017  not every field is missed
            read.add(name)
        (workdir / "config.json").write_text(text)
    assert {"seed", "model.source", "adapter.rank", "optimizer.name"} <= read
    assert {"data.packing", "batch.sequences", "objective.z_loss"} <= others
    edit(workdir, without=others)
    for found, before in zip(put_to_use(workdir), expected, strict=True):
        np.testing.assert_array_equal(found, before)


def test_a_run_goes_on_when_its_fields_are_mended_as_advised(trained):
    workdir, _ = trained
    config = inputs(workdir.parent)
    edit(workdir, {"data.masking.old": 1}, without=["objective.z_loss"])
    with pytest.raises(WorkdirError, match="different config") as error:
        run(config, workdir)
    assert f"by hand in {workdir}/config.json: add objective.z_loss with the value that is what" in str(error.value)
    assert "and remove data.masking.old if at that value" in str(error.value)
    edit(workdir, {"objective.z_loss": 0.0}, without=["data.masking.old"])
    assert run(config, workdir).step == 1


def test_a_run_that_needs_no_field_is_not_told_to_add_it(trained):
    """What may change when a run goes on is not compared."""
    workdir, _ = trained
    edit(workdir, {"log.old": 1}, without=["objective.z_loss", "loader.threads", "defaults.adapter.rank"])
    with pytest.raises(WorkdirError, match=r"config\.json: add objective\.z_loss with the value.*then did\. To train"):
        run(inputs(workdir.parent), workdir)


def test_a_run_stays_the_base_of_others_when_its_config_is_mended(trained, tmp_path):
    """Those that started from it know it by the config of its first start."""
    workdir, text = trained
    before = open_base(str(workdir)).fingerprint
    child = tiny.config(workdir.parent, duration="1 steps", **{"model.source": str(workdir), "data.held_out": ""})
    run(child, tmp_path / "child")
    edit(workdir, {"loader.threads": 0, "data.added": 1}, without=["objective.z_loss"])
    assert open_base(str(workdir)).fingerprint == before
    assert open_run(str(tmp_path / "child")).step == 1
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["config"] == json.loads(text)
    (workdir / "config.json").write_text(text)
    del environment["config"]
    recorded = (workdir / "environment.json").read_text()
    (workdir / "environment.json").write_text(json.dumps(environment))
    assert open_base(str(workdir)).fingerprint == before, "a run that recorded none is known by its config.json"
    (workdir / "environment.json").write_text(recorded)


@pytest.mark.parametrize(("text", "what"), [("{", "is not valid JSON"), ("[1]", "holds no object")])
def test_a_damaged_config_is_named(text, what, trained):
    workdir, _ = trained
    (workdir / "config.json").write_text(text)
    with pytest.raises(WorkdirError, match=rf"run/config\.json {what}"):
        open_run(str(workdir))
