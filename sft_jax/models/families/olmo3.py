"""OLMo 3 (`olmo3`): OLMo 2 with windows in most layers; only layers that see all positions have stretched rotations."""

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families import olmo2, tables
from sft_jax.models.families.tables import ConfigReader

_THETA = 500_000.0

tensor_table = olmo2.tensor_table


def decoder_config(hf_config: dict) -> DecoderConfig:
    """The decoder that a Hugging Face config describes.

    Raises:
        ValueError: a key is missing, or asks for something this port does not implement.
    """
    config = ConfigReader(hf_config)
    sizes = tables.sizes(config)
    windows = tables.windows(config, sizes["num_layers"], lambda layer: (layer + 1) % 4 != 0)
    ropes = _ropes(config, sizes["head_dim"], bool(windows))
    return olmo2.made_of(config, sizes | ropes | {"layer_windows": windows})


def _ropes(config: ConfigReader, head_dim: int, windowed: bool) -> dict:
    """Published files say them at the top, where `rope_scaling` is of layers without a window alone."""
    if config.get("rope_parameters"):
        return tables.ropes_by_layer_type(config, head_dim, _THETA, _THETA)
    made = tables.rope(config, head_dim, default_theta=_THETA)
    if windowed and made["rope_theta"] != _THETA:
        raise ValueError(
            f"config.json has rope_theta={made['rope_theta']:g} for all layers, which versions of transformers "
            f"understand in different ways unless it is {_THETA:g}; give rope_parameters, with an object each for "
            "full_attention and sliding_attention"
        )
    return made | {"local_rope_theta": made["rope_theta"]}
