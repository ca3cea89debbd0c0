r"""Should a token or an example count the same, where answers are of different lengths?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/normalization/sweep.py \
        --workdir=runs/normalization

Six runs: both ways, each with three seeds. Half the rows ask for one fact, half for all four at once; tasks measure
both kinds of answer, a task each, as a loss would be of the same weights as the training is.
"""

from configs.sft import task
from configs.short_titles import titles
from experiments.short_titles.rows import HELD_OUT, held_out_of, train_of
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    tasks = {
        "long": titles(setting.file(HELD_OUT), rows=setting.asked),
        "short": task(setting.file(held_out_of("short")), max_new_tokens=16, rows=setting.asked),
    }
    return setting.few(
        product(
            values("objective.normalize", ["tokens", "examples"]),
            setting.rows(train_of("lengths"), held_out_of("lengths")),
            fixed("evaluation.tasks", tasks),
            seeds(setting.seeds),
            setting.small,
        )
    )
