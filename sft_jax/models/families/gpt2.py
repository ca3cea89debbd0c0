"""GPT-2 (`gpt2`): learned positions, layer norms with biases, a plain feed-forward layer, kernels stored [in, out]."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import tables
from sft_jax.models.families.tables import ConfigReader, TensorRule

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    activation = config.expect("activation_function", *_ACTIVATIONS)
    config.expect("scale_attn_weights", True)
    config.expect("scale_attn_by_inverse_layer_idx", False)
    config.expect("add_cross_attention", False)
    config.skip("reorder_and_upcast_attn", "attn_pdrop", "n_ctx")  # precision and dropout; a second name of n_positions
    config.skip(*(f"summary_{name}" for name in ("type", "use_proj", "activation", "proj_to_labels", "first_dropout")))
    heads, width = config.require("n_head"), config.require("n_embd")
    made = DecoderConfig(
        vocab_size=config.require("vocab_size"),
        num_layers=config.require("n_layer"),
        model_dim=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=tables.shared_width(width, heads),
        ffn_dim=config.get("n_inner", 4 * width),
        norm="layer",
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        learned_positions=True,
        max_positions=config.require("n_positions"),
        tie_embeddings=config.get("tie_word_embeddings", True),
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        ffn_gated=False,
        activation=_ACTIVATIONS[activation],
    )
    config.finish()
    return made


def tensor_table(config: DecoderConfig) -> list[TensorRule]:
    """Every tensor of a checkpoint."""
    model, ffn = config.model_dim, config.ffn_dim
    embedding, shape = "transformer.wte.weight", (config.vocab_size, model)
    table = [
        TensorRule(embedding, "embedding", shape),
        TensorRule("transformer.wpe.weight", "position_embedding/embedding", (config.max_positions, model)),
        *tables.norm("transformer.ln_f", "final_norm", model, bias=True),
        tables.head("lm_head.weight", embedding, shape, config.tie_embeddings),
    ]
    for layer in range(config.num_layers):
        source, path = f"transformer.h.{layer}", f"layers_{layer}"
        attention = {f"{path}/attention/{name}": model for name in ("query", "key", "value")}
        layers = {"attn.c_attn": attention, "attn.c_proj": {f"{path}/attention/out": model}}
        layers |= {"mlp.c_fc": {f"{path}/ffn/up": ffn}, "mlp.c_proj": {f"{path}/ffn/down": model}}
        for name, paths in layers.items():
            fan_in = ffn if name == "mlp.c_proj" else model
            table += tables.fused_linear(f"{source}.{name}", paths, fan_in, bias=True, transposed=True)
        table += [
            *tables.norm(f"{source}.ln_1", f"{path}/attention_norm", model, bias=True),
            *tables.norm(f"{source}.ln_2", f"{path}/ffn_norm", model, bias=True),
            TensorRule(
                f"{source}.attn.bias",
                None,
                (1, 1, config.max_positions, config.max_positions),
                ignored="the causal mask is computed",
                required=False,
            ),
            TensorRule(f"{source}.attn.masked_bias", None, (), ignored="the mask is computed", required=False),
        ]
    return table
