"""How many positions a model knows. Longer examples are refused, and generation stops at the last position.

Users may raise the limit of a model with rotary embeddings, which extend to any position (not with rope_type=dynamic).
"""

import dataclasses
from typing import Any

from sft_jax.models.config import DecoderConfig, DynamicScaling, YarnScaling

HF_FIELD = "max_position_embeddings"


def why_fixed(decoder: DecoderConfig) -> str:
    """Why the number of positions cannot differ from what the checkpoint says; empty where it can."""
    if decoder.learned_positions:
        return f"it has a learned vector for each of its {decoder.max_positions} positions, and none beyond"
    if isinstance(decoder.rope_scaling, DynamicScaling):
        return "its rotary frequencies change with the length beyond them (rope_type=dynamic), which is not implemented"
    return ""


def advice(decoder: DecoderConfig) -> str:
    """What helps besides giving less text, as the end of a sentence; empty where nothing does."""
    if why_fixed(decoder):
        return ""
    return ", or lift the limit: --max_positions, and --config.model.max_positions in training"


def with_positions(decoder: DecoderConfig, hf_config: dict[str, Any], count: int) -> tuple[DecoderConfig, dict]:
    """A decoder that knows `count` positions, and its Hugging Face config.

    The rotary frequencies stay what they are. YaRN's may be given as a share of `max_position_embeddings`: what follows
    from it is then written out.

    Args:
        decoder: what the checkpoint says.
        hf_config: the same.
        count: positions; 0 leaves them as they are.

    Raises:
        ValueError: the model's cannot be changed.
    """
    if count in (0, decoder.max_positions):
        return decoder, hf_config
    if reason := why_fixed(decoder):
        raise ValueError(f"the model knows {decoder.max_positions} positions, not {count}: {reason}; leave it at 0")
    pinned = hf_config
    if isinstance(decoder.rope_scaling, YarnScaling):
        pinned = _with_yarn(hf_config, decoder.rope_scaling)
    return dataclasses.replace(decoder, max_positions=count), pinned | {HF_FIELD: count}


def _with_yarn(fields: dict[str, Any], scaling: YarnScaling) -> dict[str, Any]:
    """The fields, with those that YaRN's frequencies follow from in each object that asks for it."""
    made = {name: _with_yarn(value, scaling) if isinstance(value, dict) else value for name, value in fields.items()}
    if "yarn" in (fields.get("rope_type"), fields.get("type")):
        made |= {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_positions}
    return made
