"""The text models of Qwen 3.5 and 3.6 (`qwen3_5_text`, `qwen3_5_moe_text`): Qwen3-Next, stored in other tensors."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import qwen3_next, tables
from sft_jax.models.families.qwen3_next import decoder_config
from sft_jax.models.families.tables import TensorRule

__all__ = ["decoder_config", "tensor_table"]


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    return qwen3_next.table(config, _delta)


def _delta(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    model, keys, values = config.model_dim, config.delta_key_width, config.delta_value_width
    source, of = f"{source}.linear_attn", f"{path}/delta"
    mixed = {f"{of}/query": keys, f"{of}/key": keys, f"{of}/value": values}
    return [
        *tables.fused_linear(f"{source}.in_proj_qkv", mixed, model),
        *tables.linear(f"{source}.in_proj_z", f"{of}/output_gate", model, values),
        *tables.linear(f"{source}.in_proj_b", f"{of}/beta", model, config.delta_value_heads),
        *tables.linear(f"{source}.in_proj_a", f"{of}/decay", model, config.delta_value_heads),
        *qwen3_next.around_delta(config, source.removesuffix(".linear_attn"), path),
    ]
