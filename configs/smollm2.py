"""SmolLM2-135M on accelerators: `--config=configs/smollm2.py:h100_1`; docs/scaling.md has the plan of each.

It is a base model, whose tokenizer has no chat template: give `--config.model.chat_template=FILE`, or the model that
has one, `--config.model.source=HuggingFaceTB/SmolLM2-135M-Instruct`. What is not said here is as in configs/sft.py.
"""

from ml_collections import ConfigDict

from configs import sft

# Argument -> the hardware it is for, and what it sets.
SHIPPED = {
    "h100_1": ("h100:1", {"batch.sequences": 32}),
    "v5e_2x2": ("v5e:2x2", {"batch.sequences": 32}),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config.

    Args:
        arg: one of SHIPPED.
    """
    if arg not in SHIPPED:
        known = ", ".join(f"':{name}'" for name in SHIPPED)
        raise ValueError(f"configs/smollm2.py:{arg}: give one of {known}")
    _, fields = SHIPPED[arg]
    config = sft.get_config("full")
    with config.unlocked():
        config.model.source = "HuggingFaceTB/SmolLM2-135M"
        config.data.sequence_length = 2048
        config.optimizer.learning_rate = 1e-4  # small models take larger steps
        config.update_from_flattened_dict(fields)
    return config
