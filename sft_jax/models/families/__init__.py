"""Model families: for each, how its Hugging Face config and tensors become our config and parameters.

A family is one module with `decoder_config(hf_config) -> DecoderConfig` and `tensor_table(config) -> [TensorRule]`,
plus its line in `FAMILIES`. Of multimodal wrappers (`sources/wrappers.py`) the text model is such a family.
"""

import reprlib
from types import ModuleType

from sft_jax.models.families import (
    deepseek,
    gemma,
    gemma4,
    glm,
    gpt2,
    gpt_neox,
    gpt_oss,
    granite,
    granite4,
    llama,
    olmo2,
    olmo3,
    phi3,
    qwen,
    qwen3_5,
    qwen3_next,
)
from sft_jax.sources.wrappers import WRAPPERS

FAMILIES: dict[str, ModuleType] = {
    "deepseek_v3": deepseek,
    "gemma2": gemma,
    "gemma3_text": gemma,
    "gemma4_text": gemma4,
    "gemma4_unified_text": gemma4,
    "glm4_moe": glm,
    "glm4_moe_lite": glm,
    "gpt2": gpt2,
    "gpt_neox": gpt_neox,
    "gpt_oss": gpt_oss,
    "granite": granite,
    "granitemoehybrid": granite4,
    "llama": llama,
    "ministral3": llama,
    "mistral": llama,
    "mixtral": llama,
    "olmo2": olmo2,
    "olmo3": olmo3,
    "phi3": phi3,
    "qwen2": qwen,
    "qwen3": qwen,
    "qwen3_5_moe_text": qwen3_5,
    "qwen3_5_text": qwen3_5,
    "qwen3_moe": qwen,
    "qwen3_next": qwen3_next,
    "smollm3": llama,
}


def get_family(hf_config: dict) -> ModuleType:
    """The family module of a Hugging Face config.

    Raises:
        ValueError: no family implements its `model_type`.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(sorted([*FAMILIES, *WRAPPERS]))
        raise ValueError(f"config.json has model_type={reprlib.repr(model_type)}; implemented families: {known}")
    return FAMILIES[model_type]
