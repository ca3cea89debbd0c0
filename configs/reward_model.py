"""A reward model: a score for a text, from pairs of answers, of which one is preferred; or (`:lora`) by adapters.

    python -m sft_jax.train --config=configs/reward_model.py:lora --config.data.train=pairs.jsonl --workdir=runs/rm

Rows are `{"prompt", "chosen", "rejected"}`, with a number `margin` where that is known (docs/data.md). All fields are
those of configs/sft.py; docs/preference.md says what is trained and what comes of it.
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights and the score head.
    """
    if arg not in ("full", "lora"):
        raise ValueError(f"configs/reward_model.py:{arg}: give ':full' or ':lora'")
    config = sft.get_config(arg)
    with config.unlocked():
        config.model.head = "score"
        config.objective.name = "reward"
        config.optimizer.learning_rate = 1e-5 if arg == "full" else 1e-4
        config.optimizer.warmup = "10 percent"
        config.optimizer.weight_decay = 0.0
        config.evaluation.samples = 0
        config.checkpoint.best_metric = "held_out/loss"
    return config
