"""The quickstart: a real pretrained model learns to read vehicle titles, and is measured before and after.

    python -m experiments.quickstart.run

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory and is skipped
if the result is there already: an interrupted quickstart goes on where it was, and a second one only shows the table.
"""

import json
import shlex
import signal
import subprocess
import sys
import time

from absl import flags
from etils import epath
from rich.console import Console

from experiments.quickstart.documents import write_dataset
from sft_jax import commands
from sft_jax.evaluation import held_out
from sft_jax.evaluation.tables import build_results, terminal_table
from sft_jax.sources import load_tokenizer, open_checkpoint

_OUT = flags.DEFINE_string("out", "runs/quickstart", "Directory for data, run and results.")
_TRAIN_ROWS = flags.DEFINE_integer("train_rows", 600, "Training documents.", lower_bound=8)
_HELD_OUT_ROWS = flags.DEFINE_integer("held_out_rows", 100, "Held-out documents.", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 0, "Optimizer steps; 0: as in configs/quickstart.py.", lower_bound=0)

MODEL = "smollm2-135m-instruct"
LONGEST_ANSWER = 80  # tokens; reference answers have at most 72
SEED = 0
PROMPTS = {"zero_shot": 0, "two_examples": 2}  # examples in the base model's prompt


def main(_: list[str]) -> None:
    """Runs what is missing, and shows the table."""
    started = time.monotonic()
    console = Console()
    out = epath.Path(_OUT.value)

    console.rule(f"1/5 pretrained model: {MODEL}")
    checkpoint = open_checkpoint(MODEL)
    weights = sum(tensor.size for tensor in checkpoint.tensors.values())
    console.print(f"{weights:,} weights, {len(load_tokenizer(MODEL)):,} tokens, with chat template")

    console.rule("2/5 documents")
    made = write_dataset(out / "data", _TRAIN_ROWS.value, _HELD_OUT_ROWS.value, SEED)
    documents = f"{_TRAIN_ROWS.value} documents to train on, {_HELD_OUT_ROWS.value} held out"
    console.print(f"{'made' if made else 'found'} {documents} in {out / 'data'}")

    console.rule("3/5 the base model on held-out documents")
    for prompt, examples in PROMPTS.items():
        _evaluate(MODEL, out / "base" / prompt, examples, console)

    console.rule("4/5 fine-tuning")
    _train(out / "run", console)

    console.rule("5/5 the tuned model on the same documents")
    _evaluate(str(out / "run"), out / "tuned", 0, console)

    results = _results(out)
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    console.print(terminal_table(results))
    console.print(_next_steps(out, time.monotonic() - started), highlight=False, soft_wrap=True)


def _evaluate(source: str, out: epath.Path, examples: int, console: Console) -> None:
    """Evaluates, unless the result of just that is there."""
    data = epath.Path(_OUT.value) / "data"
    arguments = [f"--model={source}", f"--data={data / 'held_out.jsonl'}", "--scorer=json_extraction", f"--out={out}"]
    arguments.append(f"--max_new_tokens={LONGEST_ANSWER}")
    if examples:  # the loss of the references is measured once, without examples
        arguments += [f"--examples={examples}", f"--examples_from={data / 'train.jsonl'}", "--noloss"]
    key = {"arguments": arguments, "inputs": _inputs(source)}
    written = out / "key.json"
    if written.exists() and json.loads(written.read_text()) == key:
        console.print(f"found {out}")
        return
    _run("sft_jax.evaluate", arguments, console)
    written.write_text(json.dumps(key, indent=2) + "\n")


def _inputs(source: str) -> dict:
    """What an evaluation depends on beside its arguments: an older one of anything else is made anew."""
    inputs = {"data": json.loads((epath.Path(_OUT.value) / "data" / "documents.json").read_text())}
    run = epath.Path(source)
    if (run / "environment.json").exists():
        inputs["trained_on"] = json.loads((run / "environment.json").read_text())["fingerprints"]
        inputs["config"] = json.loads((run / "config.json").read_text())
    else:
        inputs["model"] = open_checkpoint(source).fingerprint
    return inputs


def _train(run: epath.Path, console: Console) -> None:
    """Runs the training command, which continues by itself where it was interrupted."""
    data = epath.Path(_OUT.value) / "data"
    arguments = ["--config=configs/quickstart.py", f"--workdir={run}"]
    arguments += [f"--config.data.train={data / 'train.jsonl'}", f"--config.data.held_out={data / 'validation.jsonl'}"]
    if _STEPS.value:
        arguments.append(f"--config.duration={_STEPS.value} steps")
    _run("sft_jax.train", arguments, console)


def _run(module: str, arguments: list[str], console: Console) -> None:
    """Runs a command as a user would; ends with its exit code if it fails or is interrupted."""
    console.print(f"[dim]{shlex.join(['python', '-m', module, *arguments])}[/dim]", soft_wrap=True)
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # it saves and leaves with a code, so do we
    while True:
        try:
            code = process.wait()
            break
        except KeyboardInterrupt:  # the command has it too, saves and leaves
            continue
    signal.signal(signal.SIGTERM, before)
    if code:
        sys.exit(code)


def _results(out: epath.Path) -> dict:
    ids, before, losses = {}, {}, {}
    for name, path in {**{prompt: out / "base" / prompt for prompt in PROMPTS}, "tuned": out / "tuned"}.items():
        ids[name], before[name], losses[name] = held_out.read_outcomes(path)
    if len({tuple(names) for names in ids.values()}) != 1:
        raise ValueError(f"{out}: the evaluations are of different examples; remove {out}/base and {out}/tuned")
    after = before.pop("tuned")
    loss = (losses["zero_shot"], losses["tuned"])
    return build_results(before, after, seed=SEED, held_out_loss=loss, primary="field_f1")


def _next_steps(out: epath.Path, seconds: float) -> str:
    return f"""
Took {seconds / 60:.1f} minutes. Figures: {out / "results.json"}; answers: {out / "tuned" / "predictions.jsonl"}
Watch the run:     .venv/bin/tensorboard --logdir {out / "run"}
Chat with it:      .venv/bin/python -m sft_jax.generate --model={out / "run"}
Tune on your data: .venv/bin/python -m sft_jax.train --config=configs/sft.py:lora \\
                       --config.data.train=FILE.jsonl --workdir=runs/mine
"""


if __name__ == "__main__":
    commands.run(main)
