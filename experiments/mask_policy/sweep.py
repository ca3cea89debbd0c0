r"""Of a conversation, what should be trained: what the assistant says, its last turn, or every token?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/mask_policy/sweep.py \
        --workdir=runs/mask_policy

Nine runs: three masks, each with three seeds. A title is asked for three facts, one after the other; the last answer is
what is written and scored, whichever tokens were trained. A loss would be of other tokens under each mask.
"""

from configs.sft import task
from experiments.short_titles.rows import held_out_of, train_of
from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    held_out = held_out_of("turns")
    last_turn = task(setting.file(held_out), max_new_tokens=16, rows=setting.asked)
    return setting.few(
        product(
            values("data.masking.train_on", ["assistant", "last", "all"]),
            setting.rows(train_of("turns"), held_out),
            fixed("evaluation.tasks", {"last_turn": last_turn}),
            seeds(setting.seeds),
            setting.small,
        )
    )
