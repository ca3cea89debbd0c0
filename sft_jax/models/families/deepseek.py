"""DeepSeek V3 and R1 (`deepseek_v3`): multi-head latent attention, and in all but the first layers experts whose router
has sigmoids, groups and corrections, beside an expert that every token takes."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_DENSE_LAYERS, _GROUPS, _GROUPS_TAKEN, _WEIGHT_SCALE, _QUERY_RANK = 3, 8, 4, 2.5, 1536  # where a config does not say


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.skip("head_dim")  # transformers writes the width of what is rotated there
    fields = latent_attention(config, _QUERY_RANK)
    layers, dense = fields["num_layers"], config.get("first_k_dense_replace", _DENSE_LAYERS)
    of_experts = experts(config, _GROUPS, _GROUPS_TAKEN, _WEIGHT_SCALE)
    made = DecoderConfig(
        **with_experts(fields, of_experts, [layer < dense for layer in range(layers)]),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        tie_embeddings=config.get("tie_word_embeddings", False),
    )
    config.finish()
    return made


def latent_attention(config: ConfigReader, default_query_rank: int) -> dict:
    """The fields of `DecoderConfig` about sizes and latent attention.

    Args:
        config: a config.
        default_query_rank: where the config does not speak of one; null is none.
    """
    config.expect("hidden_act", "silu")
    config.expect("pretraining_tp", 1)
    config.skip("qk_head_dim")  # the sum of two others
    rotated, bias = config.require("qk_rope_head_dim"), config.get("attention_bias", False)
    rope = tables.rope(config, rotated)
    if rope["rope_dim"]:
        raise ValueError(f"config.json rotates {rope['rope_dim']} of qk_rope_head_dim={rotated}; expected all of them")
    head_dim = config.require("qk_nope_head_dim") + rotated
    return {
        **tables.sizes(config, head_dim=head_dim),
        **rope,
        "head_dim": head_dim,
        "value_dim": config.require("v_head_dim"),
        "kv_rank": config.require("kv_lora_rank"),
        "query_rank": config.get_nullable("q_lora_rank", default_query_rank) or 0,
        "rope_dim": rotated,
        "rope_interleaved": config.get("rope_interleave", True),
        "query_scale": _query_scale(config, head_dim),
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _query_scale(config: ConfigReader, head_dim: int) -> float:
    """Stretched frequencies enlarge scores by the square of YaRN's factor, where `mscale_all_dim` gives its weight."""
    given = config.section("rope_scaling", "rope_parameters")
    weight = given.get("mscale_all_dim")
    if not weight or tables.rope_type(given) == "default":
        return 0.0
    return head_dim**-0.5 * tables.magnitude(float(given.require("factor")), weight) ** 2


def experts(config: ConfigReader, groups: int, groups_taken: int, weight_scale: float) -> dict:
    """The fields of `DecoderConfig` about experts, of every layer that has some.

    Args:
        config: a config.
        groups: of experts, where the config does not say.
        groups_taken: likewise those that a token takes.
        weight_scale: likewise the factor on their weights.
    """
    config.skip("aux_loss_alpha", "ep_size", "seq_aux")
    config.expect("moe_layer_freq", 1)
    config.expect("scoring_func", "sigmoid")
    config.expect("topk_method", "noaux_tc")
    for field in ("num_nextn_predict_layers", "num_mtp_layers"):  # two names of one number
        config.expect(field, 1, 0)
    width = config.require("moe_intermediate_size")
    return tables.experts(config, config.require("n_routed_experts"), config.require("num_experts_per_tok")) | {
        "ffn_dim": width,
        "shared_ffn_dim": width * (config.get_nullable("n_shared_experts", 1) or 0),
        "router_scoring": "sigmoid",
        "router_correction": True,
        "expert_groups": config.get("n_group", groups),
        "expert_groups_taken": config.get("topk_group", groups_taken),
        "normalize_expert_weights": config.get("norm_topk_prob", True),
        "expert_weight_scale": float(config.get("routed_scaling_factor", weight_scale)),
    }


def with_experts(fields: dict, of_experts: dict, is_dense: list[bool]) -> dict:
    """The fields of a decoder some of whose layers have experts.

    Args:
        fields: of the decoder without experts.
        of_experts: of the layers that have some.
        is_dense: for each layer whether it has none.
    """
    if all(is_dense):
        return fields
    if not any(is_dense):
        return fields | of_experts
    of_dense = {"experts_per_token": 0, "ffn_dim": fields["ffn_dim"], "num_experts": 0, "shared_ffn_dim": 0}
    overrides = tuple(tuple(of_dense.items()) if dense else () for dense in is_dense)
    return fields | of_experts | {"layer_overrides": overrides}


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    return with_predicted_tokens(config, llama.tensor_table(config, mixture, attending=attention), attention)


def attention(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """The projections of latent attention, and the norms between them."""
    source, path, heads = f"{source}.self_attn", f"{path}/attention", config.num_heads
    model, query = config.model_dim, heads * config.head_dim
    plain = config.head_dim - config.rope_dim
    if config.query_rank:
        table = [
            *tables.linear(f"{source}.q_a_proj", f"{path}/query_a", model, config.query_rank, config.qkv_bias),
            *tables.norm(f"{source}.q_a_layernorm", f"{path}/query_a_norm", config.query_rank),
            *tables.linear(f"{source}.q_b_proj", f"{path}/query_b", config.query_rank, query),
        ]
    else:
        table = tables.linear(f"{source}.q_proj", f"{path}/query", model, query)
    latent, made = config.kv_rank + config.rope_dim, heads * (plain + config.value_width)
    return [
        *table,
        *tables.linear(f"{source}.kv_a_proj_with_mqa", f"{path}/key_value_a", model, latent, config.qkv_bias),
        *tables.norm(f"{source}.kv_a_layernorm", f"{path}/key_value_a_norm", config.kv_rank),
        *tables.linear(f"{source}.kv_b_proj", f"{path}/key_value_b", config.kv_rank, made),
        *tables.linear(f"{source}.o_proj", f"{path}/out", heads * config.value_width, model, config.out_bias),
    ]


def mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    """Router, experts, and the expert that every token takes."""
    source, model, shared = f"{source}.mlp", config.model_dim, config.shared_ffn_dim
    names = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}
    table = llama.experts(config, source, f"{path}/experts", names)
    correction = f"{source}.gate.e_score_correction_bias"
    table.append(TensorRule(correction, f"{path}/experts/correction_bias", (config.num_experts,)))
    for theirs, ours in names.items() if shared else ():
        sizes = (shared, model) if ours == "down" else (model, shared)
        table += tables.linear(f"{source}.shared_experts.{theirs}", f"{path}/shared/{ours}", *sizes)
    return table


def with_predicted_tokens(config: DecoderConfig, table: list[TensorRule], attending: llama.Rules) -> list[TensorRule]:
    """A table with the layer behind the last one, which published files have and which is left aside.

    It predicts the token after the next one (multi-token prediction, DeepSeek-AI 2024, section 2.2).

    Args:
        config: the decoder.
        table: of the decoder.
        attending: as of `llama.tensor_table`.
    """
    source, width = f"model.layers.{config.num_layers}", config.model_dim
    own = config.of_layer(config.num_layers - 1)
    feeding = mixture if own.num_experts else llama.feed_forward
    shapes = {rule.source: rule.shape for rule in (*attending(own, source, ""), *feeding(own, source, ""))}
    shapes |= {f"{source}.{name}.weight": (width,) for name in ("enorm", "hnorm", "shared_head.norm")}
    shapes |= {f"{source}.{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"{source}.{name}.weight": (config.vocab_size, width) for name in ("embed_tokens", "shared_head.head")}
    shapes[f"{source}.eh_proj.weight"] = (width, 2 * width)
    reason = "it is of multi-token prediction, which is not implemented"
    return table + [TensorRule(name, None, shape, ignored=reason, required=False) for name, shape in shapes.items()]
