"""The quickstart: a real pretrained model learns to read vehicle titles, and is measured before and after.

    python -m experiments.quickstart.run

Every stage leaves its result in the directory and is skipped when that is there, so that an interrupted quickstart goes
on where it was, and a second one only shows the table.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath
from rich.console import Console

from experiments.quickstart.documents import write_dataset
from sft_jax import commands
from sft_jax.data.records import Record, read_records
from sft_jax.evaluation import held_out
from sft_jax.evaluation.baselines import choose_examples
from sft_jax.evaluation.tables import build_results, terminal_table
from sft_jax.sources import load_tokenizer, open_checkpoint
from sft_jax.training.progress import ProgressBars
from sft_jax.training.restore import load_for_inference
from sft_jax.training.sharding import inference_mesh

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Directory for data, run and results.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 600, "Training documents.", lower_bound=8)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 100, "Held-out documents.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 0, "Optimizer steps; 0: as in configs/quickstart.py.", lower_bound=0)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 50, "Documents at a time when generating.", lower_bound=1)

MODEL = "smollm2-135m-instruct"
SCORER = "json_extraction"
LONGEST_ANSWER = 96  # tokens; reference answers have at most 72
SEED = 0
# Batched decoding of prompts with two examples takes the longer prompts in smaller batches.
PROMPTS = {"zero_shot": 0, "two_examples": 2}


def main(_: list[str]) -> None:
    """Runs what is missing, and shows the table."""
    commands.start_jax()
    started = time.monotonic()
    console = Console()
    out = epath.Path(_OUT.value)

    console.rule(f"1/5 pretrained model: {MODEL}")
    checkpoint = open_checkpoint(MODEL)
    tokenizer = load_tokenizer(MODEL)
    weights = sum(tensor.size for tensor in checkpoint.tensors.values())
    console.print(f"{weights:,} weights, {len(tokenizer):,} tokens, with chat template")

    console.rule("2/5 documents")
    made = write_dataset(out / "data", _TRAIN_ROWS.value, _HELD_OUT_ROWS.value, SEED)
    console.print(
        f"{'made' if made else 'found'} {_TRAIN_ROWS.value} documents to train on, {_HELD_OUT_ROWS.value} held out"
    )
    train, records = (read_records(out / "data" / name) for name in ("train.jsonl", "held_out.jsonl"))

    console.rule("3/5 the base model on held-out documents")
    _measure(MODEL, {prompt: out / "base" / prompt for prompt in PROMPTS}, train, records, console)

    console.rule("4/5 fine-tuning")
    _train(out, console)

    console.rule("5/5 the tuned model on the same documents")
    _measure(str(out / "run"), {"zero_shot": out / "tuned"}, train, records, console)

    results = _results(out)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(terminal_table(results))
    console.print(_next_steps(out, time.monotonic() - started), highlight=False, soft_wrap=True)


def _measure(
    source: str, outs: dict[str, epath.Path], train: Sequence[Record], records: Sequence[Record], console: Console
) -> None:
    """Evaluates a model with each prompt whose result is not there yet."""
    task = held_out.Task(records, SCORER, LONGEST_ANSWER, _BATCH_SIZE.value, seed=SEED)
    missing = {prompt: out for prompt, out in outs.items() if not _is_done(out, source)}
    if not missing:
        console.print("found")
        return
    mesh = inference_mesh()
    with jax.set_mesh(mesh), ProgressBars(console) as bars:
        loaded = load_for_inference(source, mesh)
        losses = held_out.measure_loss(loaded, task, mesh, bars)
        for prompt, out in missing.items():
            examples = choose_examples(
                [record.conversation for record in train],
                PROMPTS[prompt],
                SEED,
                [record.conversation for record in records],
            )
            progress = lambda title, total, prompt=prompt: bars(f"{title}, {prompt.replace('_', ' ')}", total)
            answers = held_out.generate_answers(loaded, task, examples, progress)
            held_out.write_evaluation(out, task, answers, held_out.score_answers(task, answers), losses)
            (out / "key.json").write_text(json.dumps(_key(source)) + "\n")


def _key(source: str) -> dict:
    """What an evaluation depends on: an older one of anything else is made anew."""
    run = epath.Path(source) / "environment.json"
    model = (
        json.loads(run.read_text())["fingerprints"] if run.exists() else {"model": open_checkpoint(source).fingerprint}
    )
    config = epath.Path(source) / "config.json"
    duration = json.loads(config.read_text())["duration"] if run.exists() else ""
    data = json.loads((epath.Path(_OUT.value) / "data" / "documents.json").read_text())
    return {"source": source, "model": model, "duration": duration, "data": data, "longest_answer": LONGEST_ANSWER}


def _is_done(out: epath.Path, source: str) -> bool:
    path = out / "key.json"
    return path.exists() and json.loads(path.read_text()) == json.loads(json.dumps(_key(source)))


def _train(out: epath.Path, console: Console) -> None:
    """Runs the training command as a user would; it continues by itself where it was interrupted."""
    command = [sys.executable, "-m", "sft_jax.train", "--config=configs/quickstart.py", f"--workdir={out / 'run'}"]
    command += [f"--config.data.{name}={out / 'data' / name}.jsonl" for name in ("train", "held_out")]
    if _STEPS.value:
        command.append(f"--config.duration={_STEPS.value} steps")
    console.print(f"[dim]{shlex.join(['python', *command[1:]])}[/dim]", soft_wrap=True)
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(done.returncode)


def _results(out: epath.Path) -> dict:
    ids, before = {}, {}
    for prompt in PROMPTS:
        ids[prompt], before[prompt], losses_before = held_out.read_outcomes(out / "base" / prompt)
    ids["tuned"], after, losses_after = held_out.read_outcomes(out / "tuned")
    if len({tuple(rows) for rows in ids.values()}) != 1:
        raise ValueError(f"{out}: the evaluations are of different rows; remove {out}/base and {out}/tuned")
    return build_results(before, after, seed=SEED, held_out_loss=(losses_before, losses_after), primary="field_f1")


def _next_steps(out: epath.Path, seconds: float) -> str:
    return f"""
Took {seconds / 60:.1f} minutes. The figures: {out / "results.json"}; every answer: {out / "tuned" / "predictions.jsonl"}
Watch the run:     .venv/bin/tensorboard --logdir {out / "run"}
Chat with it:      .venv/bin/python -m sft_jax.generate --model={out / "run"}
Tune on your data: .venv/bin/python -m sft_jax.train --config=configs/sft.py:lora --config.data.train=FILE.jsonl --workdir=runs/mine
"""


if __name__ == "__main__":
    commands.run(main)
