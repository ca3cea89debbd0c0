"""A worker of the local launcher that trains, and on which trouble comes: `troubled_worker.py '{RUN: TROUBLE}' ROOT …`.

kill worker     SIGKILL in the middle of the checkpoint of step 4
kill launcher   SIGKILL for its parent after step 3; the run then waits until it is told to stop
full disk       files cannot grow beyond a few kilobytes, as long as it has the run
"""

import json
import os
import resource
import signal
import sys
import threading
import time

from sft_jax.sweeps import executing
from sft_jax.sweeps.launchers import worker
from sft_jax.training.interrupt import StopRequest
from tests.training import moments

_LIMIT = 6000  # bytes: configs and status fit, checkpoints do not
_troubles = json.loads(sys.argv.pop(1))
_current = ""
_asked_to_stop = threading.Event()
_execute, _note = executing.execute, StopRequest._note


def execute(run, *arguments, **options):
    global _current
    _current = run.name
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if _troubles.get(run.name) == "full disk":
        resource.setrlimit(resource.RLIMIT_FSIZE, (_LIMIT, before[1]))
    try:
        return _execute(run, *arguments, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def note(self, number, frame):
    _note(self, number, frame)
    _asked_to_stop.set()


def kill_worker():
    if _troubles.get(_current) == "kill worker":
        os.kill(os.getpid(), signal.SIGKILL)


def kill_launcher():
    if _troubles.get(_current) == "kill launcher":
        os.kill(os.getppid(), signal.SIGKILL)
        while not _asked_to_stop.is_set():
            time.sleep(0.01)


executing.execute, StopRequest._note = execute, note
moments.at("in save", 4, kill_worker)
moments.at("before log", 3, kill_launcher)
_root, _keep_bytes, _stop_after = sys.argv[1:]
worker.main(_root, int(_keep_bytes), int(_stop_after) if _stop_after else None)
