"""Emulated devices: XLA gets threads for them, and only for them."""

import os

import jax
import pytest

from sft_jax import emulation

FORCED = "--xla_force_host_platform_device_count="


@pytest.mark.parametrize(
    ("asked", "before", "threads"),
    [
        (8, {}, "64"),
        (2, {}, "16"),
        (-1, {"XLA_FLAGS": f"--xla_dump_to=x {FORCED}4"}, "32"),
        (-1, {"XLA_FLAGS": f"{FORCED}4 {FORCED}8"}, "64"),  # XLA takes the last
        (8, {"PJRT_NPROC": "12"}, "12"),
        (1, {}, None),
        (-1, {}, None),
        (-1, {"XLA_FLAGS": f"{FORCED}1"}, None),
    ],
)
def test_threads_of_emulated_devices(monkeypatch, asked, before, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", property(lambda _: asked))
    environment = dict(before)
    emulation.reserve_threads(environment)
    assert environment.get("PJRT_NPROC") == threads
    assert environment.items() >= before.items()


def test_a_larger_machine_keeps_its_threads(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    environment = {"XLA_FLAGS": f"{FORCED}2"}
    monkeypatch.setattr(type(jax.config), "jax_num_cpu_devices", property(lambda _: -1))
    emulation.reserve_threads(environment)
    assert environment["PJRT_NPROC"] == "96"
