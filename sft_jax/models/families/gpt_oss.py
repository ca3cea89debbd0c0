"""gpt-oss (`gpt_oss`): windows in every other layer, a learned sink beside the scores of each head, YaRN, and experts
with biases whose gate and up are stored in one tensor, the outputs of the two in turn."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import llama, tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_THETA, _WINDOW, _SLOPE, _LIMIT = 150_000.0, 128, 1.702, 7.0
_ROPE = {  # what transformers takes where a config has neither rope_scaling nor rope_parameters
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    if not hf_config.get("rope_scaling") and not hf_config.get("rope_parameters"):
        hf_config = hf_config | {"rope_parameters": _ROPE}
    config = ConfigReader(hf_config)
    config.expect("hidden_act", "silu")
    config.expect("swiglu_alpha", _SLOPE)
    sizes, bias = tables.sizes(config, head_dim=64), config.get("attention_bias", True)
    made = DecoderConfig(
        **sizes,
        **tables.rope(config, sizes["head_dim"], default_theta=_THETA),
        **_experts(config),
        norm_eps=config.get("rms_norm_eps", 1e-5),
        tie_embeddings=config.get("tie_word_embeddings", False),
        qkv_bias=bias,
        out_bias=bias,
        attention_sinks=True,
        layer_windows=tables.windows(config, sizes["num_layers"], lambda layer: layer % 2 == 0, absent=_WINDOW),
        activation="gelu_sigmoid",
        ffn_clamp=float(config.get("swiglu_limit", _LIMIT)),
        up_offset=1.0,
        ffn_bias=True,
        router_bias=True,
    )
    config.finish()
    return made


def _experts(config: ConfigReader) -> dict[str, int]:
    """Published files say how many experts a token takes under two names, and its rope's positions at the top too."""
    config.skip("initial_context_length")
    takes = config.get("num_experts_per_tok", 4)
    config.expect("experts_per_token", takes)
    return tables.experts(config, config.get("num_local_experts", config.get("num_experts", 128)), takes)


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint: Llama's, the sinks, and experts in place of the ffn."""
    table = llama.tensor_table(config, _mixture)
    for layer in range(config.num_layers):
        sinks = f"model.layers.{layer}.self_attn.sinks"
        table.append(TensorRule(sinks, f"layers_{layer}/attention/sinks", (config.num_heads,)))
    return table


def _mixture(config: DecoderConfig, source: str, path: str) -> list[TensorRule]:
    model, ffn, count = config.model_dim, config.ffn_dim, config.num_experts
    table = tables.linear(f"{source}.mlp.router", f"{path}/experts/router", model, count, bias=True)
    table += tables.stacked_experts(
        f"{source}.mlp.experts.gate_up_proj", [f"{path}/experts/{name}" for name in ("gate", "up")], count, model, ffn
    )
    return table + tables.stacked_experts(
        f"{source}.mlp.experts.down_proj", [f"{path}/experts/down"], count, ffn, model
    )
