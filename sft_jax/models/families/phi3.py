"""Phi-3, 3.5 and Phi-4-mini (`phi3`): Llama with query, key and value in one stored projection, gate and up in another;
the later ones with other rotary frequencies for long texts (LongRoPE)."""

import reprlib

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_ORIGINAL = 4096


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.expect("hidden_act", "silu")
    config.expect("attention_bias", False)
    config.expect("full_attn_mod", 1)
    config.expect("interpolate_factor", 1)
    sizes = tables.sizes(config)
    made = DecoderConfig(
        **sizes,
        **_rope(config, sizes["head_dim"]),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
        layer_windows=tables.windows(config, sizes["num_layers"], lambda layer: True, absent=0),
    )
    config.finish()
    return made


def _rope(config: ConfigReader, head_dim: int) -> dict:
    """`original_max_position_embeddings` beside the rope is what counts, and 4096 where there is none."""
    given = config.section("rope_scaling", "rope_parameters")
    if (kind := tables.rope_type(given)) not in ("default", "longrope", "su"):
        raise ValueError(
            f"config.json asks for rope_type={reprlib.repr(kind)}; of phi3 there are: 'default', 'longrope'"
        )
    original = config.get("original_max_position_embeddings", _ORIGINAL)
    inner = given.get("original_max_position_embeddings", original)
    if inner != original:
        raise ValueError(
            f"config.json has original_max_position_embeddings={inner} in its rope, where {original} is what counts "
            "for phi3; give it beside the rope"
        )
    return tables.rope(config, head_dim, original=original)


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    model, ffn = config.model_dim, config.ffn_dim
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    embedding, shape = "model.embed_tokens.weight", (config.vocab_size, model)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", model),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    for layer in range(config.num_layers):
        source, path = f"model.layers.{layer}", f"layers_{layer}"
        attention = {f"{path}/attention/query": query, f"{path}/attention/key": kv, f"{path}/attention/value": kv}
        table += [
            *tables.norm(f"{source}.input_layernorm", f"{path}/attention_norm", model),
            *tables.norm(f"{source}.post_attention_layernorm", f"{path}/ffn_norm", model),
            *tables.fused_linear(f"{source}.self_attn.qkv_proj", attention, model),
            *tables.linear(f"{source}.self_attn.o_proj", f"{path}/attention/out", query, model),
            *tables.fused_linear(f"{source}.mlp.gate_up_proj", {f"{path}/ffn/gate": ffn, f"{path}/ffn/up": ffn}, model),
            *tables.linear(f"{source}.mlp.down_proj", f"{path}/ffn/down", ffn, model),
        ]
    return table
