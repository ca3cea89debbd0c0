"""Mixtral 8x7B on accelerators: `--config=configs/mixtral.py:8x7b_v5p_4x4x4`; docs/scaling.md has its plan.

It is a base model, whose tokenizer has no chat template: give `--config.model.chat_template=FILE`, or the model that
has one, `--config.model.source=mistralai/Mixtral-8x7B-Instruct-v0.1`. What is not said here is as in configs/sft.py.
"""

from ml_collections import ConfigDict

from configs import sft

# Argument -> the hardware it is for, and what it sets. Each of eight chips holds one expert of every layer.
SHIPPED = {
    "8x7b_v5p_4x4x4": ("v5p:4x4x4", {"batch.sequences": 64, "mesh.expert": 8}),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config.

    Args:
        arg: one of SHIPPED.
    """
    if arg not in SHIPPED:
        known = ", ".join(f"':{name}'" for name in SHIPPED)
        raise ValueError(f"configs/mixtral.py:{arg}: give one of {known}")
    _, fields = SHIPPED[arg]
    config = sft.get_config("full")
    with config.unlocked():
        config.model.source = "mistralai/Mixtral-8x7B-v0.1"
        config.data.sequence_length = 4096
        config.update_from_flattened_dict(fields)
    return config
