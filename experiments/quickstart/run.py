"""The quickstart: a real pretrained model learns to read vehicle titles, and is measured beside what it was.

    python -m experiments.quickstart.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
quickstart goes on where it was, and a second one only shows the table.
"""

import time

from absl import flags
from etils import epath
from rich.console import Console

from experiments.commands import run_command
from experiments.quickstart.documents import SEED, write_dataset
from experiments.quickstart.prompts import LONGEST_ANSWER
from sft_jax import commands
from sft_jax.sources import load_tokenizer, open_checkpoint

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Directory for data, run and results.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 600, "Training documents.", lower_bound=8)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 100, "Held-out documents.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 0, "Optimizer steps; 0: as in configs/quickstart.py.", lower_bound=0)

MODEL = "smollm2-135m-instruct"
METHODS = "base,few_shot,sft"  # the base model alone, with two solved examples in its prompt, and tuned


def main(_: list[str]) -> None:
    """Runs what is missing, and shows the table."""
    started = time.monotonic()
    console = Console()
    out = epath.Path(_OUT.value)

    console.rule(f"1/4 pretrained model: {MODEL}")
    checkpoint = open_checkpoint(MODEL)
    weights = sum(tensor.size for tensor in checkpoint.tensors.values())
    console.print(f"{weights:,} weights, {len(load_tokenizer(MODEL)):,} tokens, with chat template")

    console.rule("2/4 documents")
    made = write_dataset(out / "data", _TRAIN_ROWS.value, _HELD_OUT_ROWS.value, SEED)
    documents = f"{_TRAIN_ROWS.value} documents to train on, {_HELD_OUT_ROWS.value} held out"
    console.print(f"{'made' if made else 'found'} {documents} in {out / 'data'}")

    console.rule("3/4 fine-tuning")
    _train(out / "run", console)

    console.rule("4/4 held-out documents: the base model, the same with solved examples, and the tuned one")
    _evaluate(out, console)
    console.print(_next_steps(out, time.monotonic() - started), highlight=False, soft_wrap=True)


def _evaluate(out: epath.Path, console: Console) -> None:
    """Measures all methods; answers that are there are kept."""
    data = out / "data"
    arguments = [
        *(f"--model={out / 'run'}", f"--data={data / 'held_out.jsonl'}", "--scorer=json_extraction"),
        *(f"--methods={METHODS}", f"--examples_from={data / 'train.jsonl'}", f"--max_new_tokens={LONGEST_ANSWER}"),
        f"--out={out / 'evaluation'}",
    ]
    run_command("sft_jax.evaluate", arguments, console)


def _train(run: epath.Path, console: Console) -> None:
    """Runs the training command, which continues by itself where it was interrupted."""
    data = epath.Path(_OUT.value) / "data"
    arguments = ["--config=configs/quickstart.py", f"--workdir={run}"]
    arguments += [f"--config.data.train={data / 'train.jsonl'}", f"--config.data.held_out={data / 'validation.jsonl'}"]
    if _STEPS.value:
        arguments.append(f"--config.duration={_STEPS.value} steps")
    run_command("sft_jax.train", arguments, console)


def _next_steps(out: epath.Path, seconds: float) -> str:
    return f"""
Took {seconds / 60:.1f} minutes.
Answers side by side: {out / "evaluation" / "report.html"}; figures: {out / "evaluation" / "results.json"}
Watch the run:     .venv/bin/tensorboard --logdir {out / "run"}
Chat with it:      .venv/bin/python -m sft_jax.generate --model={out / "run"}
Tune on your data: .venv/bin/python -m sft_jax.train --config=configs/sft.py:lora \\
                       --config.data.train=FILE.jsonl --workdir=runs/mine
"""


if __name__ == "__main__":
    commands.run(main)
