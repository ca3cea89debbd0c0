"""Fine-tunes a pretrained model: `python -m sft_jax.train --config=configs/sft.py --workdir=runs/x`.

Started again with the same config, it continues the run in the directory.
"""

import sys

from absl import flags

from sft_jax import commands


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    from sft_jax.training import run  # after the flags are checked: importing jax takes seconds

    commands.start_jax()
    result = run(commands.config(), flags.FLAGS.workdir)
    where = flags.FLAGS.workdir
    if result.interrupted:
        print(
            f"Interrupted: saved step {result.step} of {result.total_steps} in {where}. Start the same command again to continue."
        )
        sys.exit(128 + result.interrupted)
    scores = "  ".join(f"{name} {value:.4f}" for name, value in sorted(result.metrics.items()))
    print(f"Finished {result.step} steps. {scores}\nRun directory: {where}\nWatch: tensorboard --logdir {where}")


if __name__ == "__main__":
    commands.define_config_flag()
    flags.DEFINE_string("workdir", None, "Run directory: checkpoints, metrics, TensorBoard.", required=True)
    commands.run(main)
