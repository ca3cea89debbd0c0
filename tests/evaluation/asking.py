"""What tests ask the tiny model: records, tasks, and a count of what it really computes."""

import dataclasses
import json
from pathlib import Path

from configs import sft
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record
from sft_jax.evaluation import responding
from sft_jax.evaluation.measuring import Entry
from sft_jax.evaluation.responding import Respondent
from sft_jax.generation import prepare
from sft_jax.options import EvaluationOptions, TaskOptions, options_of


def record(number: int, question: str, answer: str, group: str = "", system: str = "", **fields) -> Record:
    turns = [Message("system", system)] if system else []
    turns += [Message("user", question), Message("assistant", answer)]
    return Record(f"rows:{number}", Chat(tuple(turns)), fields, group=group)


RECORDS = (
    record(1, "red cat", "cat red"),
    record(2, "blue tree", "tree blue"),
    record(3, "I and seven", "seven and I"),
)


def options(**changes) -> TaskOptions:
    return TaskOptions(**{"path": "rows.jsonl", "reading": DEFAULT, "max_new_tokens": 4, "loss": False} | changes)


def evaluation_options(**changes) -> EvaluationOptions:
    """Those of configs/sft.py, with changes."""
    return dataclasses.replace(options_of(sft.get_config()).evaluation, **changes)


def entry(records=RECORDS, **changes) -> Entry:
    return Entry("rows", options(**changes), tuple(records))


def write_rows(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def respondent(loaded, **options) -> Respondent:
    return Respondent(prepare(loaded.model, loaded.variables), loaded.renderer, **options)


def count_computed(monkeypatch) -> dict[str, int]:
    """How many prompts are written to, and judged, from now on."""
    counts = {"written": 0, "judged": 0}
    generate, judge = responding.Sampler.generate, responding.loglikelihoods

    def counted_generate(self, prepared, prompts, **options):
        counts["written"] += len(prompts)
        return generate(self, prepared, prompts, **options)

    def counted_judge(prepared, prompts, continuations, **options):
        counts["judged"] += len(prompts)
        return judge(prepared, prompts, continuations, **options)

    monkeypatch.setattr(responding.Sampler, "generate", counted_generate)
    monkeypatch.setattr(responding, "loglikelihoods", counted_judge)
    return counts
