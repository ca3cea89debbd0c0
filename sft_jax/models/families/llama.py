"""Llama, SmolLM2, TinyLlama (`llama`); SmolLM3, some of whose layers do not turn (`smollm3`); Mistral (`mistral`)."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tables
from sft_jax.models.families.tables import ConfigReader, TensorRule


def decoder_config(hf_config: dict) -> DecoderConfig:
    """What a Hugging Face config computes, in our words.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.expect("hidden_act", "silu")
    config.expect("pretraining_tp", 1)
    kind, sizes = hf_config["model_type"], tables.sizes(config)
    attention_bias = config.get("attention_bias", False)
    made = DecoderConfig(
        **sizes,
        **tables.rope(config, sizes["head_dim"], default_theta=2_000_000.0 if kind == "smollm3" else 10_000.0),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=config.get("tie_word_embeddings", kind == "smollm3"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=config.get("mlp_bias", False),
        layer_windows=_windows(config, kind, sizes["num_layers"]),
        rope_layers=_rope_layers(config, sizes["num_layers"]) if kind == "smollm3" else (),
    )
    config.finish()
    return made


def _windows(config: ConfigReader, kind: str, num_layers: int) -> tuple[int, ...]:
    if kind == "mistral":
        return tables.windows(config, num_layers, lambda layer: True)
    if kind == "smollm3" and not config.get("use_sliding_window", False):
        config.skip("sliding_window", "layer_types")
        return ()
    return tables.windows(config, num_layers, lambda layer: False, absent=0)


def _rope_layers(config: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` has 1 for a layer that does turn; by default every fourth does not."""
    interval = config.get("no_rope_layer_interval", 4)
    stated = config.get("no_rope_layers", [(layer + 1) % interval != 0 for layer in range(num_layers)])
    if len(stated) < num_layers:
        raise ValueError(f"config.json has {len(stated)} no_rope_layers; expected one for each of {num_layers} layers")
    return tuple(bool(turns) for turns in stated[:num_layers])


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    embedding = "model.embed_tokens.weight"
    shape = (config.vocab_size, config.model_dim)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", config.model_dim),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    for layer in range(config.num_layers):
        table += layer_table(config, f"model.layers.{layer}", f"layers_{layer}")
    return table


def layer_table(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The tensors of one layer."""
    model = config.model_dim
    return [
        *tables.norm(f"{source}.input_layernorm", f"{path}/attention_norm", model),
        *tables.norm(f"{source}.post_attention_layernorm", f"{path}/ffn_norm", model),
        tables.computed(f"{source}.self_attn.rotary_emb.inv_freq", (config.head_dim // 2,)),
        *projections(config, source, path),
    ]


def projections(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The seven projections of a layer, as most families name them."""
    query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    model, ffn = config.model_dim, config.ffn_dim
    return [
        *tables.linear(f"{source}.self_attn.q_proj", f"{path}/attention/query", model, query, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.k_proj", f"{path}/attention/key", model, kv, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.v_proj", f"{path}/attention/value", model, kv, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.o_proj", f"{path}/attention/out", query, model, config.out_bias),
        *tables.linear(f"{source}.mlp.gate_proj", f"{path}/ffn/gate", model, ffn, config.ffn_bias),
        *tables.linear(f"{source}.mlp.up_proj", f"{path}/ffn/up", model, ffn, config.ffn_bias),
        *tables.linear(f"{source}.mlp.down_proj", f"{path}/ffn/down", ffn, model, config.ffn_bias),
    ]
