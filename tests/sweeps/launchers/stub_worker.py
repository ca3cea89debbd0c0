"""A worker that trains nothing: `stub_worker.py ROOT`. What a run does stands in its name, before the first `-`.

    ok        ends as finished
    fail      fails
    diverge   ends as diverged
    kill      its worker is killed; again=N: by the attempt N it is well
    hang      goes on until it is stopped
    deaf      goes on whatever comes, but SIGKILL
    last      is killed when its result is there

Each attempt is a line of ROOT/attempts.txt, and holds a lock on ROOT/NAME.lock while it is in progress.
"""

import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

from sft_jax.sweeps.launchers import worker

ROOT = Path(sys.argv[1])


def result(name: str, state: str) -> None:
    """What training would write, without the seconds that importing JAX takes."""
    directory = ROOT / name
    directory.mkdir(exist_ok=True)
    values = {"state": state, "step": 1, "total_steps": 1, "metrics": {}, "best": None, "counters": {}}
    values |= {"seconds": 0.0, "peak_memory_bytes": None, "error": None}
    (directory / "result.json").write_text(json.dumps(values))


def attempts(name: str) -> int:
    """How often it was begun, this time included."""
    with (ROOT / "attempts.txt").open("a+") as file:
        file.write(f"{name} {os.getpid()} {','.join(map(str, sorted(os.sched_getaffinity(0))))}\n")
        file.flush()
        file.seek(0)
        return [line.split()[0] for line in file].count(name)


def wait(until: float = float("inf")) -> None:
    while time.monotonic() < until:
        time.sleep(0.05)


def execute(name: str, answer: worker.Answer) -> worker.Ended:
    with (ROOT / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return end(name, attempts(name), answer)


def end(name: str, attempt: int, answer: worker.Answer) -> worker.Ended:
    what, *more = name.split("-")[0].split("=")
    if more and attempt >= int(more[0]):
        what = "ok"
    answer({"run": name, "total_steps": 1})
    if what == "fail":
        return "failed", "ValueError: as it was told to"
    if what == "diverge":
        return "diverged", "not finite"
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if what in ("hang", "deaf"):
        (ROOT / f"{name}.there").touch()
        wait()
    result(name, "finished")
    if what == "last":
        os.kill(os.getpid(), signal.SIGKILL)
    return "finished", None


if __name__ == "__main__":
    if "broken" in sys.argv:
        sys.exit("this machine has no such device")
    worker.serve(execute)
