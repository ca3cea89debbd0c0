"""Progress on the terminal: a bar with an ETA, or plain lines where the output is not a terminal."""

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_PLAIN_SECONDS = 10.0


class ProgressBar:
    """A bar over a known number of things; `update` may be called as often as one likes."""

    def __init__(self, title: str, total: int, done: int = 0, console: Console | None = None, enabled: bool = True):
        """Prepares the bar; use it as a context manager.

        Args:
            title: what goes on.
            total: how many there are; 0 where nobody knows.
            done: how many were done before (a resumed run).
            console: by default the terminal.
            enabled: False prints nothing (processes but the first).
        """
        self._console = console or Console()
        self._title, self._total, self._first = title, total, done
        self._bar = None
        self._enabled = enabled
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=total or None, completed=done, note="")
        self._started = self._printed = time.monotonic()

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        self._started = self._printed = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "", within: bool = False) -> None:
        """Shows that `done` things are done; `within` one of them, nothing has ended yet."""
        if not self._enabled:
            return
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
            return
        now = time.monotonic()
        if now - self._printed >= _PLAIN_SECONDS or (done >= self._total > 0 and not within):
            rate = (done - self._first) / max(now - self._started, 1e-9)
            left = _clock((self._total - done) / rate) if rate > 0 else "?"
            known = f"{done}/{self._total} {note} ETA {left}"
            line = f"{self._title} {known if self._total else f'{done} {note} {rate:,.0f}/s'}"
            self._console.print(line.replace("  ", " "), soft_wrap=True)
            self._printed = now

    def __call__(self, done: int, total: int) -> None:
        """The form in which lower layers report: (done, in all)."""
        self.update(done)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def figures(pairs: Iterable[tuple[str, str]]) -> str:
    """`loss 0.512  1,203 tok/s` from names and values."""
    return "  ".join(f"{name} {value}".strip() for name, value in pairs)


class ProgressBars:
    """One bar after the other, for work in several parts; a context manager."""

    def __init__(self, console: Console):
        self._console, self._bar = console, None

    def __enter__(self) -> "ProgressBars":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.__exit__(kind, error, trace)

    def __call__(self, title: str, total: int) -> ProgressBar:
        """Ends the bar before, and starts one that is called with (done, in all)."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = ProgressBar(title, total, console=self._console).__enter__()
        return self._bar
