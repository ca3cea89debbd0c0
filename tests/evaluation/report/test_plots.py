"""The plots: which there are, and that they are images which do not change."""

import io

import pytest
from PIL import Image

from sft_jax.evaluation.methods import mixes
from sft_jax.evaluation.report import plots
from sft_jax.evaluation.report.drawing import short_names
from sft_jax.evaluation.report.plots import draw_plots, method_colors
from tests.evaluation.report.made_results import EVIL, comparison, everything, method, results_of, score, task


def size(plot):
    image = Image.open(io.BytesIO(plot.png))
    image.load()
    assert image.format == "PNG"
    return image.size


def test_everything_is_drawn():
    drawn = draw_plots(everything())
    assert [(plot.name, plot.section) for plot in drawn] == [
        ("task_extraction_scores", "task extraction"),
        ("task_extraction_cost", "task extraction"),
        ("task_extraction_differences", "task extraction"),
        ("forgetting_arithmetic_scores", "forgetting arithmetic"),
        ("forgetting_arithmetic_differences", "forgetting arithmetic"),  # both methods cost the same
        ("drift", "drift"),
    ]
    assert all(size(plot)[0] == 880 for plot in drawn)


def test_the_same_results_give_the_same_bytes():
    assert draw_plots(everything()) == draw_plots(everything())


def test_a_different_score_gives_another_image():
    results = everything()
    before = draw_plots(results)[0].png
    results["tasks"]["extraction"]["scores"]["sft"]["exact_match"]["value"] = 0.55
    assert draw_plots(results)[0].png != before


def test_one_method_without_interval():
    (only,) = draw_plots(results_of({"base": "base"}, {"t": task({"base": {"exact_match": score(0.5, None)}})}))
    assert only.name == "task_t_scores"
    assert size(only)[1] > 100


def test_weights_between_are_a_curve():
    scores = {
        "sft": 0.9,
        "few_shot": 0.4,
        "sft@0.5": {"exact_match": score(0.8, None)},
        "base": 0.1,
        "sft@0.5+rag": 0.5,
    }
    methods = {name: "tuned" if "sft" in name else "base" for name in scores}
    drawn = {plot.name: plot for plot in draw_plots(results_of(methods, {"t": task(scores)}))}
    assert "between the base's weights and the tuned ones" in drawn["task_t_mix"].caption
    assert size(drawn["task_t_mix"])[1] > 100
    assert mixes(list(scores)) == {"base": 0.0, "sft@0.5": 0.5, "sft": 1.0}


@pytest.mark.filterwarnings("error")
def test_names_of_any_kind():
    methods = {EVIL: "base", "_hidden": method("tuned", prompt_tokens=0.0, generated_tokens=0.0), "x" * 200: "tuned"}
    scores = dict.fromkeys(methods, 0.5)
    tasks = {name: task(scores, [comparison(EVIL, "_hidden", 0.1, 0.01)]) for name in (EVIL, "a/b", "a b", "../a")}
    drift = [{"layer": EVIL, "kind": "_kind", "relative": 0.1}]
    drawn = draw_plots(results_of(methods, tasks, drift=drift))
    names = [plot.name for plot in drawn]
    assert names[3:6] == ["task_a_b_scores", "task_a_b_cost", "task_a_b_differences"]
    assert names[6:9] == ["task_a_b_scores_1", "task_a_b_cost_1", "task_a_b_differences_1"]
    assert len(set(names)) == len(names) == 13
    assert not any(set(name) & set("/\\ <>$") for name in names)
    assert all(size(plot) for plot in drawn)


def test_a_method_has_one_colour():
    names = [f"m{number}" for number in range(12)]
    colors = method_colors(names)
    assert len({colors[name] for name in names[:10]}) == 10
    assert colors["m10"] == colors["m0"]
    assert method_colors(names[:3]) == {name: colors[name] for name in names[:3]}


@pytest.mark.parametrize("direction", [True, False, None])
def test_the_axis_says_which_direction_is_better(monkeypatch, direction):
    monkeypatch.setattr(plots, "higher_is_better", lambda metric: direction)
    expected = {True: "exact match (higher is better)", False: "exact match (lower is better)", None: "exact match"}
    assert plots._metric_label("exact_match") == expected[direction]


def test_levels_in_one_directory_are_told_apart():
    files = [f"runs/short_titles/train_{rows}.jsonl" for rows in (2, 8)]
    assert short_names(files, 18) == ["train_2.jsonl", "train_8.jsonl"]
    assert short_names(["a/b.jsonl", "b.jsonl"], 18) == ["a/b.jsonl", "b.jsonl"]
    assert short_names(["1e-3", "1e-4"], 18) == ["1e-3", "1e-4"]
    assert short_names(files[:1], 8) == ["runs/sh…"]
