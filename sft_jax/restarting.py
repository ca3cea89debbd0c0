"""Starts a process of a run again when it, or another one, has died: what `--restarts` asks for.

The command only watches: it starts itself as a child that trains. Where all hosts do so, one process that is killed
ends the others (`peers.py`), all are started again, find one another as before, and go on from the last checkpoint.
Where the command that watches is killed itself, nobody would start the child again, or pass a signal on to it: on Linux
it then gets SIGTERM, saves and ends.
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from types import FrameType

from sft_jax.peers import GONE

SUPERVISOR = "SFT_JAX_SUPERVISOR"  # in the environment of a child: the process that watches it
_PR_SET_PDEATHSIG = 1  # of prctl(2)
PAUSE_SECONDS = 5.0  # before it starts again: in that time the others notice that it was gone, and end


def supervise(command: Sequence[str], restarts: int) -> int:
    """Executes a command; again, from the start, where it or another process of its run has died.

    It is started again when it ended with `GONE` or by a signal, not when it ended by itself, with an error or without.
    SIGTERM and SIGINT are passed on to it, and then it is not started again.

    Args:
        command: with its arguments.
        restarts: at most.

    Returns:
        the exit status of the last one; 128 and the number of the signal that ended it.
    """
    asked, child = threading.Event(), None
    environment = os.environ | {SUPERVISOR: str(os.getpid())}

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.set()
        if child is not None and child.poll() is None:
            child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for attempt in range(restarts + 1):
            # Ctrl-C is for this process, which passes it on.
            child = subprocess.Popen(command, start_new_session=True, env=environment)
            status = child.wait()
            if asked.is_set() or not (status == GONE or status < 0) or attempt == restarts:
                break
            again = f"starting again from the last checkpoint ({attempt + 1} of {restarts})"
            sys.stderr.write(f"{_ended(status)}; {again}\n")
            if asked.wait(PAUSE_SECONDS):
                break
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def end_with_supervisor() -> None:
    """Asks for SIGTERM when the process that watches this one ends, however that does; called as this one starts.

    Nothing happens where none watches it, and elsewhere than on Linux. What this process starts is not watched.

    Raises:
        OSError: the system refuses it.
    """
    supervisor = os.environ.pop(SUPERVISOR, None)
    if supervisor is None or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_PDEATHSIG): {os.strerror(number)}")
    if os.getppid() != int(supervisor):  # it ended before this one asked
        os.kill(os.getpid(), signal.SIGTERM)


def _ended(status: int) -> str:
    if status == GONE:
        return "another process is gone"
    as_jax_does = " (as JAX ends a process when process 0 is gone)" if -status == signal.SIGABRT else ""
    return f"killed by {signal.Signals(-status).name}{as_jax_does}"


def this_command() -> list[str]:
    """The command line of this process, of a child that is not to watch another one."""
    module = sys.modules["__main__"].__spec__
    started_as = ["-m", module.name] if module is not None else [os.path.abspath(sys.argv[0])]
    return [sys.executable, *started_as, *sys.argv[1:], "--restarts=0"]
