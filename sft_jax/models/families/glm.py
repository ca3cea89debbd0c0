"""GLM 4.5 to 4.7 (`glm4_moe`): grouped-query attention that rotates half of each head, and the experts of DeepSeek V3;
GLM 4.7 Flash (`glm4_moe_lite`), with the latent attention of DeepSeek V3 too."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import deepseek, llama, qwen, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_ROTATED, _DENSE_LAYERS, _QUERY_RANK = 0.5, 1, 768  # where a config does not say
_WEIGHT_SCALES = {"glm4_moe": 1.0, "glm4_moe_lite": 1.8}


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    kind = hf_config["model_type"]
    config = ConfigReader(hf_config if kind == "glm4_moe_lite" else {"partial_rotary_factor": _ROTATED} | hf_config)
    fields, is_dense = _latent(config) if kind == "glm4_moe_lite" else _grouped(config)
    made = DecoderConfig(
        **deepseek.with_experts(fields, deepseek.experts(config, 1, 1, _WEIGHT_SCALES[kind]), is_dense),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )
    config.finish()
    return made


def _grouped(config: ConfigReader) -> tuple[dict, list[bool]]:
    config.expect("hidden_act", "silu")
    sizes = tables.sizes(config)
    dense = config.get("first_k_dense_replace", _DENSE_LAYERS)
    return {
        **sizes,
        **tables.rope(config, sizes["head_dim"]),
        "qkv_bias": config.get("attention_bias", False),
        "qk_norm": "head" if config.get("use_qk_norm", False) else "none",
    }, [layer < dense for layer in range(sizes["num_layers"])]


def _latent(config: ConfigReader) -> tuple[dict, list[bool]]:
    """`mlp_layer_types` says which layers have experts; transformers does not read `first_k_dense_replace`."""
    config.expect("head_dim", config.require("qk_rope_head_dim"))
    fields = deepseek.latent_attention(config, _QUERY_RANK)
    layers = fields["num_layers"]
    kinds = config.get("mlp_layer_types", ["dense"] + ["sparse"] * (layers - 1))
    if set(kinds) - {"dense", "sparse"} or len(kinds) != layers:
        raise ValueError(
            f"config.json has mlp_layer_types={kinds!r}; expected 'dense' or 'sparse' for each of {layers} layers"
        )
    first = kinds.index("sparse") if "sparse" in kinds else layers
    config.expect("first_k_dense_replace", first)
    return fields, [kind == "dense" for kind in kinds]


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    attending = deepseek.attention if config.kv_rank else _attention
    table = llama.tensor_table(config, deepseek.mixture, attending=attending)
    return deepseek.with_predicted_tokens(config, table, attending)


def _attention(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    return llama.attention(config, source, path) + qwen.norms(config, source, path)
