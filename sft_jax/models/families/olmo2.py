"""OLMo 2 (`olmo2`): norms on the outputs of attention and feed-forward, and over all query heads and all key heads."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    sizes = tables.sizes(config)
    return made_of(config, sizes | tables.rope(config, sizes["head_dim"]))


def made_of(config: ConfigReader, fields: dict) -> DecoderConfig:
    """The decoder of a config of which sizes, rotations and windows are read: these are `fields`."""
    config.expect("hidden_act", "silu")
    bias = config.get("attention_bias", False)
    made = DecoderConfig(
        **fields,
        norm_eps=config.get("rms_norm_eps", 1e-5),
        norm_placement="post",
        qk_norm="flat",
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
    )
    config.finish()
    return made


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    embedding, shape = "model.embed_tokens.weight", (config.vocab_size, config.model_dim)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", config.model_dim),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for layer in range(config.num_layers):
        source, path = f"model.layers.{layer}", f"layers_{layer}"
        table += [
            *tables.norm(f"{source}.post_attention_layernorm", f"{path}/attention_post_norm", config.model_dim),
            *tables.norm(f"{source}.post_feedforward_layernorm", f"{path}/ffn_post_norm", config.model_dim),
            *tables.norm(f"{source}.self_attn.q_norm", f"{path}/attention/query_norm", query),
            *tables.norm(f"{source}.self_attn.k_norm", f"{path}/attention/key_norm", kv),
            *llama.attention(config, source, path),
            *llama.feed_forward(config, source, path),
        ]
    return table
