"""Metrics of a run: `metrics.jsonl`, one object a line, and TensorBoard, whose event files lie beside it.

TensorBoard names a run by the directory of its event files. Its axis is the step, or time; so that runs with batches
of other sizes can be compared, the main losses are there once more against tokens (`by_tokens/train/loss`: the "step"
is the number of tokens) and against supervised tokens.

After a restart both are cut back to the step of the checkpoint, so that the history has neither gap nor repeat. In a
bucket nothing can be appended: there the log is written locally, and copied (`uploads.py`) in parts of bounded size,
`metrics.jsonl`, `metrics.00001.jsonl`, …, of which only the last is ever written anew.
"""

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from sft_jax.runs.uploads import Uploads
from sft_jax.runs.workdir import is_remote, write_whole

FILE = "metrics.jsonl"
_PROFILES = "plugins"  # below the run directory, where JAX's profiler writes
_COUNTERS = ("tokens", "supervised_tokens")  # of `progress/`
_BY_COUNTERS = ("train/loss", "held_out/loss", "held_out/nll")
_FLUSH_SECONDS = 20.0
_PART_BYTES = 1 << 20  # a file of the log in a bucket, which is written anew as it grows, is continued in another


def read_metrics(path: epath.PathLike) -> list[dict]:
    """The lines of a metrics file and of its continuations, if it has any.

    A torn last line (a writer killed in the middle of it) is left out.

    Raises:
        ValueError: a line before the last of a file is not a JSON object with a `step`.
    """
    return [line for part in _parts(epath.Path(path)) for line in _read_part(part)]


def _parts(path: epath.Path) -> list[epath.Path]:
    """`metrics.jsonl`, `metrics.00001.jsonl`, …"""
    return [path, *sorted(path.parent.glob(f"{path.stem}.{'[0-9]' * 5}{path.suffix}"))]


def _part_name(number: int) -> str:
    return FILE.replace(".", f".{number:05d}.") if number else FILE


def _cut_back(path: epath.Path, step: int) -> int:
    """Removes the lines after `step`, the last first; in how many files the others are."""
    parts = _parts(path) if path.exists() else []
    while parts:
        part = parts[-1]
        kept = "".join(json.dumps(line) + "\n" for line in _read_part(part) if line["step"] <= step)
        if kept:
            write_whole(part, kept)
            break
        part.unlink()
        parts.pop()
    return len(parts)


def _read_part(path: epath.Path) -> list[dict]:
    lines = path.read_text().split("\n")
    records = []
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            record = json.loads(line)
            record["step"]
        except (json.JSONDecodeError, TypeError, KeyError):
            if number == len(lines):  # no newline after it: torn
                break
            raise ValueError(f"{path}:{number}: not a JSON object with a step: {line[:80]!r}") from None
        records.append(record)
    return records


class _EventFile:
    """A new TensorBoard event file in a directory.

    Written in place: `tensorboardX.SummaryWriter` hands events to a thread, and its `flush` does not wait for that.
    """

    def __init__(self, directory: Path, purge_step: int):
        """Events of earlier files from `purge_step` on are no longer shown."""
        from tensorboardX import event_file_writer, summary  # slow to import: with torch, where that is installed
        from tensorboardX.proto import event_pb2

        directory.mkdir(parents=True, exist_ok=True)
        self._summary, self._event, self._open = summary, event_pb2.Event, event_file_writer.EventsWriter
        self._prefix, self._number = str(directory / "events"), 0
        self._writer = self._open(self._prefix)
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))

    @property
    def path(self) -> Path:
        """The file that is written now."""
        return Path(self._writer._file_name)

    def go_on_in_another(self) -> None:
        """What comes goes into a file of its own, which TensorBoard reads after this one."""
        self._writer.close()
        self._number += 1
        self._writer = self._open(self._prefix, f".{self._number:05d}")

    def scalar(self, step: int, name: str, value: float) -> None:
        """A number at a step."""
        self._add(step, self._summary.scalar(name, value))

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text at a step."""
        self._add(step, self._summary.text(name, markdown))

    def _add(self, step: int, values: Any) -> None:
        self._writer.write_event(self._event(wall_time=time.time(), step=step, summary=values))

    def flush(self) -> None:
        """Everything added is in the file when this returns."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes and closes the file."""
        self._writer.close()


class MetricLog:
    """Writes scalars and texts of a run; one process only."""

    def __init__(self, workdir: epath.Path, resume_step: int):
        """Opens the log, cut back to `resume_step`.

        Args:
            workdir: run directory.
            resume_step: steps done in the checkpoint that the run continues from; -1 for a run that starts afresh.
        """
        remote = is_remote(workdir)
        self._local = Path(tempfile.mkdtemp(prefix="sft_jax_log_")) if remote else Path(workdir)
        self._uploads = Uploads(self._local, workdir) if remote else None
        before = _cut_back(workdir / FILE, resume_step)
        self._number = before if remote else max(before - 1, 0)  # a run copied from a bucket has several
        self._path = self._local / _part_name(self._number)
        self._file = self._path.open("a")
        self._tensorboard = _EventFile(self._local, resume_step + 1)
        for line in read_metrics(workdir / FILE) if before else ():
            self._by_counters(line["step"], line, hidden_from=resume_step + 1)
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics. Numbers that are not finite are written as null, which JSON can hold."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        for name, value in values.items():
            self._tensorboard.scalar(step, name, value)
        self._by_counters(step, values)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def _by_counters(self, step: int, values: Mapping[str, float | None], hidden_from: int = 0) -> None:
        """The main losses against what was seen until then.

        After a restart those are written again that TensorBoard hides: it takes their tokens for steps after the cut.
        """
        for counter in _COUNTERS:
            seen = 0 if step == 0 else values.get(f"progress/{counter}")
            for name in _BY_COUNTERS:
                if seen is not None and seen >= hidden_from and values.get(name) is not None:
                    self._tensorboard.scalar(int(seen), f"by_{counter}/{name}", values[name])

    @property
    def tensorboard_dir(self) -> Path:
        """Local directory of the event files, where a profile goes too: the run directory, or its copy here."""
        return self._local

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard."""
        self._tensorboard.text(step, name, markdown)

    def write(self, name: str, text: str) -> None:
        """A file of the run directory, whole; in a bucket it appears with the lines written so far."""
        write_whole(self._local / name, text)
        if self._uploads is not None:
            self._uploads.changed(self._local / name)

    def profile_written(self) -> None:
        """There is a new profile below `tensorboard_dir`."""
        if self._uploads is not None:
            for path in (path for path in (self.tensorboard_dir / _PROFILES).rglob("*") if path.is_file()):
                self._uploads.changed(path)

    def flush(self) -> None:
        """Makes everything written so far durable on this machine, and begins to copy it where it belongs."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        self._flushed = time.monotonic()
        if self._uploads is not None:
            self._uploads.changed(self._path)
            self._uploads.changed(self._tensorboard.path)
            self._uploads.start()
            self._bound_files()

    def sync(self) -> None:
        """Flushes; returns when everything written so far is in the run directory, wherever that is.

        Raises:
            OSError: the bucket does not take it.
        """
        self.flush()
        if self._uploads is not None:
            self._uploads.finish()

    def _bound_files(self) -> None:
        """Continues files that are large in others: what is in a bucket has to be written anew to grow."""
        if self._path.stat().st_size >= _PART_BYTES:
            self._file.close()
            self._number += 1
            self._path = self._local / _part_name(self._number)
            self._file = self._path.open("a")
        if self._tensorboard.path.stat().st_size >= _PART_BYTES:
            self._tensorboard.go_on_in_another()

    def close(self) -> None:
        """Syncs and closes."""
        self.flush()
        self._file.close()
        self._tensorboard.close()
        if self._uploads is not None:
            self._uploads.close()
            shutil.rmtree(self._local)
