"""Advice about cleaning: a step that a finding names takes out what was found, and a misspelt one has a name."""

import re

import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.answers import empty_answers
from sft_jax.audit.checks.balance import label_balance
from sft_jax.audit.checks.duplicates import exact_duplicates
from sft_jax.audit.checks.encoding import control_characters, mojibake
from sft_jax.audit.checks.json_answers import json_answers
from sft_jax.data.cleaning import STEPS, Cleaner, CleaningLog, problems_of
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.tokenized import TokenizedExamples


def heavy_label(checked):
    """What is said of a label that outweighs all others."""
    return [seen for seen in label_balance(checked) if "of the rows have the label" in seen.title]


FOUND = {  # (file, part of its advice) -> (check, answers of rows, how many rows are left)
    ("sft_jax/audit/checks/answers.py", "(drop_empty_answers)"): (empty_answers, ["<b>", " "], 1),
    ("sft_jax/audit/checks/encoding.py", "fix_encoding repairs"): (mojibake, ["<b> cafÃ©"], 1),
    ("sft_jax/audit/checks/encoding.py", "remove_control_characters takes them out"): (
        control_characters,
        ["<b>\x00"],
        1,
    ),
    ("sft_jax/audit/checks/json_answers.py", "(drop_invalid_json_answers)"): (
        json_answers,
        ['{"b": 1}'] * 9 + ["{"],
        9,
    ),
    ("sft_jax/audit/checks/duplicates.py", "(drop_exact_duplicates)"): (exact_duplicates, ["<b>", "<b>"], 1),
    (
        "sft_jax/audit/checks/balance.py",
        " Take the cleaning step 'cap_labels={others}', which leaves it as many rows as all others",
    ): (
        heavy_label,
        ["<b>"] * 30 + ["<c>"] * 12 + ["<d>"] * 3,
        30,
    ),
}


def records_of(answers):
    turns = lambda answer: Chat((Message("user", "<a>"), Message("assistant", answer)))
    return [Record(f"a:{number}", turns(answer), {}) for number, answer in enumerate(answers, 1)]


def checked_data_of(records, cleaning=()):
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1])] * len(records), [record.id for record in records])
    return CheckedData(records, examples, cleaning=cleaning)


@pytest.mark.parametrize("key", FOUND, ids=[key[1] for key in FOUND])
def test_steps_take_out_what_was_found(key):
    """A step that was taken is not named again where something is found all the same."""
    check, answers, left = FOUND[key]
    records = records_of(answers)
    (seen,) = check(checked_data_of(records))
    (name,) = [name for name in STEPS if name in seen.advice]
    step = re.search(rf"{name}(=\w+)?", seen.advice)[0]
    kept = [record for record in Cleaner([step])(lambda: records, CleaningLog()) if isinstance(record, Record)]
    assert len(kept) == left
    assert check(checked_data_of(kept)) == []
    for again in check(checked_data_of(records, cleaning=(name,))):
        assert again.advice != seen.advice


CLEANING = "sft_jax/data/cleaning/pipeline.py"
STEP_NAMES = {  # (file, part of its advice) -> (what was given, what is given in its place, as the message says)
    (CLEANING, ": expected names of steps, got"): (3, lambda said: "strip_whitespace"),
    (CLEANING, "{_FLAG}: {name} is not a step; {hint}: {', '.join(STEPS)}"): (
        "strip_whitspace",
        lambda said: re.search(r"did you mean '(\w+)'", said)[1],
    ),
    (CLEANING, "takes no argument, got"): ("strip_whitespace=1", lambda said: re.search(r": (\w+) takes no", said)[1]),
    (CLEANING, "{_FLAG}: {name} needs {argument.expected}: '{name}=3'"): (
        "cap_labels",
        lambda said: re.search(r": '(\w+=3)'", said)[1],
    ),
    (CLEANING, "{_FLAG}: {name}: {error}"): (
        "drop_near_duplicates=2",
        lambda said: f"drop_near_duplicates={re.search('between (.*) and', said)[1]}",
    ),
}


@pytest.mark.parametrize("key", STEP_NAMES, ids=[key[1] for key in STEP_NAMES])
def test_steps_are_named_as_advised(key):
    given, instead = STEP_NAMES[key]
    (said,) = problems_of((given,))
    assert said.startswith("--config.data.cleaning: ")
    assert problems_of((instead(said),)) == []


def test_steps_that_are_listed_are_steps():
    (said,) = problems_of(("nonsense",))
    listed = said.partition("there are: ")[2].split(", ")
    assert listed == list(STEPS)
    for name in listed:
        (needs,) = problems_of((name,)) or [""]
        example = re.search(rf"'({name}=3)'", needs)[1] if needs else name
        assert problems_of((example,)) == []


EXPECTED = {  # what is expected of an argument -> arguments that are that
    r"one of (.*), got": lambda found: found[1].split(", "),
    r"number between (\S+) and ([^,]+), got": lambda found: [found[1], found[2]],
    r"number of at least (\d+), got": lambda found: [found[1], str(int(found[1]) + 1)],
    r"a text, got": lambda found: ["[MAIL]"],
}


@pytest.mark.parametrize("name", [name for name, kind in STEPS.items() if kind.argument])
def test_arguments_are_what_is_expected(name):
    bad = "-1" if STEPS[name].argument.kind is not str else "never" if STEPS[name].argument.choices else ""
    (said,) = problems_of((f"{name}={bad}",))
    (values,) = [values(found) for pattern, values in EXPECTED.items() if (found := re.search(pattern, said))]
    assert problems_of([f"{name}={value}" for value in values]) == []


FOLLOWED = {*FOUND, *STEP_NAMES}
