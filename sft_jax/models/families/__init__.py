"""Model families: for each, how its Hugging Face config and tensors become our config and parameters.

A family is one module with `decoder_config(hf_config) -> DecoderConfig` and `tensor_table(config) -> [TensorRule]`,
plus its line in `FAMILIES`.
"""

import reprlib
from types import ModuleType

from sft_jax.models.families import gemma, gpt2, gpt_neox, llama, olmo2, phi3, qwen

FAMILIES: dict[str, ModuleType] = {
    "gemma2": gemma,
    "gemma3_text": gemma,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "mixtral": llama,
    "olmo2": olmo2,
    "phi3": phi3,
    "qwen2": qwen,
    "qwen3": qwen,
    "qwen3_moe": qwen,
    "smollm3": llama,
}


def get_family(hf_config: dict) -> ModuleType:
    """The family module of a Hugging Face config.

    Raises:
        ValueError: no family implements its `model_type`.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise ValueError(f"config.json has model_type={reprlib.repr(model_type)}; implemented families: {known}")
    return FAMILIES[model_type]
