"""Problems of many runs, said once each: `runs 1-4, 7: --config.adapter.rank=0 must be at least 1`."""

from collections.abc import Sequence


class SweepError(ValueError):
    """A sweep that cannot be run as it is stated."""


class Problems:
    """What is wrong in which runs."""

    def __init__(self):
        self._found: dict[str, list[int]] = {}

    def add(self, number: int, error: Exception) -> None:
        """Notes what is wrong in a run; each line of the error is a problem of its own.

        Args:
            number: of the run, from 1.
            error: that says what.
        """
        for problem in str(error).split("\n"):
            self._found.setdefault(problem, []).append(number)

    def refuse(self) -> None:
        """Raises what was found, if anything was.

        Raises:
            SweepError: all problems, each with its runs.
        """
        if self._found:
            raise SweepError("\n".join(f"{runs_text(runs)}: {problem}" for problem, runs in self._found.items()))


def runs_text(numbers: Sequence[int]) -> str:
    """Numbers of runs, ascending.

    >>> runs_text([3]), runs_text([1, 2, 3, 7])
    ('run 3', 'runs 1-3, 7')
    """
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    text = ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in spans)
    return f"run{'s' if len(numbers) > 1 else ''} {text}"
