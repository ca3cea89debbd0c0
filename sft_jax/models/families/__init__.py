"""Model families: for each, how its Hugging Face config and tensors become our config and parameters.

A family is one module with `decoder_config(hf_config) -> DecoderConfig` and `tensor_table(config) -> [TensorRule]`,
plus its line in `FAMILIES`. Of multimodal wrappers (`sources/wrappers.py`) the text model is such a family.
"""

import dataclasses
import reprlib
from types import ModuleType

from sft_jax.models.config import DecoderConfig
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
from sft_jax.models.families.tables import TensorRule, transpose
from sft_jax.models.variables import SCORE
from sft_jax.sources.wrappers import WRAPPERS

_SCORES = "ForSequenceClassification"  # what the architecture of a model that scores ends with
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


def decoder_of(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: it asks for what is not implemented, or for several labels of a text.
    """
    decoder = get_family(hf_config).decoder_config(hf_config)
    if not any(str(name).endswith(_SCORES) for name in hf_config.get("architectures") or ()):
        return decoder
    labels = hf_config.get("id2label", {"0": "", "1": ""})  # two where nothing is said, as transformers has it
    if len(labels) != 1:
        raise ValueError(f"config.json has {len(labels)} labels of a text (id2label); a model that scores has one")
    return dataclasses.replace(decoder, scores=True)


def tensors_of(hf_config: dict, decoder: DecoderConfig) -> list[TensorRule]:
    """The tensors of a checkpoint, by the table of its family; of a model that scores, with that head and no other."""
    table = get_family(hf_config).tensor_table(decoder)
    if not decoder.scores:
        return table
    heads = {rule.source for rule in table if rule.path == "head" or rule.equal_to}
    score = TensorRule(f"{SCORE}.weight", SCORE, (1, decoder.model_dim), transpose)
    return [*(rule for rule in table if rule.source not in heads), score]


def scoring_config(hf_config: dict, architecture: str) -> dict:
    """A Hugging Face config as that of a model that scores, which is of the class `architecture`."""
    return hf_config | {"architectures": [architecture], "id2label": {"0": "score"}, "label2id": {"score": 0}}
