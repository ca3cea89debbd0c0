"""`--restarts`: what is started again, how often, and what is not."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sft_jax import restarting
from sft_jax.peers import GONE

ROOT = Path(__file__).parents[1]
# Ends as the next word says: a status, or a signal by its name; each time one is used up.
CHILD = """
import os, signal, sys
path = sys.argv[1]
first, *others = open(path).read().split()
open(path, "w").write(" ".join(others))
if first.isdecimal():
    sys.exit(int(first))
if first == "wait":
    open(path + ".waits", "w").close()
    signal.pause()
os.kill(os.getpid(), getattr(signal, first))
"""


@pytest.mark.parametrize(
    ("ends", "restarts", "status", "left"),
    [
        (f"{GONE} 0 1", 3, 0, "1"),  # another one died: again, to a good end
        ("SIGKILL SIGSEGV 0 1", 3, 0, "1"),
        ("SIGABRT 1 0", 3, 1, "0"),  # an error of its own is none that goes away
        ("0 1", 3, 0, "1"),
        (f"{GONE} {GONE} {GONE} 0", 2, GONE, "0"),  # no more than so often
        ("SIGKILL SIGKILL 0", 1, 137, "0"),
    ],
)
def test_what_is_started_again(tmp_path, monkeypatch, capfd, ends, restarts, status, left):
    monkeypatch.setattr(restarting, "PAUSE_SECONDS", 0.0)
    path = tmp_path / "ends"
    path.write_text(ends)
    assert restarting.supervise([sys.executable, "-c", CHILD, str(path)], restarts) == status
    assert path.read_text() == left
    again = len(ends.split()) - len(left.split()) - 1
    said = [line for line in capfd.readouterr().err.splitlines() if "starting again" in line]
    assert [line.rpartition("(")[2] for line in said] == [f"{number + 1} of {restarts})" for number in range(again)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_ends_it(tmp_path, number):
    path = tmp_path / "ends"
    path.write_text("wait 0")

    def ask():
        while not Path(f"{path}.waits").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask).start()
    assert restarting.supervise([sys.executable, "-c", CHILD, str(path)], 3) in (128 + number, 1)
    assert path.read_text() == "0"


SUPERVISOR = "import sys; from sft_jax.restarting import supervise; supervise(sys.argv[1:], 3)"
# Saves at SIGTERM; ends unsaved after a minute in any case.
SUPERVISED = """
import signal
from sft_jax.restarting import end_with_supervisor
def save(number, frame):
    print("saved", flush=True)
    raise SystemExit
signal.signal(signal.SIGTERM, save)
signal.alarm(60)
end_with_supervisor()
print("ready", flush=True)
signal.pause()
"""
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells a child")


@on_linux
def test_a_child_saves_and_ends_when_its_supervisor_is_killed():
    """Both hold the pipe: it is at its end when both have ended."""
    command = [sys.executable, "-c", SUPERVISOR, sys.executable, "-c", SUPERVISED]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout.readline() == "ready\n"
        supervisor.kill()
        assert supervisor.stdout.read() == "saved\n"
    assert supervisor.returncode == -signal.SIGKILL


@on_linux
@pytest.mark.parametrize(("started_by", "says"), [("another", "saved"), ("this", "ready"), ("none", "ready")])
def test_a_supervisor_that_ended_before_it_was_asked(started_by, says):
    """Its child has another parent by then."""
    environment = {name: value for name, value in os.environ.items() if name != restarting.SUPERVISOR}
    named = {"another": {restarting.SUPERVISOR: "1"}, "this": {restarting.SUPERVISOR: str(os.getpid())}, "none": {}}
    command = [sys.executable, "-c", SUPERVISED]
    environment |= named[started_by]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == f"{says}\n"
        child.kill()


def test_the_child_is_the_same_command_and_does_not_watch(tmp_path):
    code = "from sft_jax.restarting import this_command; print(*this_command()[1:], sep='\\n')"
    (tmp_path / "asked.py").write_text(code)
    command = [sys.executable, "-m", "asked", "--restarts=3", "--x=a b"]
    paths = os.pathsep.join((str(ROOT), str(tmp_path)))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-m", "asked", "--restarts=3", "--x=a b", "--restarts=0"]
