"""How far a run of a sweep is: `status.json` in its directory, written by whoever executes it.

It says what `result.json` cannot: that a run is being computed, where, and in which attempt. What has ended well is
said by the result alone, so that nothing finished is computed again, whatever became of the status.
"""

import dataclasses
import datetime
import json
import os
import socket
from pathlib import Path
from typing import Any, Literal, get_args

from etils import epath

from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import STATUS, WorkdirError, write_whole

State = Literal["waiting", "running", "paused", "finished", "failed", "interrupted"]
Launcher = Literal["local", "slurm", "stacked"]


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """What is known of a run.

    Attributes:
        state: `waiting` before its first attempt; `interrupted` and `failed` runs can go on, and `paused` ones, which
            a search has left where they are.
        attempts: how often it was started, this attempt included.
        pid: of the process that executes it, or did.
        host: that process is on.
        launcher: that started it.
        started: when the latest attempt was, in ISO 8601 with seconds.
        ended: when it ended; None while it runs.
        error: why it failed.
        lost: how often, since it was submitted, one of its processes died and it went back into a queue.
    """

    state: State = "waiting"
    attempts: int = 0
    pid: int | None = None
    host: str | None = None
    launcher: Launcher = "local"
    started: str | None = None
    ended: str | None = None
    error: str | None = None
    lost: int = 0

    def begun(self, launcher: Launcher) -> "RunStatus":
        """The status of the next attempt, in this process."""
        here = (os.getpid(), socket.gethostname())
        return RunStatus("running", self.attempts + 1, *here, launcher, now(), lost=self.lost)

    def ended_as(self, state: State, error: str | None = None) -> "RunStatus":
        """The status of this attempt at its end."""
        return dataclasses.replace(self, state=state, ended=now(), error=error)


def write_status(directory: epath.PathLike, status: RunStatus) -> None:
    """Writes the status of a run into its directory, whole; makes the directory where there is none."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / STATUS, json.dumps(dataclasses.asdict(status), indent=2) + "\n")


def read_status(directory: epath.PathLike) -> RunStatus:
    """The status of a run as it is now.

    A run whose result says that it is done is finished. One that was `running` in a process of this host that is gone
    is interrupted.

    Raises:
        WorkdirError: `status.json` or `result.json` is damaged; says what to do.
    """
    directory = epath.Path(directory)
    status = _as_written(directory / STATUS)
    result = read_result(directory)
    if result is not None and result.done:
        return dataclasses.replace(status, state="finished", error=None)
    if status.state == "finished":  # there is no result that says so
        return dataclasses.replace(status, state="interrupted")
    if status.state == "running" and status.host == socket.gethostname() and not _is_alive(status):
        return dataclasses.replace(status, state="interrupted")
    return status


def _as_written(path: epath.Path) -> RunStatus:
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError:
        return RunStatus()
    except ValueError as error:
        raise _damaged(path, f"it is not valid JSON ({error})") from error
    names = {field.name for field in dataclasses.fields(RunStatus)}
    if not isinstance(values, dict) or values.keys() != names:
        raise _damaged(path, f"expected an object with {', '.join(sorted(names))}")
    if wrong := [name for name, right in _right(values).items() if not right]:
        raise _damaged(path, f"{wrong[0]} is {values[wrong[0]]!r}")
    return RunStatus(**values)


def _right(values: dict[str, Any]) -> dict[str, bool]:
    """Which values are of their kind."""
    is_count = lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0
    texts = {name: values[name] is None or isinstance(values[name], str) for name in ("host", "error")}
    times = {name: values[name] is None or _is_time(values[name]) for name in ("started", "ended")}
    return {
        "state": values["state"] in get_args(State),
        "attempts": is_count(values["attempts"]),
        "pid": values["pid"] is None or is_count(values["pid"]),
        "launcher": values["launcher"] in get_args(Launcher),
        **texts,
        **times,
    }


def _is_time(value: Any) -> bool:
    try:
        return datetime.datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _damaged(path: epath.Path, why: str) -> WorkdirError:
    return WorkdirError(f"{path} is damaged: {why}. Remove it: the run then goes on from its latest checkpoint.")


def _is_alive(status: RunStatus) -> bool:
    """True where the process that wrote the status still runs; another one that got its number since does not count."""
    if status.pid is None:
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    born = _born(status.pid)
    return born is None or status.started is None or born <= datetime.datetime.fromisoformat(status.started).timestamp()


def _born(pid: int) -> float | None:
    """When a process was started, in seconds since the epoch; None on systems that do not say.

    To the second below: statuses have no fractions either.
    """
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        booted = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, StopIteration):
        return None
    return float(int(booted.split()[1]) + ticks // os.sysconf("SC_CLK_TCK"))


def now() -> str:
    """The time, in ISO 8601 with seconds."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
