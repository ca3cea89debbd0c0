"""`python -m sft_jax.train`, ended by SIGKILL at a step; once, as the file shows that `KILLED_ONCE` names."""

import os
import signal
from pathlib import Path

from absl import flags

from sft_jax import commands, train
from tests.training import moments

STEP = 5


def main(arguments: list[str]) -> None:
    """Trains, and may be killed."""
    killed = os.environ.get("KILLED_ONCE")

    def end() -> None:
        Path(killed).touch()
        os.kill(os.getpid(), signal.SIGKILL)

    if killed and not Path(killed).exists():
        moments.at("dispatch", STEP, end)
    train.main(arguments)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    commands.run(main, several_processes=True)
