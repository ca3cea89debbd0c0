"""GPT-NeoX and Pythia (`gpt_neox`): attention and feed-forward side by side, heads that are rotated in part."""

import functools

import numpy as np

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_ROTATED = 0.25  # of each head, where a config does not say
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader({"rotary_pct": _ROTATED} | hf_config)
    activation = config.expect("hidden_act", *_ACTIVATIONS)
    config.skip("hidden_dropout", "classifier_dropout")
    sizes, bias = tables.sizes(config), config.get("attention_bias", True)
    sizes["num_kv_heads"] = sizes["num_heads"]
    sizes["head_dim"] = tables.shared_width(sizes["model_dim"], sizes["num_heads"])
    rope = tables.rope(config, sizes["head_dim"], theta_key="rotary_emb_base")
    made = DecoderConfig(
        **sizes,
        **rope,
        norm="layer",
        norm_eps=config.get("layer_norm_eps", 1e-5),
        norm_placement="parallel" if config.get("use_parallel_residual", True) else "pre",
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        ffn_bias=True,
        ffn_gated=False,
        activation=_ACTIVATIONS[activation],
    )
    config.finish()
    return made


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    model, ffn = config.model_dim, config.ffn_dim
    embedding, shape = "gpt_neox.embed_in.weight", (config.vocab_size, model)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("gpt_neox.final_layer_norm", "final_norm", model, bias=True),
        tables.head("embed_out.weight", embedding, shape, config.tie_embeddings),
    ]
    for layer in range(config.num_layers):
        source, path = f"gpt_neox.layers.{layer}", f"layers_{layer}"
        table += [
            *tables.norm(f"{source}.input_layernorm", f"{path}/attention_norm", model, bias=True),
            *tables.norm(f"{source}.post_attention_layernorm", f"{path}/ffn_norm", model, bias=True),
            *_query_key_value(config, f"{source}.attention.query_key_value", f"{path}/attention"),
            *tables.linear(f"{source}.attention.dense", f"{path}/attention/out", model, model, config.out_bias),
            *tables.linear(f"{source}.mlp.dense_h_to_4h", f"{path}/ffn/up", model, ffn, bias=True),
            *tables.linear(f"{source}.mlp.dense_4h_to_h", f"{path}/ffn/down", ffn, model, bias=True),
            tables.computed(f"{source}.attention.rotary_emb.inv_freq", ((config.rope_dim or config.head_dim) // 2,)),
            tables.computed(f"{source}.attention.bias", (1, 1, config.max_positions, config.max_positions)),
            tables.computed(f"{source}.attention.masked_bias", ()),
        ]
    return table


def _query_key_value(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Stored head by head: query, key and value of the first head, then of the second, …"""
    rules = []
    for part, name in enumerate(("query", "key", "value")):
        pick = functools.partial(_part_of_heads, heads=config.num_heads, part=part)
        width = config.model_dim
        shape, kernel, bias = (3 * width, width), (width, width), (width,)
        rules.append(TensorRule(f"{source}.weight", f"{path}/{name}/kernel", shape, pick, merged=kernel))
        if config.qkv_bias:
            rules.append(TensorRule(f"{source}.bias", f"{path}/{name}/bias", shape[:1], pick, merged=bias))
    return rules


def _part_of_heads(array: np.ndarray, heads: int, part: int) -> np.ndarray:
    """[3 heads width, in] as [in, heads, width] of one of the three, or of a bias [heads, width]."""
    split = array.reshape(heads, 3, -1, *array.shape[1:])[:, part]
    return split if array.ndim == 1 else split.transpose(2, 0, 1)
