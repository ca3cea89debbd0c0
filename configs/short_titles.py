"""Short vehicle titles with SmolLM2-135M-Instruct on two CPU cores: what the ablations in experiments/ begin with.

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/data_size/sweep.py --workdir=runs/size

`:replay` mixes pieces of Python into the titles, and measures each by itself. `:tasks` is for
`python -m sft_jax.evaluate`: the titles as a task, and Python as a probe of what the model could do before.
"""

from ml_collections import ConfigDict

from configs import sft

SHIPPED = ("", "replay", "tasks")
_DATA = "runs/short_titles"


def get_config(arg: str = "") -> ConfigDict:
    """The config.

    Args:
        arg: empty, `replay` or `tasks`.
    """
    if arg not in SHIPPED:
        raise ValueError(f"configs/short_titles.py:{arg}: give nothing, or one of ':replay' and ':tasks'")
    config = sft.get_config("lora")
    with config.unlocked():
        config.duration = "16 steps"
        config.data.train, config.data.held_out = f"{_DATA}/train.jsonl", f"{_DATA}/held_out.jsonl"
        config.data.sequence_length = 384  # three or four conversations
        config.batch.sequences = 1
        config.optimizer.learning_rate = 1e-3
        config.optimizer.warmup = "2 steps"
        config.precision.matmul = "float32"  # differences of a few runs shall not be those of rounding
        # One layer is compiled, and not thirty; of the others only the inputs are kept in memory.
        config.execution.layer_layout, config.execution.remat = "scan", "full"
        config.evaluation.every = "0 steps"  # at the start and the end
        config.evaluation.samples = 0
        config.checkpoint.every = "8 steps"
        if arg == "replay":
            config.data.train = ""
            config.data.mixture.titles = sft.source(f"{_DATA}/train.jsonl", weight=3)
            config.data.mixture.general = sft.source(f"{_DATA}/general_train.jsonl", weight=1)
            config.data.held_out += f",{_DATA}/general_held_out.jsonl"
            config.data.reading.group_column = "source"  # of held-out rows
        if arg == "tasks":
            config.evaluation.tasks.titles = titles(f"{_DATA}/held_out.jsonl")
            config.evaluation.tasks.general = sft.task(f"{_DATA}/general_held_out.jsonl", kind="recite", probe=True)
    return config


def titles(path: str, rows: int = 0) -> ConfigDict:
    """The task: the JSON object of a title, field by field.

    Args:
        path: of the titles.
        rows: that are asked, the first so many; 0: all.
    """
    return sft.task(path, scorer="json_extraction", max_new_tokens=48, rows=rows)
