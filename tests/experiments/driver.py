"""An experiment as a person calls it, in one process: `driver.py MODULE [arguments]` is `python -m MODULE arguments`.

The commands that it runs are children of a process that has imported everything and started nothing, because imports
take longer than tiny models.
"""

import os
import runpy
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path

from absl.testing import flagsaver

sys.path.insert(0, str(Path(__file__).parents[2]))

import sft_jax.commands
import sft_jax.evaluation.report.write
import sft_jax.evaluation.side_by_side
import sft_jax.runs.training_cost
import sft_jax.training  # noqa: F401  all of these are imported by the commands too
from experiments import commands
from sft_jax import reading_flags, scorer_flags  # noqa: F401

# Those of modules that stay imported. What a command defines beside them an experiment may define too.
_FLAGS = flagsaver.save_flag_values()


class Forked:
    """In the place of `subprocess.Popen`: `[python, "-m", module, *arguments]` in a child of this process."""

    def __init__(self, command: Sequence[str]):
        _, _, module, *arguments = command
        sys.stdout.flush()
        self._child = os.fork()
        if not self._child:
            status = 1
            try:
                status = _status_of(module, arguments)
            finally:  # an error goes the way of Python's own: its traceback, and status 1
                if sys.exc_info()[0] is not None:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])


def _status_of(module: str, arguments: Sequence[str]) -> int:
    flagsaver.restore_flag_values(_FLAGS)  # without those of the experiment, and what it set
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    commands.subprocess = types.SimpleNamespace(Popen=Forked)
    module, *given = sys.argv[1:]
    sys.argv = [module, *given]
    runpy.run_module(module, run_name="__main__")
