"""Tasks: what they ask about a record, and what responses are worth, against sums over a tiny model by hand."""

import dataclasses
import importlib
import math
import sys

import numpy as np
import pytest

from configs import sft
from sft_jax.data.conversations import Chat, Message, ToolCall
from sft_jax.data.records import Record, RecordError
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.evaluation.measuring import measure, read_entry
from sft_jax.evaluation.requests import Generate, Judged, LogLikelihood, Response, Written
from sft_jax.evaluation.scoring import aggregate, detail_tables
from sft_jax.evaluation.tasks import make_task
from sft_jax.evaluation.tasks.checks import problems_in_task
from sft_jax.options import options_of
from sft_jax.training.checks import check_config
from tests import tiny
from tests.data.rendering.chat_formats import FORMATS
from tests.evaluation.asking import RECORDS, entry, options, record, respondent, write_rows
from tests.generation.brute_force import log_probabilities


def written(*texts: str, logprobs: tuple[float, ...] = ()) -> list[Response]:
    answers = zip(texts, logprobs or [-1.0] * len(texts), strict=True)
    return [Response(tuple(Written(text, len(text), logprob, "stop") for text, logprob in answers), 3, 0.0)]


def test_an_answer_is_asked_for_as_often_as_the_task_says(loaded):
    asked = options(samples=3, temperature=0.5, top_k=7, max_new_tokens=9)
    (request,) = make_task(asked, RECORDS, loaded.renderer).requests(RECORDS[0])
    assert isinstance(request, Generate)
    assert request.prompt == RECORDS[0].conversation[:-1]
    assert (request.samples, request.max_new_tokens) == (3, 9)
    assert (request.sampling.temperature, request.sampling.top_k) == (0.5, 7)


CALL = ToolCall("weather", {"city": "Rome"})
CALLED = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOLS = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
OF_PARTS = (
    Record("a:1", Chat((Message("user", "Norway?"), Message("assistant", "Oslo", reasoning="I know it."))), {}),
    Record("a:2", Chat((Message("user", "Rome?"), Message("assistant", "", tool_calls=(CALL,))), TOOLS), {}),
)


def test_thinking_and_calls_are_scored_apart():
    renderer = ConversationRenderer(FORMATS["Qwen 3"].tokenizer())
    task = make_task(options(), OF_PARTS, renderer)
    assert task.requests(OF_PARTS[1])[0].tools == TOOLS
    thought = task.score(OF_PARTS[0], written("<think>\nMaybe.\n</think>\n\nOslo"))
    right = {"exact_match": True, "content_match": True, "calls_match": None, "thinking_match": False}
    assert thought == right | {"stopped": True}
    strict = make_task(options(match_thinking=True), OF_PARTS, renderer)
    assert strict.score(OF_PARTS[0], written("<think>\nMaybe.\n</think>\n\nOslo"))["exact_match"] is False
    called = task.score(OF_PARTS[1], written(CALLED))
    right = {"exact_match": True, "content_match": None, "calls_match": True, "thinking_match": None}
    assert called == right | {"stopped": True}
    assert task.score(OF_PARTS[1], written(CALLED.replace("Rome", "Oslo")))["calls_match"] is False


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        # 1 of 4 is right: pass@1 = 1/4, pass@2 = 1 - C(3,2)/C(4,2) = 1/2, pass@4 = 1.
        (["cat red", "a", "b", "c"], {"pass@1": 0.25, "pass@2": 0.5, "pass@4": 1.0, "likeliest_of_4": False}),
        # 2 of 3 are right; 3 is no power of two, and is there too.
        (["c", "cat red", "cat red"], {"pass@1": 2 / 3, "pass@2": 1.0, "pass@3": 1.0, "likeliest_of_3": True}),
        (["a", "b"], {"pass@1": 0.0, "pass@2": 0.0, "likeliest_of_2": False}),
    ],
)
def test_of_several_samples_pass_at_k(loaded, answers, expected):
    """The second sample is the likeliest one."""
    task = make_task(options(samples=len(answers), temperature=1.0), RECORDS, loaded.renderer)
    logprobs = (-3.0, -1.0, -2.0, -4.0)[: len(answers)]
    assert task.score(RECORDS[0], written(*answers, logprobs=logprobs)) == pytest.approx(expected)


def test_of_several_samples_the_best_by_a_share(loaded):
    """The reference is "cat red": two of two words, one of two, none."""
    task = make_task(options(samples=3, temperature=1.0, scorer="rouge_l"), RECORDS, loaded.renderer)
    outcome = task.score(RECORDS[0], written("cat", "cat red", "blue", logprobs=(-1.0, -2.0, -3.0)))
    mean, likeliest = pytest.approx((2 / 3 + 1 + 0) / 3), pytest.approx(2 / 3)
    assert outcome == {"rouge_l": mean, "rouge_l_best_of_3": 1.0, "rouge_l_likeliest_of_3": likeliest}


@pytest.mark.parametrize(
    ("changes", "records", "message"),
    [
        ({}, [Record("a:1", Chat((Message("user", "Hi"),)), {})], "a:1: a held-out row must end with the assistant's"),
        ({"scorer": "numeric"}, RECORDS[:1], "rows:1"),
        ({"samples": 2, "temperature": 1.0, "scorer": "bleu"}, RECORDS, "samples=2: scorer 'bleu' neither calls an"),
        ({"samples": 2, "temperature": 1.0, "scorer": "repetition"}, RECORDS, "samples=2: scorer 'repetition' neither"),
    ],
)
def test_what_cannot_be_scored_is_said_before_anything_is_written(loaded, changes, records, message):
    with pytest.raises(ValueError, match=message):
        make_task(options(**changes), records, loaded.renderer)


CHOICES = ("yes", "no, never", "perhaps")
QUESTIONS = [record(1, "red?", "yes"), record(2, "blue?", "no, never")]


def brute_force(loaded, question: str, answer: str) -> tuple[float, int]:
    """The sum of log-probabilities of an answer and of its end, and its tokens, from whole logits."""
    prompt = loaded.renderer.render_prompt((Message("user", question),))
    answer_ids = [*loaded.renderer.tokenizer.encode(answer), 2]  # 2: <|im_end|>
    tokens = np.concatenate([prompt, answer_ids]).astype(np.int32)
    logprobs = log_probabilities(loaded.model, loaded.variables, tokens)
    at = range(len(prompt), len(tokens))
    return float(sum(logprobs[i - 1, tokens[i]] for i in at)), len(answer_ids)


@pytest.mark.usefixtures("on_mesh")
@pytest.mark.parametrize("choose_by", ["logprob", "per_token", "unconditional"])
def test_the_chosen_answer_is_the_likeliest_by_hand(loaded, choose_by):
    asked = entry(QUESTIONS, kind="choose", choices=CHOICES, choose_by=choose_by)
    measured = measure(asked, respondent(loaded))
    for one, outcome in zip(QUESTIONS, measured.outcomes, strict=True):
        values = []
        for choice in CHOICES:
            total, tokens = brute_force(loaded, one.conversation[0].content, choice)
            values.append(total / tokens if choose_by == "per_token" else total)
            if choose_by == "unconditional":
                values[-1] -= brute_force(loaded, "", choice)[0]
        right = one.conversation[-1].content
        chosen = CHOICES[int(np.argmax(values))]
        share = math.exp(values[CHOICES.index(right)]) / sum(map(math.exp, values))
        assert outcome["predicted_label"] == chosen
        assert outcome["accuracy"] == (chosen == right)
        assert outcome["probability"] == pytest.approx(share, rel=1e-4)


def judged(*logprobs: float) -> list[Response]:
    return [Response(tuple(Judged(logprob, 2, 0) for logprob in logprobs), 3, 0.0)]


def test_choices_of_each_row(loaded):
    rows = [record(1, "2+2?", "4", answers=[3, 4]), record(2, "Capital?", "Rome", answers=["Oslo", "Rome", "Bern"])]
    task = make_task(options(kind="choose", choices_column="answers"), rows, loaded.renderer)
    assert [task.requests(row)[0].continuations for row in rows] == [("3", "4"), ("Oslo", "Rome", "Bern")]
    found = task.score(rows[0], judged(math.log(0.1), math.log(0.3)))
    assert found == {"accuracy": True, "probability": pytest.approx(0.75)}
    assert task.score(rows[1], judged(-1.0, -2.0, -3.0))["accuracy"] is False


def test_without_choices_all_answers_that_occur(loaded):
    task = make_task(options(kind="choose"), QUESTIONS, loaded.renderer)
    (request,) = task.requests(QUESTIONS[0])
    assert request == LogLikelihood(QUESTIONS[0].conversation[:-1], ("no, never", "yes"))
    assert task.score(QUESTIONS[0], judged(-3.0, -1.0)) == {
        "accuracy": True,
        "predicted_label": "yes",
        "expected_label": "yes",
        "probability": pytest.approx(1 / (1 + math.exp(-2))),
    }


@pytest.mark.parametrize(
    ("changes", "records", "message"),
    [
        ({"choices": ("yes", "no")}, QUESTIONS, r"rows:2: the answer 'no, never' is none of the choices"),
        ({}, QUESTIONS[:1], "all rows have the answer 'yes': there is nothing to choose from"),
        ({"choices": ("yes", "yes")}, QUESTIONS[:1], "at least two different labels"),
        ({"choices_column": "c"}, [record(1, "a", "b")], "rows:1: column 'c' must be a list of two or more choices"),
        ({"choices_column": "c"}, [record(1, "a", "b", c="bc")], "must be a list of two or more choices, got 'bc'"),
        ({"choices_column": "c"}, [record(1, "a", "b", c=["b", "b"])], "rows:1: column 'c' has a choice twice"),
        ({"choices_column": "c"}, [record(1, "a", "b", c=["c", "d"])], "rows:1: the answer 'b' is none of the choices"),
    ],
)
def test_rows_that_give_nothing_to_choose_from_are_refused(loaded, changes, records, message):
    with pytest.raises(ValueError, match=message):
        make_task(options(kind="choose", **changes), records, loaded.renderer)


OWN = """
from sft_jax.evaluation.requests import LogLikelihood

class Likeliest:
    def __init__(self, options, records, renderer):
        self.seen = len(records)

    def requests(self, record):
        return [LogLikelihood(record.conversation[:-1], ("a", "b"))] * (record.id != "rows:9")

    def score(self, record, responses):
        first, second = responses[0].answers
        return {"prefers_a": first.logprob > second.logprob}
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_tasks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield "own_tasks:Likeliest"
    sys.modules.pop("own_tasks", None)


@pytest.mark.usefixtures("on_mesh")
def test_a_task_of_ones_own(loaded, own_module):
    asked = entry(kind=own_module)
    assert problems_in_task("mine", asked.options) == []
    measured = measure(asked, respondent(loaded))
    for one, outcome, line in zip(RECORDS, measured.outcomes, measured.lines, strict=True):
        question = one.conversation[0].content
        expected = brute_force(loaded, question, "a")[0] > brute_force(loaded, question, "b")[0]
        assert outcome == {"prefers_a": expected}
        assert line["answer"] == ("a" if expected else "b")
        assert set(line["logprobs"]) == {"a", "b"}
    with pytest.raises(ValueError, match="rows:9: the task asks nothing about it"):
        measure(entry([record(9, "a", "b")], kind=own_module), respondent(loaded))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"path": ""}, "tasks.t.path is empty, and so is --config.data.held_out: there are no rows to measure"),
        (
            {"kind": "chose"},
            "tasks.t.kind='chose' must be one of generate, choose, recite, prefer, or package.module:Class",
        ),
        ({"kind": "no_module:Task"}, "tasks.t: task 'no_module:Task': there is no module 'no_module'"),
        ({"scorer": "best"}, "tasks.t: no scorer named 'best'"),
        ({"samples": 2}, "tasks.t.samples=2: all are the same at temperature=0"),
        ({"top_k": 3}, "tasks.t.top_k and top_p are not read at temperature=0"),
        ({"max_new_tokens": 0}, "tasks.t.max_new_tokens=0 must be at least 1"),
        ({"rows": -1}, "tasks.t.rows=-1 must be at least 0"),
        ({"temperature": -1.0}, "tasks.t: temperature"),
        ({"choose_by": "length"}, "tasks.t.choose_by='length' must be one of logprob, per_token, unconditional"),
        ({"choices": ("a", "b")}, "tasks.t.choices=('a', 'b') is not read by kind=generate; leave it out"),
        ({"kind": "choose", "scorer": "numeric"}, "tasks.t.scorer='numeric' is not read by kind=choose; leave it out"),
        ({"kind": "choose", "choices": ("a", "b"), "choices_column": "c"}, "choices and choices_column: give one"),
        ({"scorer_options": {"x": 1}}, "'x'"),
    ],
)
def test_options_that_are_refused(changes, problem):
    asked = options(**({"max_new_tokens": 256} | changes))
    problems = problems_in_task("t", asked)
    assert any(problem in one for one in problems), problems
    assert problems_in_task("t", options(max_new_tokens=256)) == []


def test_an_entry_that_is_no_task_is_named(tmp_path):
    config = tiny.config(tmp_path).unlock()
    config.evaluation.tasks.titles = "titles.jsonl"
    with pytest.raises(ValueError, match=r"tasks\.titles must be what task\(path, scorer=…\) of configs/sft.py makes"):
        check_config(config)
    del config.evaluation.tasks.titles
    config.evaluation.tasks.titles = sft.task("titles.jsonl", scorer="numeric")
    check_config(config)
    config.evaluation.tasks.titles.reading.held_out_split = "test"
    with pytest.raises(
        ValueError, match=r"titles\.reading\.held_out_split='test' is not read: .*titles\.reading\.split"
    ):
        check_config(config)
    config.evaluation.tasks.titles.reading.update({"held_out_split": "", "split": "test"})
    check_config(config)
    config.evaluation.tasks.titles.scorer = "best"
    with pytest.raises(ValueError, match=r"--config\.evaluation\.tasks\.titles: no scorer named 'best'"):
        check_config(config)


def test_without_a_path_a_task_is_of_the_held_out_rows(tmp_path):
    config = tiny.config(tmp_path).unlock()
    config.evaluation.tasks.held = sft.task(scorer_options={}, format="prompt_completion", max_new_tokens=7)
    made = options_of(config).evaluation.tasks["held"]
    assert made.path == config.data.held_out
    assert (made.max_new_tokens, made.reading.format) == (7, "prompt_completion")
    assert made.reading.flags == "--config.evaluation.tasks.held.reading."
    config.data.reading.format = "prompt_completion"
    config.evaluation.tasks.held = sft.task()
    as_held_out = options_of(config).evaluation.tasks["held"].reading
    assert (as_held_out.format, as_held_out.flags) == ("prompt_completion", "--config.data.reading.")
    found = read_entry("held", made)
    assert [one.id for one in found.records] == [f"held_out.jsonl:{n}" for n in range(1, 13)]


ROWS = ['{"prompt": "a", "completion": "b"}', '{"prompt": 3}', '{"prompt": "c", "completion": "d"}']


@pytest.mark.parametrize(("rows", "dropped"), [(0, ["rows.jsonl:2"]), (1, [])])
def test_rows_that_are_left_out_are_known(tmp_path, rows, dropped):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(ROWS) + "\n")
    asked = dataclasses.replace(options(rows=rows), path=str(path))
    lenient = dataclasses.replace(asked, reading=dataclasses.replace(asked.reading, on_bad_row="drop"))
    found = read_entry("t", lenient)
    assert [row.id for row in found.dropped] == dropped
    assert len(found.records) == (rows or 2)
    if not rows:
        with pytest.raises(RecordError, match=r"rows\.jsonl:2"):
            read_entry("t", asked)
        path.write_text(ROWS[1] + "\n")
        with pytest.raises(ValueError, match=r"rows\.jsonl"):
            read_entry("t", lenient)


@pytest.mark.usefixtures("on_mesh")
def test_scorers_see_all_columns_of_a_row(loaded, tmp_path):
    """Instructions of the kind of IFEval: what is to be followed stands in other columns than the reference."""
    pytest.importorskip("if_verifiable")
    rows = [
        {
            "prompt": "Say something without a comma.",
            "completion": "Fine.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"num_words": 100, "relation": "at least"}],
        },
        {
            "prompt": "Shout.",
            "completion": "NO.",
            "instruction_id_list": ["change_case:english_lowercase"],
            "kwargs": [{}],
        },
    ]
    path = write_rows(tmp_path / "ifeval.jsonl", rows)
    asked = read_entry("ifeval", dataclasses.replace(options(scorer="instructions"), path=path))
    task = make_task(asked.options, asked.records, loaded.renderer)
    outcome = task.score(asked.records[0], written("No comma here."))
    assert outcome["prompt_strict"] is False
    assert outcome["instruction_strict"] == {
        "punctuation:no_comma": [1, 1],
        "length_constraints:number_words": [0, 1],
    }
    assert task.score(asked.records[0], written("a, b"))["instruction_strict"]["punctuation:no_comma"] == [0, 1]
    measured = measure(asked, respondent(loaded))
    shares = aggregate(measured.outcomes, seed=0)
    assert set(shares) == {"prompt_strict", "prompt_loose", "instruction_strict", "instruction_loose", "stopped"}
    assert "punctuation:no_comma" in detail_tables(measured.outcomes)["instruction_strict"]
