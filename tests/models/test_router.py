"""Which experts tokens take, and with which weights: as DeepSeek V3's and GLM 4.5's router in transformers has it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AxisType
from transformers import DeepseekV3Config, Glm4MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.glm4_moe.modeling_glm4_moe import Glm4MoeMoE

from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.decoder_layer import FeedForward
from sft_jax.models.experts import ROUTING, Experts, taken_experts
from sft_jax.models.partitioning import MESH_AXES
from sft_jax.models.variables import is_buffer
from tests.models import reference

MODEL, FFN, EXPERTS, TAKES = 16, 12, 8, 3
SIZES = {
    "hidden_size": MODEL,
    "moe_intermediate_size": FFN,
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TAKES,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
OURS = {
    "vocab_size": 1,
    "num_layers": 1,
    "model_dim": MODEL,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 8,
    "ffn_dim": FFN,
    "num_experts": EXPERTS,
    "experts_per_token": TAKES,
    "router_scoring": "sigmoid",
    "router_correction": True,
}
# name -> (module, its config, fields of theirs, fields of ours)
CASES = {
    "deepseek_v3": (
        DeepseekV3MoE,
        DeepseekV3Config,
        {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "n_shared_experts": 2},
        {"expert_groups": 4, "expert_groups_taken": 2, "expert_weight_scale": 2.5, "shared_ffn_dim": 2 * FFN},
    ),
    "glm4_moe": (
        Glm4MoeMoE,
        Glm4MoeConfig,
        {"n_group": 1, "topk_group": 1, "norm_topk_prob": False, "n_shared_experts": 1},
        {"normalize_expert_weights": False, "shared_ffn_dim": FFN},
    ),
}
SWITCHES = {
    "deepseek_v3": {
        "groups": {"expert_groups_taken": 4},
        "correction": {"router_correction": False},
        "scores": {"router_scoring": "softmax"},
        "factor": {"expert_weight_scale": 1.0},
        "weights that sum to 1": {"normalize_expert_weights": False},
    },
    "glm4_moe": {
        "correction": {"router_correction": False},
        "scores": {"router_scoring": "softmax"},
        "weights that sum to 1": {"normalize_expert_weights": True},
    },
}


def torch_module(name):
    module, config, theirs, _ = CASES[name]
    made = config(**SIZES, **theirs)
    made._experts_implementation = "eager"
    layer = module(made)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(2.0 * parameter.shape[-1] ** -0.5 * torch.randn(parameter.shape, generator=generator))
        layer.gate.e_score_correction_bias.copy_(0.3 * torch.randn(EXPERTS, generator=generator))
    return layer


def ours_of(tensors):
    """Parameters, or gradients, of the experts and of the layer beside them, by the names that torch has for them."""
    gate_up = tensors["experts.gate_up_proj"].swapaxes(1, 2)
    flat = {
        "experts/router/kernel": tensors["gate.weight"].T,
        "experts/gate/kernel": gate_up[..., :FFN],
        "experts/up/kernel": gate_up[..., FFN:],
        "experts/down/kernel": tensors["experts.down_proj"].swapaxes(1, 2),
        **{f"shared/{part}/kernel": tensors[f"shared_experts.{part}_proj.weight"].T for part in ("gate", "up", "down")},
    }
    if "gate.e_score_correction_bias" in tensors:
        flat["experts/correction_bias"] = tensors["gate.e_score_correction_bias"]
    return unflatten_dict({path: jnp.asarray(np.array(leaf)) for path, leaf in flat.items()}, sep="/")


def config_of(name, **changes):
    return DecoderConfig(**OURS | CASES[name][3] | changes)


def applied(config, params, x):
    experts = Experts(config, Execution(), None)
    shared = FeedForward(dataclasses.replace(config, ffn_dim=config.shared_ffn_dim), Execution(), None)
    of_experts = params["experts"] if config.router_correction else without_buffers(params["experts"])
    mixed, collections = experts.apply({"params": of_experts}, x, jnp.ones(x.shape[:2], bool), mutable=[ROUTING])
    return mixed + shared.apply({"params": params["shared"]}, x), collections[ROUTING]["sums"]


def without_buffers(params):
    return {name: leaf for name, leaf in params.items() if not is_buffer(f"/{name}")}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """(name, torch's module, its parameters and buffers as ours, inputs [B, S, D])."""
    layer = torch_module(request.param)
    params = ours_of({name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()})
    x = np.random.default_rng(0).normal(size=(8, 24, MODEL)).astype(np.float32)
    return request.param, layer, params, x


def test_output_and_gradients_equal_torchs(case):
    name, layer, params, x = case
    inputs = torch.from_numpy(x).requires_grad_()
    out = layer(inputs)
    cotangent = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    layer.zero_grad()
    out.backward(torch.from_numpy(cotangent))
    loss = lambda params, x: jnp.sum(applied(config_of(name), params, x)[0] * cotangent)
    found, routing = reference.jit(lambda params, x: applied(config_of(name), params, x))(params, x)
    np.testing.assert_allclose(found, out.detach().numpy(), atol=2e-5)
    of_params, of_x = reference.jit(jax.grad(loss, argnums=(0, 1)))(params, jnp.asarray(x))
    assert reference.relative(of_x, inputs.grad.numpy()) < 1e-5
    theirs = flatten_dict(ours_of({name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}))
    of_params = flatten_dict(of_params)
    assert not np.any(of_params.pop(("experts", "correction_bias")))
    assert of_params.keys() == theirs.keys()
    assert max(reference.relative(of_params[path], theirs[path]) for path in theirs) < 1e-5
    tokens = x.shape[0] * x.shape[1]
    assert float(jnp.sum(routing.chosen)) == tokens * TAKES
    assert float(jnp.sum(routing.probability)) == pytest.approx(tokens, rel=1e-5)


def test_every_feature_is_noticed_when_it_is_off(case):
    name, layer, params, x = case
    expected = layer(torch.from_numpy(x)).detach().numpy()

    def moved(params, **off):
        found = reference.jit(lambda params, x: applied(config_of(name, **off), params, x)[0])(params, x)
        return np.abs(found - expected).max()

    by_switch = {switch: moved(params, **off) for switch, off in SWITCHES[name].items()}
    by_switch["shared"] = moved(params | {"shared": jax.tree.map(jnp.zeros_like, params["shared"])})
    assert min(by_switch.values()) > 1e-2, by_switch


@pytest.mark.parametrize("sizes", [(1, 1, 4, 1, 2), (2, 2, 2, 1, 1), (1, 1, 8, 1, 1)])
@pytest.mark.parametrize("capacity", [0.0, 0.75])
def test_experts_on_several_devices_give_the_same(case, sizes, capacity):
    name, _, params, x = case
    config = config_of(name, expert_capacity=capacity)
    expected, routing = reference.jit(lambda params, x: applied(config, params, x))(params, x)
    with jax.set_mesh(jax.make_mesh(sizes, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))):
        found, spread = reference.jit(lambda params, x: applied(config, params, x))(jax.device_get(params), x)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(spread.chosen, routing.chosen)


def test_a_choice_by_hand():
    """Four experts in two groups, of which a token takes one, and two experts.

    Without the correction the first group is the best by its two best, with it the second. The weights are of scores.
    """
    config = DecoderConfig(**OURS | {"num_experts": 4, "experts_per_token": 2, "expert_groups": 2})
    scores = jnp.asarray([[[0.9, 0.6, 0.8, 0.5]]])
    for correction, taken, expected in (
        (None, [0, 1], [0.6, 0.4]),
        ([0.0, 0.0, 0.0, 0.0], [0, 1], [0.6, 0.4]),
        ([0.0, 0.0, 0.1, 0.9], [3, 2], [0.5 / 1.3, 0.8 / 1.3]),
    ):
        weights, chosen = taken_experts(config, scores, None if correction is None else jnp.asarray(correction))
        assert chosen.tolist() == [[taken]]
        np.testing.assert_allclose(weights, [[expected]], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"router_scoring": "tanh"}, "router_scoring='tanh' is not one of softmax, sigmoid"),
        ({"expert_groups": 4, "expert_groups_taken": 5}, r"expert_groups_taken=5 must lie in 1 … expert_groups=4"),
        ({"expert_groups": 3}, "num_experts=8 must be a multiple of expert_groups=3"),
        ({"expert_groups": 8}, "num_experts=8 must be a multiple of expert_groups=8, with two experts a group"),
        ({"expert_groups": 4}, "experts_per_token=3 must be at most 2, the experts of expert_groups_taken=1 groups"),
    ],
)
def test_routers_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**OURS | changes)
