"""Fifty float32 steps of SmolLM2-135M by our step and by a plain torch loop on the same batches: do the losses agree?

python -m benchmarks.agreement
"""

from absl import app, flags

from benchmarks import steps

_STEPS = flags.DEFINE_integer("steps", 50, "Optimizer steps.", lower_bound=1)
_TOLERANCE = 1e-3


def main(_: list[str]) -> None:
    """Trains both and prints the largest difference.

    Raises:
        SystemExit: it is larger than the tolerance.
    """
    batches = [steps.make_batch(2, 128, seed=seed) for seed in range(10)]
    constant = {"optimizer.schedule": "constant", "optimizer.weight_decay": 0.01}
    ours = steps.ours(batches, **{"precision.products": "float32", **constant})
    torch = steps.plain_torch(batches)
    largest = 0.0
    for number in range(1, _STEPS.value + 1):
        first, second = ours(), torch()
        largest = max(largest, abs(first - second))
        print(f"step {number}: ours {first:.6f}, torch {second:.6f}, difference {first - second:+.2e}", flush=True)
    print(f"largest difference {largest:.2e}, tolerance {_TOLERANCE:.0e}")
    if largest > _TOLERANCE:
        raise SystemExit(1)


if __name__ == "__main__":
    app.run(main)
