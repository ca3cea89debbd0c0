"""What a run logs comes into a bucket in the background, each file only when it has grown."""

import collections
import threading

import pytest

from sft_jax.runs import uploads
from sft_jax.runs.metric_log import MetricLog, read_metrics
from tests import buckets


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty directory in a bucket."""
    monkeypatch.setattr(uploads, "_PAUSES", (0.0, 0.0))
    return buckets.empty(tmp_path.name) / "run"


@pytest.fixture
def written(bucket, monkeypatch):
    """How often each file of the bucket was written."""
    counts = collections.Counter()
    watch(monkeypatch, lambda name: counts.update([name]))
    return counts


def watch(monkeypatch, action):
    """Calls `action` with the name of each file that is about to be written to the bucket."""
    opened = buckets.Bucket._open

    def watched(self, path, mode="rb", **more):
        if "w" in mode:
            action(path.rpartition("/run/")[2])
        return opened(self, path, mode, **more)

    monkeypatch.setattr(buckets.Bucket, "_open", watched)


def test_only_what_changed(bucket, written, tmp_path):
    one, other = tmp_path / "one", tmp_path / "folder" / "other"
    other.parent.mkdir()
    one.write_text("a")
    other.write_text("b")
    copies = uploads.Uploads(tmp_path, bucket)
    for text in ("a", "ab", "ab", "abc"):
        one.write_text(text)
        copies.changed(one)
        copies.changed(other)
        copies.finish()
        assert (bucket / "one").read_text() == text
    copies.close()
    assert written == {"one": 3, "folder/other": 1}


def test_no_more_than_was_there(bucket, tmp_path):
    """What is written while a file is copied may end in the middle of a line."""
    path = tmp_path / "lines"
    path.write_text("one\n")
    copies = uploads.Uploads(tmp_path, bucket)
    copies.changed(path)
    path.write_text("one\ntw")
    copies.close()
    assert (bucket / "lines").read_text() == "one\n"


def test_nobody_waits_for_what_was_started(bucket, tmp_path, monkeypatch):
    let_go, names = threading.Event(), []
    watch(monkeypatch, lambda name: (names.append(name), let_go.wait()))
    path = tmp_path / "lines"
    copies = uploads.Uploads(tmp_path, bucket)
    for text in ("1", "12", "123"):
        path.write_text(text)
        copies.changed(path)
        copies.start()  # returns, though nothing can be written
    assert not (bucket / "lines").exists()
    let_go.set()
    copies.close()
    assert names == ["lines"] * 2, "the first, and what came while it was under way"
    assert (bucket / "lines").read_text() == "123"


def test_what_fails_is_reported_and_tried_again(bucket, written, tmp_path, monkeypatch, caplog):
    failures = iter(["no network", "no network"])

    def fail(name):
        for reason in failures:
            raise OSError(reason)

    watch(monkeypatch, fail)
    path = tmp_path / "lines"
    path.write_text("1")
    copies = uploads.Uploads(tmp_path, bucket)
    copies.changed(path)
    copies.start()
    copies.finish()
    copies.close()
    assert (bucket / "lines").read_text() == "1"
    assert written == {"lines": 1}
    assert caplog.text.count("no network") == 2


def test_what_cannot_be_written_is_an_error(bucket, tmp_path, monkeypatch):
    def fail(name):
        raise OSError("no network")

    watch(monkeypatch, fail)
    (tmp_path / "lines").write_text("1")
    copies = uploads.Uploads(tmp_path, bucket)
    copies.changed(tmp_path / "lines")
    with pytest.raises(OSError, match=r"could not be copied to gs://.*no network.*is in") as error:
        copies.close()
    assert str(tmp_path) in str(error.value)


def test_a_profile_is_written_once_and_quiet_files_never_again(bucket, written):
    log = MetricLog(bucket, -1)
    profile = log.tensorboard_dir / "plugins" / "profile" / "today" / "host.xplane.pb"
    profile.parent.mkdir(parents=True)
    profile.write_bytes(bytes(1000))
    log.profile_written()
    log.write("skipped_steps.jsonl", '{"step": 1}\n')
    for step in range(5):
        log.scalars(step, {"train/loss": 1.0})
        log.sync()
    for _ in range(3):
        log.sync()
    log.close()
    events = [name for name in written if "tfevents" in name]
    assert written == {
        "metrics.jsonl": 5,
        events[0]: 5,
        "plugins/profile/today/host.xplane.pb": 1,
        "skipped_steps.jsonl": 1,
    }


def test_a_long_log_is_written_in_parts(bucket, written, monkeypatch):
    """However long a run is, little is written anew; a run that goes on cuts back the parts, and adds to them."""
    monkeypatch.setattr("sft_jax.runs.metric_log._PART_BYTES", 200)
    log = MetricLog(bucket, -1)
    for step in range(40):
        log.scalars(step, {"train/loss": float(step)})
        log.sync()
    log.close()
    parts = sorted(path.name for path in bucket.glob("metrics*"))
    assert len(parts) > 4
    assert max(count for name, count in written.items()) <= 8
    assert all(path.read_bytes().endswith(b"\n") for path in bucket.glob("metrics*"))
    steps = lambda: [line["step"] for line in read_metrics(bucket / "metrics.jsonl")]
    assert steps() == list(range(40))
    again = MetricLog(bucket, 16)
    assert steps() == list(range(17))
    again.scalars(17, {"train/loss": 0.0})
    again.close()
    assert steps() == list(range(18))
    MetricLog(bucket, -1).close()
    assert steps() == []
    assert [path.name for path in bucket.glob("metrics*")] == ["metrics.jsonl"]


def test_the_log_of_a_step_is_there_before_its_checkpoint(bucket, tmp_path, monkeypatch):
    """Saving waits for the log, and for nothing else does the loop wait."""
    from sft_jax.runs.checkpoints import Checkpoints
    from sft_jax.runs.result import read_result
    from sft_jax.training import run, trial
    from tests import tiny

    seen = {}

    class Watched(Checkpoints):
        def save(self, step, *what):
            seen[step] = read_metrics(bucket / "metrics.jsonl")[-1]["step"]
            super().save(step, *what)

    # orbax writes to buckets with libraries of its own, so checkpoints go into a local directory.
    local = lambda workdir, *arguments, **named: Watched(trial.epath.Path(tmp_path / "local"), *arguments, **named)
    monkeypatch.setattr(trial, "Checkpoints", local)
    config = tiny.config(tmp_path, **{"checkpoint.every": "1 steps", "duration": "3 steps"})
    assert run(config, bucket).step == 3
    assert seen == {1: 1, 2: 2, 3: 3}
    assert read_result(bucket).state == "finished"
