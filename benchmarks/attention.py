"""Compares attention in blocks with the reference, all scores at once: forward and backward, on this machine.

    python -m benchmarks.attention [--rounds=8]

Head sizes are those of SmolLM2-135M. The two alternate; each time is the best of several rounds. Compare the ratios.
"""

import time

from absl import app, flags
from rich.console import Console
from rich.table import Table

_ROUNDS = flags.DEFINE_integer("rounds", 8, "Times each is run.", lower_bound=1)
SHAPES = ((4, 256), (4, 512), (2, 1024))  # sequences, tokens
HEADS, KV_HEADS, HEAD_DIM = 9, 3, 64
LAYERS = 4  # one after the other, as in a model


def main(_: list[str]) -> None:
    """Times and prints."""
    table = Table("sequences x tokens", "matmul", "reference, ms a layer", "blocked, ms a layer", "times as fast")
    for sequences, length in SHAPES:
        for dtype in ("float32", "bfloat16"):
            reference, blocked = _time(sequences, length, dtype)
            cells = (f"{1e3 * seconds / LAYERS:.1f}" for seconds in (reference, blocked))
            table.add_row(f"{sequences} x {length}", dtype, *cells, f"{reference / blocked:.1f}")
    Console().print(table)


def _time(sequences: int, length: int, dtype: str) -> list[float]:
    """Best seconds of `LAYERS` layers, forward and backward, of the reference and in blocks."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from sft_jax.models.attention import attention
    from sft_jax.models.visibility import Visibility

    rng = np.random.default_rng(0)
    inputs = [
        jnp.asarray(rng.normal(size=(sequences, length, heads, HEAD_DIM)), jnp.float32)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]
    positions = jnp.broadcast_to(jnp.arange(length)[None], (sequences, length))
    segments = jnp.ones_like(positions)

    def gradients(backend: str):
        def loss(query, key, value, positions, segments):
            visibility = Visibility(positions, positions, segments, segments, in_order=True)
            for _ in range(LAYERS):
                query = attention(query, key, value, visibility, dtype, backend)
            return jnp.sum(query**2)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))

    functions = [gradients("reference"), gradients("blocked")]
    best = [float("inf")] * len(functions)
    for _ in range(_ROUNDS.value + 1):  # the first compiles
        for index, function in enumerate(functions):
            start = time.perf_counter()
            jax.block_until_ready(function(*inputs, positions, segments))
            best[index] = min(best[index], time.perf_counter() - start)
    return best


if __name__ == "__main__":
    app.run(main)
