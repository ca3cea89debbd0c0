"""Metrics of a run: `metrics.jsonl`, one object a line, and TensorBoard.

After a restart both are cut back to the step of the checkpoint, so that the history has neither gap nor repeat. In a
bucket, where nothing can be appended, files are kept locally and written whole at each flush.
"""

import json
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from etils import epath

from sft_jax.training.workdir import is_remote, write_whole

FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_FLUSH_SECONDS = 20.0


def read_metrics(path: epath.PathLike) -> list[dict]:
    """The lines of a metrics file; a torn last line (a writer killed in the middle of it) is left out.

    Raises:
        ValueError: a line before the last is not a JSON object with a `step`.
    """
    lines = epath.Path(path).read_text().split("\n")
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
        self._summary, self._event = summary, event_pb2.Event
        self._writer = event_file_writer.EventsWriter(str(directory / "events"))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.write_event(self._event(wall_time=time.time(), step=purge_step, session_log=start))

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
        self._remote = workdir if is_remote(workdir) else None
        self._local = Path(tempfile.mkdtemp(prefix="sft_jax_log_")) if self._remote else Path(workdir)
        before = workdir / FILE
        kept = [line for line in read_metrics(before) if line["step"] <= resume_step] if before.exists() else []
        self._path = self._local / FILE
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a")
        self._tensorboard = _EventFile(self._local / TENSORBOARD, resume_step + 1)
        self._flushed = time.monotonic()

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One line of metrics. Numbers that are not finite are written as null, which JSON can hold."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **clean}) + "\n")
        for name, value in values.items():
            self._tensorboard.scalar(step, name, value)
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    @property
    def tensorboard_dir(self) -> Path:
        """Local directory of the event files, where a profile goes too."""
        return self._local / TENSORBOARD

    def text(self, step: int, name: str, markdown: str) -> None:
        """A text for TensorBoard."""
        self._tensorboard.text(step, name, markdown)

    def flush(self) -> None:
        """Makes everything written so far durable."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._tensorboard.flush()
        self._flushed = time.monotonic()
        if self._remote is not None:
            for path in (p for p in self._local.rglob("*") if p.is_file()):
                target = self._remote / path.relative_to(self._local).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        self._file.close()
        self._tensorboard.close()
        if self._remote is not None:
            shutil.rmtree(self._local)
