"""Compiled programs are let go of, and what is called afterwards is compiled anew."""

import gc
import weakref

import jax
import jax.numpy as jnp

from sft_jax.training import programs
from tests import compilations, spent_programs


def test_programs_are_let_go_of_and_made_again():
    @programs.shared
    def made(factor):
        return jax.jit(lambda x: x * factor)

    first = made(3.0)
    assert first(jnp.ones(3)).sum() == 9
    assert made(3.0) is first
    assert compilations.kept()
    gone = weakref.ref(first)
    del first
    spent_programs.let_go()
    gc.collect()
    assert gone() is None
    assert not compilations.kept()
    assert made(3.0)(jnp.ones(3)).sum() == 9
    assert compilations.kept()


def test_memory_is_counted_in_bytes():
    before = spent_programs.resident()
    held = bytearray(2**28)
    held[::4096] = b"x" * len(held[::4096])
    assert spent_programs.resident() - before > 0.9 * 2**28
