"""LoRA on SmolLM2-135M-Instruct for reading vehicle titles: small enough for two CPU cores. See `make quickstart`."""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str = "") -> ConfigDict:
    """The config; takes no argument."""
    if arg:
        raise ValueError(f"configs/quickstart.py:{arg}: this config takes no argument")
    config = sft.get_config("lora")
    with config.unlocked():
        config.duration = "48 steps"
        config.data.train = "runs/quickstart/data/train.jsonl"
        config.data.held_out = "runs/quickstart/data/validation.jsonl"
        config.data.sequence_length = (
            512  # two documents each; on CPUs attention over longer ones costs more than padding
        )
        config.batch.sequences = 4
        config.optimizer.learning_rate = 2e-3
        config.optimizer.warmup = "10 percent"
        config.evaluation.every = "16 steps"
        config.evaluation.samples = 2
        config.evaluation.sample_tokens = 80
        config.checkpoint.every = "16 steps"
    return config
