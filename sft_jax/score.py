"""Scores the answers of pairs by a reward model: how often the better one has the higher score.

    python -m sft_jax.score --model=runs/rm:best --pairs=test_pairs.jsonl
    python -m sft_jax.score --model=exported --pairs=test_pairs.jsonl --out=scores.jsonl

Rows are `{"prompt", "chosen", "rejected"}`, read as in training (--reading.…).
"""

import json

from absl import flags

from sft_jax import commands, reading_flags

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Run directory (with :best, :latest, :<step>) or exported directory of a reward model.",
    required=True,
)
_PAIRS = flags.DEFINE_string("pairs", None, "Rows with two answers each.", required=True)
_OUT = flags.DEFINE_string("out", None, "JSONL file for the scores of each pair; by default they are not written.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pairs at a time; scores do not depend on it.", lower_bound=1)
_MATMUL = flags.DEFINE_enum("matmul", "float32", ["bfloat16", "float32"], "dtype of the inputs of matrix products.")
_WEIGHTS = flags.DEFINE_enum("weights", "trained", ["trained", "ema"], "Of a run: the result, or the average it kept.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import jax
    from etils import epath
    from rich.console import Console

    from sft_jax.data.records import read_records
    from sft_jax.evaluation.preferred import preference_scores, scores_of_pairs
    from sft_jax.progress import ProgressBars
    from sft_jax.runs.restore import load_for_inference
    from sft_jax.sharding import inference_mesh

    commands.start_jax()
    console, mesh = Console(), inference_mesh(jax.devices())
    records = read_records(_PAIRS.value, reading_flags.reading())
    if len(records) < 2:
        raise ValueError(f"--pairs={_PAIRS.value}: one pair has no interval; give several")
    with jax.set_mesh(mesh), ProgressBars(console) as progress:
        loaded = load_for_inference(_MODEL.value, mesh, _MATMUL.value, _WEIGHTS.value, scores=True)
        bar = progress("scoring", len(records))
        scores = scores_of_pairs(loaded, records, mesh, batch_sequences=_BATCH_SIZE.value, progress=bar)
    if _OUT.value is not None:
        lines = [
            json.dumps({"id": record.id, "chosen": float(chosen), "rejected": float(rejected)}, ensure_ascii=False)
            for record, (chosen, rejected) in zip(records, scores, strict=True)
        ]
        epath.Path(_OUT.value).write_text("\n".join(lines) + "\n")
    for name, found in preference_scores(scores).items():
        console.print(f"{name}: {found.value:.4f} [{found.low:.4f}, {found.high:.4f}]", highlight=False)
    console.print(f"{len(records)} pairs by {loaded.name}; intervals of 95 %", highlight=False)


if __name__ == "__main__":
    commands.run(main)
