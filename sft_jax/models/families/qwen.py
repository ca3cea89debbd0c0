"""Qwen 2 and 2.5, with biases on query, key and value (`qwen2`); Qwen 3, with norms on queries and keys (`qwen3`)."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule


def decoder_config(hf_config: dict) -> DecoderConfig:
    """What a Hugging Face config computes, in our words.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.expect("hidden_act", "silu")
    newer = hf_config["model_type"] == "qwen3"
    sizes = tables.sizes(config, head_dim=128 if newer else None)
    bias = config.get("attention_bias", False) if newer else True
    made = DecoderConfig(
        **sizes,
        **tables.rope(config, sizes["head_dim"]),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        qk_norm="head" if newer else "none",
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias and newer,
        layer_windows=_windows(config, sizes["num_layers"]),
    )
    config.finish()
    return made


def _windows(config: ConfigReader, num_layers: int) -> tuple[int, ...]:
    """`sliding_window` counts only with `use_sliding_window`, and then from layer `max_window_layers` on."""
    first = config.get("max_window_layers", 28)
    if not config.get("use_sliding_window", False):
        config.skip("sliding_window", "layer_types")
        return ()
    return tables.windows(config, num_layers, lambda layer: layer >= first)


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint: Llama's, and the norms of queries and keys."""
    table = llama.tensor_table(config)
    if config.qk_norm == "head":
        for layer in range(config.num_layers):
            for source, path in (("q_norm", "query_norm"), ("k_norm", "key_norm")):
                table += tables.norm(
                    f"model.layers.{layer}.self_attn.{source}", f"layers_{layer}/attention/{path}", config.head_dim
                )
    return table
