"""Arithmetic by formula against the matrix products of traced programs, for every kind of layer there is."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from sft_jax.models import Decoder, DecoderConfig, Execution
from sft_jax.models.delta import cost
from sft_jax.models.delta.order import Order
from sft_jax.models.delta.recurrence import chunked
from sft_jax.models.initial import parameter_shapes
from sft_jax.models.layouts import UNROLLED
from sft_jax.objectives.log_probabilities import log_probabilities
from sft_jax.planning.flops import ATTENTION, Kernel, recomputed_products, weights_by_product, work_of
from sft_jax.training.flops import train_flops
from tests.models import families
from tests.planning.dots import dot_flops

SEQUENCES, LENGTH = 2, 128
TOKENS = SEQUENCES * LENGTH
KINDS = (
    "llama",
    "deepseek_v3",
    "glm4_moe",
    "glm4_moe_lite",
    "gpt_oss",
    "gemma4_text",
    "gemma4_text with experts",
    "gemma4_text with shared keys",
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
)


def traced(decoder: DecoderConfig, remat: str = "none", gradient: bool = False) -> float:
    """Operations in matrix products of a decoder, with the logits of all tokens."""
    model = Decoder(decoder, Execution(layer_layout="unrolled", remat=remat, attention_backend="reference"))
    tokens = jnp.zeros((SEQUENCES, LENGTH), jnp.int32)
    loss = lambda params: jnp.sum(model.apply({"params": params}, tokens) ** 2)
    return dot_flops(
        jax.make_jaxpr(jax.value_and_grad(loss) if gradient else loss)(parameter_shapes(decoder, UNROLLED))
    )


def layers_of(decoder: DecoderConfig) -> list[DecoderConfig]:
    return [decoder.of_layer(number) for number in range(decoder.num_layers)]


def rule(layer: DecoderConfig, gradient: bool = False) -> float:
    """Operations in matrix products of the delta rule of a layer."""
    shapes = [(layer.delta_key_heads, layer.delta_key_dim)] * 2 + [(layer.delta_value_heads, layer.delta_value_dim)]
    shapes += [(layer.delta_value_heads,)] * 2
    given = [jax.ShapeDtypeStruct((SEQUENCES, LENGTH, *shape), jnp.float32) for shape in shapes]
    order = Order(jnp.ones((SEQUENCES, LENGTH), jnp.int32), None, jnp.zeros(SEQUENCES, jnp.int32))
    run = lambda *given: jnp.sum(chunked(*given, order, None, None, "float32")[0])
    return dot_flops(jax.make_jaxpr(jax.value_and_grad(run, argnums=tuple(range(5))) if gradient else run)(*given))


def with_wide_windows(decoder):
    """Where all scores are computed at once, those outside of a window are computed too."""
    return dataclasses.replace(decoder, layer_windows=tuple(window and LENGTH for window in decoder.layer_windows))


@pytest.mark.parametrize("case", KINDS)
def test_a_forward_pass_has_the_products_of_the_model(case):
    """A third of a step's, as MFU is defined; but that the delta rule is computed in chunks, and not token by token."""
    decoder = with_wide_windows(families.decoder(case))
    expected = train_flops(decoder, TOKENS, TOKENS, LENGTH, train_weights=True) / 3
    for layer in layers_of(decoder):
        if layer.mixer == "delta":
            by_token = 6 * layer.delta_value_heads * layer.delta_key_dim * layer.delta_value_dim
            expected += rule(layer) - TOKENS * by_token
    assert traced(decoder) == expected


@pytest.mark.parametrize("remat", [pytest.param("none", marks=pytest.mark.slow), "full"])
@pytest.mark.parametrize("case", [kind for kind in KINDS if kind not in ("llama", "glm4_moe", "qwen3_5_text")])
def test_a_step_has_the_products_that_are_planned(case, remat):
    """Attention with all scores at once, which its backward pass has and does not compute again."""
    decoder = with_wide_windows(families.decoder(case))
    given = {"sequences": SEQUENCES, "length": LENGTH, "targets": TOKENS, "train_weights": True}
    expected = work_of(decoder, remat=remat, kernel=Kernel(backward_products=4, block=LENGTH), **given).computed
    for layer in layers_of(decoder):
        if layer.mixer == "delta":  # in small heads what the formula leaves out is not small
            again = remat == "full"
            planned = (1 + again) * cost.flops_of_token(layer) + cost.backward_flops_of_token(layer)
            expected += rule(layer, gradient=True) + again * rule(layer) - TOKENS * planned
    assert traced(decoder, remat, gradient=True) == expected


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("chunk", [0, 16])
def test_chunks_of_whole_answers_go_through_the_head_once_more(trained, chunk):
    """`head_again` of the formula: for each target's log-probability, and then for its gradient."""
    width, vocabulary, slots = 8, 24, 64
    shapes = [(width, vocabulary), (SEQUENCES, slots, width)]
    given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    targets = jnp.zeros((SEQUENCES, slots), jnp.int32)
    head = lambda trained, frozen, hidden: hidden @ (trained or frozen)["head"]

    def loss(weights, hidden):
        trees = ({"head": weights}, {}) if trained else ({}, {"head": weights})
        return jnp.sum(log_probabilities(head, *trees, hidden, targets, chunk) ** 2)

    found = dot_flops(jax.make_jaxpr(jax.grad(loss, argnums=(0, 1) if trained else 1))(*given))
    passes = (3 if trained else 2) + (chunk > 0)
    assert found == 2 * passes * SEQUENCES * slots * width * vocabulary


@pytest.mark.parametrize("remat", ["attention", "attention_products", "products"])
def test_a_delta_net_is_not_computed_again_where_what_it_reads_is_saved(remat):
    """But for the rule's own backward pass, which keeps its inputs alone."""
    layer = families.decoder("qwen3_next").of_layer(0)
    found = traced(layer, remat, gradient=True) - traced(layer, "none", gradient=True)
    again = recomputed_products(layer, remat)
    assert ATTENTION not in again
    assert found == 2 * TOKENS * sum(weights_by_product(layer)[name] for name in again)


def test_the_delta_rule_of_published_heads():
    """Qwen3-Next's and Qwen 3.5's heads are of 128, and two heads of values read a head of keys."""
    sizes = {"delta_key_heads": 2, "delta_value_heads": 4, "delta_key_dim": 128, "delta_value_dim": 128}
    layer = dataclasses.replace(families.decoder("qwen3_5_text").of_layer(0), **sizes)
    forward, both = rule(layer) / TOKENS, rule(layer, gradient=True) / TOKENS
    assert forward == pytest.approx(cost.flops_of_token(layer), rel=0.01)
    assert both - forward == pytest.approx(cost.backward_flops_of_token(layer), rel=0.01)
