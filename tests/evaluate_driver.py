"""`python -m sft_jax.evaluate` as often as told, from one process: `evaluate_driver.py '[{"arguments": [...], …}, …]'`.

Each is a child of a process that has imported everything and started nothing, because imports take longer than tiny
models. Prints how each ended: its status, what it wrote, and how many prompts it had to write to and to judge.
"""

import atexit
import json
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import jax
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import sft_jax.evaluation.report.write
import sft_jax.evaluation.side_by_side
import sft_jax.runs.training_cost  # noqa: F401  all of these are imported by the command too
from sft_jax import commands, evaluate
from tests.evaluation.asking import count_computed


def evaluated(spec: dict, counts_file: Path) -> int:
    """The status that the command ends with."""
    jax.config.update("jax_num_cpu_devices", spec.get("devices", 1))
    sys.argv = ["evaluate", *spec["arguments"]]
    counts = count_computed(pytest.MonkeyPatch())
    try:
        commands.run(evaluate.main, several_processes=True)
    except SystemExit as end:
        return end.code or 0
    finally:
        counts_file.write_text(json.dumps(counts))
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()  # os._exit would not: processes of a distributed run leave together
    return 0


def end_of(spec: dict) -> dict:
    directory = Path(tempfile.mkdtemp())  # a TemporaryDirectory would go when the child ends
    output, counts = directory / "output", directory / "counts"
    if not (child := os.fork()):
        written = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1)
        os.dup2(written, 2)
        status = 1
        try:
            status = evaluated(spec, counts)
        finally:  # an error goes the way of Python's own: its traceback, and status 1
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    computed = json.loads(counts.read_text()) if counts.exists() else None
    end = {"status": status, "output": output.read_text(), "computed": computed}
    shutil.rmtree(directory)
    return end


if __name__ == "__main__":
    print(json.dumps([end_of(spec) for spec in json.loads(sys.argv[1])]))
