"""Processes that watch one another: real ones, which are killed; what they publish goes through a file."""

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.peers import GONE

ROOT = Path(__file__).parents[1]
PROCESS = """
import os, sys, time
from sft_jax.peers import Place, before_ending, watched
index, count, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def publish(text):
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)

def find():
    while not os.path.exists(path):
        time.sleep(0.02)
    return open(path).read()

place = Place(index, count, "localhost", publish, find)
with watched(place), before_ending(lambda gone: print("without", gone, flush=True)):
    print("watches", flush=True)
    sys.stdin.readline()
print("left", flush=True)
sys.stdin.readline()
"""
PATIENCE_SECONDS = 60


class Process:
    def __init__(self, index: int, count: int, path: Path):
        command = [sys.executable, "-c", PROCESS, str(index), str(count), str(path)]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.says() == "watches"

    def says(self) -> str:
        return self._process.stdout.readline().strip()

    def goes_on(self) -> None:
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def end(self) -> tuple[int, str, str]:
        status = self._process.wait(PATIENCE_SECONDS)  # its input stays open: at its end the process would leave
        output, errors = self._process.communicate()
        return status, output.strip(), errors


@pytest.fixture
def processes(tmp_path):
    """Three of them; none is left when the test is over."""
    made = [Process(index, 3, tmp_path / "published") for index in range(3)]
    yield made
    for process in made:
        process.kill()


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_the_others_end_and_say_whose_death_it_was(processes, killed):
    processes[killed].kill()
    for index, process in enumerate(processes):
        if index != killed:
            status, output, errors = process.end()
            assert status == GONE
            assert f"error: process {killed} of 3 is gone" in errors
            assert "Start the same command again, on all hosts" in errors
            assert output == f"without {killed}"


@pytest.mark.parametrize("first", [0, 1])
def test_a_process_that_has_left_is_not_missed(processes, first):
    """Whichever leaves first: the others go on, and leave when they are done."""
    processes[first].goes_on()
    assert processes[first].says() == "left"
    processes[first].kill()
    for index, process in enumerate(processes):
        if index != first:
            process.goes_on()
            assert process.says() == "left"
            process.goes_on()
            assert process.end()[0] == 0


@pytest.mark.parametrize(
    "says", [b'{"process": 1, "where": "elsewhere", "token": "guessed"}\n', b"GET / HTTP/1.1\r\n\r\n", b"1\n"]
)
def test_strangers_are_nobody(tmp_path, says):
    """Who does not know what was published is not listened to, and not missed."""
    path = tmp_path / "published"
    made = [Process(0, 2, path)]
    port, _ = json.loads(path.read_text())
    with socket.create_connection(("localhost", port), PATIENCE_SECONDS) as stranger:
        stranger.sendall(says)
        assert stranger.recv(10) == b""
    made.append(Process(1, 2, path))
    for process in made:
        process.goes_on()
        assert process.says() == "left"
    for process in made:
        process.goes_on()
        status, _, errors = process.end()
        assert (status, errors) == (0, "")


def test_who_cannot_reach_process_0_says_so(tmp_path):
    with socket.create_server(("localhost", 0)) as closed:
        port = closed.getsockname()[1]
    (tmp_path / "published").write_text(json.dumps([port, "token"]))
    process = Process(1, 2, tmp_path / "published")
    process.goes_on()
    process.goes_on()
    status, _, errors = process.end()
    assert status == 0
    assert f"note: process 1 cannot reach process 0 at localhost:{port}" in errors
    assert "heartbeats" in errors
