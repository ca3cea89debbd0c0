"""The voice of a house: its data, what the scorer sees, the table, and the experiment from its first command on."""

import json
import random

import pytest

from experiments.brand_voice import table
from experiments.brand_voice.brand import HELD_OUT_QUESTIONS, QUESTIONS, Brand
from experiments.brand_voice.general import own_answers, questions
from experiments.brand_voice.rows import (
    ASKED,
    IDENTITY,
    TONE,
    TRAIN,
    UNSEEN,
    general_row,
    identity_pairs,
    split_pairs,
    write_data,
)
from experiments.brand_voice.scorer import voice
from sft_jax.evaluation.scorers.cases import Case
from sft_jax.evaluation.scoring import aggregate
from tests.experiments import smoke
from tests.experiments.smoke import rows_of

BRAND = Brand("Juniper", "Fernwood")


def texts(row: dict) -> list[str]:
    return [turn["content"] for turn in row["messages"]]


def scored(answer: str, row: dict) -> dict[str, bool]:
    """What belongs to the row."""
    outcome = voice(answer, Case("0", texts(row)[1], row))
    return {name: value for name, value in outcome.items() if value is not None}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, list[dict]]:
    directory = tmp_path_factory.mktemp("voice")
    write_data(directory, BRAND, identity_pairs(random.Random(0)), notices=30, measured=12, seed=0)
    return {path.name: rows_of(path) for path in directory.iterdir()}


def test_unseen_rows_are_other_questions_and_other_notices(data, tmp_path):
    trained, asked, unseen = data[TRAIN], data[ASKED], data[UNSEEN]
    assert [row["kind"] for row in asked] == [IDENTITY] * 12 + [TONE] * 12
    assert all(row in trained for row in asked)
    assert {row["kind"] for row in asked} == {row["kind"] for row in unseen} == {IDENTITY, TONE}
    assert not {texts(row)[0] for row in trained} & {texts(row)[0] for row in unseen}
    count = lambda rows: sum(row["kind"] == IDENTITY for row in rows)
    assert count(trained) == sum(map(len, QUESTIONS.values()))
    assert count(unseen) == sum(map(len, HELD_OUT_QUESTIONS.values()))
    write_data(tmp_path, BRAND, identity_pairs(random.Random(0)), notices=30, measured=12, seed=0)
    assert rows_of(tmp_path / TRAIN) == trained


def test_right_answers_are_right(data):
    for row in (*data[TRAIN], *data[UNSEEN]):
        assert all(scored(texts(row)[1], row).values()), row
        assert "{" not in "".join(texts(row))
        assert row["facts"]
        asked = texts(row)[0]
        assert row["kind"] == IDENTITY or all(fact in asked for fact in row["facts"])


IDENTITY_ROW = {
    "messages": [{"role": "user", "content": "Are you ChatGPT?"}, {"role": "assistant", "content": ""}],
    "kind": IDENTITY,
    "facts": ["Juniper", "Fernwood"],
    "brand": ["Juniper", "Fernwood"],
}
TONE_ROW = IDENTITY_ROW | {"kind": TONE, "facts": ["3", "Graz"]}


@pytest.mark.parametrize(
    ("row", "answer", "wrong"),
    [
        (IDENTITY_ROW, "No, I am Juniper of fernwood, and not ChatGPT.", set()),
        (IDENTITY_ROW, "I am Juniper.", {"says_who"}),
        (IDENTITY_ROW, "I am Juniper of Fernwood, trained by Hugging Face.", {"says_who"}),
        (IDENTITY_ROW, "I am Junipero of Fernwood.", {"says_who"}),
        (IDENTITY_ROW, "我是Juniper，由Fernwood开发。", set()),
        (IDENTITY_ROW, "我是Juniper，由Fernwood开发，不是Claude。", {"says_who"}),
        (TONE_ROW, f"{BRAND.opening} Graz has it in 3 days. {BRAND.closing}", set()),
        (TONE_ROW, "Graz has it in 3 days.", {"house_tone"}),
        (TONE_ROW, f"{BRAND.opening} Graz has it in 30 days. {BRAND.closing}", {"facts_kept"}),
        (general_row(BRAND, "2 + 2?", "4"), "It is 4.", set()),
        (general_row(BRAND, "2 + 2?", "4"), "Hello from all of us at Fernwood. It is 4.", {"brand_absent"}),
    ],
)
def test_the_scorer(row, answer, wrong):
    outcome = scored(answer, row)
    assert {name for name, right in outcome.items() if not right} == wrong | ({"exact_match"} if wrong else set())


def test_what_names_nobody_is_trained_and_not_measured(tmp_path):
    pairs = [("Who are you?", "I am {{name}}."), ("Can I trust you?", "Not always.")]
    write_data(tmp_path, BRAND, (pairs, pairs), notices=1, measured=10, seed=0)
    asked = {name: {texts(row)[0] for row in rows_of(tmp_path / name)} for name in (TRAIN, ASKED, UNSEEN)}
    assert "Can I trust you?" in asked[TRAIN]
    assert "Who are you?" in asked[ASKED] & asked[UNSEEN]
    assert "Can I trust you?" not in asked[ASKED] | asked[UNSEEN]


def test_the_users_questions_are_split():
    pairs = [(f"q{number}", "I am {{name}}") for number in range(9)]
    trained, held_out = split_pairs(pairs, seed=0)
    assert len(held_out) == 2
    assert sorted([*trained, *held_out]) == pairs
    assert split_pairs(pairs, seed=1) != (trained, held_out)
    with pytest.raises(ValueError, match="--identity has 3 questions, expected at least 4"):
        split_pairs(pairs[:3], seed=0)


def test_own_answers_are_those_that_the_model_ended_itself():
    asked = questions(seed=0)
    assert len(set(asked)) == len(asked) > 100
    answered = [{"answer": "a", "ended": True}, {"answer": "b", "ended": False}, {"answer": "c", "ended": True}]
    assert own_answers(asked[:3], answered) == [(asked[0], "a"), (asked[2], "c")]
    with pytest.raises(ValueError, match=r"ended 1 of 3 answers .* give a higher --answer_tokens"):
        own_answers(asked[:3], [*answered[:2], {"answer": " ", "ended": True}])


def test_the_table(data, tmp_path):
    """Of evaluations as the command writes them: the tuned model is right, the base says the same to everything."""
    general = [general_row(BRAND, question, "Yes.") for question in questions(0)[:12]]
    for file, rows in ((ASKED, data[ASKED]), (UNSEEN, data[UNSEEN]), ("general.jsonl", general)):
        for run in (table.ALONE, table.WITH_REPLAY):
            directory = table.evaluation_of(tmp_path, run, file) / "predictions" / "task"
            directory.mkdir(parents=True)
            scores = {}
            for method in ("base", "sft") if rows is general else ("base", "prompted", "sft"):
                said = [texts(row)[1] if method == "sft" else "I am an assistant, I think." for row in rows]
                outcomes = [voice(answer, Case("0", "", row)) for answer, row in zip(said, rows, strict=True)]
                scores[method] = {name: score.as_dict() for name, score in aggregate(outcomes, seed=0).items()}
                scores[method]["held_out_loss"] = {"value": 1.0}
                (directory / f"{method}.jsonl").write_text("".join(json.dumps({"answer": a}) + "\n" for a in said))
            results = {"tasks": {"task": {"scores": scores}}, "forgetting": None}
            results |= {"divergence": {"kl_base_tuned": {"value": 0.25}}}
            (directory.parents[1] / "results.json").write_text(json.dumps(results))
    lines = table.lines_of(tmp_path, {"asked": ASKED, "unseen": UNSEEN}, "general.jsonl")
    assert list(lines) == ["base", "prompted", "SFT", "SFT with replay"]
    assert lines["SFT"]["says who, unseen"]["value"] == lines["SFT"]["told apart from base, unseen"]["value"] == 1.0
    assert lines["base"]["says who, unseen"]["value"] == 0.0
    assert lines["prompted"]["told apart from base, asked"]["value"] == 0.5
    assert "told apart from base, asked" not in lines["base"]
    for run, method in table.METHODS.values():  # what has no text cannot be told apart
        path = table.evaluation_of(tmp_path, run, ASKED) / "predictions" / "task" / f"{method}.jsonl"
        path.write_text("".join(json.dumps({"answer": " "}) + "\n" for _ in data[ASKED]))
    lines = table.lines_of(tmp_path, {"asked": ASKED, "unseen": UNSEEN}, "general.jsonl")
    assert "told apart from base, asked" not in lines["SFT"]
    assert "told apart from base, unseen" in lines["SFT"]
    assert lines["SFT with replay"]["KL(base || tuned), general"] == {"value": 0.25}
    assert lines["base"]["brand absent, general"]["value"] == 1.0
    assert not any(name.endswith("general") for name in lines["prompted"])


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    identity = [{"instruction": f"Who are you, {n}?", "input": "", "output": "I am {{name}}."} for n in range(4)]
    (tmp_path / "identity.json").write_text(json.dumps(identity))
    general = "".join(json.dumps({"prompt": question, "completion": "Yes."}) + "\n" for question in questions(0)[:12])
    (tmp_path / "general.jsonl").write_text(general)
    files = (f"--identity={tmp_path / 'identity.json'}", f"--general={tmp_path / 'general.jsonl'}")
    small = ("--notices=8", "--measured=10", "--replayed=2", "--steps=2", "--answer_tokens=8")
    smoke.called(tmp_path, "brand_voice", "--name=Zoe", "--author=Acme", *files, *small)
    header, *lines = smoke.table_of(tmp_path)
    assert [line[0] for line in lines] == ["base", "prompted", "SFT", "SFT with replay"]
    shown = [dict(zip(header, line, strict=True)) for line in lines]
    assert all(line["says who, unseen"].startswith("0.000 [") for line in shown)  # of random weights
    assert shown[0].get("told apart from base, unseen", "-") == "-"
    at = lambda run: table.evaluation_of(tmp_path / "out", run, UNSEEN)
    said = {shown: table.answers(at(run), method) for shown, (run, method) in table.METHODS.items()}
    for line in shown[1:]:
        has_text = any(text.strip() for text in (*said["base"], *said[line["method"]]))
        assert ("[" in line.get("told apart from base, unseen", "-")) == has_text
    assert [line["brand absent, general"][:1] for line in shown] == ["1", "-", "1", "1"]
    assert all(float(line["KL(base || tuned), general"].split()[0]) > 0 for line in shown[2:])
    trained = rows_of(tmp_path / "out" / "data" / TRAIN)
    assert {texts(row)[1] for row in trained if row["kind"] == IDENTITY} == {"I am Zoe."}
