"""In a job of SLURM, processes find one another whatever node names are, and have all devices of their host."""

import socket
from unittest import mock

import jax
import pytest

from sft_jax import joining

BEATS = {"heartbeat_timeout_seconds": 60}
JOB = {
    "SLURM_JOB_ID": "8200",
    "SLURM_STEP_NODELIST": "gpu[007-008],other",
    "SLURM_STEP_NUM_NODES": "3",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7",
}


@pytest.fixture
def joined(monkeypatch):
    """What jax.distributed.initialize is given, in an environment where these names resolve."""

    def joined(environment, *arguments, resolves=(), **more):
        def look_up(host, port):
            if host not in resolves:
                raise socket.gaierror(f"{host} is unknown")

        for name in (*JOB, "JAX_COORDINATOR_ADDRESS", "JAX_LOCAL_DEVICE_IDS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        with mock.patch.object(jax.distributed, "initialize") as initialize:
            joining.join(*arguments, **more)
        return initialize.call_args

    return joined


def test_outside_slurm_flags_alone_say_it(joined):
    assert joined({}, "host:1", 2, 0) == mock.call("host:1", 2, 0, **BEATS)
    assert joined({}, initialization_timeout=3) == mock.call(None, None, None, initialization_timeout=3, **BEATS)


def test_where_names_resolve_jax_finds_the_coordinator(joined):
    assert joined(JOB, resolves=("gpu007",)) == mock.call(None, None, None, local_device_ids=[], **BEATS)


@pytest.mark.parametrize("nodes", ["gpu[007-008],other", "gpu[007,009]", "gpu007", "gpu007,other"])
def test_where_they_do_not_it_is_where_tasks_are_launched(joined, nodes):
    call = joined(JOB | {"SLURM_STEP_NODELIST": nodes}, resolves=("gpu008", "gpu", "other"))
    assert call == mock.call(f"10.0.0.7:{61440 + 8200 - 8192}", None, None, local_device_ids=[], **BEATS)
    assert joined(JOB | {"SLURM_STEP_NODELIST": nodes}, resolves=("gpu007",)).args[0] is None


def test_what_is_given_goes_before_what_is_found(joined):
    assert joined(JOB, "host:1", 3, 2).args == ("host:1", 3, 2)
    assert joined(JOB | {"JAX_COORDINATOR_ADDRESS": "host:1"}).args == (None, None, None)
    assert joined(JOB | {"JAX_LOCAL_DEVICE_IDS": "0,1"}).kwargs == BEATS


def test_several_tasks_a_host_take_a_device_each(joined):
    assert joined(JOB | {"SLURM_STEP_NUM_TASKS": "6"}).kwargs == BEATS
