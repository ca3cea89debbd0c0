"""The part of a step that an operation belongs to, by the name that JAX gives it."""

import pytest

from sft_jax.planning.scopes import phase_of, scope_of

HIDDEN = "jit(train_step)/jvp(Decoder.hidden)"
BACK = "jit(train_step)/transpose(jvp(Decoder.hidden))"


@pytest.mark.parametrize(
    ("op_name", "scope", "phase"),
    [
        (f"{HIDDEN}/while/body/closed_call/layers/ffn/ffn/up/dot_general", "layers/ffn", "forward"),
        (f"{HIDDEN}/layers_3/ffn/ffn/up/dot_general", "layers/ffn", "forward"),
        (
            f"{HIDDEN}/while/body/closed_call/layers/attention/attention/attention._apart/attention._projected/"
            "(key/bsi,io->bso/dot_general:value/bsi,io->bso/dot_general)",
            "layers/attention",
            "forward",
        ),
        (
            f"{BACK}/while/body/closed_call/checkpoint/rematted_computation/layers/ffn/ffn/up/dot_general",
            "layers/ffn",
            "recomputed",
        ),
        (f"{BACK}/embedding/Decoder._embedded/jit(_take)/scatter-add", "embedding", "backward"),
        ("jit(train_step)/jvp(head_and_loss)/while/body/closed_call/jvp()/reduce_sum", "head_and_loss", "forward"),
        ("jit(train_step)/optimizer/reduce_sum", "optimizer", ""),
        ("jit(train_step)/jit(_where)/select_n", "", ""),
        ("jit(train_step)/add", "", ""),
        ("", "", ""),
    ],
)
def test_scope_and_phase(op_name, scope, phase):
    assert (scope_of(op_name), phase_of(op_name)) == (scope, phase)
