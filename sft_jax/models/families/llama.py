"""The Llama family: Llama 1 to 3.x, SmolLM2, TinyLlama and every checkpoint with `model_type: llama`."""

from sft_jax.models.config import DecoderConfig, RopeScaling
from sft_jax.models.families.tables import TensorRule, require, transpose


def decoder_config(hf_config: dict) -> DecoderConfig:
    """What a Hugging Face Llama config computes, in our words.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    activation = hf_config.get("hidden_act", "silu")
    if activation != "silu":
        raise ValueError(f"config.json has hidden_act={activation!r}; the llama family implements 'silu'")
    if hf_config.get("pretraining_tp", 1) != 1:
        raise ValueError("config.json has pretraining_tp != 1, which is not implemented; set it to 1")
    heads = require(hf_config, "num_attention_heads")
    theta, scaling = _rope(hf_config)
    return DecoderConfig(
        vocab_size=require(hf_config, "vocab_size"),
        num_layers=require(hf_config, "num_hidden_layers"),
        model_dim=require(hf_config, "hidden_size"),
        num_heads=heads,
        num_kv_heads=hf_config.get("num_key_value_heads") or heads,
        head_dim=hf_config.get("head_dim") or require(hf_config, "hidden_size") // heads,
        ffn_dim=require(hf_config, "intermediate_size"),
        norm_eps=hf_config.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        max_positions=hf_config.get("max_position_embeddings", 2048),
        tie_embeddings=hf_config.get("tie_word_embeddings", False),
        attention_bias=hf_config.get("attention_bias", False),
        ffn_bias=hf_config.get("mlp_bias", False),
    )


def _rope(hf_config: dict) -> tuple[float, RopeScaling | None]:
    """Base and scaling from either spelling: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    parameters = hf_config.get("rope_parameters") or hf_config.get("rope_scaling") or {}
    theta = float(parameters.get("rope_theta", hf_config.get("rope_theta", 10000.0)))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ValueError(f"config.json asks for rope_type={kind!r}; implemented: 'default', 'llama3'")
    return theta, RopeScaling(
        factor=float(require(parameters, "factor")),
        low_freq_factor=float(require(parameters, "low_freq_factor")),
        high_freq_factor=float(require(parameters, "high_freq_factor")),
        original_max_positions=int(require(parameters, "original_max_position_embeddings")),
    )


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a Llama checkpoint."""
    table = [
        TensorRule("model.embed_tokens.weight", "embedding", (config.vocab_size, config.model_dim)),
        TensorRule("model.norm.weight", "final_norm/scale", (config.model_dim,)),
    ]
    head_shape = (config.vocab_size, config.model_dim)
    if config.tie_embeddings:
        reason = "the head is tied to the embedding"
        table.append(
            TensorRule(
                "lm_head.weight",
                None,
                head_shape,
                ignored=reason,
                equal_to="model.embed_tokens.weight",
                required=False,
            )
        )
    else:
        table.append(TensorRule("lm_head.weight", "head", head_shape, transpose))
    for layer in range(config.num_layers):
        table += _layer_table(config, f"model.layers.{layer}", f"layers_{layer}")
    return table


def _layer_table(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    model, ffn = config.model_dim, config.ffn_dim
    linears = [
        ("self_attn.q_proj", "attention/query", query, model, config.attention_bias),
        ("self_attn.k_proj", "attention/key", kv, model, config.attention_bias),
        ("self_attn.v_proj", "attention/value", kv, model, config.attention_bias),
        ("self_attn.o_proj", "attention/out", model, query, config.attention_bias),
        ("mlp.gate_proj", "ffn/gate", ffn, model, config.ffn_bias),
        ("mlp.up_proj", "ffn/up", ffn, model, config.ffn_bias),
        ("mlp.down_proj", "ffn/down", model, ffn, config.ffn_bias),
    ]
    table = [
        TensorRule(f"{source}.input_layernorm.weight", f"{path}/attention_norm/scale", (model,)),
        TensorRule(f"{source}.post_attention_layernorm.weight", f"{path}/ffn_norm/scale", (model,)),
        TensorRule(
            f"{source}.self_attn.rotary_emb.inv_freq",
            None,
            (config.head_dim // 2,),
            ignored="rotary frequencies are computed from the config",
            required=False,
        ),
    ]
    for name, ours, fan_out, fan_in, bias in linears:
        table.append(TensorRule(f"{source}.{name}.weight", f"{path}/{ours}/kernel", (fan_out, fan_in), transpose))
        if bias:
            table.append(TensorRule(f"{source}.{name}.bias", f"{path}/{ours}/bias", (fan_out,)))
    return table
