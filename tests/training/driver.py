"""Training processes for the tests that need some of their own: `driver.py '[{"root": …, "workdir": …, …}, …]'`.

Each trains the tiny model, and ends itself with SIGKILL, or fails, at a chosen moment of a chosen step. They come one
after the other, as children of a process that has imported everything and started nothing: imports take longer than
training. With `stacked`, a list of overrides, and `workdirs`, several runs train in one program.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.training.poison  # noqa: F401  registers its objective
from sft_jax.training import run
from sft_jax.training.stacked import run_stacked
from tests import tiny
from tests.training import moments


def train(spec: dict) -> None:
    jax.config.update("jax_num_cpu_devices", spec.get("devices", 8))
    if "coordinator" in spec:
        jax.distributed.initialize(spec["coordinator"], spec.get("processes", 2), spec["process"])
    devices = None
    if "device_order" in spec:  # as devices may be arranged by how they are wired
        devices = [jax.devices()[number] for number in spec["device_order"]]

    def end() -> None:
        if "error" in spec:
            raise OSError(spec["error"])
        if "torn" in spec:
            with (Path(spec["workdir"]) / "metrics.jsonl").open("a") as file:
                file.write(spec["torn"])
        time.sleep(spec.get("delay", 0.0))
        os.kill(os.getpid(), getattr(signal, spec.get("signal", "SIGKILL")))

    if "moment" in spec:
        moments.at(spec["moment"], spec["step"], end)
    os.chdir(spec.get("cwd", "."))
    if "stacked" in spec:
        configs = [tiny.config(Path(spec["root"]), spec["arg"], **overrides) for overrides in spec["stacked"]]
        run_stacked(configs, spec["workdirs"])
        return
    config = tiny.config(Path(spec["root"]), spec.get("arg", "full"), **spec.get("overrides", {}))
    result = run(config, spec["workdir"], devices=devices)
    print(json.dumps({"step": result.step, "interrupted": result.interrupted}), flush=True)
    jax.distributed.shutdown()  # waits for the others


def main(specs: list[dict]) -> None:
    """Prints how each ended, as `subprocess` would say it."""
    codes = []
    for spec in specs:
        if not (child := os.fork()):
            train(spec)
            os._exit(0)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    print(json.dumps(codes))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
