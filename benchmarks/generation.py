"""Speed of greedy generation, beside `generate` of transformers on the same prompts; the variants take turns.

    python -m benchmarks.generation [--rounds=3] [--only=mixed]

SmolLM2-135M-Instruct at batch 16. `alike`: 32 prompts of one length, 64 tokens each. `mixed`: 48 prompts of 20 to 500
tokens with answers of 8 to 256; transformers pads a batch to its longest prompt and goes on to its longest answer.
Tokens a second count what was asked for. Compare ratios: they come from one run.
"""

from collections.abc import Callable

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks.workers import run_interleaved

_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each variant.", lower_bound=1)
_ONLY = flags.DEFINE_enum("only", "all", ["all", "alike", "mixed"], "Which prompts.")
BATCH, VOCABULARY = 16, 49152


def requests(kind: str) -> tuple[list[np.ndarray], list[int]]:
    """(prompts, tokens of each answer), by a fixed seed."""
    rng = np.random.default_rng(0)
    if kind == "alike":
        lengths, limits = np.full(32, 40), np.full(32, 64)
    else:
        lengths = np.exp(rng.uniform(np.log(20), np.log(500), 48)).astype(int)
        limits = np.exp(rng.uniform(np.log(8), np.log(256), 48)).astype(int)
    return [rng.integers(100, VOCABULARY, length).astype(np.int32) for length in lengths], limits.tolist()


def ours(kind: str, matmul: str) -> Callable[[], float]:
    """Our sampler."""
    import jax

    from sft_jax.generation import Sampler, prepare
    from sft_jax.runs.restore import load_for_inference
    from sft_jax.sharding import inference_mesh

    mesh = inference_mesh(jax.devices())
    prompts, limits = requests(kind)
    with jax.set_mesh(mesh):
        loaded = load_for_inference("smollm2-135m-instruct", mesh, matmul)
        prepared, sampler = prepare(loaded.model, loaded.variables), Sampler((), slots=BATCH)

    def step() -> float:
        with jax.set_mesh(mesh):
            answers = sampler.generate(prepared, prompts, max_new_tokens=limits)
        return float(sum(len(answer.tokens) for (answer,) in answers))

    return step


def theirs(kind: str, dtype: str) -> Callable[[], float]:
    """`generate` of transformers, in batches in the order of the prompts."""
    import torch

    from benchmarks.steps import torch_model

    model = torch_model().eval().to(getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    prompts, limits = requests(kind)

    def step() -> float:
        for start in range(0, len(prompts), BATCH):
            batch, wanted = prompts[start : start + BATCH], max(limits[start : start + BATCH])
            width = max(len(prompt) for prompt in batch)
            ids, mask = (torch.zeros((len(batch), width), dtype=torch.long) for _ in range(2))
            for row, prompt in enumerate(batch):
                ids[row, width - len(prompt) :], mask[row, width - len(prompt) :] = torch.from_numpy(prompt), 1
            with torch.no_grad():
                found = model.generate(
                    ids,
                    attention_mask=mask,
                    do_sample=False,
                    min_new_tokens=wanted,
                    max_new_tokens=wanted,
                    pad_token_id=0,
                )
            assert found.shape[1] == width + wanted
        return float(sum(limits))

    return step


def main(_: list[str]) -> None:
    """Times and prints."""
    for kind in ("alike", "mixed"):
        if _ONLY.value in ("all", kind):
            variants = {
                "transformers, float32": (theirs, {"kind": kind, "dtype": "float32"}),
                "transformers, bfloat16": (theirs, {"kind": kind, "dtype": "bfloat16"}),
                "ours, float32 matmuls": (ours, {"kind": kind, "matmul": "float32"}),
                "ours, bfloat16 matmuls": (ours, {"kind": kind, "matmul": "bfloat16"}),
            }
            results = run_interleaved(variants, _ROUNDS.value)
            best = min(result["median"] for name, result in results.items() if name.startswith("transformers"))
            table = Table("", "tokens/s, median", "best", "speed, to the faster of transformers", title=kind)
            for name, result in results.items():
                speed = [f"{result['loss'] / result[which]:.0f}" for which in ("median", "best")]
                table.add_row(name, *speed, f"{best / result['median']:.2f}")
            Console().print(table)


if __name__ == "__main__":
    app.run(main)
