"""A worker of the local launcher: a process that takes runs one after the other, and keeps what they share.

The launcher writes to its standard input, it answers on its standard output, a JSON object a line each:

    {"run": name}                                   -> {"run": name, "total_steps": n} once that is known
                                                    -> {"run": name, "state": "finished", "error": null} at its end
    {"stop": true}                                  -> the run in progress is saved and ends as interrupted
    (the end of the input)                             the same: the launcher is gone, and nothing trains on without it

Before the first run stands `{"ready": true}`. What runs print goes elsewhere (`executing.py`).
"""

import contextlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from sft_jax.leaving import leave

Answer = Callable[[dict[str, Any]], None]
Ended = tuple[str, str | None]  # the state of a run, and why it failed


def serve(execute: Callable[[str, Answer], Ended]) -> None:
    """Executes the runs that the launcher names, until it asks to stop or is gone.

    Args:
        execute: given the name of a run and what sends an answer on the way, says how it ended. SIGTERM, when the
            launcher asks for an end, is for it to handle; elsewhere it raises SystemExit.
    """
    asked, answers = os.dup(0), os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the launcher
    signal.signal(signal.SIGTERM, leave)

    def answer(message: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # there is nobody any more; the thread below ends this process
            answers.write(json.dumps(message) + "\n")

    names: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked, names), daemon=True).start()
    answer({"ready": True})
    state = ""
    while state != "interrupted":
        name = names.get()
        try:
            state, error = execute(name, answer)
        except (SystemExit, KeyboardInterrupt):
            state, error = "interrupted", None
        answer({"run": name, "state": state, "error": error})


def _listen(asked: int, names: "queue.SimpleQueue[str]") -> None:
    """Hands on names of runs; at the end of the input, or where it says so, has this process leave in good order.

    Reads the file descriptor itself: a thread inside a buffered reader would keep the process from ending.
    """
    text = b""
    while piece := os.read(asked, 1 << 16):
        *lines, text = (text + piece).split(b"\n")
        for message in map(json.loads, lines):
            if "stop" in message:
                os.kill(os.getpid(), signal.SIGTERM)
                return
            names.put(message["run"])
    os.kill(os.getpid(), signal.SIGTERM)


def main(root: str, keep_bytes: int, stop_after: int | None) -> None:
    """Serves the runs of the sweep in `root`; see `Shared` for `keep_bytes`, `execute` for `stop_after`."""
    from sft_jax.compilations import keep_compilations
    from sft_jax.sweeps.directory import open_sweep
    from sft_jax.sweeps.executing import execute
    from sft_jax.sweeps.shared import Shared

    sweep = open_sweep(root)
    runs, shared = {run.name: run for run in sweep.runs}, Shared(keep_bytes)
    keep_compilations()

    def one(name: str, answer: Answer) -> Ended:
        on_start = lambda total_steps: answer({"run": name, "total_steps": total_steps})
        end = execute(runs[name], sweep.run_dir(name), shared, stop_after=stop_after, on_start=on_start)
        return end.state, end.error

    serve(one)


if __name__ == "__main__":
    _root, _keep_bytes, _stop_after = sys.argv[1:]
    main(_root, int(_keep_bytes), int(_stop_after) if _stop_after else None)
