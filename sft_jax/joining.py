"""How the processes of a run find one another: by flags, or by what SLURM, a TPU pod or Kubernetes says of them."""

import os
import re
import socket
from typing import Any

import jax

HEARTBEAT_SECONDS = 60  # without any, JAX takes a process for dead; most deaths are noticed at once (`peers.py`)
_PORTS, _FIRST_PORT = 2**12, 2**16 - 2**12  # as JAX chooses one for a job of SLURM


def join(
    coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None, **more: Any
) -> None:
    """Joins the other processes; what is not given, JAX finds out by itself.

    Where SLURM starts one task a host, the process has all devices that its job has on the host (JAX would take one a
    task). Where the names of SLURM's nodes do not resolve, process 0 is reached at the address it was launched from.

    Args:
        coordinator: host:port of process 0.
        num_processes: how many there are.
        process_id: which one this is, from 0.
        more: for `jax.distributed.initialize`.
    """
    more = {"heartbeat_timeout_seconds": HEARTBEAT_SECONDS} | more
    if _one_task_a_host():
        more["local_device_ids"] = []  # none named: all
    jax.distributed.initialize(coordinator or _coordinator(), num_processes, process_id, **more)


def _one_task_a_host() -> bool:
    tasks, hosts = (os.environ.get(name) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES"))
    return tasks is not None and tasks == hosts and "JAX_LOCAL_DEVICE_IDS" not in os.environ


def _coordinator() -> str | None:
    """Where process 0 is, in a job of SLURM whose node names do not resolve; None leaves it to JAX.

    The batch script runs on the first node, that of process 0, and launches the tasks from there.
    """
    nodes, launched_from = (os.environ.get(name) for name in ("SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"))
    if not nodes or not launched_from or "JAX_COORDINATOR_ADDRESS" in os.environ or _resolves(_first(nodes)):
        return None
    return f"{launched_from}:{_FIRST_PORT + int(os.environ['SLURM_JOB_ID']) % _PORTS}"


def _first(nodes: str) -> str:
    """The first of a list of nodes: `node[007-015],login` -> `node007`."""
    prefix, number = re.match(r"([^,\[]*)(?:\[([^],-]*))?", nodes).groups()
    return prefix + (number or "")


def _resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True
