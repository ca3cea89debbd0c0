"""Preferences: from pairs of answers, of which one is preferred, all weights or (`:lora`) adapters.

    python -m sft_jax.train --config=configs/preference.py:lora --config.data.train=pairs.jsonl --workdir=runs/dpo

Rows are `{"prompt", "chosen", "rejected"}` (docs/data.md). All fields are those of configs/sft.py; docs/preference.md
says what the methods are, and which options each reads.
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights.
    """
    if arg not in ("full", "lora"):
        raise ValueError(f"configs/preference.py:{arg}: give ':full' or ':lora'")
    config = sft.get_config(arg)
    with config.unlocked():
        # "dpo", "dpo_hinge", "dpo_ipo", "dpo_robust": scores are relative to what the run begins with; "simpo", "orpo",
        # "cpo": there is no reference.
        config.objective.name = "dpo"
        config.optimizer.learning_rate = 5e-7 if arg == "full" else 5e-6
        config.optimizer.warmup = "10 percent"
        config.optimizer.weight_decay = 0.0
        config.checkpoint.best_metric = "held_out/loss"
    return config
