"""Logits and gradients of random tiny Llamas equal torch's, and no feature could go missing unnoticed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import Decoder, Execution, load_pretrained
from sft_jax.objectives import Settings, cross_entropy
from tests.models import reference

TOLERANCE = 1e-4
SEQUENCES, LENGTH = 2, 40


@pytest.fixture(scope="module", params=reference.CASES)
def case(request, tmp_path_factory):
    """(changes, torch model, directory, token ids, torch's logits)."""
    changes = reference.CASES[request.param]
    model = reference.torch_llama(**changes)
    directory = reference.save(model, tmp_path_factory.mktemp(request.param))
    ids = reference.tokens(SEQUENCES, LENGTH)
    return changes, model, directory, ids, reference.torch_logits(model, ids)


def mean_loss(model, params, ids):
    """Mean next-token loss, and the logits."""
    ids = jnp.asarray(ids)
    logits = model.apply({"params": params}, ids)
    weights = jnp.ones(ids[:, 1:].shape, jnp.float32)
    loss, count = cross_entropy(logits[:, :-1], ids[:, 1:], weights, Settings())["loss"]
    return loss / count, logits


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_logits_and_gradients_equal_torch(case, layout):
    _, torch_model, directory, ids, expected = case
    assert expected.std() >= 1
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    (_, logits), gradient = reference.jit(
        jax.value_and_grad(lambda params: mean_loss(model, params, ids), has_aux=True)
    )(params)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    theirs = reference.torch_gradients(torch_model, ids, model.config)
    theirs = reference.flat(reference.in_layout(theirs, layout))
    ours = reference.flat(gradient)
    assert ours.keys() == theirs.keys()
    errors = {path: reference.relative(ours[path], theirs[path]) for path in ours}
    assert max(errors.values()) <= TOLERANCE, errors


def without(suffix: str, value: float):
    return lambda config, params: (config, reference.edited(params, suffix, lambda x: jnp.full_like(x, value)))


def changed(**fields):
    return lambda config, params: (dataclasses.replace(config, **fields), params)


def next_kv_head(config, params):
    """Every query head reads its neighbour group's keys and values."""

    def roll(kernel):
        heads = kernel.reshape(*kernel.shape[:-1], config.num_kv_heads, config.head_dim)
        return jnp.roll(heads, 1, axis=-2).reshape(kernel.shape)

    for name in ("key/kernel", "value/kernel"):
        params = reference.edited(params, name, roll)
    return config, params


def interleaved_kv_heads(config, params):
    """Head h reads key/value head h % K in place of h // (H / K): the order of a wrong repeat."""
    groups = config.num_heads // config.num_kv_heads
    order = np.arange(config.num_heads).reshape(groups, config.num_kv_heads).T.reshape(-1)

    def outputs(kernel):
        heads = kernel.reshape(*kernel.shape[:-1], config.num_heads, config.head_dim)
        return heads[..., order, :].reshape(kernel.shape)

    def inputs(kernel):
        return outputs(kernel.T).T

    params = reference.edited(params, "query/kernel", outputs)
    return config, reference.edited(params, "out/kernel", inputs)


def untied(config, params):
    """A head that is not the embedding: the embedding of the next token."""
    return dataclasses.replace(config, tie_embeddings=False), params | {"head": jnp.roll(params["embedding"], 1, 0).T}


def tied(config, params):
    rest = {name: leaf for name, leaf in params.items() if name != "head"}
    return dataclasses.replace(config, tie_embeddings=True), rest


def without_layer(config, params):
    rest = {name: leaf for name, leaf in params.items() if name != f"layers_{config.num_layers - 1}"}
    return dataclasses.replace(config, num_layers=config.num_layers - 1), rest


EVERYWHERE = {
    "attention norm": without("attention_norm/scale", 1.0),
    "ffn norm": without("ffn_norm/scale", 1.0),
    "final norm": without("final_norm/scale", 1.0),
    "rope theta": changed(rope_theta=20000.0),
    "rope": changed(rope_theta=1e12),
    "order of kv heads": next_kv_head,
    "repeat of kv heads": interleaved_kv_heads,
    "last layer": without_layer,
}
ONLY = {
    "tied": {"tie": untied, "norm eps": changed(norm_eps=1e-5)},
    "untied": {"tie": tied},
    "llama3_rope": {"rope scaling": changed(rope_scaling=None)},
    "biases": {
        f"bias of {name}": without(f"{name}/bias", 0.0)
        for name in ("query", "key", "value", "out", "gate", "up", "down")
    },
}
SWITCHES = [(case, name) for case in reference.CASES for name in (EVERYWHERE | ONLY[case])]


@pytest.mark.parametrize(("case", "switch"), SWITCHES, indirect=["case"])
def test_a_feature_switched_off_is_noticed(case, switch, request):
    _, _, directory, ids, expected = case
    model, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
    edit = (EVERYWHERE | ONLY[request.node.callspec.params["case"]])[switch]
    config, params = edit(model.config, params)
    moved = reference.logits_of(Decoder(config, model.execution), params, ids) - expected
    assert np.abs(moved).max() >= 100 * TOLERANCE


@pytest.mark.parametrize(("field", "value"), [("factor", 4.0), ("low_freq_factor", 2.0), ("high_freq_factor", 8.0)])
def test_every_number_of_the_rope_scaling_counts(tmp_path, field, value):
    model = reference.torch_llama(**reference.CASES["llama3_rope"])
    ids = reference.tokens(SEQUENCES, LENGTH)
    ours, params = load_pretrained(reference.save(model, tmp_path))
    scaling = dataclasses.replace(ours.config.rope_scaling, **{field: value})
    changed = Decoder(dataclasses.replace(ours.config, rope_scaling=scaling), ours.execution)
    moved = reference.logits_of(changed, params, ids) - reference.torch_logits(model, ids)
    assert np.abs(moved).max() >= 100 * TOLERANCE
