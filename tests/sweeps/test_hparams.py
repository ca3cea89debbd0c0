"""What TensorBoard itself makes of the HParams of a sweep: values, rows, status, metrics."""

import json

import pytest
from etils import epath
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

from sft_jax.runs.metric_log import MetricLog
from sft_jax.runs.workdir import SESSION, SESSION_END, WorkdirError, check_config_there
from sft_jax.sweeps.hparams import EXPERIMENT, write_experiment, write_hparams, write_session
from tests import tiny
from tests.sweeps import written

SUCCESS, FAILURE, UNKNOWN = api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE, api_pb2.STATUS_UNKNOWN


def shown(root):
    """(experiment, rows) as TensorBoard's HParams plugin gives them to its page."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer()
    multiplexer.AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(root))
    made = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    asked = context.RequestContext()
    found = made.experiment_from_metadata(
        asked, "", True, made.hparams_metadata(asked, ""), made.hparams_from_data_provider(asked, "", None)
    )
    columns = [{"hparam": info.name} for info in found.hparam_infos]
    columns += [{"metric": {"tag": info.name.tag}} for info in found.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        col_params=columns, slice_size=1000, allowed_statuses=[SUCCESS, FAILURE, UNKNOWN, api_pb2.STATUS_RUNNING]
    )
    return found, list(list_session_groups.Handler(asked, made, "", request).run().session_groups)


def plain(value):
    return getattr(value, value.WhichOneof("kind"))


def domain(info):
    if info.HasField("domain_interval"):
        return (info.domain_interval.min_value, info.domain_interval.max_value)
    return [plain(value) for value in info.domain_discrete.values]


def tags_of(root, run):
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(root))
    multiplexer.Reload()
    return {tag: multiplexer.Tensors(run, tag) for tag in multiplexer.Runs()[run]["tensors"]}


@pytest.fixture
def sweep(tmp_path):
    names = written.write_sweep(tmp_path)
    write_hparams(tmp_path)
    return tmp_path, names


def test_the_experiment(sweep):
    experiment, _ = shown(sweep[0])
    assert [(info.name, info.type, info.differs, domain(info)) for info in experiment.hparam_infos] == [
        ("learning_rate", api_pb2.DATA_TYPE_FLOAT64, True, [1e-4, 1e-3]),
        ("rank", api_pb2.DATA_TYPE_FLOAT64, True, [4, 8]),
    ]
    assert [info.name.tag for info in experiment.metric_infos] == [
        *("best/held_out/nll", "final/held_out/nll", "final/held_out/loss", "final/held_out/accuracy"),
        *("final/train/loss", "cost/tokens", "cost/seconds"),
    ]


def test_a_row_for_each_setting_and_a_session_for_each_seed(sweep):
    root, names = sweep
    _, rows = shown(root)
    assert {row.name for row in rows} == {
        *("learning_rate=1e-4, rank=4", "learning_rate=1e-4, rank=8"),
        *("learning_rate=1e-3, rank=4", "learning_rate=1e-3, rank=8"),
    }
    assert sorted(session.name for row in rows for session in row.sessions) == sorted(names)
    for row in rows:
        values = {name: plain(value) for name, value in row.hparams.items()}
        rate = {1e-4: "1e-4", 1e-3: "1e-3"}[values["learning_rate"]]
        assert row.name == f"learning_rate={rate}, rank={values['rank']:.0f}"
        assert values.keys() == {"learning_rate", "rank"}
        assert [session.status for session in row.sessions] == [SUCCESS] * 3


def test_cells_have_the_final_figures_and_rows_their_means(sweep):
    root, names = sweep
    (row,) = [row for row in shown(root)[1] if row.name == "learning_rate=1e-3, rank=8"]
    overrides = {"optimizer.learning_rate": 1e-3, "adapter.rank": 8}
    expected = [written.loss_of(overrides | {"seed": seed}, written.STEPS) for seed in range(3)]
    cell = lambda one, tag: next(metric for metric in one.metric_values if metric.name.tag == tag)
    found = sorted(cell(session, "final/held_out/nll").value for session in row.sessions)
    assert found == pytest.approx(expected)
    assert cell(row, "final/held_out/nll").value == pytest.approx(sum(expected) / 3)
    assert cell(row.sessions[0], "final/held_out/nll").training_step == written.STEPS
    assert cell(row, "cost/tokens").value == written.STEPS * written.TOKENS_A_STEP
    result = json.loads((root / names[-1] / "result.json").read_text())
    assert cell(row.sessions[-1], "best/held_out/nll").training_step == result["best"]["step"]


@pytest.mark.parametrize(
    ("state", "status"),
    [("diverged", FAILURE), ("failed", FAILURE), ("interrupted", FAILURE), ("running", UNKNOWN), ("paused", UNKNOWN)],
)
def test_what_did_not_end_well_is_listed_without_figures(tmp_path, state, status):
    names = written.write_sweep(tmp_path, unlike={0: state, 1: "waiting"})
    write_hparams(tmp_path)
    sessions = {session.name: session for row in shown(tmp_path)[1] for session in row.sessions}
    assert sessions.keys() == set(names) - {names[1]}
    assert sessions[names[0]].status == status
    assert not sessions[names[0]].metric_values
    assert not (tmp_path / names[1]).exists()


def test_a_run_killed_half_way_is_listed_when_the_launcher_writes_again(tmp_path):
    """Neither result nor an end in its status: only what it began with."""
    names = written.write_sweep(tmp_path, unlike={0: "running"})
    status = json.loads((tmp_path / names[0] / "status.json").read_text())
    (tmp_path / names[0] / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    write_session(epath.Path(tmp_path), names[0])
    ((session,),) = [row.sessions for row in shown(tmp_path)[1]]
    assert (session.name, session.status) == (names[0], FAILURE)


def test_runs_that_were_added_are_known_after_it_is_written_anew(tmp_path):
    """One experiment, in the root; written twice it is the same file."""
    written.write_sweep(tmp_path, {"optimizer.learning_rate": [1e-4, 1e-3], "seed": [0]})
    write_hparams(tmp_path)
    for path in tmp_path.iterdir():
        if path.is_dir():
            (path / "status.json").unlink()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("events*")}
    more = {"optimizer.learning_rate": [1e-4, 1e-3, 1e-2], "seed": [0]}
    names = written.write_sweep(tmp_path / "more", more)
    stated = json.loads((tmp_path / "more" / "sweep.json").read_text())
    (tmp_path / "more" / names[2]).rename(tmp_path / names[2])
    (tmp_path / "sweep.json").write_text(json.dumps(stated))
    write_session(tmp_path, names[2])
    write_experiment(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before if path.name != EXPERIMENT} == {
        path: time for path, time in before.items() if path.name != EXPERIMENT
    }
    experiment, rows = shown(tmp_path)
    assert domain(experiment.hparam_infos[0]) == [1e-4, 1e-3, 1e-2]
    assert len([row for row in rows for _ in row.sessions]) == 3
    assert len(list(tmp_path.glob("events*"))) == 1


def test_numbers_texts_and_lists(tmp_path):
    grid = {
        "optimizer.name": ["adamw", "lion"],
        "optimizer.nesterov": [True, False],
        "adapter.alpha": [float(number) for number in range(1, 15)],
        "adapter.targets": [["q"], ["q", "v"]],
    }
    written.write_sweep(tmp_path, grid)
    write_hparams(tmp_path)
    experiment, rows = shown(tmp_path)
    assert {info.name: (info.type, domain(info)) for info in experiment.hparam_infos} == {
        "name": (api_pb2.DATA_TYPE_STRING, ["adamw", "lion"]),
        "nesterov": (api_pb2.DATA_TYPE_BOOL, [False, True]),
        "alpha": (api_pb2.DATA_TYPE_FLOAT64, (1, 14)),
        "targets": (api_pb2.DATA_TYPE_STRING, ['["q", "v"]', '["q"]']),
    }
    assert len(rows) == 2 * 2 * 14 * 2


def test_a_session_leaves_the_runs_own_events_alone(tmp_path):
    """Before the run begins, while it runs, after a restart, and at its end."""
    (name,) = written.write_sweep(tmp_path, {"seed": [0]}, unlike={0: "running"})
    directory = tmp_path / name
    for path in directory.glob("events*"):
        path.unlink()
    write_session(tmp_path, name)  # its file is there before the run's own
    log = MetricLog(epath.Path(directory), -1)
    for step in range(4):
        log.scalars(step, {"train/loss": float(step)})
    log.close()
    found = tags_of(tmp_path, name)
    assert [event.step for event in found["train/loss"]] == [0, 1, 2, 3]
    assert [row.name for row in shown(tmp_path)[1]] == ["all runs"]
    assert min(path.name for path in directory.glob("events*")) == SESSION
    written.write_result(directory, written.RunEnd("finished", 3, 3, {"train/loss": 3.0}, None, {}, 1.0, None, None))
    write_session(tmp_path, name)
    assert max(path.name for path in directory.glob("events*")) == SESSION_END
    found = tags_of(tmp_path, name)
    assert [event.step for event in found["train/loss"]] == [0, 1, 2, 3]
    assert [event.step for event in found["final/train/loss"]] == [3]


def test_a_run_that_begins_again_has_no_end(tmp_path):
    names = written.write_sweep(tmp_path, unlike={0: "failed"})
    write_session(tmp_path, names[0])
    assert (tmp_path / names[0] / SESSION_END).exists()
    status = json.loads((tmp_path / names[0] / "status.json").read_text())
    (tmp_path / names[0] / "status.json").write_text(json.dumps(status | {"state": "running", "host": "elsewhere"}))
    write_session(tmp_path, names[0])
    assert not (tmp_path / names[0] / SESSION_END).exists()


def test_a_directory_with_a_session_alone_can_become_that_of_its_run(tmp_path):
    config = tiny.config(tmp_path / "inputs")
    (tmp_path / "run").mkdir()
    for name in (SESSION, SESSION_END):
        (tmp_path / "run" / name).write_bytes(b"")
    check_config_there(epath.Path(tmp_path / "run"), config)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"runs": [1]}'])
def test_a_directory_that_holds_no_sweep_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(WorkdirError, match=r"sweep\.json"):
        write_experiment(tmp_path)
