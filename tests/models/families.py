"""The families under test: for each a tiny random torch model, and the features that must not go missing unnoticed.

A switch is (name, edit): `edit(config, params)` returns both with one feature off. Each must move the logits by a
hundred tolerances, or the parity test would pass without the feature.
"""

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch
import transformers

from sft_jax.models.config import DecoderConfig
from sft_jax.models.rope import layer_kinds
from tests.models import reference

Edit = Callable[[DecoderConfig, dict], tuple[DecoderConfig, dict]]

SIZES = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 5  # far shorter than the sequences of the tests


def changed(**fields: object) -> Edit:
    return lambda config, params: (dataclasses.replace(config, **fields), params)


def without(suffix: str, value: float) -> Edit:
    return lambda config, params: (config, reference.edited(params, suffix, lambda x: jnp.full_like(x, value)))


def without_qk_norm(config, params):
    def edit(tree):
        return {
            name: edit(leaf) if isinstance(leaf, dict) else leaf for name, leaf in tree.items() if "y_norm" not in name
        }

    return dataclasses.replace(config, qk_norm="none"), edit(params)


def without_positions(config, params):
    return config, reference.edited(params, "position_embedding/embedding", jnp.zeros_like)


def sequential(config, params):
    """Parallel residual off: the feed-forward layer reads what attention has added."""
    return dataclasses.replace(config, norm_placement="pre"), params


def all_layers_rotate(config, params):
    assert 0 in layer_kinds(config)
    return dataclasses.replace(config, rope_layers=()), params


NO_WINDOW = {
    "window": changed(layer_windows=()),
    "window of one more": lambda c, p: (
        dataclasses.replace(c, layer_windows=tuple(w and w + 1 for w in c.layer_windows)),
        p,
    ),
}
QKV_BIAS = {f"bias of {name}": without(f"attention/{name}/bias", 0.0) for name in ("query", "key", "value")}
# Where nothing is rotated, a bias of the keys adds the same number to all scores of a query: it changes nothing.
QUERY_VALUE_BIAS = {name: edit for name, edit in QKV_BIAS.items() if "key" not in name}
OTHER_BIAS = {f"bias of {name}": without(f"{name}/bias", 0.0) for name in ("attention/out", "ffn/up", "ffn/down")}
LAYER_NORM = {
    "mean of the norm": changed(norm="rms"),
    **{f"bias of {name}": without(f"{name}/bias", 0.0) for name in ("attention_norm", "ffn_norm", "final_norm")},
}
FOUR_NORMS = {
    f"scale of {name}": without(f"{name}/scale", 0.0)
    for name in ("attention_norm", "attention_post_norm", "ffn_norm", "ffn_post_norm", "final_norm")
}
GEMMA = {
    **FOUR_NORMS,
    "1 + w": changed(norm_offset=0.0),
    "embedding scale": changed(embedding_scale=1.0),
    "query scale": changed(query_scale=0.0),
    "tanh of gelu": changed(activation="silu"),
    **NO_WINDOW,
}
EXPERTS = {
    "router": without("router/kernel", 0.0),
    "experts": without("down/kernel", 0.0),
    "bound": changed(expert_capacity=0.5),
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}

# name -> (fields of config.json, switches)
CASES: dict[str, tuple[dict, dict[str, Edit]]] = {
    "llama": ({"model_type": "llama"}, {"rope": changed(rope_theta=1e12)}),
    "llama linear rope": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 10000.0},
        {"scaling": changed(rope_scaling=None)},
    ),
    "llama dynamic rope": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}, "rope_theta": 10000.0},
        {"rope": changed(rope_theta=1e12)},
    ),
    "llama yarn": (
        {"model_type": "llama", "rope_scaling": YARN},
        {
            "scaling": changed(rope_scaling=None),
            "attention factor": lambda c, p: (
                dataclasses.replace(c, rope_scaling=dataclasses.replace(c.rope_scaling, attention_factor=1.0)),
                p,
            ),
        },
    ),
    "smollm3": (
        {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layer_interval": 2, "tie_word_embeddings": True},
        {"layers without rope": all_layers_rotate},
    ),
    "mistral": ({"model_type": "mistral", "sliding_window": WINDOW}, NO_WINDOW),
    "qwen2": ({"model_type": "qwen2"}, QKV_BIAS),
    "qwen2 with windows": (
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        NO_WINDOW,
    ),
    "qwen3": (
        {"model_type": "qwen3", "head_dim": 16},
        {
            "qk norm": without_qk_norm,
            "scale of the query norm": without("query_norm/scale", 1.0),
            "scale of the key norm": without("key_norm/scale", 1.0),
        },
    ),
    "gemma2": (
        {
            "model_type": "gemma2",
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        GEMMA | {"cap of scores": changed(attention_softcap=0.0), "cap of logits": changed(final_softcap=0.0)},
    ),
    "gemma3_text": (
        {
            "model_type": "gemma3_text",
            "num_hidden_layers": 6,
            "head_dim": 16,
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "sliding_window_pattern": 3,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
        GEMMA
        | {
            "qk norm": without_qk_norm,
            "base of windowed layers": changed(local_rope_theta=500000.0),
            "scaling": changed(rope_scaling=None),
        },
    ),
    "phi3": ({"model_type": "phi3", "sliding_window": WINDOW}, NO_WINDOW),
    "phi3 partial": (
        {
            "model_type": "phi3",
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        },
        {"rotated part": changed(rope_dim=0)},
    ),
    "mixtral": (
        {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2},
        EXPERTS | {"experts a token takes": changed(experts_per_token=1)},
    ),
    "qwen3_moe": (
        {
            "model_type": "qwen3_moe",
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
        },
        EXPERTS | {"qk norm": without_qk_norm, "weights that do not sum to 1": changed(normalize_expert_weights=True)},
    ),
    "qwen3_moe normalised": (
        {
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "use_sliding_window": True,
            "sliding_window": WINDOW,
        },
        NO_WINDOW | {"weights that sum to 1": changed(normalize_expert_weights=False)},
    ),
    "olmo2": (
        {"model_type": "olmo2"},
        {
            "qk norm": without_qk_norm,
            **{
                f"scale of {n}": without(f"{n}/scale", 0.5)
                for n in ("attention_post_norm", "ffn_post_norm", "query_norm")
            },
        },
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
        LAYER_NORM
        | QUERY_VALUE_BIAS
        | OTHER_BIAS
        | {"positions": without_positions, "tanh of gelu": changed(activation="silu")},
    ),
    "gpt_neox": (
        {"model_type": "gpt_neox", "rotary_pct": 0.5},
        LAYER_NORM
        | QKV_BIAS
        | OTHER_BIAS
        | {"rotated part": changed(rope_dim=0), "parallel residual": sequential, "gelu": changed(activation="silu")},
    ),
    "gpt_neox sequential": (
        {"model_type": "gpt_neox", "use_parallel_residual": False},
        {"bias of out": OTHER_BIAS["bias of attention/out"]},
    ),
}


def hf_config(case: str) -> dict:
    fields = CASES[case][0]
    sizes = {"vocab_size": 320} if fields["model_type"] == "gpt2" else SIZES
    return copy.deepcopy(sizes | fields)


def torch_model(case: str, seed: int = 0) -> transformers.PreTrainedModel:
    """The torch model of a case, see `random_model`."""
    fields = hf_config(case)
    return random_model(transformers.AutoConfig.for_model(fields.pop("model_type"), **fields), seed)


def random_model(config: transformers.PreTrainedConfig, seed: int = 0) -> transformers.PreTrainedModel:
    """A torch model with every parameter far from its initial value."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator, gemma = torch.Generator().manual_seed(seed), config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_((0.0 if gemma else 1.0) + 0.3 * noise)
            elif parameter.ndim == 1:
                parameter.copy_(0.5 * noise)
            elif "wpe" in name or "wte" in name or "embed" in name:
                parameter.copy_(0.35 * noise)
            else:
                fan_in = parameter.shape[0] if config.model_type == "gpt2" and ".c_" in name else parameter.shape[-1]
                parameter.copy_(2.0 * fan_in**-0.5 * noise)
    return model


def save(model: transformers.PreTrainedModel, directory: Path) -> Path:
    model.save_pretrained(directory)
    return directory


def torch_logits(model: transformers.PreTrainedModel, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids).long(), use_cache=False).logits.float().numpy()
