"""Damaged checkpoints: each file cut, emptied, changed and removed is noticed, and the advice of the message works."""

import json
import shutil
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from orbax.checkpoint import v1 as ocp

from sft_jax.runs import checkpoints as module
from sft_jax.runs import digests
from sft_jax.runs.checkpoint_errors import DamagedCheckpointError, UnreadCheckpointError
from sft_jax.runs.checkpoints import Checkpoints, RunPosition
from sft_jax.runs.digests import FILE, damage_of, damage_of_opened, write_digests
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.training import run
from sft_jax.training.state import TrainState, saved_arrays, seed_array, with_saved
from tests import buckets, tiny

METRIC = "held_out/nll"


def state(step: int) -> TrainState:
    zero = jnp.int32(0)
    trained = {"params": {"embedding": jnp.arange(4000.0).reshape(400, 10) * step}}
    counts = {"gradient": jnp.zeros(1, jnp.int32), "update": jnp.zeros(1, jnp.int32)}
    return TrainState(jnp.int32(step), trained, {}, {"mu": jnp.ones(())}, {}, seed_array(0), zero, zero, {}, counts)


def opened(workdir, **options) -> Checkpoints:
    return Checkpoints(epath.Path(workdir), **{"keep_last": 2, "best_metric": METRIC} | options)


def save(workdir, steps=(2, 4)) -> None:
    made = opened(workdir)
    for step in steps:
        made.save(
            step, saved_arrays(state(step)), RunPosition("scan", 8 * step, {"examples": step}), {METRIC: 1.0 / step}
        )
    made.close()


def read(workdir, step: int = 4) -> np.ndarray:
    """What a command that reads a run, and never prunes, gets of it."""
    found = opened(workdir, keep_last=1000, best_metric="", read_only=True)
    try:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(step).trained)
        return np.asarray(found.restore_parts(step, {"trained": like})["trained"]["params"]["embedding"])
    finally:
        found.close()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = tmp_path_factory.mktemp("saved")
    save(made)
    return made


def files_of(workdir: Path, step: int = 4) -> list[Path]:
    folder = workdir / "checkpoints" / str(step)
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("damage", [cut, empty, flip, Path.unlink])
def test_damage_to_any_file_is_noticed(saved, tmp_path, damage):
    """By whoever reads the checkpoint, and by the run that goes on or is finished."""
    names = files_of(saved)
    assert len(names) >= 10
    for number, name in enumerate(names):
        workdir = tmp_path / str(number)
        shutil.copytree(saved, workdir)
        damage(workdir / "checkpoints" / "4" / name)
        if (damage, name.name) == (Path.unlink, FILE):
            assert read(workdir).sum() == read(saved).sum(), "nothing is wrong with what there is"
            continue
        for look in (read, opened):
            with pytest.raises(DamagedCheckpointError, match=r"the checkpoint \S+/checkpoints/4 is damaged: ") as error:
                look(workdir)
            assert str(name) in str(error.value)
            assert "that of step 2 is whole" in str(error.value)
            assert f"remove the directory {workdir}/checkpoints/4 and start" in str(error.value)
            by_name = f"takes that one by name too, {workdir}:2" in str(error.value)
            assert by_name == (name.as_posix() != "metrics/metrics"), "orbax reads the metrics of all"
        assert (workdir / "checkpoints" / "2").is_dir(), "nothing may be pruned for a damaged checkpoint"
        if by_name:
            assert read(workdir, 2).sum() == read(saved, 2).sum()


def test_a_large_file_cut_to_1000_bytes(saved, tmp_path):
    """Size before and after; and what there is to do where no other checkpoint is left."""
    shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "2")
    largest = max((tmp_path / "run" / "checkpoints" / "4").rglob("*"), key=lambda path: path.stat().st_size)
    size, whole = largest.stat().st_size, largest.read_bytes()
    largest.write_bytes(whole[:1000])
    message = (
        rf"has 1,000 bytes in place of {size:,}\.\n.*there is no other one: else train again, with another --workdir"
    )
    with pytest.raises(DamagedCheckpointError, match=message) as error:
        opened(tmp_path / "run")
    assert "Put its files back from a copy if there is one" in str(error.value)
    largest.write_bytes(whole)
    assert read(tmp_path / "run").sum() == read(saved).sum()
    assert str(error.value).endswith(f"or after removing {tmp_path / 'run'}.")
    shutil.rmtree(tmp_path / "run")
    for name in ("another", "run"):
        save(tmp_path / name)
        assert read(tmp_path / name).sum() == read(saved).sum()


def test_all_are_damaged(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    for step in (2, 4):
        flip(tmp_path / "run" / "checkpoints" / str(step) / "state" / "_METADATA")
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/4 is damaged.*\n.*the others are damaged too"):
        opened(tmp_path / "run")


def test_an_older_checkpoint_is_looked_at_when_it_is_read(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    flip(tmp_path / "run" / "checkpoints" / "2" / "state" / "_METADATA")
    opened(tmp_path / "run").close()
    assert read(tmp_path / "run").sum() == read(saved).sum()
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/2 is damaged: state/_METADATA"):
        read(tmp_path / "run", 2)


def test_a_checkpoint_whose_process_was_ended_before_its_digests(saved, tmp_path, monkeypatch):
    """It is used with a warning, the one before it is kept until it could be read, and then it has digests."""
    said = []
    monkeypatch.setattr(module.logging, "warning", lambda text, *values: said.append(text % values))
    shutil.copytree(saved, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    (newest / FILE).unlink()
    (newest / f"{FILE}.partial").write_text("{")
    found = opened(tmp_path / "run", keep_last=1, best_metric="")
    assert found.steps() == [2, 4]
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        restored = with_saved(state(0), found.restore(4, saved_arrays(state(0)), "scan", mesh))
    assert int(restored.step) == 4
    assert len(said) == 1
    assert "checkpoints/4 has no digests" in said[0]
    found.close()
    assert (newest / FILE).exists()
    assert not damage_of(epath.Path(newest))
    pruned = opened(tmp_path / "run", keep_last=1, best_metric="")
    assert pruned.steps() == [4]
    pruned.close()


def test_without_digests_what_cannot_be_read_is_named_too(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    newest = tmp_path / "run" / "checkpoints" / "4"
    (newest / FILE).unlink()
    for path in (newest / "state" / "d").iterdir():
        empty(path)
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/4 is damaged: what it holds cannot be read"):
        read(tmp_path / "run")


@pytest.mark.parametrize("damage", [cut, empty, Path.unlink])
def test_without_digests_a_file_that_cannot_be_parsed_is_damage(saved, tmp_path, damage):
    names = ["_CHECKPOINT_METADATA", "metrics/metrics", "state/_METADATA", "state/manifest.ocdbt"]
    for number, name in enumerate(names):
        if (damage, name) == (Path.unlink, "metrics/metrics"):
            continue  # not all have some
        newest = shutil.copytree(saved, tmp_path / str(number)) / "checkpoints" / "4"
        (newest / FILE).unlink()
        damage(newest / name)
        with pytest.raises(DamagedCheckpointError, match="checkpoints/4 is damaged: "):
            read(tmp_path / str(number))


@pytest.mark.parametrize("sealed", [True, False])
def test_a_state_of_other_code_is_no_damage(saved, tmp_path, sealed):
    """The arrays that differ are named, and nobody is told to remove anything."""
    shutil.copytree(saved, tmp_path / "run")
    if not sealed:
        (tmp_path / "run" / "checkpoints" / "4" / FILE).unlink()
    arrays, mesh = saved_arrays(state(0)), inference_mesh(jax.devices())
    step, effect = arrays["step"], arrays["effect"]
    embedding = {"params": {"embedding": jnp.zeros((300, 10))}}
    named = {
        "has no `opt_state/nu`": arrays | {"opt_state": {**arrays["opt_state"], "nu": step}},
        "has no `ema`": arrays | {"ema": embedding},
        "has `effect`, of which this code knows nothing": arrays | {"effect": {}},
        "has `effect/update`, of": arrays | {"effect": {"gradient": effect["gradient"]}},
        "has trained/params/embedding of shape (400, 10), not (300, 10)": arrays | {"trained": embedding},
    }
    found = opened(tmp_path / "run", read_only=True)
    with jax.set_mesh(mesh):
        for differs, like in named.items():
            with pytest.raises(
                UnreadCheckpointError, match="checkpoints/4 was saved by other code: its state"
            ) as error:
                found.restore(4, like, "scan", mesh)
            assert differs in str(error.value)
            assert f"(its commit is in {tmp_path}/run/environment.json)" in str(error.value)
            assert "remove" not in str(error.value)
        with pytest.raises(UnreadCheckpointError, match=r"its state has no `ema`\."):
            found.restore_parts(4, {"ema": embedding})
        assert int(found.restore(4, arrays, "scan", mesh)["step"]) == 4
    found.close()
    assert read(tmp_path / "run").sum() == read(saved).sum(), "the weights alone can be trained on, as is said"


@pytest.mark.parametrize("sealed", [True, False])
def test_a_failed_read_is_no_damage(saved, tmp_path, monkeypatch, sealed):
    shutil.copytree(saved, tmp_path / "run")
    if not sealed:
        (tmp_path / "run" / "checkpoints" / "4" / FILE).unlink()

    def fails(self, *_, **__):
        try:
            raise ValueError("UNAVAILABLE: the bucket does not answer")
        except ValueError as error:
            raise KeyError("incompatible handler") from error

    monkeypatch.setattr(ocp.training.Checkpointer, "load_checkpointables", fails)
    with pytest.raises(UnreadCheckpointError, match=r"could not be read: ValueError: UNAVAILABLE: the.*start the same"):
        read(tmp_path / "run")
    monkeypatch.setattr(ocp.training.Checkpointer, "metadata", lambda *_: types.SimpleNamespace(metadata=None))
    with pytest.raises(UnreadCheckpointError, match="UNAVAILABLE"):
        read(tmp_path / "run")


@pytest.mark.parametrize("removed", [".", "state/manifest.ocdbt"])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_checkpoint_that_the_run_replaces_while_it_is_read(saved, tmp_path, monkeypatch, removed, sealed):
    """Whatever of it is gone first, and whatever was read before: no damage, and no talk of an ended process."""
    said = []
    monkeypatch.setattr(module.logging, "warning", lambda text, *values: said.append(text % values))
    shutil.copytree(saved, tmp_path / "run")
    older = tmp_path / "run" / "checkpoints" / "2"
    if not sealed:
        (older / FILE).unlink()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), state(2).trained)
    for looked_at_before in (False, True):
        found = opened(tmp_path / "run", read_only=True)
        if looked_at_before:
            found.position(2)
            said.clear()
        shutil.move(older, tmp_path / "whole")
        if removed != ".":
            shutil.copytree(tmp_path / "whole", older)
            (older / removed).unlink()
        with pytest.raises(UnreadCheckpointError, match=r"2 was replaced while it was read.* that of step 4 is there"):
            found.restore_parts(2, {"trained": like})
        found.close()
        assert removed != "." or said == []
        shutil.rmtree(older, ignore_errors=True)
        shutil.move(tmp_path / "whole", older)


def test_digests_that_are_gone_while_they_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "has_digests", lambda _: True)
    assert damage_of(epath.Path(tmp_path)) == [f"{FILE} is missing"]
    assert damage_of_opened(epath.Path(tmp_path)) == []


def test_a_file_of_the_newest_checkpoint_is_lost_and_not_replaced(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "4" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"checkpoints/4 is damaged: state/manifest.ocdbt is missing"):
        read(tmp_path / "run")


def test_a_run_survives_that_its_files_cannot_be_read_back(tmp_path, monkeypatch):
    """The checkpoint is complete without digests; it is looked at when it is restored, and has them then."""
    said = []
    monkeypatch.setattr(module.logging, "warning", lambda text, *values: said.append(text % values))

    def fails(directory):
        raise OSError("the bucket does not answer")

    with monkeypatch.context() as broken:
        broken.setattr(module, "write_digests", fails)
        save(tmp_path)
    assert [text.partition("checkpoints/")[2] for text in said] == [
        f"{step} stays without digests: the bucket does not answer" for step in (2, 4)
    ]
    mesh, found = inference_mesh(jax.devices()), opened(tmp_path)
    with jax.set_mesh(mesh):
        assert int(found.restore(4, saved_arrays(state(0)), "scan", mesh)["step"]) == 4
    found.close()
    assert (tmp_path / "checkpoints" / "4" / FILE).exists()


def test_digests_in_a_bucket():
    directory = buckets.empty("digests")
    (directory / "d").mkdir(parents=True)
    for name in ("a", "d/b"):
        (directory / name).write_bytes(name.encode() * 100)
    write_digests(directory)
    assert damage_of(directory) == []
    (directory / "d" / "b").write_bytes(b"d/c" * 100)
    assert damage_of(directory) == ["d/b has other bytes than were written"]
    parts = [damage_of(directory, part, 3) for part in range(3)]
    assert [line for part in parts for line in part] == damage_of(directory), "processes look at a part each"


def test_a_run_goes_on_from_the_one_before_as_it_is_told(tmp_path):
    """A finished run notices the damage to its result, so does what reads it; the advice, followed, mends both."""
    config = tiny.config(tmp_path, **{"checkpoint.keep_last": 2, "checkpoint.best_metric": "", "data.held_out": ""})
    run(config, tmp_path / "run")
    lines = lambda: [(line["step"], line["train/loss"]) for line in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    before = lines()
    newest = tmp_path / "run" / "checkpoints" / "6"
    digests = json.loads((newest / FILE).read_text())["files"]
    largest = max(digests, key=lambda name: digests[name][0])
    (newest / largest).write_bytes((newest / largest).read_bytes()[:1000])
    mesh = inference_mesh(jax.devices())
    looks = (lambda: run(config, tmp_path / "run"), lambda: load_for_inference(str(tmp_path / "run"), mesh))
    for look in looks:
        with (
            jax.set_mesh(mesh),
            pytest.raises(DamagedCheckpointError, match=r"remove the directory (\S+) and") as error,
        ):
            look()
    assert str(error.value).count("\n") == 1
    with jax.set_mesh(mesh):
        assert load_for_inference(f"{tmp_path}/run:4", mesh).name.endswith(":4")
    shutil.rmtree(newest)
    assert run(config, tmp_path / "run").step == 6
    assert lines() == before
    with jax.set_mesh(mesh):
        assert load_for_inference(str(tmp_path / "run"), mesh).name.endswith(":6")
