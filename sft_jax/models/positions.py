"""How many positions a model knows. Longer examples are refused, and generation stops at the last position.

Users may raise the limit of a model with rotary embeddings, which extend to any position (not with rope_type=dynamic).
"""

import dataclasses
from typing import Any

from sft_jax.models.config import DecoderConfig, DynamicScaling, LongRopeScaling, YarnScaling

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

    The rotary frequencies stay what they are. YaRN and LongRoPE may take a part of theirs from
    `max_position_embeddings`: what follows from it is then written out.

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
    pinned, scaling = hf_config, decoder.rope_scaling
    if isinstance(scaling, YarnScaling):
        follows = {"factor": scaling.factor, "original_max_position_embeddings": scaling.original_max_positions}
        pinned = _with(hf_config, ("yarn",), follows)
    if isinstance(scaling, LongRopeScaling):
        pinned = _with(hf_config, ("longrope", "su"), {"attention_factor": scaling.attention_factor})
    return dataclasses.replace(decoder, max_positions=count), pinned | {HF_FIELD: count}


def _with(fields: dict[str, Any], kinds: tuple[str, ...], follows: dict[str, Any]) -> dict[str, Any]:
    """The fields, with those of `follows` in each object that asks for a rope of one of the kinds."""
    made = {name: _with(value, kinds, follows) if isinstance(value, dict) else value for name, value in fields.items()}
    return made | follows if {fields.get("rope_type"), fields.get("type")} & set(kinds) else made
