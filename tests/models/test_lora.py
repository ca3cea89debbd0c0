"""LoRA equals peft on the same weights, its merge is exact, and its gradient never forms a kernel-sized product."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch

from sft_jax.models import AdapterSpec, Decoder, Execution, load_pretrained
from sft_jax.models.adapters import get_method, lora
from sft_jax.models.layouts import to_layout
from tests.models import programs, reference

# (projection here, in torch)
PROJECTIONS = {
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.o_proj",
    "ffn/gate": "mlp.gate_proj",
    "ffn/up": "mlp.up_proj",
    "ffn/down": "mlp.down_proj",
}
CONFIG, PARAMS = reference.random_params({"num_hidden_layers": 2, "hidden_size": 24, "attention_bias": True})
RANK, ALPHA = 3, 6.0


def adapters_for(params, seed=0, *, zero_b=False):
    """Unrolled adapters on all projections, with B random unless `zero_b`."""
    rng, made = np.random.default_rng(seed), {}
    for path, kernel in reference.flat(params).items():
        if path.endswith("/kernel"):
            fan_in, fan_out = kernel.shape
            b = np.zeros((RANK, fan_out)) if zero_b else rng.standard_normal((RANK, fan_out)) * 0.3
            made[path.removesuffix("kernel") + "a"] = jnp.asarray(
                rng.standard_normal((fan_in, RANK)) * 0.3, jnp.float32
            )
            made[path.removesuffix("kernel") + "b"] = jnp.asarray(b, jnp.float32)
            made[path.removesuffix("kernel") + "scale"] = jnp.float32(ALPHA / RANK)
    return reference.unflatten(made)


def adapted(params, adapters, layout, ids, **execution):
    model = Decoder(CONFIG, Execution(layer_layout=layout, **execution), AdapterSpec("lora"))
    variables = {"params": to_layout(params, layout), "adapters": to_layout(adapters, layout)}
    return np.asarray(reference.jit(model.apply)(variables, ids))


def merged(params, adapters):
    flat, added = reference.flat(params), reference.flat(adapters)
    for path in [path for path in flat if path.endswith("/kernel")]:
        stem = path.removesuffix("kernel")
        flat[path] = lora.merge(flat[path], {name: added[stem + name] for name in ("a", "b", "scale")})
    return reference.unflatten(flat)


def test_merge_table():
    """torchtune's table: W = 3, rank 2, alpha 1, A and B counting up; kernels here are transposed."""
    adapter = {
        "a": jnp.asarray([[1.0, 5], [2, 6], [3, 7], [4, 8]]),
        "b": jnp.asarray([[1.0, 3, 5, 7, 9, 11], [2, 4, 6, 8, 10, 12]]),
        "scale": jnp.asarray(1 / 2),
    }
    expected = [
        [8.5, 10.0, 11.5, 13.0],
        [14.5, 18.0, 21.5, 25.0],
        [20.5, 26.0, 31.5, 37.0],
        [26.5, 34.0, 41.5, 49.0],
        [32.5, 42.0, 51.5, 61.0],
        [38.5, 50.0, 61.5, 73.0],
    ]
    kernel = jnp.full((4, 6), 3.0)
    np.testing.assert_allclose(lora.merge(kernel, adapter).T, expected, rtol=1e-6)
    stacked = lora.merge(jnp.stack([kernel, -kernel]), {n: jnp.stack([x, 2 * x]) for n, x in adapter.items()})
    np.testing.assert_allclose(stacked[0].T, expected, rtol=1e-6)
    np.testing.assert_allclose(stacked[1], -3 + 8 * (np.asarray(expected).T - 3), rtol=1e-6)
    assert lora.merge(kernel.astype(jnp.bfloat16), adapter).dtype == jnp.bfloat16


def test_init_is_small_and_changes_nothing():
    adapter = lora.init(jax.random.key(0), jnp.zeros((2, 64, 10)), 8, jnp.float32(2))
    assert adapter["a"].shape == (2, 64, 8)
    assert 0.9 / 8 < float(jnp.abs(adapter["a"]).max()) <= 1 / 8  # 1 / sqrt(64)
    assert not np.array_equal(adapter["a"][0], adapter["a"][1])
    np.testing.assert_array_equal(adapter["b"], np.zeros((2, 8, 10)))


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_output_with_zero_b_with_b_and_merged(layout):
    ids = reference.tokens(2, 6)
    base = reference.logits_of(Decoder(CONFIG, Execution(layer_layout=layout)), to_layout(PARAMS, layout), ids)
    np.testing.assert_array_equal(adapted(PARAMS, adapters_for(PARAMS, zero_b=True), layout, ids), base)
    adapters = adapters_for(PARAMS)
    ours = adapted(PARAMS, adapters, layout, ids)
    assert np.abs(ours - base).max() > 0.1
    model = Decoder(CONFIG, Execution(layer_layout=layout))
    together = reference.logits_of(model, to_layout(merged(PARAMS, adapters), layout), ids)
    np.testing.assert_allclose(ours, together, atol=1e-5 * np.abs(together).max())


def test_an_adapter_only_where_there_are_arrays():
    """With adapters on one projection, the others stay as they are."""
    ids, everywhere = reference.tokens(2, 6), reference.flat(adapters_for(PARAMS))
    only = reference.unflatten({path: x for path, x in everywhere.items() if path.startswith("layers_1/ffn/up/")})
    model = Decoder(CONFIG, Execution(layer_layout="unrolled"), AdapterSpec("lora"))
    ours = reference.jit(model.apply)({"params": PARAMS, "adapters": only}, ids)
    kernel = lora.merge(PARAMS["layers_1"]["ffn"]["up"]["kernel"], only["layers_1"]["ffn"]["up"])
    params = reference.edited(PARAMS, "layers_1/ffn/up/kernel", lambda _: kernel)
    expected = reference.logits_of(Decoder(CONFIG, Execution(layer_layout="unrolled")), params, ids)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_dropout_is_drawn_only_where_the_spec_says_so():
    ids, adapters = reference.tokens(1, 6), adapters_for(PARAMS)
    flat = reference.flat(adapters)
    rates = {path.replace("/scale", "/dropout"): jnp.float32(0.5) for path in flat if path.endswith("/scale")}
    with_rates = reference.unflatten(flat | rates)
    without = adapted(PARAMS, with_rates, "scan", ids)
    np.testing.assert_allclose(without, adapted(PARAMS, adapters, "scan", ids), atol=1e-5)
    model = Decoder(CONFIG, Execution(), AdapterSpec("lora", dropout=True))
    variables = {"params": to_layout(PARAMS, "scan"), "adapters": to_layout(with_rates, "scan")}
    apply = reference.jit(lambda key: model.apply(variables, ids, rngs={"dropout": key}))
    one, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert float(jnp.abs(one - other).max()) > 0.01
    assert float(jnp.abs(one - without).max()) > 0.01


def gradient_program(layout, of):
    """(function, trained, rest) whose gradient is taken with respect to `params` or `adapters`."""
    model = Decoder(CONFIG, Execution(layer_layout=layout), AdapterSpec("lora"))
    variables = {"params": to_layout(PARAMS, layout), "adapters": to_layout(adapters_for(PARAMS), layout)}
    ids = jnp.asarray(reference.tokens(2, 5))
    frozen = {name: tree for name, tree in variables.items() if name != of}

    def gradient(trained, frozen):
        return jax.grad(lambda t: jnp.sum(model.apply({of: t, **frozen}, ids) ** 2))(trained)

    return gradient, variables[of], frozen


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_no_kernel_sized_product_in_the_gradient(layout):
    """The compiled LoRA step has no product of the shape of a kernel; full fine-tuning has one for each kernel."""
    kernels = {tuple(sorted(x.shape)) for path, x in reference.flat(PARAMS).items() if path.endswith("/kernel")}

    def kernel_sized(of):
        shapes = programs.compiled_dot_shapes(*gradient_program(layout, of))
        return [s for s in shapes if tuple(sorted(n for n in s if n != 1)) in kernels]

    layers = 1 if layout == "scan" else CONFIG.num_layers
    assert len(kernel_sized("params")) == 7 * layers
    assert kernel_sized("adapters") == []


def peft_model(base, adapters):
    """peft's LoRA on torch's model with our A and B."""
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[n.split(".")[1] for n in PROJECTIONS.values()]
    )
    wrapped = peft.get_peft_model(base, settings).eval()
    state = {}
    for layer in range(base.config.num_hidden_layers):
        for ours, theirs in PROJECTIONS.items():
            stem = f"base_model.model.model.layers.{layer}.{theirs}"
            state[f"{stem}.lora_A.weight"] = torch.tensor(np.asarray(adapters[f"layers_{layer}/{ours}/a"].T))
            state[f"{stem}.lora_B.weight"] = torch.tensor(np.asarray(adapters[f"layers_{layer}/{ours}/b"].T))
    result = peft.set_peft_model_state_dict(wrapped, state)
    assert not result.unexpected_keys
    return wrapped


def test_logits_and_gradients_equal_peft(tmp_path):
    torch_model = reference.torch_llama(num_hidden_layers=2)
    directory = reference.save(torch_model, tmp_path)
    base, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
    adapters = adapters_for(params)
    wrapped, ids = peft_model(torch_model, reference.flat(adapters)), reference.tokens(2, 8)
    model = Decoder(base.config, base.execution, AdapterSpec("lora"))

    def loss(adapters):
        logits = model.apply({"params": params, "adapters": adapters}, ids)
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)), logits

    (_, logits), gradient = reference.jit(jax.value_and_grad(loss, has_aux=True))(adapters)
    theirs = wrapped(input_ids=torch.from_numpy(ids).long()).logits
    np.testing.assert_allclose(logits, theirs.detach().numpy(), atol=1e-4)
    torch.logsumexp(theirs, -1).mean().backward()
    ours, parameters = reference.flat(gradient), dict(wrapped.named_parameters())
    for layer in range(2):
        for here, there in PROJECTIONS.items():
            for name in ("a", "b"):
                stem = f"base_model.model.model.layers.{layer}.{there}.lora_{name.upper()}.default.weight"
                error = reference.relative(ours[f"layers_{layer}/{here}/{name}"].T, parameters[stem].grad.numpy())
                assert error < 1e-4, (stem, error)


def test_methods_by_name():
    assert get_method("lora") is lora
    with pytest.raises(ValueError, match="unknown adapter method 'vera'; known: dora, lora, pissa"):
        get_method("vera")
