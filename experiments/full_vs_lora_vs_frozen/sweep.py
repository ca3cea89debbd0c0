r"""What is lost where fewer weights are trained, each kind at the better of two learning rates?

    python -m experiments.short_titles
    python -m sft_jax.sweep --config=configs/short_titles.py --sweep=experiments/full_vs_lora_vs_frozen/sweep.py \
        --workdir=runs/full_vs_lora_vs_frozen

24 runs: all weights, a LoRA, the last ten layers, the norms alone; each at two learning rates of its own, with three
seeds.
"""

from experiments.short_titles.setting import setting_of
from sft_jax.sweeps import chain, fixed, product, seeds, values


def get_sweep(arg: str = "") -> list[dict]:
    """The runs, as overrides of the config."""
    setting = setting_of(arg)
    without_adapter = fixed("adapter.method", "none")
    rates = lambda *choices: values("optimizer.learning_rate", choices[: 1 if setting.is_smoke else None])
    return product(
        chain(
            product(without_adapter, rates(2e-5, 1e-4)),
            product(fixed("adapter.method", "lora"), rates(5e-4, 2e-3)),
            product(without_adapter, fixed("trained.last_layers", 1 if setting.is_smoke else 10), rates(2e-5, 1e-4)),
            product(without_adapter, fixed("trained.weights", (".*norm/scale",)), rates(1e-3, 5e-3)),
        ),
        fixed("execution.layer_layout", "unrolled"),  # of which some layers can be trained alone
        setting.rows(),
        seeds(setting.seeds),
        setting.small,
    )
