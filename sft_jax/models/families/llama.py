"""Llama, SmolLM2, TinyLlama (`llama`); SmolLM3, some of whose layers do not rotate (`smollm3`); Mistral (`mistral`) and
its mixture of experts (`mixtral`); Ministral 3, whose queries grow with their position (`ministral3`)."""

from collections.abc import Callable

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

Rules = Callable[[DecoderConfig, str, str], list[TensorRule]]
# Where a config leaves them out, as in transformers.
_DEFAULT_THETA = {"smollm3": 2_000_000.0, "mixtral": 1_000_000.0}
_DEFAULT_EPSILON = {"ministral3": 1e-5, "mixtral": 1e-5}


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

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
        **tables.rope(config, sizes["head_dim"], default_theta=_DEFAULT_THETA.get(kind, 10_000.0)),
        norm_eps=config.get("rms_norm_eps", _DEFAULT_EPSILON.get(kind, 1e-6)),
        tie_embeddings=config.get("tie_word_embeddings", kind == "smollm3"),
        qkv_bias=attention_bias,
        out_bias=attention_bias,
        ffn_bias=config.get("mlp_bias", False),
        layer_windows=_windows(config, kind, sizes["num_layers"]),
        rope_layers=_rope_layers(config, sizes["num_layers"]) if kind == "smollm3" else (),
        **(_experts(config) if kind == "mixtral" else {}),
        **(_query_growth(config) if kind == "ministral3" else {}),
    )
    config.finish()
    return made


def _experts(config: ConfigReader) -> dict:
    return tables.experts(config, config.get("num_local_experts", 8), config.get("num_experts_per_tok", 2))


def _query_growth(config: ConfigReader) -> dict:
    """Llama 4's scaling of attention by position, which Ministral 3 describes beside its frequencies."""
    given = config.section("rope_scaling", "rope_parameters")
    return {
        "query_growth": float(given.require("llama_4_scaling_beta")),
        "query_growth_positions": given.require("original_max_position_embeddings"),
    }


def _windows(config: ConfigReader, kind: str, num_layers: int) -> tuple[int, ...]:
    if kind == "mistral":
        return tables.windows(config, num_layers, lambda layer: True)
    if kind in ("ministral3", "mixtral"):
        return tables.windows(config, num_layers, lambda layer: True, absent=0)
    if kind == "smollm3" and not config.get("use_sliding_window", False):
        config.skip("sliding_window", "layer_types")
        return ()
    return tables.windows(config, num_layers, lambda layer: False, absent=0)


def _rope_layers(config: ConfigReader, num_layers: int) -> tuple[bool, ...]:
    """`no_rope_layers` has 1 for a layer that does rotate; by default every fourth does not."""
    interval = config.get("no_rope_layer_interval", 4)
    stated = config.get("no_rope_layers", [(layer + 1) % interval != 0 for layer in range(num_layers)])
    if len(stated) < num_layers:
        raise ValueError(f"config.json has {len(stated)} no_rope_layers; expected one for each of {num_layers} layers")
    return tuple(bool(rotates) for rotates in stated[:num_layers])


def tensor_table(
    config: DecoderConfig,
    mixture: Rules | None = None,
    dense: Rules | None = None,
    attending: Rules | None = None,
) -> list[TensorRule]:
    """Every tensor of a checkpoint.

    Args:
        config: the decoder.
        mixture: (config of a layer, its name, its path) -> the tensors of its experts, where they are not Mixtral's.
        dense: likewise those of its feed-forward part without experts, where they are not Llama's.
        attending: likewise those of its attention, where they are not Llama's.
    """
    embedding = "model.embed_tokens.weight"
    shape = (config.vocab_size, config.model_dim)
    table = [
        TensorRule(embedding, "embedding", shape),
        *tables.norm("model.norm", "final_norm", config.model_dim),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    for layer in range(config.num_layers):
        source, path, own = f"model.layers.{layer}", f"layers_{layer}", config.of_layer(layer)
        feeding = (mixture or _mixture) if own.num_experts else (dense or feed_forward)
        table += [
            *tables.norm(f"{source}.input_layernorm", f"{path}/attention_norm", config.model_dim),
            *tables.norm(f"{source}.post_attention_layernorm", f"{path}/ffn_norm", config.model_dim),
            tables.computed(f"{source}.self_attn.rotary_emb.inv_freq", (config.head_dim // 2,)),
            *(attending or attention)(own, source, path),
            *feeding(own, source, path),
        ]
    return table


def attention(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The four projections around attention, as most families name them."""
    query, kv, model = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim, config.model_dim
    return [
        *tables.linear(f"{source}.self_attn.q_proj", f"{path}/attention/query", model, query, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.k_proj", f"{path}/attention/key", model, kv, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.v_proj", f"{path}/attention/value", model, kv, config.qkv_bias),
        *tables.linear(f"{source}.self_attn.o_proj", f"{path}/attention/out", query, model, config.out_bias),
    ]


def feed_forward(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The three projections of the feed-forward layer, as most families name them."""
    model, ffn = config.model_dim, config.ffn_dim
    return [
        *tables.linear(f"{source}.mlp.gate_proj", f"{path}/ffn/gate", model, ffn, config.ffn_bias),
        *tables.linear(f"{source}.mlp.up_proj", f"{path}/ffn/up", model, ffn, config.ffn_bias),
        *tables.linear(f"{source}.mlp.down_proj", f"{path}/ffn/down", ffn, model, config.ffn_bias),
    ]


def _mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    names = {"w1": "gate", "w3": "up", "w2": "down"}
    return experts(config, f"{source}.block_sparse_moe", f"{path}/experts", names)


def experts(config: DecoderConfig, source: str, path: str, names: dict[str, str]) -> list[TensorRule]:
    """Router and experts; `names` has their word for each of ours."""
    model, ffn, count = config.model_dim, config.ffn_dim, config.num_experts
    table = tables.linear(f"{source}.gate", f"{path}/router", model, count)
    for number in range(count):
        for theirs, ours in names.items():
            sizes = (ffn, model) if ours == "down" else (model, ffn)
            table.append(
                tables.expert_linear(f"{source}.experts.{number}.{theirs}", f"{path}/{ours}", number, count, *sizes)
            )
    return table
