"""Preference accuracy: against sums of log-probabilities over a tiny model by hand, and beside a reference."""

import dataclasses

import jax
import numpy as np
import pytest
from etils import epath

from sft_jax.data.conversations import Message, Preference, ToolCall
from sft_jax.data.reading import DEFAULT
from sft_jax.data.records import Record, read_records
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.measuring import measure
from sft_jax.evaluation.methods import parse_methods
from sft_jax.evaluation.requests import Judged, Response, text_of
from sft_jax.evaluation.results import results_of
from sft_jax.evaluation.side_by_side import Setting, measure_methods, references_of
from sft_jax.evaluation.statistics import wilson
from sft_jax.evaluation.tasks import make_task
from sft_jax.evaluation.tasks.preferring import Preferring, Reference
from tests.data.rendering.chat_formats import FORMATS
from tests.evaluation.asking import count_computed, entry, evaluation_options, options, record, respondent, write_rows
from tests.generation.brute_force import log_probabilities

ROWS = [
    {"prompt": "red cat", "chosen": "cat red", "rejected": "no"},
    {"prompt": "blue", "chosen": "no", "rejected": "and seven of blue"},
    {"prompt": "and", "chosen": "seven", "rejected": "eleven, or more"},
    {"prompt": "of", "chosen": "I and of", "rejected": "I"},
]
ANSWER = "preference_accuracy"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return read_records(write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", ROWS), DEFAULT)


def by_hand(loaded, row: dict, name: str) -> tuple[float, int]:
    """The sum of log-probabilities of an answer and of its end, and its tokens, from whole logits."""
    prompt = loaded.renderer.render_prompt((Message("user", row["prompt"]),))
    answer = [*loaded.renderer.tokenizer.encode(row[name]), 2]  # 2: <|im_end|>
    tokens = np.concatenate([prompt, answer]).astype(np.int32)
    logprobs = log_probabilities(loaded.model, loaded.variables, tokens)
    return float(sum(logprobs[i - 1, tokens[i]] for i in range(len(prompt), len(tokens)))), len(answer)


@pytest.mark.usefixtures("on_mesh")
def test_the_likelier_answer_is_preferred(loaded, pairs):
    measured = measure(entry(pairs, kind="prefer"), respondent(loaded))
    for row, outcome, line in zip(ROWS, measured.outcomes, measured.lines, strict=True):
        (chosen, chosen_tokens), (rejected, rejected_tokens) = (by_hand(loaded, row, name) for name in list(row)[1:])
        assert outcome[ANSWER] == (chosen > rejected)
        assert outcome[f"{ANSWER}_per_token"] == (chosen / chosen_tokens > rejected / rejected_tokens)
        assert line["logprobs"] == pytest.approx({row["chosen"]: chosen, row["rejected"]: rejected}, rel=1e-5)
        assert (line["reference"], line["answer"]) == (
            row["chosen"],
            row["chosen" if chosen > rejected else "rejected"],
        )
    assert len({outcome[ANSWER] for outcome in measured.outcomes}) == 2, "the rows tell nothing"


def judged(chosen: float, rejected: float, tokens: tuple[int, int] = (2, 4)) -> list[Response]:
    return [Response((Judged(chosen, tokens[0], 0), Judged(rejected, tokens[1], 0)), 3, 0.0)]


def test_per_token_and_over_a_reference(loaded, pairs):
    """-4 of 2 tokens against -6 of 4: likelier as a whole, less likely a token; a reference prefers it by 3."""
    reference = Reference("other", {one.id: 3.0 for one in pairs})
    task = Preferring(options(kind="prefer"), pairs, loaded.renderer, reference)
    expected = {ANSWER: True, f"{ANSWER}_per_token": False, f"{ANSWER}_over_reference": False}
    assert task.score(pairs[0], judged(-4.0, -6.0)) == expected
    assert task.score(pairs[0], judged(-4.0, -8.0))[f"{ANSWER}_over_reference"] is True
    assert task.note() == "The reference is other."
    alike = task.score(pairs[0], judged(-3.0, -6.0, tokens=(1, 2)))
    assert alike == {ANSWER: True, f"{ANSWER}_per_token": None, f"{ANSWER}_over_reference": None}


@pytest.mark.usefixtures("on_mesh")
def test_base_and_tuned_side_by_side_over_a_reference(loaded, pairs, tmp_path, monkeypatch):
    """The reference is the base, which has no preference over itself; a second start computes nothing."""

    def load(weights: float):
        variables = jax.tree.map(lambda weight: weight * (1 + 0.5 * weights), loaded.variables)
        return dataclasses.replace(loaded, name=f"m{weights:g}", variables=variables, fingerprint=f"{weights:g}")

    entries, methods = [entry(pairs, kind="prefer", loss=True)], parse_methods(["base", "sft"])
    counts = count_computed(monkeypatch)
    setting = Setting(evaluation_options(), store=epath.Path(tmp_path) / "answers")
    setting = dataclasses.replace(setting, references=references_of(entries, load(0.0), setting))
    found = measure_methods(entries, methods, load, setting)
    assert counts == {"written": 0, "judged": 2 * len(ROWS)}  # what the base says of pairs is kept
    results = results_of(entries, methods, found, None, seed=0)["tasks"]["rows"]
    assert results["primary"] == ANSWER
    assert set(results["scores"]["base"]) == {ANSWER, f"{ANSWER}_per_token"}
    assert set(results["scores"]["sft"]) == {ANSWER, f"{ANSWER}_per_token", f"{ANSWER}_over_reference"}
    margins = {name: [_margin(line) for line in found.tasks["rows"][name].lines] for name in ("base", "sft")}
    over = [tuned > base for tuned, base in zip(margins["sft"], margins["base"], strict=True)]
    assert results["scores"]["sft"][f"{ANSWER}_over_reference"] == wilson(sum(over), len(over)).as_dict()
    assert {one["test"] for one in results["comparisons"]} == {"exact McNemar"}
    assert "base: The reference is m0." in results["notes"]


def _margin(line: dict) -> float:
    chosen, rejected = line["logprobs"].values()
    return chosen - rejected


def test_rows_that_are_no_pairs_are_refused(loaded):
    one = Message("assistant", "a")
    several = Preference((Message("user", "q"),), (one,), (one._replace(content="b"), Message("user", "?"), one))
    for example, message in (
        (record(1, "red", "cat").example, "rows:9: kind=prefer compares two answers to a prompt, and this row has one"),
        (several, 'rows:9: "rejected" must be one message of the assistant to be judged'),
    ):
        with pytest.raises(ValueError, match=message):
            make_task(options(kind="prefer"), [Record("rows:9", example, {})], loaded.renderer)
    pair = Record("rows:9", Preference((Message("user", "q"),), (one,), (one._replace(content="b"),)), {})
    with pytest.raises(ValueError, match="rows:9"):
        make_task(options(), [pair], loaded.renderer)


def test_answers_that_call_are_judged_with_their_calls(loaded):
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer())
    tools = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
    prompt, call = (Message("user", "Rome?"),), ToolCall("weather", {"city": "Rome"})
    answers = Message("assistant", "", tool_calls=(call,)), Message("assistant", "Warm.")
    pair = Record("rows:1", Preference(prompt, answers[:1], answers[1:], tools), {})
    (request,) = Preferring(options(kind="prefer"), [pair], renderer).requests(pair)
    ids = renderer.render_prompt(prompt, tools)
    called = renderer.tokenizer.encode(renderer.answer_text((*prompt, answers[0]), tools) + "<|im_end|>")
    needed = respondent(dataclasses.replace(loaded, renderer=renderer)).positions_needed(request, pair.id)
    assert needed == len(ids) + len(called)
    assert text_of(answers[0]) == '{"name": "weather", "arguments": {"city": "Rome"}}'
