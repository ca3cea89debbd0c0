"""Cases of a tiny model on emulated devices, which may stand in for hardware with less memory than they have."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict
from rich.console import Console

from sft_jax.hardware import hardware_named
from sft_jax.planning import fitting
from sft_jax.planning.asked import Asked, case_of
from sft_jax.planning.estimating import work_of_step
from sft_jax.planning.planned import Case, Plan, plan_of
from sft_jax.planning.roofline import Estimate
from sft_jax.planning.topologies import parse
from tests import tiny

QUIET = Console(quiet=True)
LENGTH = 64


def tiny_config(root: Path) -> ConfigDict:
    config = tiny.config(root, "full")
    config.data.sequence_length = LENGTH
    config.batch.sequences = 8
    config.execution.layer_layout = "scan"
    config.execution.remat = "full"
    return config


def asked(config, topology="cpu:4", **changes) -> Asked:
    plain = Asked("tiny", config, parse(topology), 0.25, False, None, None, False, False, None, True)
    return dataclasses.replace(plain, **changes)


def planned(config, topology="cpu:4", **changes) -> Plan:
    return plan_of(case_of(asked(config, topology, **changes), "tiny", config, QUIET))


def small(memory_bytes):
    """A TPU with so much memory, whose place emulated devices take."""
    return dataclasses.replace(hardware_named("v5e"), memory_bytes=memory_bytes)


def limited(config, memory_bytes) -> Case:
    case = case_of(asked(config), "tiny", config, QUIET)
    return dataclasses.replace(case, topology=dataclasses.replace(case.topology, hardware=small(memory_bytes)))


def more_of(topology):
    return dataclasses.replace(topology, name=f"cpu:{2 * topology.shape[0]}", shape=(2 * topology.shape[0],))


def stand_in(monkeypatch):
    """Emulated devices in the place of those; times by formula: less work in one piece is faster."""
    devices = lambda topology: jax.devices()[: topology.shape[0]]
    for module in ("planned", "search"):
        monkeypatch.setattr(f"sft_jax.planning.{module}.devices_of", devices)
    monkeypatch.setattr(fitting.topologies, "devices_of", devices)
    monkeypatch.setattr(fitting.topologies, "doubled", more_of)

    def estimate(options, program, sizes, collectives, hardware):
        work = work_of_step(options, program, sizes)
        seconds = work.computed * (1 + 0.01 * options.batch.micro_batches)
        return Estimate(seconds, 0.0, 0.0, (), work, 1.0, program.mesh.size, sizes.sequence_length)

    for module in ("planned", "search"):
        monkeypatch.setattr(f"sft_jax.planning.{module}.estimate_of", estimate)
