"""metrics.jsonl and TensorBoard, locally and in a bucket (an in-memory file system)."""

import errno
import json
import os
import time

import jax
import pytest
from etils import epath

from sft_jax.data.records import read_records
from sft_jax.runs import workdir as workdirs
from sft_jax.runs.metric_log import MetricLog, read_metrics
from tests import buckets, tiny


@pytest.fixture(params=["local", "bucket"])
def workdir(request, tmp_path):
    if request.param == "local":
        return epath.Path(tmp_path / "run")
    return buckets.empty(tmp_path.name) / "run"


def events(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    names = accumulator.Tags()["scalars"]
    return {name: [(event.step, event.value) for event in accumulator.Scalars(name)] for name in names}


def write(workdir, resume_step, steps, value):
    workdir.mkdir(parents=True, exist_ok=True)
    log = MetricLog(workdir, resume_step)
    for step in steps:
        log.scalars(step, {"train/loss": value})
    log.close()


def test_cut_back_to_the_checkpoint(workdir, tmp_path, monkeypatch):
    write(workdir, -1, range(6), 1.0)
    later = time.time() + 2
    monkeypatch.setattr(time, "time", lambda: later)  # event files are named by the second
    write(workdir, 3, range(4, 8), 2.0)
    expected = [(step, 1.0 if step <= 3 else 2.0) for step in range(8)]
    found = [(line["step"], line["train/loss"]) for line in read_metrics(workdir / "metrics.jsonl")]
    assert found == expected
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in workdir.glob("events*"):
        (copy / path.name).write_bytes(path.read_bytes())
    assert events(copy)["train/loss"] == expected


def test_losses_against_what_was_seen(workdir, tmp_path, monkeypatch):
    """They are there from the beginning after a restart too, whose cut is by the step and not by tokens."""
    now = time.time()
    for start, resume_step in ((0, -1), (3, 2)):
        monkeypatch.setattr(time, "time", lambda start=start: now + 2 * start)  # event files are named by the second
        workdir.mkdir(parents=True, exist_ok=True)
        log = MetricLog(workdir, resume_step)
        for step in range(start, 5):
            seen = {"progress/tokens": 100.0 * step, "progress/supervised_tokens": 10.0 * step} if step else {}
            losses = {"train/loss": float(step)} | ({"held_out/loss": float(step)} if step % 2 == 0 else {})
            log.scalars(step, losses | seen | {"train/other": 0.0})
        log.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in workdir.glob("events*"):
        (copy / path.name).write_bytes(path.read_bytes())
    found = {name: points for name, points in events(copy).items() if name.startswith("by_")}
    assert found == {
        f"by_{counter}/{loss}": [(size * step, float(step)) for step in steps]
        for counter, size in (("tokens", 100), ("supervised_tokens", 10))
        for loss, steps in (("train/loss", range(5)), ("held_out/loss", (0, 2, 4)))
    }


def test_what_is_flushed_is_in_the_event_file(tmp_path):
    """A kill right after it must not cost a step."""
    log = MetricLog(epath.Path(tmp_path), -1)
    for step in range(50):
        log.scalars(step, {"train/loss": 1.0})
    log.text(49, "note", "words")
    log.flush()
    assert events(tmp_path)["train/loss"] == [(step, 1.0) for step in range(50)]
    log.close()


def test_a_run_copied_from_a_bucket_goes_on_in_its_last_part(tmp_path):
    for part, steps in (("", (0, 1)), (".00001", (2, 3)), (".00002", (4, 5))):
        lines = "".join(json.dumps({"step": step, "train/loss": 1.0}) + "\n" for step in steps)
        (tmp_path / f"metrics{part}.jsonl").write_text(lines)
    for resumed in (4, 3, 3, 0):
        write(epath.Path(tmp_path), resumed, range(resumed + 1, 7), 2.0)
        assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(7))
        assert [line["train/loss"] for line in read_metrics(tmp_path / "metrics.jsonl")][resumed + 1] == 2.0


def test_a_run_started_afresh_forgets_everything(workdir):
    write(workdir, -1, range(3), 1.0)
    write(workdir, -1, range(1), 2.0)
    assert read_metrics(workdir / "metrics.jsonl") == [{"step": 0, "train/loss": 2.0}]


def test_a_torn_last_line_is_left_out(workdir):
    write(workdir, -1, range(3), 1.0)
    path = workdir / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 3, "train/l')
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2]
    write(workdir, 2, [3], 1.0)
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3]


@pytest.mark.parametrize("line", ['{"step": 1, "tra', "[1]", "3", '{"loss": 1.0}'])
def test_a_bad_line_in_the_middle_is_an_error(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl:2: not a JSON object with a step"):
        read_metrics(path)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    write(epath.Path(tmp_path), -1, [0], float("nan"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 0, "train/loss": None}


def test_run_directory(workdir, tmp_path):
    """Claimed once, continued with the same config or another mesh, refused with another; inputs are watched."""
    config = tiny.config(tmp_path / "inputs")
    workdirs.claim(workdir, config)
    workdirs.claim(workdir, config)
    with config.unlocked():
        config.mesh.tensor = 2
        config.batch.micro_batches = 2
    workdirs.claim(workdir, config)
    assert json.loads((workdir / "config.json").read_text())["mesh"]["tensor"] == 2
    with config.unlocked():
        config.seed = 1
    with pytest.raises(workdirs.WorkdirError, match=r"different config:\n  seed: 0 there, 1 asked for\n"):
        workdirs.claim(workdir, config)
    workdirs.check_inputs(workdir, {"train": "a"})
    origin = {"name": "org/model", "location": "/cache/0123abc", "revision": "0123abc"}
    workdirs.record_environment(workdir, {"train": "a"}, origin, jax.devices(), config, {"remat": "full"})
    environment = json.loads((workdir / "environment.json").read_text())
    assert environment["packages"]["jax"]
    assert environment["processes"] == 1
    assert environment["fingerprints"] == {"train": "a"}
    assert environment["model"] == origin
    workdirs.check_inputs(workdir, {"train": "a"})
    workdirs.record_environment(workdir, {"train": "a"}, origin, jax.devices(), config, {"remat": "full"})
    workdirs.record_environment(workdir, {"train": "a"}, origin, jax.devices(), config, {"remat": "full"})
    again = json.loads((workdir / "environment.json").read_text())
    assert len(again["earlier_starts"]) == 2
    kept_once = ("config", "earlier_starts")
    assert again["earlier_starts"][0] == {name: environment[name] for name in environment if name not in kept_once}
    with pytest.raises(workdirs.WorkdirError, match="train changed since it started"):
        workdirs.check_inputs(workdir, {"train": "b"})


def test_one_trainer_at_a_time(tmp_path):
    """The second is told; when the first is gone, also by an error, the directory is free."""
    workdir = epath.Path(tmp_path)

    def train(end):
        with workdirs.only_trainer(workdir):
            end()

    def second():
        with pytest.raises(workdirs.WorkdirError, match="wait for it, stop it, or give another --workdir"):
            train(lambda: None)
        (workdir / "another").mkdir()
        with workdirs.only_trainer(workdir / "another"):
            pass

    train(second)
    with pytest.raises(ZeroDivisionError):
        train(lambda: 1 / 0)
    train(lambda: None)


def test_a_directory_without_locks_is_refused(tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    message = r"\.lock cannot be locked .*No locks available.*Give a --workdir on a .* with locks .*, or in a bucket"
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", no_locks)
        with pytest.raises(workdirs.WorkdirError, match=message), workdirs.only_trainer(epath.Path(tmp_path)):
            pytest.fail("trains")
        with workdirs.only_trainer(buckets.empty(tmp_path.name)):
            pass
    with workdirs.only_trainer(epath.Path(tmp_path)):
        pass


@pytest.mark.parametrize(("text", "message"), [("{", r"is not valid JSON"), ("[1]", r"holds no object")])
def test_a_damaged_config_is_put_back_or_left(tmp_path, text, message):
    config, workdir = tiny.config(tmp_path / "inputs"), epath.Path(tmp_path / "run")
    workdirs.claim(workdir, config)
    (workdir / "checkpoints").mkdir()
    copy = (workdir / "config.json").read_text()
    (workdir / "config.json").write_text(text)
    advice = "put it back from a copy, or give another --workdir"
    with pytest.raises(workdirs.WorkdirError, match=rf"config\.json {message}.*{advice}"):
        workdirs.with_date(workdir, config)
    workdirs.claim(epath.Path(tmp_path / "another"), workdirs.with_date(epath.Path(tmp_path / "another"), config))
    (workdir / "config.json").write_text(copy)
    workdirs.claim(workdir, config)
    (workdir / "config.json").unlink()  # which is why it is not advised
    with pytest.raises(workdirs.WorkdirError, match="is not empty and holds no config"):
        workdirs.claim(workdir, config)


def test_a_directory_of_something_else_is_refused(workdir, tmp_path):
    config = tiny.config(tmp_path / "inputs")
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "thesis.tex").write_text("years of work")
    with pytest.raises(
        workdirs.WorkdirError, match=r"is not empty and holds no config\.json: give an empty or new --workdir"
    ):
        workdirs.claim(workdir, config)
    assert [path.name for path in workdir.iterdir()] == ["thesis.tex"]
    (workdir / "empty").mkdir()
    for name in ("empty", "new"):
        workdirs.claim(workdir / name, config)


def test_killed_while_writing_the_config(tmp_path):
    """What a kill can leave behind does not stand in the way of the same command."""
    config = tiny.config(tmp_path / "inputs")
    workdir = epath.Path(tmp_path / "run")
    workdir.mkdir()
    (workdir / "config.json.partial").write_text('{"seed"')
    workdirs.claim(workdir, config)
    assert json.loads((workdir / "config.json").read_text())["seed"] == 0


def test_data_in_a_bucket(workdir, tmp_path):
    tiny.write_rows(tmp_path / "rows.jsonl", 3)
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text())
    assert [record.id for record in read_records(workdir / "rows.jsonl")] == [f"rows.jsonl:{i}" for i in (1, 2, 3)]
