"""A launcher in a process of its own, for tests that end it: `pool_driver.py ROOT WORKERS RUN…`.

It prints what happens, a line each, and last how all ended; its exit status is the signal that it was stopped by.
"""

import json
import sys
from pathlib import Path

from sft_jax.sweeps.launchers.places import places
from sft_jax.sweeps.launchers.pool import Outcome, Pool

STUB = Path(__file__).with_name("stub_worker.py")


class Told:
    """Prints, or keeps, what a pool tells."""

    def __init__(self, say=lambda *words: None):
        self.events, self._say = [], say

    def _hear(self, *words: object) -> None:
        self.events.append(words)
        self._say(*words)

    def started(self, name: str) -> None:
        self._hear("started", name)

    def counted(self, name: str, total_steps: int) -> None:
        self._hear("counted", name, total_steps)

    def lost(self, name: str, outcome: Outcome) -> Outcome:
        self._hear("lost", name)
        return outcome

    def ended(self, name: str, outcome: Outcome, again: bool) -> None:
        self._hear("ended", name, outcome.state, again)

    def stopping(self, number: int) -> None:
        self._hear("stopping", number)

    def note(self, text: str) -> None:
        self._hear("note", text)

    def tick(self) -> None:
        pass


def stub(root: Path, *more: str) -> list[str]:
    return [sys.executable, str(STUB), str(root), *more]


def main(root: Path, workers: int, names: list[str]) -> None:
    pool = Pool(stub(root), places(workers), Told(lambda *words: print(*words, flush=True)), root / "workers.log")
    outcomes = pool.run(names)
    print(json.dumps({name: outcome.state for name, outcome in outcomes.items()}), flush=True)
    sys.exit(pool.stopped_by or 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
