"""Arithmetic of a step: by hand, and against what XLA counts of compiled gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sft_jax.models import Decoder, DecoderConfig, Execution
from sft_jax.models.config import REMAT_POLICIES
from sft_jax.models.initial import parameter_shapes
from sft_jax.planning.flops import (
    ATTENTION,
    Kernel,
    adapter_weights,
    attention_pairs,
    kernel_of,
    recomputed_products,
    weights_by_product,
    work_of,
)

LENGTH, SEQUENCES = 256, 2
DECODER = DecoderConfig(
    vocab_size=512, num_layers=1, model_dim=512, num_heads=8, num_kv_heads=4, head_dim=64, ffn_dim=1024
)
PROJECTIONS = {"query", "key", "value", "out", "gate", "up"}
MIXTURE = {"num_experts": 4, "experts_per_token": 2, "shared_ffn_dim": 256}
LATENT = {"num_kv_heads": 8, "kv_rank": 128, "query_rank": 256, "head_dim": 96, "rope_dim": 32, "value_dim": 64}


def test_weights_by_hand():
    weights = weights_by_product(DECODER)
    assert weights == {
        **dict.fromkeys(("query", "out"), 512 * 512),
        **dict.fromkeys(("key", "value"), 512 * 256),
        **dict.fromkeys(("gate", "up", "down"), 512 * 1024),
    }
    layers, _ = DECODER.matmul_params()
    assert sum(weights.values()) == layers


@pytest.mark.parametrize("changed", [MIXTURE, {"ffn_gated": False}, LATENT, LATENT | {"query_rank": 0}])
def test_weights_are_those_of_the_decoder(changed):
    """Of the experts those that a token takes."""
    decoder = dataclasses.replace(DECODER, **changed)
    weights = weights_by_product(decoder)
    assert decoder.num_layers * sum(weights.values()) == decoder.matmul_params()[0]
    kernels = dict.fromkeys(weights, 0)
    for path, leaf in flatten_dict(parameter_shapes(decoder)["layers"], sep="/").items():
        if path.endswith("/kernel"):
            taken = decoder.experts_per_token / decoder.num_experts if leaf.ndim == 4 else 1
            kernels["shared_down" if "shared/down" in path else path.split("/")[-2]] += taken * leaf.size
    assert kernels == weights


@pytest.mark.parametrize(
    ("remat", "names"),
    [
        ("none", set()),
        ("full", PROJECTIONS | {ATTENTION}),  # not `down`, whose result only the next layer's input holds
        ("attention", PROJECTIONS),
        ("attention_products", {"gate", "up"}),
        ("products", set()),
    ],
)
def test_what_is_computed_again(remat, names):
    assert recomputed_products(DECODER, remat) == names


def test_every_policy_has_its_recomputation():
    for remat in REMAT_POLICIES:
        recomputed_products(DECODER, remat)


def test_down_is_computed_again_where_something_reads_it():
    for changed in ({"norm_placement": "both"}, {"num_experts": 4, "experts_per_token": 2}):
        assert "down" in recomputed_products(dataclasses.replace(DECODER, **changed), "full")
    for changed, again in (({}, False), ({"shared_gate": True}, True), ({"norm_placement": "both"}, True)):
        decoder = dataclasses.replace(DECODER, **MIXTURE, **changed)
        assert ("shared_down" in recomputed_products(decoder, "full")) == again


@pytest.mark.parametrize(
    ("length", "window", "block", "pairs"),
    [
        (4, 0, 1, 1 + 2 + 3 + 4),
        (4, 2, 1, 1 + 2 + 2 + 2),
        (4, 9, 1, 10),
        (4, 0, 2, 2 + 2 + 4 + 4),
        (4, 0, 4, 16),
    ],
)
def test_pairs_of_a_causal_sequence(length, window, block, pairs):
    assert attention_pairs(length, window, block) == pairs


def counted(decoder: DecoderConfig, layers: int, remat: str) -> float:
    """FLOPs that XLA counts in the gradient of a decoder of so many layers, one after the other.

    Before it compiles: on CPUs it then finds what is computed again to be computed already.
    """
    decoder = dataclasses.replace(decoder, num_layers=layers)
    model = Decoder(decoder, Execution(layer_layout="unrolled", remat=remat))
    tokens = jnp.zeros((SEQUENCES, LENGTH), jnp.int32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens))["params"]
    loss = lambda params: jnp.sum(model.apply({"params": params}, tokens) ** 2)
    return jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("remat", "changed"),
    [("none", {}), ("attention_products", {}), ("full", {}), ("none", LATENT), ("attention_products", LATENT)],
)
def test_a_layer_costs_what_xla_counts(remat, changed):
    """The second layer: the difference of two and one. Blocks of 128 queries read the keys up to their end."""
    decoder = dataclasses.replace(DECODER, **changed)
    found = counted(decoder, 2, remat) - counted(decoder, 1, remat)
    one, two = (
        work_of(
            dataclasses.replace(decoder, num_layers=layers),
            sequences=SEQUENCES,
            length=LENGTH,
            targets=SEQUENCES * LENGTH,
            remat=remat,
            train_weights=True,
            kernel=Kernel(block=128),
        )
        for layers in (1, 2)
    )
    assert two.computed - one.computed == pytest.approx(found, rel=0.03)


def work(**changed):
    given = {"sequences": 2, "length": 8, "targets": 3, "remat": "none", "train_weights": True}
    return work_of(DECODER, **given | changed)


def test_work_by_hand():
    layer, head = 2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 1024, 512 * 512
    scores = 2 * (8 * 9 / 2) * 2 * 8 * 64  # sequences, pairs, multiply and add, heads x head_dim
    full = work()
    assert full.products == 2 * 3 * (16 * layer + 3 * head)
    assert full.attention == (2 + 5) * scores
    assert full.recomputed == 0
    assert full.loop == full.computed - 2 * 3 * 3 * head
    assert work(train_weights=False).products == 2 * 2 * (16 * layer + 3 * head)
    assert work(base_pass=True).attention == (2 * 2 + 5) * scores
    again = work(remat="full")
    assert again.recomputed == 2 * 16 * (layer - 512 * 1024) + 2 * scores
    assert again.computed == full.computed + again.recomputed
    assert again.model == full.model


def test_fused_kernels_compute_scores_twice_in_the_backward_pass():
    """Once for the gradients of queries, and once for those of keys and values; and whole blocks."""
    plain, fused = work(length=1024, kernel=kernel_of("blocked")), work(length=1024, kernel=kernel_of("splash"))
    pairs = 1024 * 1025 / 2
    assert fused.attention / plain.attention == (2 + 7) * (pairs + 1024 * 511 / 2) / ((2 + 5) * pairs)
    assert fused.products == plain.products


@pytest.mark.parametrize("window", [0, 256])
@pytest.mark.parametrize(
    ("backend", "in_window", "in_all"), [("blocked", 0, 1), ("triton", 0, 1), ("splash", 1, 1), ("reference", 0, 1)]
)
def test_parents_may_lie_before_a_window(backend, in_window, in_all, window):
    """So all keys up to a query are read; splash reads its own segment and the parent one after the other."""
    decoder = dataclasses.replace(DECODER, layer_windows=(window,))
    given = {"sequences": 2, "length": 1024, "targets": 3, "remat": "none", "train_weights": True}
    kernel = kernel_of(backend)
    without, found = (work_of(decoder, kernel=kernel_of(backend, parents), **given) for parents in (False, True))
    of_window, of_all = (attention_pairs(1024, reach, kernel.block) for reach in (window, 0))
    assert without.attention / found.attention == pytest.approx(of_window / (in_window * of_window + in_all * of_all))
    assert (found.model, found.products) == (without.model, without.products)


def test_the_head_once_more():
    """As objectives of whole answers have it; of a head that scores there is one number a target."""
    head = 512 * 512
    for train_weights in (True, False):
        once, again = (work(train_weights=train_weights, head_again=twice).products for twice in (False, True))
        assert again - once == 2 * 3 * head
    given = {"sequences": 2, "length": 8, "targets": 3, "remat": "none", "train_weights": True}
    scores = work_of(dataclasses.replace(DECODER, scores=True), **given)
    assert work().products - scores.products == 2 * 3 * 3 * (head - 512)


def test_an_adapter_adds_its_products():
    shapes = {
        "layers/attention/query/a": (3, 512, 4),
        "layers/attention/query/b": (3, 4, 512),
        "layers/x/magnitude": (3,),
    }
    assert adapter_weights(DECODER, shapes) == 2 * 3 * 512 * 4
    mixture = dataclasses.replace(DECODER, num_experts=4, experts_per_token=2)
    assert adapter_weights(mixture, {"layers/experts/up/a": (1, 4, 512, 4)}) == 2 * 512 * 4
    assert adapter_weights(mixture, {"layers/experts/router/b": (1, 4, 4)}) == 4 * 4  # every token takes the router
    frozen, adapted = (work(train_weights=False, adapter_weights=count) for count in (0, 100))
    assert adapted.products - frozen.products == 2 * 16 * 100 * 3
    assert np.isclose(work(remat="full", adapter_weights=0).loop, work(remat="full").loop)
