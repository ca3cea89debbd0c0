"""Training in a process of its own, for `tests.children`: the tiny model, and what happens to its process.

Its config is that of `tests.tiny:config`, or of another such function that `config` names. The process ends itself
with SIGKILL, or fails, at a chosen moment of a chosen step. With `stacked`, a list of overrides, and `workdirs`,
several runs train in one program.
"""

import os
import pkgutil
import signal
import time
from pathlib import Path

import jax

import tests.training.poison  # noqa: F401  registers its objective
from sft_jax.training import run
from sft_jax.training.stacked import run_stacked
from tests.training import moments


def train(spec: dict) -> dict | None:
    """At which step the run ended, and by which signal."""
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
    config = pkgutil.resolve_name(spec.get("config", "tests.tiny:config"))
    if "stacked" in spec:
        configs = [config(Path(spec["root"]), spec["arg"], **overrides) for overrides in spec["stacked"]]
        run_stacked(configs, spec["workdirs"])
        return None
    made = config(Path(spec["root"]), spec.get("arg", "full"), **spec.get("overrides", {}))
    result = run(made, spec["workdir"], devices=devices)
    jax.distributed.shutdown()  # waits for the others
    return {"step": result.step, "interrupted": result.interrupted}
