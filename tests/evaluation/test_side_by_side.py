"""Several methods on several tasks: one model in memory at a time, each answer computed once."""

import dataclasses
import gc
import json
import weakref

import jax
import pytest
from etils import epath

from configs import sft
from sft_jax.evaluation.held_out_loss import example_losses
from sft_jax.evaluation.methods import Prompting, parse_methods
from sft_jax.evaluation.side_by_side import Setting, best_instruction, check_probes, measure_methods
from sft_jax.options import FewShotOptions, PromptingOptions, options_of
from sft_jax.runs.restore import Loaded
from tests.evaluation.asking import (
    RECORDS,
    count_computed,
    entry,
    evaluation_options,
    record,
    respondent,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("on_mesh")


@pytest.fixture
def load(loaded):
    """The base, and as the tuned model one with other weights."""

    def load(weights: float) -> Loaded:
        variables = jax.tree.map(lambda weight: weight + 0.05 * weights, loaded.variables)
        name = {0.0: "base", 1.0: "tuned"}.get(weights, f"{weights:g}")
        return dataclasses.replace(loaded, name=name, variables=variables, fingerprint=name)

    return load


def test_every_task_by_every_method(load, tmp_path, monkeypatch):
    entries = [entry(loss=True), dataclasses.replace(entry(kind="choose"), name="choices")]
    methods = parse_methods(["sft", "base", "few_shot"])
    options = evaluation_options(few_shot=FewShotOptions("", 1, "first"))
    examples = [record(20, "and", "and")]
    setting = Setting(options, examples, store=epath.Path(tmp_path) / "answers")
    counts = count_computed(monkeypatch)
    found = measure_methods(entries, methods, load, setting)
    assert list(found.tasks) == ["rows", "choices"]
    assert all(list(by_method) == ["sft", "base", "few_shot"] for by_method in found.tasks.values())
    assert found.descriptions == {
        "sft": {"description": "the tuned weights", "model": "tuned"},
        "base": {"description": "the model as it is", "model": "base"},
        "few_shot": {"description": "1 solved examples (first)", "model": "base"},
    }
    assert counts == {"written": 9, "judged": 9}
    # Losses are those of the weights alone.
    columns = {name: set(one.outcomes[0]) for name, one in found.tasks["rows"].items()}
    with_loss = {"exact_match", "stopped", "loss_sum", "loss_weight"}
    assert columns == {"sft": with_loss, "base": with_loss, "few_shot": {"exact_match", "stopped"}}
    weights = [outcome["loss_weight"] for outcome in found.tasks["rows"]["base"].outcomes]
    assert weights == [len(one.conversation[-1].content) + 1 for one in RECORDS]  # bytes and the end of the turn
    assert found.tasks["rows"]["sft"].outcomes != found.tasks["rows"]["base"].outcomes

    monkeypatch.setattr("sft_jax.evaluation.side_by_side.example_losses", None)  # kept too
    again = measure_methods(entries, methods, load, setting)
    assert counts == {"written": 9, "judged": 9}
    assert again == found


def test_one_model_is_in_memory_at_a_time(load):
    models = []

    def watched(weights: float) -> Loaded:
        gc.collect()
        assert not any(model() for model in models), "the model before is still held"
        model = load(weights)
        models.append(weakref.ref(model))
        return model

    measure_methods([entry()], parse_methods(["base", "sft"]), watched, Setting(evaluation_options()))
    assert len(models) == 2


def test_a_loss_that_is_asked_for_is_that_of_each_row(load, loaded):
    found = measure_methods([entry(loss=True)], parse_methods(["base"]), load, Setting(evaluation_options()))
    from sft_jax.data.tokenizing import tokenize_records

    examples, _ = tokenize_records(list(RECORDS), loaded.renderer, max_example_tokens=512)
    expected = example_losses(loaded.model, loaded.variables, examples, jax.sharding.get_mesh())
    assert [outcome["loss_sum"] for outcome in found.tasks["rows"]["base"].outcomes] == pytest.approx(
        [one["loss_sum"] for one in expected]
    )


@pytest.mark.parametrize(
    ("method", "given", "message", "remedy"),
    [
        (
            *("rag", {}, "method rag: give the corpus, --config.evaluation.retrieval.corpus or --corpus"),
            {"retrieval.corpus": "{root}/corpus.txt"},
        ),
        (
            *("prompted", {}, "method prompted: give the instruction, .* or --instruction"),
            {"prompting.instructions": ("Be brief.",)},
        ),
        (
            *("prompted", {"prompting.instructions": ("a", "b")}, "there are 2 instructions, .* or --development"),
            {"prompting.instructions": ("a", "b"), "prompting.development": "{root}/development.jsonl"},
        ),
        (
            "prompted",
            {"prompting.instructions": ("a",), "prompting.development": "d.jsonl"},
            "development=d.jsonl is not read with a single instruction; leave it out",
            {"prompting.instructions": ("a",)},
        ),
        (
            *("few_shot", {}, "2 solved examples wanted, but only 1 of 1 rows .*; give more rows or fewer examples"),
            {"few_shot.examples": 1},
        ),
    ],
)
def test_what_methods_need_is_asked_for_before_a_model_is_loaded(load, tmp_path, method, given, message, remedy):
    def never(weights):
        raise AssertionError("no model is needed to say so")

    (tmp_path / "corpus.txt").write_text("red cat blue tree seven")
    write_rows(tmp_path / "development.jsonl", [{"prompt": "up", "completion": "yes"}])
    methods, examples = parse_methods([method]), [record(20, "and", "and")]
    settings = []
    for fields in (given, remedy):
        whole = sft.get_config().unlock()
        config = whole.evaluation
        place = lambda value: value.format(root=tmp_path) if isinstance(value, str) else value
        config.update_from_flattened_dict({name: place(value) for name, value in fields.items()})
        settings.append(Setting(options_of(whole).evaluation, examples))
    with pytest.raises(ValueError, match=message):
        measure_methods([entry()], methods, never, settings[0])
    assert list(measure_methods([entry()], methods, load, settings[1]).tasks["rows"]) == [method]


def test_probes_are_of_weights_alone(load):
    """A prompt with passages is no test of what weights forgot."""
    entries = [entry(), dataclasses.replace(entry(probe=True), name="probe")]
    prompting = PromptingOptions(("Be brief.",), "")
    with pytest.raises(ValueError, match="--methods: probe measure what weights forgot, with base and sft; give these"):
        check_probes(entries, parse_methods(["prompted"]), 0.0)
    with pytest.raises(ValueError, match=r"all tasks are probes, .* leave out prompted"):
        check_probes(entries[1:], parse_methods(["base", "prompted"]), 0.0)
    for given, names in ((entries[:1], ["base", "sft"]), (entries, ["sft"])):
        with pytest.raises(ValueError, match=r"max_regression=0.1 compares base and sft on probes"):
            check_probes(given, parse_methods(names), 0.1)
    methods = parse_methods(["base", "prompted"])
    check_probes(entries, methods, 0.0)
    found = measure_methods(entries, methods, load, Setting(evaluation_options(prompting=prompting)))
    assert {name: list(by_method) for name, by_method in found.tasks.items()} == {
        "rows": ["base", "prompted"],
        "probe": ["base"],
    }


def with_instructions(tmp_path, rows, instructions=("Be brief.", "Be long.")) -> Setting:
    path = write_rows(tmp_path / "development.jsonl", rows)
    return Setting(evaluation_options(prompting=PromptingOptions(instructions, path)))


def test_the_best_instruction_is_chosen_on_development_rows_alone(load, loaded, tmp_path, monkeypatch):
    """By the probability of the right choice, whatever the measured rows would say."""
    rows = [{"prompt": "up", "completion": "yes"}, {"prompt": "down", "completion": "no"}]
    setting = with_instructions(tmp_path, rows)
    task = entry([record(1, "red", "yes"), record(2, "blue", "no")], kind="choose", choices=("yes", "no"))
    seen = []

    def measured(development, method, prompting: Prompting, asked):
        seen.append([one.conversation[0].content for one in development.records])
        is_right = prompting.instruction == "Be long."
        return type("Found", (), {"outcomes": ({"accuracy": is_right}, {"accuracy": True})})

    monkeypatch.setattr("sft_jax.evaluation.side_by_side._measured", measured)
    assert best_instruction([task], respondent(loaded), setting) == "Be long."
    assert seen == [["up", "down"]] * 2
    monkeypatch.undo()
    found = measure_methods([task], parse_methods(["sft+prompted"]), load, setting)  # the base chooses for it too
    description = found.descriptions["sft+prompted"]["description"]
    assert description in {f"the tuned weights, the instruction {said!r}" for said in ("Be brief.", "Be long.")}
    chosen = description.split("instruction ")[1].strip("'")
    assert found.tasks["rows"]["sft+prompted"].lines[0]["prompt"][0] == {"role": "system", "content": chosen}


def test_of_losses_the_lowest_is_best(loaded, tmp_path, monkeypatch):
    rows = [{"prompt": "up", "completion": "yes"}, {"prompt": "down", "completion": "no"}]

    def measured(development, method, prompting, asked):
        return type("Found", (), {"outcomes": ({"repetition": 0.1 if prompting.instruction == "Be long." else 0.9},)})

    monkeypatch.setattr("sft_jax.evaluation.side_by_side._measured", measured)
    assert best_instruction([entry()], respondent(loaded), with_instructions(tmp_path, rows)) == "Be long."


def test_development_rows_that_are_measured_are_refused(load, tmp_path):
    """By any of the tasks, and whatever their answer is."""
    rows = [{"prompt": "up", "completion": "yes"}, {"prompt": "other", "completion": "no"}]
    second = dataclasses.replace(entry([record(1, "other", "x")]), name="second")
    with pytest.raises(ValueError, match=r"development.jsonl: development.jsonl:2 ask what measured rows ask"):
        measure_methods([entry(), second], parse_methods(["prompted"]), load, with_instructions(tmp_path, rows))


def test_what_is_kept_of_a_row_for_people(load):
    found = measure_methods([entry(loss=True)], parse_methods(["base"]), load, Setting(evaluation_options()))
    line = found.rows["rows"]["base"][0]
    assert line["id"] == "rows:1"
    assert line["prompt"] == [{"role": "user", "content": "red cat"}]
    assert line["reference"] == "cat red"
    assert line["finish_reason"] in ("stop", "max_new_tokens")
    assert set(line["outcome"]) == {"exact_match", "stopped", "loss_sum", "loss_weight"}
    json.dumps(line)


def test_a_corpus_that_cannot_be_read_names_the_flags_of_methods(load, tmp_path):
    (tmp_path / "corpus.txt").write_text("red cat")
    retrieval = dataclasses.replace(
        evaluation_options().retrieval, corpus=str(tmp_path / "corpus.txt"), row_template="{question}"
    )
    setting = Setting(evaluation_options(retrieval=retrieval))
    with pytest.raises(
        ValueError, match=r"has no rows, so --config\.evaluation\.retrieval\.row_template=.* is not read"
    ):
        measure_methods([entry()], parse_methods(["rag"]), load, setting)


def test_a_curve_over_the_mix(load):
    """Each mix is a model of its own; the base is loaded once, and first."""
    asked = []

    def watched(weights: float) -> Loaded:
        asked.append(weights)
        return load(weights)

    methods = parse_methods(["sft", "sft@0.5", "base"])
    found = measure_methods([entry(loss=True)], methods, watched, Setting(evaluation_options()))
    assert asked == [0.0, 0.5, 1.0]
    assert [found.descriptions[method.name]["model"] for method in methods] == ["tuned", "0.5", "base"]
    assert found.descriptions["sft@0.5"]["description"] == "base + 0.5 x (tuned - base)"
    losses = [found.tasks["rows"][method.name].outcomes[0]["loss_sum"] for method in methods]
    assert len(set(losses)) == 3
