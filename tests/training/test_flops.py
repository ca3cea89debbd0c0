"""FLOPs of a step, by hand and against what the compiler counts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import Decoder, DecoderConfig, Execution
from sft_jax.training.flops import train_flops

SIZES = {
    "vocab_size": 512,
    "model_dim": 128,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "ffn_dim": 256,
}


def decoder(layers: int) -> DecoderConfig:
    return DecoderConfig(num_layers=layers, **SIZES)


@pytest.mark.parametrize(
    ("layers", "train_weights", "expected"),
    [
        # A layer: q and out 2 x 128 x 128, k and v 2 x 128 x 64, ffn 3 x 128 x 256 = 147,456 weights; head 65,536.
        # Attention: 12 x heads x head_dim x row length = 12 x 128 x 64 = 98,304 a token and layer.
        (1, True, 6 * (147_456 * 256 + 65_536 * 100) + 98_304 * 256),
        (2, True, 6 * (294_912 * 256 + 65_536 * 100) + 196_608 * 256),
        (2, False, 4 * (294_912 * 256 + 65_536 * 100) + 196_608 * 256),
    ],
)
def test_by_hand(layers, train_weights, expected):
    assert train_flops(decoder(layers), 256, 100, 64, train_weights=train_weights) == expected


@pytest.mark.parametrize(("windows", "seen"), [((16, 0), 16 + 64), ((16, 16), 32), ((128, 0), 128)])
def test_a_layer_sees_no_more_than_its_window(windows, seen):
    """12 x heads x head_dim operations of attention a token, for each token that it sees."""
    windowed = dataclasses.replace(decoder(2), layer_windows=windows)
    expected = 6 * (294_912 * 256 + 65_536 * 100) + 12 * 128 * seen * 256
    assert train_flops(windowed, 256, 100, 64, train_weights=True) == expected


def test_a_pass_of_the_base_costs_as_much_as_a_forward_pass():
    """2 operations a weight and token, and 4 of the 12 of attention."""
    one, two = (train_flops(decoder(1), 256, 100, 64, train_weights=True, base_pass=base) for base in (False, True))
    assert two - one == 2 * (147_456 * 256 + 65_536 * 100) + 4 * 128 * 64 * 256


def test_against_the_compiler():
    """One more unrolled layer costs what we say, to 5 % (norms, softmax and rotation are not counted)."""
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 512, (4, 64)), jnp.int32)

    def counted(layers: int) -> float:
        model = Decoder(decoder(layers), Execution(layer_layout="unrolled"))
        params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))["params"]

        def loss(params, tokens):
            return jnp.mean(model.apply({"params": params}, tokens) ** 2)

        return jax.jit(jax.grad(loss)).lower(params, tokens).compile().cost_analysis()["flops"]

    ours = [train_flops(decoder(n), 256, 256, 64, train_weights=True) for n in (1, 2)]
    found = [counted(n) for n in (1, 2)]
    assert found[1] - found[0] == pytest.approx(ours[1] - ours[0], rel=0.05)
    assert found[0] == pytest.approx(ours[0], rel=0.05)
