"""Granite 3 (`granite`): Llama with factors on embeddings, scores, residuals and logits."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader

tensor_table = llama.tensor_table


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    made = DecoderConfig(**fields(config), ffn_bias=config.get("mlp_bias", False))
    config.finish()
    return made


def fields(config: ConfigReader) -> dict:
    """The fields of `DecoderConfig` that all Granites spell alike."""
    config.expect("hidden_act", "silu")
    sizes, bias = tables.sizes(config), config.get("attention_bias", False)
    return {
        **sizes,
        **tables.rope(config, sizes["head_dim"]),
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_embeddings": config.get("tie_word_embeddings", False),
        "embedding_scale": float(config.get("embedding_multiplier", 1.0)),
        "query_scale": float(config.get("attention_multiplier", 1.0)),
        "residual_scale": float(config.get("residual_multiplier", 1.0)),
        "logit_scale": 1.0 / config.get("logits_scaling", 1.0),
        "qkv_bias": bias,
        "out_bias": bias,
    }
