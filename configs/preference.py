"""Preferences: from answers that were judged, all weights or (`:lora`) adapters.

    python -m sft_jax.train --config=configs/preference.py:lora --config.data.train=pairs.jsonl --workdir=runs/dpo
    python -m sft_jax.train --config=configs/preference.py:kto,lora --config.data.train=rows.jsonl --workdir=runs/kto

Rows are `{"prompt", "chosen", "rejected"}`, and for KTO also `{"prompt", "completion", "label"}` (docs/data.md). All
fields are those of configs/sft.py; docs/preference.md says what the methods are, and which options each reads.
"""

from ml_collections import ConfigDict

from configs import sft

METHODS = ("dpo", "kto")
TRAINED = ("full", "lora")


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights; `kto` before it, with a comma, or alone,
            learns from single answers: `kto,lora`.
    """
    parts = arg.split(",")
    method = parts.pop(0) if parts[0] in METHODS else "dpo"
    trained = parts.pop(0) if parts else "full"
    if parts or trained not in TRAINED:
        raise ValueError(f"configs/preference.py:{arg}: give ':full' or ':lora', or ':kto,full' or ':kto,lora'")
    config = sft.get_config(trained)
    with config.unlocked():
        # "dpo", "dpo_hinge", "dpo_ipo", "dpo_robust", "kto": scores are relative to what the run begins with; "simpo",
        # "orpo", "cpo": there is no reference.
        config.objective.name = method
        config.optimizer.learning_rate = 5e-7 if trained == "full" else 5e-6
        config.optimizer.warmup = "10 percent"
        config.optimizer.weight_decay = 0.0
        config.checkpoint.best_metric = "held_out/loss"
    return config
