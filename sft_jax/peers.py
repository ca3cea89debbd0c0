"""The other processes of a run: where one dies, the others notice at once, say so, and end.

JAX notices too, when heartbeats stay out for a minute, and aborts with a text that does not say what to do. Here each
process has a connection to process 0 for as long as it trains. When a process dies, by whatever cause, its kernel
closes the connection; when a host is gone, the other kernel finds that nobody answers its probes. No thread of Python
has to run for that, so a process that compiles or reads for minutes is not taken for a dead one.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

GONE = os.EX_TEMPFAIL  # exit status of a process that ends because another one is gone: it can be started again
_PROBES = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4))  # a host is gone after 30 seconds
_CONNECT_SECONDS = 10.0
_GRACE_SECONDS = 2.0  # for the reason of a process that fails, which it tells the others itself (`agreement.py`)
_SYMPTOM_SECONDS = 10.0  # for the death of which it may be one; longer than the grace and a message
_LONGEST = 4096  # bytes of a message
_BEFORE_ENDING: list[Callable[[int], None]] = []
_ENDING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Place:
    """Which process this is, and how it finds process 0.

    Attributes:
        index: number of the process.
        count: of processes.
        host: of process 0, as the others reach it.
        publish: says to the others where process 0 listens.
        find: waits for what was published.
    """

    index: int
    count: int
    host: str
    publish: Callable[[str], None]
    find: Callable[[], str]


@contextlib.contextmanager
def before_ending(act: Callable[[int], None]) -> Iterator[None]:
    """In here, a process that ends because another one is gone calls `act` first, with the number of that one."""
    _BEFORE_ENDING.append(act)
    try:
        yield
    finally:
        _BEFORE_ENDING.remove(act)


@contextlib.contextmanager
def watched(place: Place, is_symptom: Callable[[Exception], bool] = lambda error: False) -> Iterator[None]:
    """In here, the death of any process ends all others with exit status `GONE`; all processes enter it.

    A process that leaves it, with an error or without, is not dead.

    Args:
        place: of this process among the others.
        is_symptom: whether a process may have this error because another one died; then it waits for a while, to end
            for that reason if it is one.
    """
    watch = _Hub(place) if place.index == 0 else _Spoke(place)
    try:
        yield
    except Exception as error:
        if is_symptom(error):
            time.sleep(_SYMPTOM_SECONDS)
        raise
    finally:
        watch.leave()


class _Hub:
    """Process 0, to which all others hold a connection."""

    def __init__(self, place: Place):
        self._place, self._token, self._left = place, secrets.token_hex(8), False
        self._connections: dict[int, socket.socket] = {}
        both = socket.has_dualstack_ipv6()
        self._server = socket.create_server(
            ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, dualstack_ipv6=both, backlog=place.count
        )
        place.publish(json.dumps([self._server.getsockname()[1], self._token]))
        threading.Thread(target=self._accept, name="peers", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed: all are there, or this process leaves
                return
            threading.Thread(target=self._serve, args=(connection,), name="peers", daemon=True).start()

    def _close(self) -> None:
        with contextlib.suppress(OSError):  # not connected: what it is for is to wake who accepts
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self, connection: socket.socket) -> None:
        _probing(connection)
        lines = _lines(connection)
        hello = next(lines, None)
        if hello is None or hello.get("token") != self._token:
            connection.close()  # a stranger
            return
        process = hello["process"]
        self._connections[process] = connection
        if len(self._connections) == self._place.count - 1:
            self._close()  # nobody else is to come
        said = next(lines, None)
        if said is not None or self._left:
            return  # it leaves, or this one does
        time.sleep(_GRACE_SECONDS)
        if self._left:
            return
        for other, its in list(self._connections.items()):
            if other != process:
                _send(its, {"gone": process, "where": hello["where"]})
        _end(process, hello["where"], self._place)

    def leave(self) -> None:
        """Says that this process leaves."""
        self._left = True
        for connection in list(self._connections.values()):
            _send(connection, {"leaving": 0})
        self._close()


class _Spoke:
    """Any other process, with its connection to process 0."""

    def __init__(self, place: Place):
        self._place, self._left, self._connection = place, False, None
        port, token = json.loads(place.find())
        try:
            self._connection = socket.create_connection((place.host, port), _CONNECT_SECONDS)
        except OSError as error:
            sys.stderr.write(
                f"note: process {place.index} cannot reach process 0 at {place.host}:{port} ({error}); if one dies, "
                "the others end when its heartbeats have stayed out for a minute\n"
            )
            return
        self._connection.settimeout(None)
        _probing(self._connection)
        where = f"{socket.gethostname()}, process id {os.getpid()}"
        _send(self._connection, {"process": place.index, "where": where, "token": token})
        threading.Thread(target=self._listen, name="peers", daemon=True).start()

    def _listen(self) -> None:
        said = next(_lines(self._connection), None)
        if self._left or (said is not None and "leaving" in said):
            return
        if said is not None:
            _end(said["gone"], said["where"], self._place)
        _end(0, self._place.host, self._place)

    def leave(self) -> None:
        """Says that this process leaves."""
        self._left = True
        if self._connection is not None:
            _send(self._connection, {"leaving": self._place.index})


def _probing(connection: socket.socket) -> None:
    """Has the kernel ask the other one, where nothing is said, whether it is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PROBES:
        if hasattr(socket, name):  # by the operating system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _send(connection: socket.socket, message: dict[str, int | str]) -> None:
    with contextlib.suppress(OSError):  # the other one is gone, which is for its reader to say
        connection.sendall(json.dumps(message).encode() + b"\n")


def _lines(connection: socket.socket) -> Iterator[dict[str, int | str]]:
    """What the other one says; ends where its connection does, or where it says what none of the processes would."""
    text = b""
    while len(text) < _LONGEST:
        try:
            piece = connection.recv(_LONGEST)
        except OSError:
            return
        if not piece:
            return
        *whole, text = (text + piece).split(b"\n")
        for line in whole:
            message = _message(line)
            if message is None:
                return
            yield message


def _message(line: bytes) -> dict[str, int | str] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _end(process: int, where: str, place: Place) -> None:
    """Ends this process, which may wait for the other one in compiled code, where no exception reaches it."""
    _ENDING.acquire()  # of several threads that have noticed something, one
    sys.stdout.flush()
    sys.stderr.write(
        f"\nerror: process {process} of {place.count} is gone ({where}): it was killed, or its host is down or cannot "
        "be reached. This process ends too: without it no step can be taken. Start the same command again, on all "
        "hosts: the run goes on from its last checkpoint.\n"
    )
    sys.stderr.flush()
    try:
        for act in _BEFORE_ENDING:
            act(process)
    except Exception:  # noqa: BLE001  nobody else would show it, and this process ends whatever becomes of that
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(GONE)
