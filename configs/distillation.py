"""Distillation: a student learns the distribution of a teacher, all its weights or (`:lora`) adapters.

    python -m sft_jax.train --config=configs/distillation.py:lora --config.teacher.source=runs/large \
        --config.data.train=train.jsonl --config.data.held_out=held_out.jsonl --workdir=runs/small

Rows are those of configs/sft.py, whose fields it has; docs/distillation.md says what is compared, and which tokenizers
go together. A teacher that does not fit beside the student, or is asked the same rows again and again, is computed once
with --config.teacher.top_k=32.
"""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights.
    """
    if arg not in ("full", "lora"):
        raise ValueError(f"configs/distillation.py:{arg}: give ':full' or ':lora'")
    config = sft.get_config(arg)
    with config.unlocked():
        config.objective.name = "forward_kl"  # or "reverse_kl", "jensen_shannon"
        config.checkpoint.best_metric = "held_out/loss"
    return config
