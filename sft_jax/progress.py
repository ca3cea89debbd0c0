"""Progress on the terminal: a bar with an ETA, or plain lines where the output is not a terminal."""

import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)

_PLAIN_SECONDS = 10.0
_WIDE = 100  # characters; where there are fewer, what is left matters more than what has passed


class Pace:
    """How fast it goes, for the time that is left.

    Of things that are counted the first to end is left out with all before it: that is where programs are compiled, and
    after a resume it is so again. A share begins to count at once: what is read and tokenized compiles nothing.
    """

    def __init__(self, done: float, counts_first: bool):
        """Begins now, with so much done; `counts_first`: what is done next counts."""
        self._at = done
        self._since: float | None = time.monotonic() if counts_first else None

    def left(self, done: float, total: float) -> float | None:
        """Seconds from `done` to `total`; None where nobody can know yet."""
        now = time.monotonic()
        if done >= total:
            return 0.0
        if self._since is None:
            if done > self._at:
                self._at, self._since = done, now
            return None
        rate = (done - self._at) / max(now - self._since, 1e-9)
        return (total - done) / rate if rate > 0 else None


class ProgressBar:
    """A bar over a known number of things, or over a share; `update` may be called as often as one likes."""

    def __init__(
        self, title: str, total: int | None, done: int = 0, console: Console | None = None, enabled: bool = True
    ):
        """Prepares the bar; use it as a context manager.

        Args:
            title: what goes on.
            total: how many there are; 0 where nobody knows; None where a share is known, from 0 to 1.
            done: how many were done before (a resumed run).
            console: by default the terminal.
            enabled: False prints nothing (processes but the first).
        """
        self._console = console or Console()
        self._title, self._first = title, done
        self._is_share, self._total = total is None, 1 if total is None else total
        self._bar = None
        self._enabled = enabled
        if enabled and self._console.is_terminal:
            wide = self._console.width >= _WIDE
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24 if wide else 6),
                TaskProgressColumn() if self._is_share else MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                *([TimeElapsedColumn()] if wide else []),
                TextColumn("ETA {task.fields[left]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=self._total or None, completed=done, note="", left="?")
        self._begin()

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        self._begin()
        return self

    def _begin(self) -> None:
        self._started = self._printed = time.monotonic()
        self._pace = Pace(self._first, counts_first=self._is_share)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: float | None, note: str = "", within: bool = False) -> None:
        """Shows how far it is.

        Args:
            done: so many things, or such a share; None where nobody knows.
            note: what else there is to say.
            within: nothing has ended yet, also where all is done.
        """
        if not self._enabled:
            return
        left = self._left(done)
        if self._bar:
            total = self._total if done is not None and self._total else None
            self._bar.update(self._task, completed=done or 0, total=total, note=note, left=left or "?")
            return
        now = time.monotonic()
        ended = not within and (done is None or done >= self._total > 0)
        if now - self._printed >= _PLAIN_SECONDS or ended:
            words = (self._title, *self._far(done, now), note, left and f"ETA {left}")
            self._console.print(" ".join(word for word in words if word).replace("  ", " "), soft_wrap=True)
            self._printed = now

    def _far(self, done: float | None, now: float) -> list[str]:
        if done is None:
            return []
        if self._is_share:
            return [f"{done:.0%}"]
        return (
            [f"{done}/{self._total}"]
            if self._total
            else [f"{done}", f"{(done - self._first) / max(now - self._started, 1e-9):,.0f}/s"]
        )

    def _left(self, done: float | None) -> str:
        """In what time it will be done; empty where it is not even known how far it is."""
        if done is None or not self._total:
            return ""
        seconds = self._pace.left(done, self._total)
        return "?" if seconds is None else clock(seconds)

    def __call__(self, done: int, total: int) -> None:
        """The form in which lower layers report: (done, in all)."""
        self.update(done)


def silent(title: str, total: int | None) -> ProgressBar:
    """A bar that shows nothing."""
    return ProgressBar(title, total, enabled=False)


def clock(seconds: float) -> str:
    """`1:02:03`."""
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

    def __call__(self, title: str, total: int | None) -> ProgressBar:
        """Ends the bar before, and starts one; see there for `total`."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)
        self._bar = ProgressBar(title, total, console=self._console).__enter__()
        return self._bar
