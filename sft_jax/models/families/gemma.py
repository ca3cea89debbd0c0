"""Gemma 2 (`gemma2`), with soft caps and alternating windows; the text part of Gemma 3 (`gemma3_text`), with norms on
queries and keys and two rotary bases. Both: four norms a layer, scaled embeddings, norms that multiply by 1 + w."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.expect("hidden_activation", "gelu_pytorch_tanh")
    config.expect("hidden_act", "gelu_pytorch_tanh")  # as older Gemma 2 files have it; overridden by the one above
    config.expect("use_bidirectional_attention", False)
    newer, sizes = hf_config["model_type"] == "gemma3_text", tables.sizes(config, head_dim=256)
    bias = config.get("attention_bias", False)
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6)) if newer else 2
    made = DecoderConfig(
        **sizes,
        **(_two_ropes(config, sizes["head_dim"]) if newer else tables.rope(config, sizes["head_dim"])),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        norm_offset=1.0,
        norm_placement="both",
        qk_norm="head" if newer else "none",
        activation="gelu_tanh",
        tie_embeddings=config.get("tie_word_embeddings", True),
        embedding_scale=sizes["model_dim"] ** 0.5,
        query_scale=config.get("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=config.get_nullable("attn_logit_softcapping", None if newer else 50.0) or 0.0,
        final_softcap=config.get_nullable("final_logit_softcapping", None if newer else 30.0) or 0.0,
        qkv_bias=bias,
        out_bias=bias,
        layer_windows=tables.windows(config, sizes["num_layers"], lambda layer: (layer + 1) % pattern != 0),
    )
    config.finish()
    return made


def _two_ropes(config: ConfigReader, head_dim: int) -> dict:
    """Gemma 3: one base for layers that see all, which may be stretched, and one for layers with a window."""
    parameters = config.section("rope_parameters")
    if parameters.get("full_attention") is None:
        local = float(config.get("rope_local_base_freq", 10_000.0))
        return tables.rope(config, head_dim, default_theta=1_000_000.0) | {"local_rope_theta": local}
    config.skip("rope_local_base_freq")
    return tables.ropes_by_layer_type(config, head_dim, 10_000.0, 10_000.0)


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    embedding, shape = "model.embed_tokens.weight", (config.vocab_size, config.model_dim)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", config.model_dim),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    norms = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "attention_post_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "ffn_post_norm",
    }
    for layer in range(config.num_layers):
        source, path = f"model.layers.{layer}", f"layers_{layer}"
        for theirs, ours in norms.items():
            table += tables.norm(f"{source}.{theirs}", f"{path}/{ours}", config.model_dim)
        if config.qk_norm == "head":
            table += tables.norm(f"{source}.self_attn.q_norm", f"{path}/attention/query_norm", config.head_dim)
            table += tables.norm(f"{source}.self_attn.k_norm", f"{path}/attention/key_norm", config.head_dim)
        table += [*llama.attention(config, source, path), *llama.feed_forward(config, source, path)]
    return table
