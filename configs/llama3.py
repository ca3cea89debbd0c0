"""Llama 3.1 on accelerators: `--config=configs/llama3.py:8b_v5e_4x4`; docs/scaling.md has the plan of each.

    python -m sft_jax.plan --config=configs/llama3.py:8b_v5e_4x4 --topology=v5e:4x4

These are base models, whose tokenizers have no chat template: give `--config.model.chat_template=FILE`, or the model
that has one, `--config.model.source=meta-llama/Llama-3.1-8B-Instruct`. What is not said here is as in configs/sft.py.
"""

from ml_collections import ConfigDict

from configs import sft

# Argument -> the hardware it is for, and what it sets.
SHIPPED = {
    # One sequence of 4,096 tokens a chip; weights and moments in float32 take 6 of 15.75 GiB.
    "8b_v5e_4x4": ("v5e:4x4", {"batch.sequences": 16}),
    "8b_v5p_2x2x4": ("v5p:2x2x4", {"batch.sequences": 64}),
    "8b_h100_8": ("h100:8", {"batch.sequences": 16}),
    # The base lies over the four chips; LoRA has no gradients of it to exchange.
    "8b_lora_v5e_2x2": ("v5e:2x2", {"batch.sequences": 16, "batch.micro_batches": 4}),
    "8b_lora_h100_1": ("h100:1", {"batch.sequences": 16, "batch.micro_batches": 8}),
    # Lines of 32,768 tokens, each over four chips, 8,192 on one.
    "8b_32k_v5p_2x2x4": ("v5p:2x2x4", {"batch.sequences": 4, "data.sequence_length": 32768, "mesh.context": 4}),
    "70b_v5p_4x8x8": ("v5p:4x8x8", {"batch.sequences": 256}),
    "70b_lora_v6e_4x4": ("v6e:4x4", {"batch.sequences": 16}),
}


def get_config(arg: str = "") -> ConfigDict:
    """The config.

    Args:
        arg: one of SHIPPED: size, `lora` or nothing for full fine-tuning, and hardware.
    """
    if arg not in SHIPPED:
        known = ", ".join(f"':{name}'" for name in SHIPPED)
        raise ValueError(f"configs/llama3.py:{arg}: give one of {known}")
    _, fields = SHIPPED[arg]
    config = sft.get_config("lora" if "lora" in arg else "full")
    with config.unlocked():
        config.model.source = "meta-llama/Llama-3.1-70B" if arg.startswith("70b") else "meta-llama/Llama-3.1-8B"
        config.data.sequence_length = 4096
        config.update_from_flattened_dict(fields)
    return config
