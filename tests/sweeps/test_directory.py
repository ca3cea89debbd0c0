"""The directory of a sweep: what was claimed is opened again, runs are added, and what is not this sweep is refused."""

import datetime
import json
import re

import pytest
from etils import epath

from configs import sft
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.result import FINISHED, RunEnd, write_result
from sft_jax.runs.workdir import WorkdirError, only_one
from sft_jax.sweeps import product, seeds, values
from sft_jax.sweeps.directory import FILE, LAUNCHING, SweepDirectory, claim_sweep, open_sweep, plan_sweep
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.status import RunStatus, write_status

GRID = product(values("adapter.rank", [4, 8]), values("optimizer.betas", [(0.9, 0.95), (0.9, 0.99)]))
SWEEP, CONFIG = "experiments/rank/sweep.py", "configs/sft.py:lora"


def base(**changes):
    config = sft.get_config("lora").copy_and_resolve_references().unlock()
    config.update_from_flattened_dict(changes)
    return config.lock()


def claim(root, stated=GRID, *, do=claim_sweep, sweep=SWEEP, search=None, **changes) -> SweepDirectory:
    return do(root / "sweep", sweep=sweep, config=CONFIG, base=base(**changes), stated=stated, search=search)


def started(sweep: SweepDirectory, number: int) -> epath.Path:
    """A run directory as training makes it."""
    run = sweep.runs[number]
    workdirs.claim(sweep.run_dir(run.name), run.config)
    return sweep.run_dir(run.name)


def end(state=FINISHED):
    return RunEnd(state, 3, 3, {"held_out/nll": 1.0}, None, {}, 1.0, None, None)


def test_what_is_claimed_is_opened(tmp_path):
    claimed = claim(tmp_path)
    opened = open_sweep(tmp_path / "sweep")
    assert opened.runs == claimed.runs == claimed.stated_runs
    assert [run.config.to_dict() for run in opened.runs] == [run.config.to_dict() for run in claimed.runs]
    assert all(run.config.is_locked for run in opened.runs)
    assert (opened.sweep, opened.config, opened.search) == (SWEEP, CONFIG, None)
    assert opened.base.to_dict() == claimed.base.to_dict()
    assert opened.run_dir("x") == epath.Path(tmp_path / "sweep" / "x")


def test_what_the_file_says(tmp_path):
    claim(tmp_path, search={"kind": "x"})
    found = json.loads((tmp_path / "sweep" / FILE).read_text())
    assert found.keys() == {"sweep", "config", "base", "fields", "runs", "search"}
    assert found["fields"] == ["adapter.rank", "optimizer.betas"]
    assert found["base"]["optimizer.betas"] == [0.9, 0.95]
    assert found["runs"][3]["overrides"] == {"adapter.rank": 8, "optimizer.betas": [0.9, 0.99]}
    assert re.fullmatch(r"rank=8,betas=0.9\+0.99-[0-9a-f]{8}", found["runs"][3]["name"])
    assert found["search"] == {"kind": "x"}


def test_a_second_start_adds_runs_and_keeps_names(tmp_path):
    before = claim(tmp_path)
    after = claim(tmp_path, [*GRID[2:], *product(values("adapter.rank", [16]), seeds(2))])
    assert [run.name for run in after.runs[:2]] == [run.name for run in before.runs[:2]]  # stated no more, kept
    assert [run.name for run in after.stated_runs[:2]] == [run.name for run in before.runs[2:]]
    assert len(after.stated) == 4
    assert "seed=1" in after.stated[3]
    opened = open_sweep(tmp_path / "sweep")
    assert [run.name for run in opened.runs] == [run.name for run in after.runs]
    again = claim(tmp_path)
    assert sorted(run.name for run in again.runs) == sorted(run.name for run in after.runs)


def test_a_changed_run_is_a_new_one(tmp_path):
    before = claim(tmp_path, [{"adapter.rank": 4}])
    after = claim(tmp_path, [{"adapter.rank": 4, "optimizer.weight_decay": 0.1}])
    assert len(after.runs) == 2
    assert after.stated[0] != before.stated[0]


def test_planning_writes_nothing(tmp_path):
    planned = claim(tmp_path, do=plan_sweep)
    assert not (tmp_path / "sweep").exists()
    assert claim(tmp_path).runs == planned.runs


def test_all_runs_are_told_the_day_of_the_first_start(tmp_path, monkeypatch):
    class Tomorrow(datetime.date):
        @classmethod
        def today(cls):
            return cls(2100, 1, 2)

    first = claim(tmp_path, [{"seed": 0}])
    monkeypatch.setattr(datetime, "date", Tomorrow)
    second = claim(tmp_path, seeds(2))
    assert first.base.data.date != "2100-01-02"
    assert {run.config.data.date for run in second.runs} == {first.base.data.date}
    assert second.runs[0] == first.runs[0]
    assert claim(tmp_path / "other", seeds(1)).runs[0].config.data.date == "2100-01-02"


def test_a_run_that_started_is_gone_on_with(tmp_path):
    sweep = claim(tmp_path)
    started(sweep, 0)
    directory = started(sweep, 1)
    write_status(directory, RunStatus())
    write_result(directory, end())
    write_status(sweep.run_dir(sweep.runs[2].name), RunStatus())  # and came no further
    assert claim(tmp_path).runs == sweep.runs
    assert claim(tmp_path, **{"loader.threads": 7, "mesh.fsdp": 2}).stated == sweep.stated


def refused(tmp_path, **given):
    with pytest.raises(WorkdirError) as error:
        claim(tmp_path, **given)
    return str(error.value)


OTHERS = [  # (what is another, what the message lists)
    ({"batch.sequences": 16}, ["batch.sequences: 8 there, 16 asked for"]),
    ({"sweep": "experiments/alpha/sweep.py"}, [f"the sweep file: '{SWEEP}' there, 'experiments/alpha/sweep.py' asked"]),
    ({"sweep": f"{SWEEP}:smoke"}, [f"the sweep file: '{SWEEP}' there, '{SWEEP}:smoke' asked for"]),
    ({"search": {"kind": "optuna"}}, ['the search: null there, {"kind": "optuna"} asked for']),
    ({"data.date": "2020-01-01"}, ["data.date: '20", "there, '2020-01-01' asked for"]),
]


@pytest.mark.parametrize(("given", "said"), OTHERS, ids=range(len(OTHERS)))
def test_the_directory_of_another_sweep_is_refused(tmp_path, given, said):
    claim(tmp_path)
    before = (tmp_path / "sweep" / FILE).read_bytes()
    message = refused(tmp_path, **given)
    assert message.startswith(f"{tmp_path / 'sweep'} is the directory of another sweep:\n  ")
    for text in said:
        assert text in message
    assert message.endswith("Give another --workdir, or what that sweep was started with to go on with it.")
    assert (tmp_path / "sweep" / FILE).read_bytes() == before


def test_the_same_sweep_file_in_another_checkout(tmp_path):
    """Its argument is the same one too, whatever is in it."""
    argument = "data=there/rows/of/mine"
    sweep = claim(tmp_path, sweep=f"{SWEEP}:{argument}")
    assert claim(tmp_path, sweep=f"/elsewhere/{SWEEP}:{argument}").runs == sweep.runs
    assert "is the directory of another sweep" in refused(tmp_path, sweep=f"{SWEEP}:data=here/rows/of/mine")


def test_the_directory_of_another_sweep_is_left_as_advised(tmp_path):
    """Another directory, or what was there asked for; where something else lies, an empty one or a new one."""
    claim(tmp_path)
    assert "Give another --workdir, or what that sweep was started with" in refused(tmp_path, seed=1)
    assert claim(tmp_path / "another", seed=1).runs
    assert claim(tmp_path).runs
    (tmp_path / "sweep" / FILE).rename(tmp_path / "sweep" / "else.json")
    assert "give an empty or new --workdir" in refused(tmp_path)
    (tmp_path / "sweep" / "else.json").unlink()
    assert claim(tmp_path).runs


def test_the_same_sweep_in_another_checkout_is_no_other(tmp_path):
    sweep = claim(tmp_path)
    assert claim(tmp_path, sweep="/elsewhere/experiments/rank/sweep.py").runs == sweep.runs


def test_a_directory_of_something_else_is_refused(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("")
    assert "is not empty and holds no sweep.json: give an empty or new --workdir" in refused(tmp_path)
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["thesis.tex"]
    with pytest.raises(WorkdirError, match=r"holds no sweep: there is no sweep\.json in it"):
        open_sweep(tmp_path / "sweep")


def test_a_file_in_the_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "sweep").write_text("")
    assert refused(tmp_path) == f"{tmp_path / 'sweep'} is a file: give a new --workdir"
    assert claim(tmp_path / "new").runs


def test_a_sweep_that_is_launched_takes_no_other_runs_meanwhile(tmp_path):
    """Else one of two starts would write a list that lacks the runs of the other."""
    claim(tmp_path)
    before = (tmp_path / "sweep" / FILE).read_bytes()
    with only_one(epath.Path(tmp_path / "sweep"), LAUNCHING):
        with pytest.raises(WorkdirError, match="another launcher is at work"):
            claim(tmp_path, [*GRID, {"adapter.rank": 64}])
        assert (tmp_path / "sweep" / FILE).read_bytes() == before
    assert len(claim(tmp_path, [*GRID, {"adapter.rank": 64}]).runs) == len(GRID) + 1


def test_the_directory_of_a_claim_that_was_killed_is_free(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / ".lock").write_text("")
    (tmp_path / "sweep" / "sweep.json.partial").write_text("{")
    assert claim(tmp_path).runs


DAMAGES = [  # (what sweep.json becomes, what is said of it)
    (lambda found: "{", "is not valid JSON"),
    (lambda found: [], "no sweep, config, base, runs, as the file of a sweep has"),
    (lambda found: found | {"base": 3}, "no base, as the file of a sweep has"),
    (lambda found: found | {"base": {"seed": 1, "seed.x": 2}}, "its base is not a config"),
    (lambda found: found | {"base": {"seed": 1}}, "the config has no field 'adapter'"),
    (lambda found: found | {"runs": [{"name": "x"}]}, "is not a run of this sweep ('overrides')"),
    (lambda found: found | {"runs": [3]}, "3 is not a run of this sweep"),
    (lambda found: found | {"runs": [found["runs"][0] | {"overrides": {"lr": 1}}]}, "has no field 'lr'"),
    (
        lambda found: found | {"runs": [found["runs"][0] | {"overrides": {"seed": 7}}]},
        "are not those that it is named by",
    ),
    (lambda found: found | {"base": found["base"] | {"seed": 7}}, "are not those that it is named by"),
]


@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[said for _, said in DAMAGES])
def test_a_damaged_file_is_named(tmp_path, damage, said):
    claim(tmp_path)
    path = tmp_path / "sweep" / FILE
    made = damage(json.loads(path.read_text()))
    path.write_text(made if isinstance(made, str) else json.dumps(made))
    message = refused(tmp_path)
    assert message.startswith(str(path))
    assert said in message
    assert message.endswith("put it back from a copy, or give another --workdir")


def test_damaged_runs_are_named_before_any_starts(tmp_path):
    sweep = claim(tmp_path)
    (started(sweep, 0) / "config.json").write_text("{")
    config = started(sweep, 1) / "config.json"
    config.write_text(config.read_text().replace('"rank": 4', '"rank": 5'))
    (started(sweep, 2) / "status.json").write_text("[]")
    (started(sweep, 3) / "result.json").write_text("{}")
    message = refused(tmp_path)
    assert re.search(r"config.json is not valid JSON", message)
    assert "holds a run with a different config:\n  adapter.rank: 5 there, 4 asked for" in message
    assert re.search(rf"{re.escape(sweep.runs[2].name)}/status.json is damaged", message)
    assert re.search(rf"{re.escape(sweep.runs[3].name)}/result.json is damaged", message)
    assert "Or remove the directory of such a run" in message
    for run in sweep.runs:
        sweep.run_dir(run.name).rmtree()
    assert claim(tmp_path).runs == sweep.runs


def test_logs_that_cannot_be_gone_on_with_are_named(tmp_path):
    sweep = claim(tmp_path)
    (started(sweep, 0) / "metrics.jsonl").write_text('x\n{"step": 1}\n')
    (started(sweep, 1) / "config.json").write_text('{"a": 1}')
    message = refused(tmp_path)
    assert f"{sweep.runs[0].name}/metrics.jsonl:1: not a JSON object with a step: 'x'; put it back from a" in message
    assert f"{sweep.runs[1].name}/config.json has no field of a config; put it back from a copy" in message


def test_files_in_the_place_of_a_run_are_refused(tmp_path):
    sweep = claim(tmp_path)
    sweep.run_dir(sweep.runs[0].name).mkdir()
    (sweep.run_dir(sweep.runs[0].name) / "notes.txt").write_text("")
    assert "notes" not in (message := refused(tmp_path))
    assert f"{sweep.runs[0].name} is not empty and holds no config.json" in message


def test_bad_runs_leave_the_directory_as_it_was(tmp_path):
    claim(tmp_path)
    before = (tmp_path / "sweep" / FILE).read_bytes()
    with pytest.raises(SweepError):
        claim(tmp_path, [*GRID, {"adapter.rank": 0}])
    assert (tmp_path / "sweep" / FILE).read_bytes() == before
