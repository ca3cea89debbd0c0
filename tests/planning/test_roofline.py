"""The estimate of a step: what is hidden, what is exposed, and what it says bounds the step."""

import numpy as np
import pytest

from sft_jax.hardware import HARDWARE, hardware_named
from sft_jax.planning.collectives import Collective
from sft_jax.planning.flops import Work
from sft_jax.planning.roofline import SHARES, Shares, estimate
from sft_jax.planning.traffic import Traffic, traffic_of
from tests.planning.test_flops import DECODER
from tests.planning.test_wiring import gpus

H100, WHOLE = hardware_named("h100"), Shares(1.0, 1.0, 1.0, 1.0, 1.0, 1.0)
SECOND = 8 * H100.peak_flops  # work that takes one second


def gathers(seconds: float, scope="layers", in_loop=True, axis="fsdp"):
    size = round(seconds * H100.links.bandwidth * 8 / 7 / 100)
    return Collective("all-gather", (axis,), "bf16", size, 8, 100, scope, in_loop)


def estimated(collectives=(), products=1.0, attention=0.5, traffic=(0.0, 0.0, 0.0, 0.0), loop=None):
    work = Work(0.6 * SECOND, products * SECOND, attention * SECOND, 0.0, (loop or products + attention) * SECOND)
    moved = Traffic(*(seconds * H100.memory_bandwidth for seconds in traffic))
    axes = ("fsdp", "tensor")
    more = {"devices": gpus((8, 1)), "axes": axes, "hardware": H100, "tokens": 3600, "shares": WHOLE}
    return estimate(work, moved, collectives, **more)


def test_a_step_without_collectives_is_the_sum_of_its_parts():
    found = estimated(traffic=(0.1, 0.2, 0.3, 0.4))
    assert (found.products, found.attention, found.memory) == pytest.approx((1.0, 0.5, 0.6))  # kernels: 0.4 beside 1.0
    assert found.seconds == pytest.approx(2.1)
    assert found.mfu == pytest.approx(0.6 / 2.1)
    assert found.hfu == pytest.approx(1.5 / 2.1)
    assert found.tokens_per_second == pytest.approx(3600 / 2.1)
    assert found.bound_by == "matrix products"


def test_products_of_few_tokens_wait_for_kernels():
    assert estimated(traffic=(0.0, 0.0, 0.0, 3.0)).products == pytest.approx(3.0)


def test_gathers_of_layers_are_hidden_as_far_as_layers_take():
    assert estimated([gathers(1.4)]).exposed == 0
    assert estimated([gathers(1.4)]).exchanges[0].seconds == pytest.approx(1.4, rel=0.01)
    longer = estimated([gathers(4.5)])
    assert longer.exposed == pytest.approx(3.0, rel=0.01)
    assert longer.bound_by == "collectives over fsdp"
    assert estimated([gathers(1.4)], loop=1.0).exposed == pytest.approx(0.4, rel=0.02)  # half a second is the head's


def test_what_nothing_hides():
    assert estimated([gathers(0.3, scope="head", in_loop=False)]).exposed == pytest.approx(0.3, rel=0.01)
    of_head = gathers(0.3, scope="head_and_loss", in_loop=True)  # in the loop over micro-batches, or over its chunks
    assert estimated([of_head]).exposed == pytest.approx(0.3, rel=0.01)
    assert estimated([gathers(0.3, scope="", in_loop=True)]).exposed == 0
    devices = {"devices": gpus((1, 8)), "axes": ("fsdp", "tensor")}
    work, moved = Work(SECOND, SECOND, 0.0, 0.0, SECOND), Traffic(0, 0, 0, 0)
    summed = [gathers(0.3, axis="tensor")]
    found = estimate(work, moved, summed, hardware=H100, tokens=1, shares=WHOLE, **devices)
    assert found.exposed == pytest.approx(0.3, rel=0.01)


def test_hours_and_cost():
    found = estimated()  # 1.5 s a step of 3600 tokens
    assert found.hours(3600 * 2400) == pytest.approx(1.0)
    assert found.cost(3600 * 2400, chip_hour=2.5) == pytest.approx(8 * 2.5)
    assert found.cost(3600 * 2400, chip_hour=2.5, devices_per_chip=2) == pytest.approx(4 * 2.5)


def test_all_hardware_has_shares():
    assert set(SHARES) == {hardware.name for hardware in HARDWARE}


def test_shares_slow_the_step_down():
    work, moved = Work(SECOND, SECOND, 0.0, 0.0, SECOND), Traffic(0, 0, 0, 0)
    found = estimate(work, moved, [], devices=gpus((8,)), axes=("fsdp",), hardware=H100, tokens=1)
    assert found.seconds == pytest.approx(1 / (0.803 * 0.74))


def test_traffic_by_hand():
    given = {"tokens": 10, "targets": 2, "remat": False, "activation_bytes": 2, "trained": 100, "kernels": 50}
    moved = traffic_of(DECODER, kernel_passes=3, **given)
    # Forward: two norms and two sums (6 x 512), 8 + 4 heads of 64 rotated, the gate (3 x 1024); backward: twice.
    assert moved.layers == 10 * (6 * 512 + 2 * 12 * 64 + 3 * 1024) * 3 * 2
    assert moved.loss == 2 * 4 * 4 * 512
    assert moved.optimizer == 100 * (4 * 6 + 4)  # weights and two moments read and written, a gradient read
    assert moved.weights == 2 * 50 * 3
    halved = traffic_of(DECODER, kernel_passes=3, tensor=2, **given)
    assert halved.loss == moved.loss / 2
    assert np.isclose(halved.layers, 10 * (6 * 512 + 12 * 64 + 1.5 * 1024) * 3 * 2)
