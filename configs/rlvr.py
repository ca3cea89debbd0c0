"""Verifiable rewards: the model answers, scorers judge, and what is better than the mean of its group becomes likelier.

    python -m sft_jax.train --config=configs/rlvr.py:lora --config.model.source=runs/sft \
        --config.data.train=questions.jsonl --workdir=runs/rlvr

Rows are conversations whose last answer is the reference. All fields are those of configs/sft.py; docs/rlvr.md says
what becomes of them. For other rewards fork this file: config.rollouts.rewards.answer = reward("numeric", marker="#").
"""

from ml_collections import ConfigDict

from configs import sft
from configs.sft import reward


def get_config(arg: str = "full") -> ConfigDict:
    """The config.

    Args:
        arg: `full` trains all weights, `lora` adapters beside frozen weights.
    """
    if arg not in ("full", "lora"):
        raise ValueError(f"configs/rlvr.py:{arg}: give ':full' or ':lora'")
    config = sft.get_config(arg)
    with config.unlocked():
        config.objective.name = "policy_gradient"
        config.rollouts.rewards.answer = reward("exact_match")
        # Enough for 64 answers of 256 tokens: three in a sequence, behind a prompt of up to 256.
        config.batch.sequences, config.batch.micro_batches = 24, 3
        config.data.masking.train_on = "last"  # the reference is the last answer
        config.optimizer.learning_rate = 1e-6 if arg == "full" else 1e-5
        config.optimizer.schedule = "constant"
        config.optimizer.weight_decay = 0.0
        config.checkpoint.best_metric = ""  # "tasks/NAME/METRIC" of a task, with best_is = "max"
    return config
