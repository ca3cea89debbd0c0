"""Qwen 2 and 2.5, with biases on query, key and value (`qwen2`); Qwen 3, with norms on queries and keys (`qwen3`), and
its mixture of experts (`qwen3_moe`)."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.expect("hidden_act", "silu")
    kind = hf_config["model_type"]
    newer = kind != "qwen2"
    sizes = tables.sizes(config, head_dim=128 if kind == "qwen3" else None)
    if kind == "qwen3_moe":
        sizes["ffn_dim"] = config.require("moe_intermediate_size")
    bias = config.get("attention_bias", False) if newer else True
    made = DecoderConfig(
        **sizes,
        **tables.rope(config, sizes["head_dim"]),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        qk_norm="head" if newer else "none",
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias and newer,
        layer_windows=_windows(config, kind, sizes["num_layers"]),
        **(_experts(config) if kind == "qwen3_moe" else {}),
    )
    config.finish()
    return made


def _experts(config: ConfigReader) -> dict:
    """Every layer has experts; those that mix in plain layers are not implemented."""
    config.expect("decoder_sparse_step", 1)
    config.expect("mlp_only_layers", [])
    experts = config.get("num_experts", config.get("num_local_experts", 128))
    return tables.experts(config, experts, config.get("num_experts_per_tok", 8)) | {
        "normalize_expert_weights": config.get("norm_topk_prob", False)
    }


def _windows(config: ConfigReader, kind: str, num_layers: int) -> tuple[int, ...]:
    """`sliding_window` counts only with `use_sliding_window`, then from layer `max_window_layers` on, or with experts
    in every layer."""
    if not config.get("use_sliding_window", False):
        config.skip("sliding_window", "layer_types", "max_window_layers")
        return ()
    first = config.get("max_window_layers", 28)
    if kind == "qwen3_moe":
        first = 0
    return tables.windows(config, num_layers, lambda layer: layer >= first)


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint: Llama's, the norms of queries and keys, and experts in place of the ffn."""
    table = llama.tensor_table(config, _mixture)
    for layer in range(config.num_layers):
        table += norms(config, f"model.layers.{layer}", f"layers_{layer}")
    return table


def norms(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Those of queries and keys, where there are some."""
    if config.qk_norm == "none":
        return []
    return [
        *tables.norm(f"{source}.self_attn.q_norm", f"{path}/attention/query_norm", config.head_dim),
        *tables.norm(f"{source}.self_attn.k_norm", f"{path}/attention/key_norm", config.head_dim),
    ]


def _mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    names = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    return llama.experts(config, f"{source}.mlp", f"{path}/experts", names)
