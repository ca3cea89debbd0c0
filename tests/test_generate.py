"""`python -m sft_jax.generate` on a file of prompts: samples, the best of them, pairs, and going on after a stop."""

import json

import pytest

from sft_jax.data.conversations import Chat, Message, Preference
from sft_jax.data.records import read_records
from tests import tiny
from tests.advice.test_commands import called
from tests.evaluation.asking import write_rows

SAMPLES, LONGEST = 8, 60
CODE = """
import contextlib, io, json, sys
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from sft_jax import generate
from tests.evaluation.asking import count_computed

store, calls = Path(sys.argv[1]), json.loads(sys.argv[2])
counts, ends = count_computed(pytest.MonkeyPatch()), {}
for name, arguments in calls.items():
    if name == "after a kill":  # while it wrote an answer: half of the lines are there, and a part of one
        (kept,) = store.iterdir()
        lines = kept.read_text().splitlines(keepends=True)
        kept.write_text("".join(lines[: len(lines) // 2]) + lines[-1][:20])
    counts["written"], refused = 0, ""
    out, said = io.StringIO(), io.StringIO()
    with flagsaver.flagsaver(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        flags.FLAGS(["generate", *arguments])
        try:
            generate.main([])
        except ValueError as error:
            refused = str(error)
    said = " ".join(said.getvalue().split())
    ends[name] = {"refused": refused, "said": said, "out": out.getvalue(), "computed": counts["written"]}
print(json.dumps(ends))
"""
WORDS = ("red", "blue", "cat", "and")


def calls_of(root) -> dict[str, list[str]]:
    """Name -> arguments, in this order."""
    model = [f"--model={root / 'model'}", "--matmul=float32"]
    asked = [*model, f"--prompts={root / 'asked.jsonl'}"]
    scored = ["--scorer=length", f'--scorer_options={{"most": {LONGEST}}}']
    drawn = [*asked, *scored, f"--samples={SAMPLES}", "--temperature=1.5", "--max_new_tokens=96"]
    to = lambda name: f"--out={root / name}"
    few = [*asked, "--temperature=1", "--max_new_tokens=2"]
    return {
        "all": [*drawn, to("all.jsonl")],
        "again": [*drawn, to("all.jsonl")],
        "after a kill": [*drawn, to("all.jsonl")],
        "best": [*drawn, to("best.jsonl"), "--keep=best"],
        "pairs": [*drawn, to("pairs.jsonl"), "--keep=pairs"],
        "no pairs": [*drawn, to("all.jsonl"), "--keep=pairs", "--keep_above=1"],
        "all once more": [*drawn, to("all.jsonl")],
        "to the terminal": few,
        "no temperature": [*asked, "--samples=2"],
        "no scorer": [*few, "--samples=2", "--keep=best"],
        "one sample": [*few, *scored, "--keep=pairs"],
        "two samples, and a scorer": [*few, *scored, "--samples=2", "--keep=pairs"],
        "no reference": [*model, f"--prompts={root / 'unanswered.jsonl'}", "--scorer=exact_match"],
        "no json": [*asked, "--scorer=length", "--scorer_options=most"],
        "no object": [*asked, "--scorer=length", "--scorer_options=[60]"],
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = tmp_path_factory.mktemp("generate")
    tiny.write_checkpoint(made / "model", num_hidden_layers=1)
    write_rows(made / "asked.jsonl", [{"prompt": word, "completion": "short"} for word in WORDS])
    write_rows(made / "unanswered.jsonl", [{"messages": [{"role": "user", "content": "red"}]}])
    return made


@pytest.fixture(scope="module")
def ends(root):
    """How each call ended."""
    done = called(CODE, str(root / "all.jsonl.answers"), json.dumps(calls_of(root)))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def samples(root) -> dict[str, list[dict]]:
    """All answers to each row, as they are in the file."""
    found = {}
    for line in (root / "all.jsonl").read_text().rstrip("\n").split("\n"):
        found.setdefault(json.loads(line)["id"], []).append(json.loads(line))
    return found


def test_all_samples_with_their_scores(root, ends):
    assert ends["all"]["said"].endswith(f"{SAMPLES * len(WORDS)} answers to {len(WORDS)} prompts: {root / 'all.jsonl'}")
    found = samples(root)
    assert list(found) == [f"asked.jsonl:{number}" for number in range(1, len(WORDS) + 1)]
    for answers in found.values():
        assert [one["sample"] for one in answers] == list(range(SAMPLES))
        assert len({one["answer"] for one in answers}) > SAMPLES // 2, "they are drawn alike"
        for one in answers:
            assert one["score"] == float(len(one["answer"]) <= LONGEST)
            assert one["ended"] == (one["finish_reason"] == "stop")
            assert one["logprob"] < 0


def test_it_goes_on_where_it_was_stopped(root, ends):
    """Prompts of which an answer was lost are answered again, with the same answers."""
    assert [ends[name]["computed"] for name in ("all", "again", "after a kill")] == [len(WORDS), 0, len(WORDS) // 2]
    assert ends["pairs"]["computed"] == len(WORDS)  # another --out keeps answers of its own
    assert ends["no pairs"]["computed"] == ends["all once more"]["computed"] == 0


def expected(root, best: bool):
    """The best (or worst) whole answer to each row: of those of its score the likeliest."""
    found = {}
    for name, answers in samples(root).items():
        whole = [one for one in answers if one["ended"] and one["answer"].strip()]
        found[name] = max(
            whole, key=lambda one: (one["score"] if best else -one["score"], one["logprob"]), default=None
        )
    return found


def test_the_best_are_read_as_conversations(root, ends):
    best = {name: one for name, one in expected(root, True).items() if one is not None and one["score"]}
    assert best, "nothing was kept"
    records = read_records(str(root / "best.jsonl"))
    assert [record.fields["id"] for record in records] == list(best)
    for record, one in zip(records, best.values(), strict=True):
        word = WORDS[int(one["id"].split(":")[1]) - 1]
        assert record.example == Chat((Message("user", word), Message("assistant", one["answer"])))
    assert f"Of {len(WORDS)} prompts: {len(best)} gave an answer" in ends["best"]["said"]


def test_pairs_are_read_as_preferences(root, ends):
    best, worst = expected(root, True), expected(root, False)
    rows = {
        name: (best[name], worst[name]) for name in best if best[name] and best[name]["score"] > worst[name]["score"]
    }
    assert rows, "nothing was kept"
    records = read_records(str(root / "pairs.jsonl"))
    assert [record.fields["id"] for record in records] == list(rows)
    for record, pair in zip(records, rows.values(), strict=True):
        prompt = (Message("user", WORDS[int(pair[0]["id"].split(":")[1]) - 1]),)
        answers = [(Message("assistant", one["answer"]),) for one in pair]
        assert record.example == Preference(prompt, *answers)
    assert f"Of {len(WORDS)} prompts: {len(rows)} gave a pair" in ends["pairs"]["said"]
    assert f"Of {len(WORDS)} prompts: 0 gave a pair; " in ends["no pairs"]["said"]


def test_to_the_terminal(ends):
    lines = [json.loads(line) for line in ends["to the terminal"]["out"].rstrip("\n").split("\n")]
    assert [set(line) for line in lines] == [{"id", "sample", "answer", "ended", "finish_reason", "logprob"}] * len(
        WORDS
    )


REFUSED = {
    "no temperature": "--samples=2: all are the same at --temperature=0; give one above 0",
    "no scorer": "--keep=best chooses by what answers are worth: give --scorer",
    "one sample": "--keep=pairs with --samples=1: a pair needs two answers; give more",
    "no reference": "unanswered.jsonl:1: scorer 'exact_match' compares with the row's own answer",
    "no json": "--scorer_options=most is not JSON: Expecting value",
    "no object": "--scorer_options=[60] must be a JSON object",
}


def test_what_is_refused_and_what_is_advised_is_done(ends):
    for name, message in REFUSED.items():
        assert ends[name]["refused"].startswith(message)
        assert ends[name]["computed"] == 0
    for name in set(ends) - set(REFUSED):
        assert not ends[name]["refused"]
    assert ends["two samples, and a scorer"]["computed"] == len(WORDS)
