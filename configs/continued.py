"""Continued pretraining: on plain texts, of which every token is trained; the rate stays up, and falls at the end.

    python -m sft_jax.train --config=configs/continued.py --config.data.train=domain.jsonl --workdir=runs/domain

Rows are `{"text"}`. All fields are those of configs/sft.py, and `:lora` trains adapters. With `,replay` a share of
general text is mixed in, which keeps what the model could do, and each source is measured by itself:

    python -m sft_jax.train --config=configs/continued.py:lora,replay --config.data.mixture.domain.path=domain.jsonl \
        --config.data.mixture.general.path=general.jsonl --config.data.held_out=held_out.jsonl --workdir=runs/domain

where rows of `held_out.jsonl` are `{"text", "source": "domain"}` or `{"text", "source": "general"}`. docs/continued.md
says how the decay of a run is begun anew at a checkpoint of its stable phase.
"""

from ml_collections import ConfigDict

from configs import sft

SHIPPED = ("full", "lora", "full,replay", "lora,replay")
DOMAIN_WEIGHT, GENERAL_WEIGHT = 3, 1  # shares of the sequences of a batch, so nearly of the tokens


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights; with `,replay` on a mixture of the new
            domain and of general text.
    """
    if arg not in SHIPPED:
        raise ValueError(f"configs/continued.py:{arg}: give ':full' or ':lora', and ',replay' behind it for a mixture")
    trained, _, replay = arg.partition(",")
    config = sft.get_config(trained)
    with config.unlocked():
        config.duration = "1000 steps"
        config.data.reading.text_end = "eos"
        config.data.masking.too_long = "split"
        config.optimizer.schedule = "wsd"
        config.optimizer.decay_shape = "sqrt"
        config.optimizer.warmup = "50 steps"  # in steps, so that branches of any length have the same
        config.evaluation.samples = 0  # texts have no question to answer
        if replay:
            config.data.mixture.domain = sft.source("domain.jsonl", weight=DOMAIN_WEIGHT, text_end="eos")
            config.data.mixture.general = sft.source("general.jsonl", weight=GENERAL_WEIGHT, text_end="eos")
            config.data.mixture_packing = "before"
            config.data.held_out = "held_out.jsonl"
            config.data.reading.group_column = "source"  # of held-out rows
    return config
