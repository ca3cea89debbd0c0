"""What a dry run shows: each program compiled once, its memory, and time by what earlier runs took."""

import json

import jax
import pytest
from rich.console import Console

from sft_jax.options import options_of
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.base import base_of
from sft_jax.runs.result import FINISHED, RunEnd, write_result
from sft_jax.sharding import make_mesh
from sft_jax.sweeps import chain, dry_run, product, seeds, values
from sft_jax.sweeps.directory import claim_sweep
from sft_jax.sweeps.dry_run import RunLog, estimate, log_of, memory_lines, show_runs, time_text
from sft_jax.sweeps.preparing import check_inputs, prepare
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import runs_of
from sft_jax.sweeps.shared import Shared
from sft_jax.training.memory import StepProgram, batch_sizes, step_program
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state, make_model
from tests import tiny

QUIET = Console(quiet=True)
ONE = jax.devices()[:1]
SAME_PROGRAM = product(values("optimizer.learning_rate", [1e-3, 1e-2]), seeds(2))
STATED = chain(SAME_PROGRAM, values("adapter.rank", [2]))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.config(tmp_path_factory.mktemp("tiny"), "lora")


@pytest.fixture(scope="module")
def prepared(base):
    return prepare(runs_of(base, STATED), Shared(), ONE, QUIET)


def test_runs_with_one_program_are_compiled_once(prepared, monkeypatch):
    compiled = []
    measure = StepProgram.memory

    def memory(program):
        compiled.append(program)
        return measure(program)

    monkeypatch.setattr(StepProgram, "memory", memory)
    title, *lines = memory_lines(prepared)
    assert title == "Memory of a step, as compiled for cpu: 2 programs"
    assert len(compiled) == 2
    assert [line.split(": ")[1] for line in lines] == ["runs 1-4", "run 5"]
    assert all(float(line.split()[0]) > 0.1 for line in lines)


def test_memory_is_that_of_the_arrays_and_more(base, prepared):
    """Weights, adapters and moments are no less than what the step is said to need, and no weight was read."""
    options = options_of(prepared[0].run.config)
    mesh, opened = make_mesh(options.mesh, ONE), base_of(options.model)
    model = make_model(options, opened.decoder, mesh)
    state = init_state(options, opened, model, mesh, hyperparameters(options, 2, 6))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held < prepared[0].program.memory() < 200 * held


def test_over_devices_memory_is_of_each(base):
    options, shared = options_of(base), Shared()
    opened, data = shared.base(options.model), shared.data(options, 1, QUIET)
    meshes = (make_mesh(options.mesh, jax.devices()[:n]) for n in (1, 4))
    one, four = (step_program(options, opened.decoder, batch_sizes(data), mesh) for mesh in meshes)
    assert four.memory() < 0.6 * one.memory()
    assert one != four


def test_what_cannot_be_prepared_is_named_with_its_runs(base):
    stated = chain(
        values("model.source", ["/nowhere"]),
        product(values("data.train", ["/no.jsonl"]), seeds(2)),
        values("adapter.targets", [("nothing",)]),
        values("data.held_out", ["/none.jsonl"]),
        values("experts.capacity", [1.25]),
        values("batch.micro_batches", [3]),
    )
    for look in (lambda runs: check_inputs(runs, Shared()), lambda runs: prepare(runs, Shared(), ONE, QUIET)):
        with pytest.raises(SweepError) as error:
            look(runs_of(base, stated))
        lines = str(error.value).splitlines()
        for begin in (
            "run 1: /nowhere: no such file or directory",
            "runs 2-3: /no.jsonl: there is no such file",
            "run 4: --config.adapter.targets=",
            "run 5: /none.jsonl: there is no such file",
            "run 6: --config.experts.capacity=1.25: this model has no experts",
            "run 7: --config.batch.sequences=8 must be a multiple of --config.batch.micro_batches=3",
        ):
            assert any(line.startswith(begin) for line in lines)
        assert len(lines) == 6


def test_without_training_rows_a_file_is_asked_for(base):
    stated = product(values("data.train", [""]), seeds(2))
    with pytest.raises(SweepError, match=r"runs 1-2: --config\.data\.train is empty; give a file, a pattern, "):
        check_inputs(runs_of(base, stated), Shared())
    check_inputs(runs_of(base, product(values("data.train", [base.data.train]), seeds(2))), Shared())


def test_what_only_the_mesh_forbids_is_found(base):
    runs = runs_of(base, values("mesh.tensor", [1, 2]))
    check_inputs(runs, Shared())
    with pytest.raises(SweepError, match=r"run 2: --config\.mesh: .* does not make 1 devices"):
        prepare(runs, Shared(), ONE, QUIET)


def logs(*pairs):
    return [RunLog(step, seconds) for step, seconds in pairs]


def test_time_is_told_by_runs_with_the_same_program(prepared):
    """Four runs of 6 steps share a program, the fifth has one of its own; medians, of the steps that are left."""
    nothing = estimate(prepared, logs(*[(0, [])] * 5))
    assert (nothing.seconds, nothing.measured, nothing.unknown) == (0, 0, [1, 2, 3, 4, 5])
    assert time_text(nothing) == "Time: no earlier runs in this directory to estimate it from."
    some = estimate(prepared, logs((6, [2.0, 2.0, 90.0]), (4, [3.0, 2.0]), (0, []), (0, []), (0, [])))
    assert (some.seconds, some.measured, some.unknown) == ((2 + 6 + 6) * 2.0, 2, [5])
    assert time_text(some).startswith("Time: about 28 s of steps left, one run after the other, by the steps of 2 runs")
    assert time_text(some).endswith("Not counted: run 5, whose program has not run before.")
    done = estimate(prepared, logs(*[(6, [2.0])] * 5))
    assert (done.seconds, done.unknown) == (0, [])


@pytest.fixture
def sweep(base, tmp_path):
    return claim_sweep(tmp_path / "sweep", sweep="sweep.py", config="configs/sft.py:lora", base=base, stated=STATED)


def test_the_log_of_a_run(sweep):
    """The first line that was logged has the compiling in it."""
    run = sweep.runs[0]
    assert log_of(sweep, run) == RunLog(0, [])
    lines = [{"step": 0, "held_out/nll": 3.0}, *({"step": n, "speed/seconds_per_step": 9.0 / n} for n in (1, 2, 3))]
    directory = sweep.run_dir(run.name)
    workdirs.claim(directory, run.config)
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert log_of(sweep, run) == RunLog(3, [4.5, 3.0])


def test_runs_are_shown_by_what_differs(sweep, capsys):
    directory = sweep.run_dir(sweep.runs[1].name)
    workdirs.claim(directory, sweep.runs[1].config)
    write_result(directory, RunEnd(FINISHED, 6, 6, {}, None, {}, 1.0, None, None))
    show_runs(sweep, Console())
    *table, count = capsys.readouterr().out.rstrip().splitlines()
    rows = [line.split() for line in table if sweep.runs[0].name[-8:] in line or sweep.runs[1].name[-8:] in line]
    assert rows == [
        ["1", "0.001", "0", "4", "waiting", sweep.runs[0].name],
        ["2", "0.001", "1", "4", "finished", sweep.runs[1].name],
    ]
    assert ["optimizer.learning_rate", "seed", "adapter.rank", "state", "directory"] in [line.split() for line in table]
    assert count == "5 runs: 4 waiting, 1 finished"


def test_runs_that_are_stated_no_more_are_counted_apart(sweep, base, capsys):
    fewer = claim_sweep(sweep.root, sweep="sweep.py", config="configs/sft.py:lora", base=base, stated=STATED[:2])
    show_runs(fewer, Console())
    out = capsys.readouterr().out
    assert "2 runs: 2 waiting" in out
    assert "Also here, from an earlier start and no longer in the sweep file: 3 runs: 3 waiting. They stay." in out


def test_a_dry_run_has_all_of_it(sweep, prepared, capsys):
    dry_run.show_costs(sweep, prepared, Console())
    out = capsys.readouterr().out
    assert "Time: no earlier runs" in out
    assert "Memory of a step" in out
