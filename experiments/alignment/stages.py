"""The stages of the experiment: each takes a model and rows, runs a command, and gives what came of it.

A stage that is done is not run again, and one that was interrupted goes on. What stages took is in `costs.json`.
"""

import dataclasses
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.commands import run_command
from experiments.quickstart.documents import SEED, lines_of, make_documents
from experiments.quickstart.prompts import LONGEST_ANSWER
from sft_jax.evaluation.report.write import RESULTS
from sft_jax.runs.result import read_result
from sft_jax.runs.workdir import write_whole

MODEL = "smollm2-135m-instruct"
SCORER = "json_extraction"  # of evaluations
_SETTINGS, _COSTS = "settings.json", "costs.json"
_HELD_OUT = 100  # documents that the quickstart measures its model on


def _batch(*, tokens: int, sequences: int, parts: int) -> list[str]:
    """Flags of a step of so many sequences of so many tokens, taken in parts."""
    batch = [f"--config.batch.sequences={sequences}", f"--config.batch.micro_batches={parts}"]
    return [f"--config.data.sequence_length={tokens}", *batch]


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the stages are given.

    Attributes:
        model: the pretrained one.
        is_chain: whether each stage begins with the model of the one before it.
        pretrained_on: texts of the domain that a chain begins with.
        pretraining_steps: on these.
        pretraining_rate: learning rate of these steps.
        tuned_on: documents that it is tuned on first.
        tuned_by: flags of that run, beside configs/quickstart.py and its data.
        fresh: documents that all later stages learn from.
        tested: documents that every model is measured on.
        scorer: what is right, and worth a reward.
        scorer_options: of it, as JSON.
        samples: answers to each fresh document.
        longest_answer: in tokens.
        steps: of DPO and of continued fine-tuning, each of some four documents.
        rl_steps: of reinforcement learning.
        rl_documents: of a step of it.
        rl_samples: answers to each of these.
        sft_rate: learning rate of continued fine-tuning.
        dpo_rate: of DPO.
        rl_rate: of reinforcement learning.
        matmul: dtype of the inputs of matrix products.
    """

    model: str = MODEL
    is_chain: bool = False
    pretrained_on: int = 160
    pretraining_steps: int = 16
    pretraining_rate: float = 1e-3
    tuned_on: int = 600
    tuned_by: tuple[str, ...] = ("--config.duration=24 steps", *_batch(tokens=512, sequences=2, parts=2))
    fresh: int = 160
    tested: int = 300
    scorer: str = SCORER
    scorer_options: str = "{}"
    samples: int = 4
    longest_answer: int = LONGEST_ANSWER
    steps: int = 16
    rl_steps: int = 16
    rl_documents: int = 4
    rl_samples: int = 8
    sft_rate: float = 5e-4
    dpo_rate: float = 2e-4
    rl_rate: float = 3e-4
    matmul: str = "bfloat16"


# A model of random weights learns in a moment which tokens there are, and writes answers of some length or other.
SMOKE = Settings(
    model=f"random:{MODEL}?num_hidden_layers=2&hidden_size=32&intermediate_size=64&num_attention_heads=2"
    "&num_key_value_heads=1&head_dim=16",
    pretrained_on=32,
    pretraining_steps=2,
    tuned_on=32,
    tuned_by=(
        "--config.duration=40 steps",
        "--config.adapter.method=none",
        "--config.optimizer.learning_rate=0.03",
        *_batch(tokens=512, sequences=1, parts=1),
    ),
    fresh=4,
    tested=4,
    scorer="length",
    scorer_options='{"most": 20}',
    samples=6,
    longest_answer=40,
    steps=2,
    rl_steps=2,
    rl_documents=2,
    rl_samples=4,
)


class Stages:
    """The stages, with what they share."""

    def __init__(self, out: Path, settings: Settings, console: Console):
        """Writes the settings into the directory.

        Args:
            out: directory of all that is made.
            settings: of the stages.
            console: where commands are shown.

        Raises:
            ValueError: an experiment with other settings is there.
        """
        self.out, self.settings, self._console = out, settings, console
        out.mkdir(parents=True, exist_ok=True)
        here = json.loads(json.dumps(dataclasses.asdict(settings)))
        kept = out / _SETTINGS
        there = json.loads(kept.read_text()) if kept.exists() else here
        if there != here:
            changed = ", ".join(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
            raise ValueError(f"--out={out} holds an experiment with other settings ({changed}); give another directory")
        write_whole(kept, json.dumps(here, indent=2) + "\n")

    @property
    def costs(self) -> dict[str, dict[str, float]]:
        """Stage -> {"seconds", "processor_seconds"} of its commands, all starts together."""
        path = self.out / _COSTS
        return json.loads(path.read_text()) if path.exists() else {}

    def documents(self) -> dict[str, Path]:
        """Writes the documents, of which no two share an owner, a VIN, a title number or their text.

        `tuned_on` are the quickstart's. `fresh` and `tested` are made with another seed, and so are the `texts` of a
        chain, which have neither question nor answer.
        """
        settings = self.settings
        tuned_on, held_out = make_documents(settings.tuned_on, _HELD_OUT, SEED)
        others = (*tuned_on, *held_out)
        fresh, tested = make_documents(settings.fresh, settings.tested, SEED + 1, unlike=others)
        written = {"tuned_on": lines_of(tuned_on), "fresh": lines_of(fresh), "tested": lines_of(tested)}
        if settings.is_chain:
            others = (*others, *fresh, *tested)
            texts, _ = make_documents(settings.pretrained_on, 0, SEED + 2, unlike=others)
            written["texts"] = "".join(json.dumps({"text": document.text}) + "\n" for document in texts)
        paths = {name: self.out / f"{name}.jsonl" for name in written}
        for name, lines in written.items():
            write_whole(paths[name], lines)
        return paths

    def pretrained(self, model: str, texts: Path, name: str) -> Path:
        """A model that has read texts of the domain, every token of which is trained."""
        settings = self.settings
        flags = [f"--config.model.source={model}", f"--config.optimizer.learning_rate={settings.pretraining_rate}"]
        flags += [f"--config.duration={settings.pretraining_steps} steps", "--config.optimizer.warmup=2 steps"]
        return self._trained(
            name, "configs/continued.py:lora", texts, [*flags, *_batch(tokens=512, sequences=2, parts=2)]
        )

    def tuned(self, model: str | Path, rows: Path, name: str) -> Path:
        """A model, tuned as in the quickstart."""
        flags = [f"--config.model.source={model}", *self.settings.tuned_by]
        return self._trained(name, "configs/quickstart.py", rows, flags)

    def own_answers(self, model: Path, rows: Path, keep: str) -> Path:
        """Rows made of a model's own answers: `pairs` of a right and a wrong one, or the `best`, if it is right.

        Both are made of the same answers, which are sampled once.
        """
        settings, made = self.settings, self.out / f"{keep}.jsonl"
        answers = self.out / "answers.jsonl"  # beside which the answers are kept
        if made.exists():
            return made
        flags = [f"--model={model}", f"--prompts={rows}", f"--samples={settings.samples}", "--temperature=1"]
        flags += [f"--max_new_tokens={settings.longest_answer}", *self._inference()]
        flags += [f"--scorer={settings.scorer}", f"--scorer_options={settings.scorer_options}"]
        self._run("samples", "sft_jax.generate", [*flags, f"--keep={keep}", f"--out={answers}"])
        return answers.rename(made)

    def continued(self, model: Path, rows: Path, name: str) -> Path:
        """A model, tuned on."""
        flags = [f"--config.model.source={model}", f"--config.optimizer.learning_rate={self.settings.sft_rate}"]
        flags += [f"--config.duration={self.settings.steps} steps", *_batch(tokens=512, sequences=2, parts=2)]
        return self._trained(name, "configs/sft.py:lora", rows, flags)

    def dpo(self, model: Path, pairs: Path, name: str) -> Path:
        """A model that learnt from pairs; two of them fit into most sequences."""
        flags = [f"--config.model.source={model}", f"--config.optimizer.learning_rate={self.settings.dpo_rate}"]
        flags += [f"--config.duration={self.settings.steps} steps", *_batch(tokens=640, sequences=2, parts=2)]
        return self._trained(name, "configs/preference.py:lora", pairs, flags)

    def rlvr(self, model: Path, rows: Path, name: str) -> Path:
        """A model that was rewarded for right answers; those to a document share a sequence."""
        settings, count = self.settings, self.settings.rl_documents
        rewarded = "--config.rollouts.rewards.answer"
        flags = [f"--config.model.source={model}", f"--config.optimizer.learning_rate={settings.rl_rate}"]
        flags += [f"--config.duration={settings.rl_steps} steps", f"--config.rollouts.prompts={count}"]
        flags += [f"--config.rollouts.group={settings.rl_samples}"]
        flags += [f"--config.rollouts.max_new_tokens={settings.longest_answer}"]
        flags += [f"{rewarded}.scorer={settings.scorer}", f"{rewarded}.scorer_options={settings.scorer_options}"]
        tokens = 224 + settings.rl_samples * settings.longest_answer  # 224 for the document
        flags += _batch(tokens=tokens, sequences=count, parts=count)
        return self._trained(name, "configs/rlvr.py:lora", rows, flags)

    def evaluated(self, model: str | Path, rows: Path, name: str) -> Path:
        """The directory of an evaluation of a model, by the most likely answers."""
        settings, out = self.settings, self.out / "evaluations" / name
        if not (out / RESULTS).exists():
            flags = [f"--model={model}", f"--data={rows}", f"--scorer={SCORER}", "--noloss", f"--out={out}"]
            flags += [f"--max_new_tokens={settings.longest_answer}", *self._inference()]
            self._run(f"evaluation of {name}", "sft_jax.evaluate", flags)
        return out

    def _trained(self, name: str, config: str, rows: Path, flags: Sequence[str]) -> Path:
        """A run, which nothing is measured in: that is a stage of its own."""
        run = self.out / name
        end = read_result(run)
        if end is None or not end.done:
            flags = [f"--config={config}", f"--workdir={run}", f"--config.data.train={rows}", *flags]
            flags += [
                "--config.data.held_out=",
                "--config.evaluation.every=0 steps",
                "--config.checkpoint.best_metric=",
            ]
            flags += [f"--config.precision.matmul={self.settings.matmul}", "--config.checkpoint.every=10 steps"]
            self._run(name, "sft_jax.train", flags)
        return run

    def _inference(self) -> list[str]:
        return [f"--matmul={self.settings.matmul}", "--batch_size=64"]

    def _run(self, stage: str, module: str, flags: Sequence[str]) -> None:
        """Runs a command, and adds what it took to the costs, however it ends."""
        before, started = _processor_seconds(), time.monotonic()
        try:
            run_command(module, flags, self._console)
        finally:
            costs = self.costs
            spent = costs.setdefault(stage, {"seconds": 0.0, "processor_seconds": 0.0})
            spent["seconds"] += time.monotonic() - started
            spent["processor_seconds"] += _processor_seconds() - before
            write_whole(self.out / _COSTS, json.dumps(costs, indent=2) + "\n")


def _processor_seconds() -> float:
    """Of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
