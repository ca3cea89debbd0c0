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
import sys
import threading
from collections.abc import Iterator

import jax
from jax._src import distributed

_PATIENCE_MS = 7 * 24 * 3600 * 1000  # for a process that works; that one is dead, JAX notices by itself
_GRACE_MS = 10 * 1000  # of a process that has failed, for the others to come where they can hear it
_NAMED = 3  # processes that an error names
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

    All processes enter it, at the same place of the program. An error that all have agreed upon is left to each.
    """
    if jax.process_count() == 1:
        yield
        return
    watch = _Watch(f"sft_jax/failed/{next(_numbers)}")
    try:
        yield
    except BaseException as error:
        watch.stop()
        if not getattr(error, "known_to_all", False):
            watch.tell_others(_reason(error))
            _known(error)
        raise
    watch.stop()


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


def _client() -> distributed._jax.DistributedRuntimeClient:
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
