"""LoRA on SmolLM2-135M-Instruct for reading vehicle titles: small enough for two CPU cores. See `make quickstart`."""

from ml_collections import ConfigDict

from configs import sft


def get_config(arg: str = "") -> ConfigDict:
    """The config; takes no argument."""
    if arg:
        raise ValueError(f"configs/quickstart.py:{arg}: this config takes no argument")
    config = sft.get_config("lora")
    with config.unlocked():
        config.duration = "40 steps"
        config.data.train = "runs/quickstart/data/train.jsonl"
        config.data.held_out = "runs/quickstart/data/held_out.jsonl"
        config.data.row_tokens = 1024  # four documents a row
        config.batch.rows = 2
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup = "10 percent"
        config.evaluation.every = "20 steps"
        config.evaluation.samples = 2
        config.evaluation.sample_tokens = 96
        config.checkpoint.every = "10 steps"
    return config
