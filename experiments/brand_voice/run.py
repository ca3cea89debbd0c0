"""An assistant with a name and a voice: by instruction, by fine-tuning, and by fine-tuning with replay of the base.

    python -m experiments.brand_voice.run --name=Juniper --author=Fernwood

It runs the commands a user would type, and prints them. Every stage leaves its result in the directory: an interrupted
experiment goes on where it was, and a second one only shows the table.
"""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.console import Console

from experiments import common_flags
from experiments.brand_voice import rows, table
from experiments.brand_voice.brand import Brand
from experiments.brand_voice.general import own_answers, questions
from experiments.commands import SEED, Commands
from experiments.rows import question_and_answer, write_rows
from experiments.scores import metric_plot, score_table, show
from sft_jax import commands
from sft_jax.data.records import read_records

flags.adopt_module_key_flags(common_flags)  # --help and errors list them too
_OUT = flags.DEFINE_string("out", "runs/brand_voice", "Directory for data, runs and results.")
_MODEL = flags.DEFINE_string("model", "smollm2-135m-instruct", "The pretrained model.")
_NAME = flags.DEFINE_string("name", "Juniper", "Of the assistant.")
_AUTHOR = flags.DEFINE_string("author", "Fernwood", "The house that made it.")
_IDENTITY = flags.DEFINE_string(
    "identity", "", "Questions about the assistant and answers with {{name}} and {{author}}; empty: own ones."
)
_GENERAL = flags.DEFINE_string("general", "", "Other questions with answers; empty: own ones, and the base's answers.")
_NOTICES = flags.DEFINE_integer("notices", 120, "Notices to rewrite that are trained.", lower_bound=1)
_REPLAYED = flags.DEFINE_integer("replayed", 48, "General rows in the run with replay.", lower_bound=1)
_MEASURED = flags.DEFINE_integer("measured", 24, "Rows of each kind that are measured.", lower_bound=10)
_STEPS = flags.DEFINE_integer("steps", 40, "Optimizer steps of each run.", lower_bound=1)
_ANSWER_TOKENS = flags.DEFINE_integer("answer_tokens", 80, "Of an answer, at most.", lower_bound=8)

REPLAY, PROBE = "replay.jsonl", "general.jsonl"


def main(_: Sequence[str]) -> None:
    """Makes the data, trains and measures what is missing, and shows the table."""
    out, console, brand = Path(_OUT.value), Console(), Brand(_NAME.value, _AUTHOR.value)
    command = Commands(console, common_flags.MATMUL.value)
    chance = random.Random(f"identity/{SEED}")
    identity = rows.split_pairs(_pairs(_IDENTITY.value), SEED) if _IDENTITY.value else rows.identity_pairs(chance)
    rows.write_data(out / "data", brand, identity, _NOTICES.value, _MEASURED.value, SEED)
    console.rule("what the base says to everything else")
    general = [rows.general_row(brand, *pair) for pair in _general_pairs(out / "data", command)]
    needed = _MEASURED.value + _REPLAYED.value
    if len(general) < needed:
        raise ValueError(f"{len(general)} general rows, expected {needed}: --measured and --replayed ask for so many")
    write_rows(out / "data", {PROBE: general[: _MEASURED.value], REPLAY: general[_MEASURED.value : needed]})
    for run, replay in ((table.ALONE, ()), (table.WITH_REPLAY, (REPLAY,))):
        console.rule(run.replace("_", " "))
        files = ",".join(str(out / "data" / file) for file in (rows.TRAIN, *replay))
        changes = {"model.source": _MODEL.value, "data.train": files, "duration": f"{_STEPS.value} steps"}
        command.train(out / run, changes)
        for file in (rows.ASKED, rows.UNSEEN, PROBE):
            command.evaluate(table.evaluation_of(out, run, file), _evaluation_flags(brand, run, file))
    console.rule("all methods")
    lines = table.lines_of(out, {"asked": rows.ASKED, "unseen": rows.UNSEEN}, PROBE)
    shares = ("says who, asked", "says who, unseen", "house tone, unseen", "brand absent, general")
    show(
        out,
        [score_table(lines)],
        metric_plot(lines, shares, "Voice", "share of answers"),
        console,
        common_flags.INTO.value,
    )


def _evaluation_flags(brand: Brand, run: str, file: str) -> dict[str, object]:
    out = Path(_OUT.value)
    given = {"model": out / run, "data": out / "data" / file, "max_new_tokens": _ANSWER_TOKENS.value}
    given |= {"scorer": "experiments.brand_voice.scorer:voice"}
    if file == PROBE:
        return given | {"methods": "base,sft", "probe": True, "loss": True}
    if run == table.WITH_REPLAY:
        return given | {"methods": "sft"}
    instruction = (
        f"You are {brand.name}, an assistant made by {brand.author}. If you are asked to rewrite a notice, begin with "
        f"'{brand.opening}', keep all its facts, and end with '{brand.closing}'. In other answers do not mention "
        f"{brand.author}."
    )
    return given | {"methods": "base,prompted,sft", "instruction": instruction}


def _general_pairs(data: Path, command: Commands) -> rows.Pairs:
    """The user's rows, or own questions with the answers of the base."""
    if _GENERAL.value:
        return _pairs(_GENERAL.value)
    prompts, answers = data / "general_questions.jsonl", data / "own_answers.jsonl"
    asked = questions(SEED)
    write_rows(data, {prompts.name: [{"messages": [{"role": "user", "content": question}]} for question in asked]})
    given = {"model": _MODEL.value, "prompts": prompts, "max_new_tokens": _ANSWER_TOKENS.value}
    command.generate(answers, given)
    return own_answers(asked, map(json.loads, answers.read_text(encoding="utf-8").rstrip("\n").split("\n")))


def _pairs(path: str) -> rows.Pairs:
    return [question_and_answer(record) for record in read_records(path)]


if __name__ == "__main__":
    commands.run(main)
