"""Fine-tunes a pretrained model.

    python -m sft_jax.train --config=configs/sft.py:lora --config.data.train=train.jsonl --workdir=runs/x

Started again with the same config, it continues the run in the directory.
"""

import sys

from absl import flags

from sft_jax import commands, config_flag

_CONFIG = config_flag.define()
_WORKDIR = flags.DEFINE_string("workdir", None, "Run directory: checkpoints, metrics, TensorBoard.", required=True)


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    from sft_jax.training import run  # after the flags are checked: importing jax takes seconds

    commands.start_jax(several_processes=True)
    workdir = _WORKDIR.value
    result = run(_CONFIG.value, workdir)
    if result.interrupted:
        print(f"Interrupted: step {result.step} of {result.total_steps} is saved in {workdir}.")
        print("Start the same command again to continue.")
        sys.exit(128 + result.interrupted)
    scores = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result.metrics.items()))
    early = f", of {result.total_steps}" if result.stopped_early else ""
    print(f"Finished {result.step} steps{early}. {scores}")
    print(f"Run directory: {workdir}\nWatch: tensorboard --logdir {workdir}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    commands.run(main, several_processes=True)
