"""Model families: for each, two tables that turn a Hugging Face checkpoint into ours.

A family is one module with `decoder_config(hf_config) -> DecoderConfig` and `tensor_table(config) -> [TensorRule]`,
plus its line in `FAMILIES`.
"""

from types import ModuleType

from sft_jax.models.families import llama

FAMILIES: dict[str, ModuleType] = {"llama": llama}


def get_family(hf_config: dict) -> ModuleType:
    """The family module of a Hugging Face config.

    Raises:
        ValueError: no family implements its `model_type`.
    """
    model_type = hf_config.get("model_type")
    if model_type not in FAMILIES:
        raise ValueError(
            f"config.json has model_type={model_type!r}; implemented families: {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[model_type]
