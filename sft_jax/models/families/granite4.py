"""Dense models of Granite 4 (`granitemoehybrid` without experts and Mamba layers): Granite 3 with gate and up in one
stored projection."""

import reprlib

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import granite, llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_ATTENTION = {"attention", "full_attention"}  # in published files, and as transformers 5 writes it
# Of layers and experts that a dense model has none of, and of how it was initialised.
_OF_OTHERS = (
    "init_method",
    "mamba_chunk_size",
    "mamba_conv_bias",
    "mamba_d_conv",
    "mamba_d_head",
    "mamba_d_state",
    "mamba_expand",
    "mamba_n_groups",
    "mamba_n_heads",
    "mamba_proj_bias",
    "num_experts_per_tok",
    "output_router_logits",
    "router_aux_loss_coef",
    "time_step_limit",
)


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    config.skip(*_OF_OTHERS)
    config.expect("normalization_function", "rmsnorm")
    made = DecoderConfig(**granite.fields(config) | {"ffn_dim": config.require("shared_intermediate_size")})
    _check_dense(config, made.num_layers)
    config.finish()
    return made


def _check_dense(config: ConfigReader, num_layers: int) -> None:
    kinds = config.require("layer_types")
    if others := sorted(set(kinds) - _ATTENTION):
        raise ValueError(
            f"config.json has {reprlib.repr(others)} among its layer_types; of granitemoehybrid, models whose layers "
            "are all 'attention' are implemented, hybrids with Mamba layers are not"
        )
    if len(kinds) != num_layers:
        raise ValueError(f"config.json has {len(kinds)} layer_types; expected one for each of {num_layers} layers")
    if experts := config.get("num_local_experts", 8):
        raise ValueError(
            f"config.json has num_local_experts={experts}, or none, which is 8; of granitemoehybrid, models with 0 are "
            "implemented, those with experts are not"
        )
    if config.get("position_embedding_type") != "rope":
        raise ValueError(
            "config.json has no position_embedding_type='rope'; of granitemoehybrid, models that rotate queries and "
            "keys are implemented"
        )


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    return llama.tensor_table(config, dense=_feed_forward)


def _feed_forward(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    model, ffn = config.model_dim, config.ffn_dim
    joined = {f"{path}/ffn/gate": ffn, f"{path}/ffn/up": ffn}
    return [
        *tables.fused_linear(f"{source}.shared_mlp.input_linear", joined, model),
        *tables.linear(f"{source}.shared_mlp.output_linear", f"{path}/ffn/down", ffn, model),
    ]
