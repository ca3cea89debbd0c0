"""How far the runs of a sweep are, as a person sees it: a live table on a terminal, lines elsewhere.

Step and loss are read of the end of each run's `metrics.jsonl`, where it has grown.
"""

import collections
import dataclasses
import json
import time
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sft_jax.progress import Pace, clock
from sft_jax.runs.metric_log import FILE

_TAIL = 1 << 15  # bytes: some lines of metrics
_LOSS = "train/loss"
_REFRESH_SECONDS = 0.5
_PLAIN_SECONDS = 30.0
_AROUND = 6  # lines of the screen that are not runs
_COLUMNS, _END = 48, 12  # characters: of the other columns, and of the end of a name
_DONE = ("finished", "stopped_early", "paused")
_STYLES = {
    "running": "cyan",
    "starting": "cyan",
    "finished": "green",
    "stopped_early": "green",
    "failed": "red",
    "diverged": "red",
}


class MetricsTail:
    """The latest step and loss of a run; looks at its file only where that has changed, and at its end alone."""

    def __init__(self, directory: Path):
        """Follows the run in a directory, which need not be there yet."""
        self._path = directory / FILE
        self._seen: tuple[int, int] | None = None
        self._latest: tuple[int, float | None] = (0, None)

    def latest(self) -> tuple[int, float | None]:
        """The last step that is logged, and the last loss; (0, None) before there is one."""
        try:
            status = self._path.stat()
            if (now := (status.st_mtime_ns, status.st_size)) != self._seen:
                self._seen = now
                self._read(status.st_size)
        except FileNotFoundError:
            self._latest = (0, None)
        return self._latest

    def _read(self, size: int) -> None:
        with self._path.open("rb") as file:
            file.seek(max(0, size - _TAIL))
            lines = file.read().split(b"\n")
        step, loss = None, None
        for line in reversed(lines):
            try:
                record = json.loads(line)
                step = record["step"] if step is None else step
            except (ValueError, TypeError, KeyError):  # torn: the last, or the first of this piece
                continue
            if _LOSS in record:
                loss = record[_LOSS]
                break
        if step is not None:
            self._latest = (step, loss)


@dataclasses.dataclass
class _Running:
    """A run that a worker has."""

    tail: MetricsTail
    since: float
    total: int = 0
    step: int = 0
    loss: float | None = None
    pace: Pace | None = None

    def look(self) -> None:
        self.step, self.loss = self.tail.latest()
        if self.pace is None and self.total:
            self.pace = Pace(self.step, counts_first=False)

    def left(self) -> float | None:
        """Seconds to its end; None where nobody knows."""
        return self.pace.left(self.step, self.total) if self.pace else None


class Following:
    """Runs by their state, and how long they take; `tick` shows them; a context manager."""

    def __init__(self, root: Path, names: list[str], done: int, workers: int, console: Console):
        """Prepares the display.

        Args:
            root: of the sweep; a run lies in a directory of its name.
            names: of the runs to execute.
            done: how many were done before.
            workers: how many runs go on at a time.
            console: where it is shown.
        """
        self._root, self._console, self._workers, self._before = root, console, workers, done
        self._waiting = collections.OrderedDict.fromkeys(names)
        self._running: dict[str, _Running] = {}
        self._ended: collections.OrderedDict[str, tuple[str, ...]] = collections.OrderedDict()
        self._seconds: collections.deque[float] = collections.deque(maxlen=100)
        self._shown = self._printed = time.monotonic()
        self._title = "running"
        self._live = None
        if console.is_terminal:
            self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> "Following":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def started(self, name: str) -> None:
        """A worker has the run."""
        self._waiting.pop(name, None)
        self._running[name] = _Running(MetricsTail(self._root / name), time.monotonic())
        if not self._live:
            self.say(f"{name}: started")

    def counted(self, name: str, total_steps: int) -> None:
        """Its steps are known."""
        self._running[name].total = total_steps

    def ended(self, name: str, state: str, error: str | None, again: bool) -> None:
        """It ended; `again`: it waits for another attempt."""
        run = self._running.pop(name)
        run.look()
        if again:
            self._waiting[name] = None
        else:
            self._ended[name] = (state, _steps(run), _loss(run), "")
            if state in _DONE:
                self._seconds.append(time.monotonic() - run.since)
        if error is not None or not self._live:
            loss = f"  loss {_loss(run)}" if run.loss is not None else ""
            why = f": {error.strip().splitlines()[-1]}" if error else ""
            more = "; it has another attempt" if again else ""
            self.say(f"{name}: {state} at step {run.step}{loss}{why}{more}")

    def say(self, text: str) -> None:
        """A line that stays."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stopping(self, text: str) -> None:
        """The runs in progress are on their way out."""
        self._title = text
        self.say(text)

    def tick(self) -> None:
        """Shows how far it is, where that was some time ago."""
        now = time.monotonic()
        if self._live and now - self._shown >= _REFRESH_SECONDS:
            self._shown = now
            self._look()
            self._live.update(Group(self._table(), self.summary()), refresh=True)
        elif not self._live and now - self._printed >= _PLAIN_SECONDS:
            self._printed = now
            self._look()
            parts = [f"{name} {_steps(run)}" for name, run in list(self._running.items())[: self._workers]]
            self.say(f"{self.summary()}: {'; '.join(parts)}")

    def _look(self) -> None:
        for run in self._running.values():
            run.look()

    def summary(self) -> str:
        """`3 of 12 done, 1 failed, 2 running, 6 waiting  ETA 0:12:05`."""
        ended = [state for state, *_ in self._ended.values()]
        done = self._before + sum(state in _DONE for state in ended)
        other = collections.Counter(state for state in ended if state not in _DONE)
        in_all = self._before + len(self._ended) + len(self._running) + len(self._waiting)
        counts = [f"{done} of {in_all} done", *(f"{count} {state}" for state, count in sorted(other.items()))]
        counts += [f"{len(self._running)} running", f"{len(self._waiting)} waiting"]
        left = self._left()
        return f"{', '.join(counts)}  ETA {'?' if left is None else clock(left)}"

    def _left(self) -> float | None:
        """Seconds to the end of all; None where nobody can know yet."""
        now = time.monotonic()
        known = [(now - run.since, left) for run in self._running.values() if (left := run.left()) is not None]
        whole = list(self._seconds) or [gone + left for gone, left in known]
        if not whole:
            return None
        mean = sum(whole) / len(whole)
        unknown = [max(0.0, mean - (now - run.since)) for run in self._running.values() if run.left() is None]
        rest = [left for _, left in known] + unknown
        return max([*rest, (sum(rest) + mean * len(self._waiting)) / self._workers])

    def _table(self) -> RenderableType:
        """The runs that fit on the screen: those in progress, the next, and the last that ended."""
        table = Table(box=None, pad_edge=False, title=Text(self._title, style="bold"), title_justify="left")
        table.add_column("run", no_wrap=True)
        for name in ("state", "step", "loss", "ETA"):
            table.add_column(name, justify="right", no_wrap=True)
        room = max(1, self._console.height - _AROUND)
        rows = [self._row(name, run) for name, run in list(self._running.items())[:room]]
        rows += [(name, *cells) for name, cells in list(reversed(self._ended.items()))[: max(0, room - len(rows))]]
        rows += [(name, "waiting", "", "", "") for name in list(self._waiting)[: max(0, room - len(rows))]]
        for name, state, *cells in rows:
            style = _STYLES.get(state, "dim")
            table.add_row(Text(self._fitted(name)), Text(state, style=style), *map(Text, cells))
        return table

    def _fitted(self, name: str) -> str:
        """A name in the width that the other columns leave; its end, which tells runs apart, is kept."""
        room = max(_END + 2, self._console.width - _COLUMNS)
        return name if len(name) <= room else f"{name[: room - _END - 1]}…{name[-_END:]}"

    def _row(self, name: str, run: _Running) -> tuple[str, ...]:
        left = run.left()
        state = "running" if run.total else "starting"
        return name, state, _steps(run), _loss(run), "?" if left is None else clock(left)


def _steps(run: _Running) -> str:
    return f"{run.step}/{run.total or '?'}"


def _loss(run: _Running) -> str:
    return "" if run.loss is None else f"{run.loss:.4f}"
