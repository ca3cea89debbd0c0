"""Compares the losses of fifty float32 steps of SmolLM2-135M with those of a plain torch loop on the same batches.

    python -m benchmarks.agreement

Full fine-tuning on text, at the learning rate of `configs/sft.py`. A second torch loop, whose initial weights differ by
a relative 1e-7, shows what rounding alone does to the losses. (Where that is much, at a high learning rate on random
tokens for example, no two programs agree, and such a comparison says nothing.)
"""

from absl import app, flags

from benchmarks import steps
from configs import sft

_STEPS = flags.DEFINE_integer("steps", 50, "Optimizer steps.", lower_bound=1)
_TOLERANCE = 1e-3


def main(_: list[str]) -> None:
    """Trains all three and prints the largest difference.

    Raises:
        SystemExit: it is larger than the tolerance.
    """
    batches = steps.text_batches(_STEPS.value, 2, 128)
    rate = sft.get_config().optimizer.learning_rate
    ours = steps.ours(batches, learning_rate=rate, **{"precision.matmul": "float32", "optimizer.schedule": "constant"})
    torch, rounded = (steps.plain_torch(batches, learning_rate=rate, noise=noise) for noise in (0.0, 1e-7))
    largest = 0.0
    for number in range(1, _STEPS.value + 1):
        first, second, third = ours(), torch(), rounded()
        largest = max(largest, abs(first - second))
        print(
            f"step {number}: ours {first:.6f}, torch {second:.6f}, difference {first - second:+.2e}; "
            f"by rounding {third - second:+.2e}",
            flush=True,
        )
    print(f"largest difference {largest:.2e}, tolerance {_TOLERANCE:.0e}")
    if largest > _TOLERANCE:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
