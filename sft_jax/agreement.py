"""Errors on several processes: where one fails, all end, and each of them says why.

If one process ended alone, the others would wait for it until a time-out, whose message hides the reason. Therefore
what a process may refuse (files, flags, the directory) is checked inside `agreed`, which raises on all processes if it
raises on one. Errors elsewhere, while the others may be in the middle of a step, reach them by `ending_together`.

Messages go through the key-value store of `jax.distributed`, for which JAX has no public interface; orbax uses it in
the same way. Unlike a collective of the devices, its time-out can be chosen.
"""

import contextlib
import itertools
import json
import os
import re
import sys
import threading
from collections.abc import Iterator

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from sft_jax.peers import Place, watched

_PATIENCE_MS = 7 * 24 * 3600 * 1000  # for a process that works; that one is dead, JAX notices by itself
_GRACE_MS = 10 * 1000  # of a process that has failed, for the others to come where they can hear it
_NAMED = 3  # processes that an error names
_STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION): ")
_numbers = itertools.count()  # every process counts the same: all take part in everything here, in one order


class OtherProcessError(RuntimeError):
    """Another process cannot go on; says which, and why."""


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """In here, a process may fail alone: all processes leave together, with an error if any has one.

    All processes enter it, at the same place of the program, and do nothing in it for which they need one another.

    Raises:
        OtherProcessError: it was another process that failed; one that failed raises its own error.
    """
    if jax.process_count() == 1:
        yield
        return
    name = f"sft_jax/agreed/{next(_numbers)}"
    try:
        yield
    except Exception as error:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # they did not come: not known to all
            _verdict(name, _reason(error), _GRACE_MS)
            _known(error)
        raise
    failed = _verdict(name, "", _PATIENCE_MS)
    if failed:
        raise _known(OtherProcessError(_listed(failed)))


@contextlib.contextmanager
def ending_together() -> Iterator[None]:
    """In here, an error of one process ends the others wherever they are, with its reason and exit status 1.

    All processes enter it, at the same place of the program. An error that all have agreed upon is left to each. A
    process that dies without a word ends the others too (`peers.py`).
    """
    if jax.process_count() == 1:
        yield
        return
    number = next(_numbers)
    watch = _Watch(f"sft_jax/failed/{number}")
    try:
        with watched(_place(f"sft_jax/peers/{number}"), is_symptom=_is_of_the_runtime):
            yield
    except BaseException as error:
        watch.stop()
        if not getattr(error, "known_to_all", False):
            watch.tell_others(_reason(error))
            _known(error)
        raise
    watch.stop()


def _is_of_the_runtime(error: BaseException) -> bool:
    """Whether an error, or one that it comes of, is a status of XLA: a `JaxRuntimeError` or, of some calls, a
    `ValueError` that begins with the status."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return any(isinstance(one, jax.errors.JaxRuntimeError) or _STATUS.match(str(one)) for one in chain)


def _place(name: str) -> Place:
    """This process among the others, where process 0 says under `name` how it is reached."""
    client, coordinator = _client(), distributed.global_state.coordinator_address
    return Place(
        index=jax.process_index(),
        count=jax.process_count(),
        host=coordinator.rpartition(":")[0].strip("[]"),
        publish=lambda text: client.key_value_set(name, text),
        find=lambda: client.blocking_key_value_get(name, _PATIENCE_MS),
    )


def exchanged(said: str) -> list[str]:
    """What every process says, in the order of their numbers: a few lines of text each.

    All processes come here, at the same place of the program; what may fail before is done inside `agreed`.
    """
    if jax.process_count() == 1:
        return [said]
    name, client = f"sft_jax/exchanged/{next(_numbers)}", _client()
    client.key_value_set(f"{name}/{jax.process_index()}", said)
    return [client.blocking_key_value_get(f"{name}/{i}", _PATIENCE_MS) for i in range(jax.process_count())]


def gathered(content: bytes) -> list[bytes]:
    """The bytes of every process, in the order of their numbers: megabytes, which the devices pass on to one another.

    All processes come here, at the same place of the program; what may fail before is done inside `agreed`.
    """
    if jax.process_count() == 1:
        return [content]
    sizes = multihost_utils.process_allgather(np.int32(len(content)))
    # As long as the longest, rounded up: few lengths make few programs.
    padded = np.zeros(1 << max(10, int(sizes.max() - 1).bit_length()), np.uint8)
    padded[: len(content)] = np.frombuffer(content, np.uint8)
    found = multihost_utils.process_allgather(padded)
    return [found[number, :size].tobytes() for number, size in enumerate(sizes)]


class _Watch:
    """Ends this process when another one says that it has failed."""

    def __init__(self, name: str):
        self._name, self._client = name, _client()
        self._thread = threading.Thread(target=self._wait, name=name, daemon=True)
        self._thread.start()

    def _wait(self) -> None:
        try:
            reason = self._client.blocking_key_value_get(self._key(jax.process_index()), _PATIENCE_MS)
        except jax.errors.JaxRuntimeError:  # process 0 is gone, and JAX ends this one
            return
        if reason:
            sys.stdout.flush()
            sys.stderr.write(f"\nerror: {reason}\n")
            sys.stderr.flush()
            # The main thread may wait for the other process in compiled code, where no exception reaches it.
            jax.distributed.shutdown()
            os._exit(1)

    def stop(self) -> None:
        """Stops looking."""
        self._client.key_value_set(self._key(jax.process_index()), "", allow_overwrite=True)
        self._thread.join()

    def tell_others(self, reason: str) -> None:
        """Ends the other processes."""
        for process in range(jax.process_count()):
            if process != jax.process_index():
                self._client.key_value_set(self._key(process), _listed({jax.process_index(): reason}), True)

    def _key(self, process: int) -> str:
        return f"{self._name}/{process}"


def _verdict(name: str, reason: str, timeout_ms: int) -> dict[int, str]:
    """Why processes failed, by their numbers, when all have said so: process 0 asks each and tells all.

    Raises:
        JaxRuntimeError: somebody has not said anything in time.
    """
    client = _client()
    client.key_value_set(f"{name}/{jax.process_index()}", reason)
    if jax.process_index() == 0:
        said = {i: client.blocking_key_value_get(f"{name}/{i}", timeout_ms) for i in range(jax.process_count())}
        client.key_value_set(f"{name}/all", json.dumps({i: reason for i, reason in said.items() if reason}))
    found = json.loads(client.blocking_key_value_get(f"{name}/all", timeout_ms))
    return {int(process): reason for process, reason in found.items()}


def _client() -> "distributed._jax.DistributedRuntimeClient":
    client = distributed.global_state.client
    if client is None:
        raise RuntimeError("there are several processes, but jax.distributed.initialize() was not called")
    return client


def _known(error: BaseException) -> BaseException:
    """The error, marked as one that all processes raise."""
    error.known_to_all = True
    return error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _listed(failed: dict[int, str]) -> str:
    lines = [f"process {i} of {jax.process_count()}: {reason}" for i, reason in sorted(failed.items())[:_NAMED]]
    return "\n".join(lines + [f"and {len(failed) - _NAMED} more processes"] * (len(failed) > _NAMED))
