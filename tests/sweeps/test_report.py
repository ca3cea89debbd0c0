"""Reports of sweeps: what is put together, what is compared, what is told apart; at every state of a sweep."""

import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from matplotlib.axes import Axes
from scipy import stats

from sft_jax.evaluation.statistics import holm
from sft_jax.runs.workdir import WorkdirError
from sft_jax.sweeps.report.analysis import BaselineError, analyse
from sft_jax.sweeps.report.comparing import compare_runs
from sft_jax.sweeps.report.curves import curves_of
from sft_jax.sweeps.report.plots import draw_sweep, is_spread
from sft_jax.sweeps.report.quantities import LOGGED, USUAL, QuantityError, quantity_of
from sft_jax.sweeps.report.reading import read_runs
from sft_jax.sweeps.report.sections import number_text, sections_of, verdicts_of
from sft_jax.sweeps.report.terminal import terminal_report
from sft_jax.sweeps.report.write import write_sweep_report
from tests.parsed_page import Parsed
from tests.sweeps import written

LR, RANK, ALPHA = "optimizer.learning_rate", "adapter.rank", "adapter.alpha"


def noisy(overrides, step):
    """Ranks differ clearly, rates hardly beside what seeds do; what a seed does to one rate it does to the other."""
    rng = np.random.default_rng([overrides["seed"], int(overrides[RANK])])
    own = np.random.default_rng([overrides["seed"], int(1e6 * overrides[LR])])
    noise = 0.02 * rng.normal() + 1e-5 * own.normal()
    return 1.0 + 2.0 / (1 + step) - 0.1 * np.log2(overrides[RANK]) + overrides[LR] + noise


def report_of(root, metric="", at="final", better=None, baseline=None, axis="steps"):
    runs = read_runs(root, {metric, *LOGGED, *USUAL} - {""})
    quantity = quantity_of(runs, metric, at, better)
    return analyse(runs, quantity, baseline), curves_of(runs, quantity, axis)


def by_name(found):
    return {one["name"]: one for one in found["settings"]}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweeps") / "sweep"
    written.write_sweep(root, {LR: [1e-4, 1e-3], RANK: [4, 8, 64], "seed": [0, 1, 2]}, noisy)
    return root


def test_settings_are_means_over_seeds_alone(sweep):
    found, _ = report_of(sweep)
    assert (found["metric"], found["better"], found["factors"]) == ("held_out/nll", "lower", [LR, RANK])
    assert found["states"] == {"finished": 18}
    assert len(found["settings"]) == 6
    for one in found["settings"]:
        values = [noisy({**one["values"], "seed": seed}, written.STEPS) for seed in range(3)]
        assert [run["value"] for run in one["runs"]] == pytest.approx(values)
        low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
        assert one["score"] == pytest.approx({"value": np.mean(values), "low": low, "high": high})


def test_differences_to_the_baseline_are_paired_by_seed_and_corrected(sweep):
    found, _ = report_of(sweep, baseline={"rank": "8", LR: "0.001"})
    assert found["baseline"] == "learning_rate=1e-3, rank=8"
    values = {one["name"]: [run["value"] for run in one["runs"]] for one in found["settings"]}
    others = [name for name in values if name != found["baseline"]]
    tests = [stats.ttest_rel(values[name], values[found["baseline"]]) for name in others]
    for name, test, corrected in zip(others, tests, holm([test.pvalue for test in tests]), strict=True):
        difference = by_name(found)[name]["difference"]
        interval = test.confidence_interval(0.95)
        assert (difference["low"], difference["high"]) == pytest.approx((interval.low, interval.high))
        assert difference["p_value"] == pytest.approx(test.pvalue)
        assert difference["p_holm"] == pytest.approx(corrected)
        called = "no difference shown" if corrected >= 0.05 else "better" if difference["value"] < 0 else "WORSE"
        assert difference["called"] == called
    assert by_name(found)[found["baseline"]]["difference"] is None
    # the same noise in both rates: what unpaired values would hide is shown
    assert by_name(found)["learning_rate=1e-4, rank=8"]["difference"]["called"] == "better"


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ({"alpha": "1"}, rf"alpha is not a factor of this sweep; there are {LR}, {RANK}"),
        ({"rank": "5"}, "matches no setting"),
        ({"rank": "8"}, "2 settings match"),
    ],
)
def test_a_baseline_that_is_no_setting(sweep, baseline, message):
    with pytest.raises(BaselineError, match=message):
        report_of(sweep, baseline=baseline)


def test_a_baseline_that_several_are_like_gets_more_fields_as_advised(sweep):
    with pytest.raises(BaselineError, match="name more fields") as error:
        report_of(sweep, baseline={"rank": "8"})
    one = re.search(r"settings match, (.*) for one; name more fields$", str(error.value))[1]
    more = dict(pair.split("=") for pair in one.split(", "))
    assert {"rank"} < more.keys()
    assert report_of(sweep, baseline=more)[0]["baseline"] == one


def test_the_best_is_told_from_the_next_or_not(tmp_path, sweep):
    found, _ = report_of(sweep)
    assert found["best"]["setting"] == "learning_rate=1e-4, rank=64"
    assert found["best"]["next"]["setting"] == "learning_rate=1e-3, rank=64"
    assert "better than the next" in list(verdicts_of(found))[-1]
    drawn = {4: [1.0, 1.1, 0.9, 1.05], 8: [1.02, 1.0, 1.0, 1.0]}
    apart = lambda overrides, step: drawn[overrides[RANK]][overrides["seed"]]
    written.write_sweep(tmp_path / "alike", {RANK: [4, 8], "seed": [0, 1, 2, 3]}, apart)
    found, _ = report_of(tmp_path / "alike")
    assert found["best"]["next"]["p_value"] > 0.05
    assert "no difference shown against the next" in list(verdicts_of(found))[-1]


@pytest.mark.parametrize("seeds", [1, 2])
def test_with_fewer_than_three_seeds_nobody_can_tell(tmp_path, seeds):
    written.write_sweep(tmp_path, {RANK: [4, 64], "seed": list(range(seeds))})
    found, _ = report_of(tmp_path)
    best = found["best"]
    assert (best["next"]["seeds"], best["next"]["p_value"]) == (seeds, None)
    assert re.search(rf"It cannot be told .* {seeds} seeds? in common", list(verdicts_of(found))[-1])
    assert by_name(found)["rank=64"]["difference"]["p_value"] is None
    assert by_name(found)["rank=64"]["difference"]["called"] is None
    assert (by_name(found)["rank=4"]["score"]["low"] is None) == (seeds == 1)


def test_rows_and_seeds_together(tmp_path):
    """What each row was answered is taken into account: rows that differ alike in all seeds are shown to differ."""
    names = written.write_sweep(tmp_path, {RANK: [4, 64], "seed": [0, 1, 2]})
    rng = np.random.default_rng(0)
    easy = rng.normal(size=300)
    for name in names:
        right = easy + 0.1 * rng.normal(size=300) + (0.5 if "rank=64" in name else 0.0) > 0
        written.write_evaluation(tmp_path / name, written.STEPS, "yes_or_no", right)
    found, _ = report_of(tmp_path, "tasks/yes_or_no/exact_match")
    following = found["best"]["next"]
    assert (found["better"], found["best"]["setting"]) == ("higher", "rank=64")
    assert (following["seeds"], following["rows"]) == (3, 300)
    assert following["p_value"] < 0.001
    assert "over 3 seeds and 300 rows" in list(verdicts_of(found))[-1]


def test_a_sweep_that_goes_on(tmp_path):
    """What is finished is reported, the rest is counted; what failed is named with its error."""
    states = {0: "running", 1: "waiting", 5: "diverged", 8: "failed", 11: "interrupted"}
    names = written.write_sweep(tmp_path, unlike=states)
    found, curves = report_of(tmp_path)
    assert found["states"] == {"finished": 7, "running": 1, "waiting": 1, "diverged": 1, "failed": 1, "interrupted": 1}
    assert found["notes"][0].startswith("3 of 12 runs are not finished")
    assert [(one["name"], one["error"]) for one in found["failed"]] == [
        (names[5], "5 steps in a row had no finite loss"),
        (names[8], "the disk is full"),
    ]
    assert [sum(run["value"] is not None for run in one["runs"]) for one in found["settings"]] == [1, 2, 2, 2]
    shown = terminal_text(found)
    assert names[5] in shown
    assert "the disk is full" in shown
    early, _ = report_of(tmp_path, at=5)
    assert [sum(run["value"] is not None for run in one["runs"]) for one in early["settings"]] == [2, 3, 3, 3]
    assert len(curves[0].x) == len(range(0, written.STEPS // 2 + 1, written.EVERY))  # as far as all its seeds are


def test_nothing_has_been_measured_yet(tmp_path):
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0]}, unlike={0: "waiting", 1: "running"})
    found, _ = report_of(tmp_path)
    assert "There is nothing to compare yet" in next(verdicts_of(found))
    for path in (tmp_path / names[1]).glob("metrics*"):
        path.unlink()
    with pytest.raises(QuantityError, match=r"held_out/nll is in no run of .*; no run has logged anything yet"):
        report_of(tmp_path)


def test_at_the_best_checkpoint_and_at_a_step(tmp_path):
    turning = lambda overrides, step: abs(step - 10) / 10 + overrides[RANK]
    written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0]}, turning)
    value = lambda at: by_name(report_of(tmp_path, "held_out/loss", at)[0])["rank=4"]["runs"][0]
    assert (value("final")["value"], value("final")["step"]) == (5.0, 20)
    assert (value("best")["value"], value("best")["step"]) == (4.0, 10)
    assert (value(5)["value"], value(5)["step"], value(5)["costs"]["tokens"]) == (4.5, 5, 5 * written.TOKENS_A_STEP)
    with pytest.raises(
        QuantityError, match=r"--at=step 7: no run has held_out/loss there; near it, at steps 0, 5, 10"
    ) as error:
        report_of(tmp_path, "held_out/loss", 7)
    for step in map(int, re.search(r"at steps ([\d, ]+)", str(error.value))[1].split(", ")):
        assert value(step)["step"] == step


def test_any_metric_can_be_asked_for_and_what_there_is_is_named(sweep):
    assert report_of(sweep, "train/loss")[0]["better"] == "lower"
    assert report_of(sweep, "held_out/accuracy")[0]["better"] == "higher"
    found, _ = report_of(sweep, "speed/seconds_per_step")
    assert (found["better"], found["best"]) == (None, None)
    assert any("--better=higher or --better=lower" in note for note in found["notes"])
    for better, said in ((False, "lower"), (True, "higher")):
        found, _ = report_of(sweep, "speed/seconds_per_step", better=better)
        assert (found["better"], found["best"] is not None) == (said, True)
        assert not any("--better" in note for note in found["notes"])
    with pytest.raises(QuantityError, match=r"--metric=held_out/los is in no run of .* held_out/loss") as error:
        report_of(sweep, "held_out/los")
    for name in re.search(r"; there are (.*)$", str(error.value))[1].split(", "):
        assert report_of(sweep, name)[0]["metric"] == name


def test_scores_of_evaluations_in_the_runs(tmp_path):
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0, 1, 2]})
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        folder = tmp_path / name / "evaluation"
        (folder / "predictions" / "titles").mkdir(parents=True)
        right = rng.random(40) < (0.3 if number < 3 else 0.9)
        scores = {"sft": {"exact_match": {"value": float(right.mean()), "low": 0.0, "high": 1.0}}}
        (folder / "results.json").write_text(json.dumps({"tasks": {"titles": {"scores": scores}}, "forgetting": None}))
        lines = [json.dumps({"id": str(row), "outcome": {"exact_match": bool(one)}}) for row, one in enumerate(right)]
        (folder / "predictions" / "titles" / "sft.jsonl").write_text("\n".join(lines) + "\n")
    found, curves = report_of(tmp_path, "evaluation/titles/sft/exact_match")
    assert (found["better"], found["best"]["setting"], found["best"]["next"]["rows"]) == ("higher", "rank=8", 40)
    assert found["best"]["next"]["p_value"] < 0.05
    assert curves == []
    with pytest.raises(QuantityError, match="leave out --at"):
        report_of(tmp_path, "evaluation/titles/sft/exact_match", at="best")
    assert report_of(tmp_path, "evaluation/titles/sft/exact_match")[0] == found
    (folder / "results.json").write_text("{}")
    with pytest.raises(QuantityError, match=r"results\.json holds no results"):
        report_of(tmp_path, "evaluation/titles/sft/exact_match")


def test_what_nothing_beats_in_quality_and_cost(tmp_path):
    """Quality for tokens: of three batch sizes the middle one costs more than the first and is worse."""
    levels = {4: 1.0, 8: 1.5, 16: 0.5}
    loss = lambda overrides, step: levels[overrides["batch.sequences"]] + 1 / (1 + step)
    written.write_sweep(tmp_path, {"batch.sequences": list(levels), "seed": [0, 1]}, loss)
    found, curves = report_of(tmp_path, axis="tokens")
    assert found["fronts"] == {
        "tokens": ["sequences=4", "sequences=16"],
        "supervised_tokens": ["sequences=4", "sequences=16"],
    }
    assert [one["costs"]["tokens"] for one in found["settings"]] == [10_000, 20_000, 40_000]
    plots = draw_sweep(found, curves, "tokens")
    assert [plot.name for plot in plots] == [
        *("curves", "against_sequences", "cost_tokens", "cost_supervised_tokens"),
    ]


def test_a_field_whose_values_are_tuples(tmp_path):
    """They are lists in `sweep.json`."""
    betas = "optimizer.betas"
    written.write_sweep(tmp_path, {betas: [[0.9, 0.95], [0.9, 0.99]], "seed": [0, 1, 2]})
    found, curves = report_of(tmp_path, baseline={"betas": "[0.9, 0.99]"})
    assert [one["values"] for one in found["settings"]] == [{betas: [0.9, 0.95]}, {betas: [0.9, 0.99]}]
    assert found["baseline"] == found["settings"][1]["name"] == "betas=[0.9, 0.99]"
    assert "against_betas" in {plot.name for plot in draw_sweep(found, curves, "steps")}


@pytest.mark.parametrize(("values", "joined"), [(["adamw", "lion"], False), ([4, 16], True)])
def test_only_numbers_are_joined_by_a_line(tmp_path, monkeypatch, values, joined):
    plot, drawn = Axes.plot, []
    monkeypatch.setattr(Axes, "plot", lambda axes, *args, **kwargs: drawn.extend(plot(axes, *args, **kwargs)) or [])
    written.write_sweep(tmp_path, {RANK if joined else "optimizer.name": values, "seed": [0, 1, 2]})
    found, curves = report_of(tmp_path)
    draw_sweep(found, curves, "steps")
    against = [line for line in drawn if line.axes.get_xlabel().startswith(("name", "rank"))]
    across = [line for line in against if len(set(line.get_xdata())) > 1]
    assert len(across) == 1
    assert [line.get_linestyle() != "None" for line in across] == [joined]


def test_fields_that_vary_together_are_one_factor(sweep):
    """As in experiments/learning_rate_and_rank where alpha grows with the rank: two factors, and a heat map of them."""
    found, curves = report_of(sweep)
    found = {**found, "factors": [LR, RANK, ALPHA]}
    found["settings"] = [
        {**one, "values": {**one["values"], ALPHA: 2.0 * one["values"][RANK]}} for one in found["settings"]
    ]
    plots = {plot.name: plot for plot in draw_sweep(found, curves, "steps")}
    assert [name for name in plots if "against" in name or name == "grid"] == [
        *("against_learning_rate", "against_rank", "grid")
    ]
    assert "by learning_rate and rank (with alpha)" in plots["grid"].caption


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        ("steps", [0, 5, 10, 15, 20]),
        ("tokens", [0, 5_000, 10_000, 15_000, 20_000]),
        ("supervised_tokens", [0, 2_000, 4_000, 6_000, 8_000]),
        ("seconds", [0, 2.5, 5, 7.5, 10]),
    ],
)
def test_curves_are_means_and_ranges_of_seeds(sweep, axis, expected):
    curve = report_of(sweep, axis=axis)[1][0]
    runs = [{LR: 1e-4, RANK: 4, "seed": seed} for seed in range(3)]
    values = np.array([[noisy(run, step) for step in range(0, 21, 5)] for run in runs])
    assert (curve.name, curve.seeds) == ("learning_rate=1e-4, rank=4", 3)
    assert curve.x == pytest.approx(expected)
    assert curve.mean == pytest.approx(values.mean(0))
    assert curve.low == pytest.approx(values.min(0))
    assert curve.high == pytest.approx(values.max(0))


def test_compiling_is_no_time_of_a_run(tmp_path):
    """Which run a process happened to begin with says nothing of its setting."""
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0]})
    path = tmp_path / names[0] / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[1]["speed/seconds_per_step"] = 60.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, _ = report_of(tmp_path)
    assert [one["costs"]["seconds"] for one in found["settings"]] == [10.0, 10.0]


NUMBERS = [([1e-4, 1e-3], True), ([4, 8, 16, 32], True), ([0.1, 0.2], False), ([0, 8], False)]


@pytest.mark.parametrize(("values", "spread"), NUMBERS)
def test_numbers_that_are_spread_have_a_logarithmic_axis(values, spread):
    assert is_spread(values) is spread


def test_a_directory_of_run_directories(tmp_path):
    """Nobody stated what differs: it is what their configs differ in, but for seeds and how they are computed."""
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0, 1, 2], "batch.micro_batches": [1]})
    (tmp_path / "sweep.json").unlink()
    config = json.loads((tmp_path / names[0] / "config.json").read_text())
    config["batch"]["micro_batches"] = 2
    (tmp_path / names[0] / "config.json").write_text(json.dumps(config))
    found, _ = report_of(tmp_path)
    assert found["factors"] == [RANK]
    assert [len(one["runs"]) for one in found["settings"]] == [3, 3]
    (tmp_path / names[1] / "result.json").unlink()
    (tmp_path / names[1] / "status.json").unlink()
    assert report_of(tmp_path)[0]["states"] == {"finished": 5, "interrupted": 1}


def test_a_run_with_the_seed_of_another_is_no_further_seed(tmp_path):
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0, 1]})
    (tmp_path / "sweep.json").unlink()
    shutil.copytree(tmp_path / names[0], tmp_path / f"{names[0]}-again")
    found, _ = report_of(tmp_path)
    first, second = found["settings"]
    assert len(first["runs"]) == 3
    assert first["score"]["high"] - first["score"]["low"] == pytest.approx(
        second["score"]["high"] - second["score"]["low"]
    )
    assert f"Not counted, since another run has the same setting and seed: {names[0]}-again." in found["notes"]
    assert not any("without a finite" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("file", "text"), [("result.json", "{"), ("status.json", "[]"), ("metrics.jsonl", '{"step": 1}\nx\n{"step": 2}\n')]
)
def test_a_damaged_run_is_named_and_the_others_are_reported(tmp_path, file, text):
    names = written.write_sweep(tmp_path)
    (tmp_path / names[3] / file).write_text(text)
    found, _ = report_of(tmp_path)
    assert [(one["name"], one["state"]) for one in found["failed"]] == [(names[3], "damaged")]
    assert file in found["failed"][0]["error"]
    assert found["states"]["finished"] == 11


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not a directory"),
        (lambda root: root.mkdir(), r"holds no sweep\.json and no run directories$"),
        (lambda root: (root.mkdir(), (root / "sweep.json").write_text("{")), r"sweep\.json is not the file of a sweep"),
        (lambda root: (root.mkdir(), (root / "config.json").write_text("{}")), "it is a run itself"),
    ],
)
def test_directories_without_runs(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(WorkdirError, match=message):
        report_of(tmp_path / "root")


def test_in_the_place_of_a_run_its_directory_is_given_or_it_is_compared_as_advised(tmp_path):
    names = written.write_sweep(tmp_path, {RANK: [4, 8], "seed": [0]})
    first, second = (tmp_path / name for name in names)
    with pytest.raises(WorkdirError, match=r"it is a run itself; give the directory that it lies in, or --compare$"):
        report_of(first)
    assert len(report_of(first.parent)[0]["settings"]) == 2
    assert compare_runs(first, second, "steps").found["config"] == [{"field": RANK, "rank=4": 4, "rank=8": 8}]


def terminal_text(found, width=100):
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_report(found))
    return console.export_text()


def test_the_terminal_has_a_screen_of_it(tmp_path):
    """However many runs: the best settings, best first."""
    written.write_sweep(tmp_path, {LR: [10 ** -(number / 10) for number in range(40)], "seed": [0]})
    found, _ = report_of(tmp_path)
    lines = terminal_text(found).splitlines()
    assert len(lines) < 50
    assert "and 20 more settings" in terminal_text(found)
    assert lines[4].split("│")[1].strip() == "1"
    assert max(map(len, lines)) <= 100


def test_the_files(tmp_path, sweep):
    found, curves = report_of(sweep)
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "of_before.png").write_bytes(b"")
    paths = write_sweep_report(found, draw_sweep(found, curves, "steps"), tmp_path)
    plots = ["against_learning_rate.png", "against_rank.png", "curves.png", "grid.png"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == plots
    assert all((tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG") for name in plots)
    assert json.loads(paths["report.json"].read_text()) == found
    rows = list(csv.DictReader(paths["runs.csv"].open()))
    assert len(rows) == 18
    first = {name: rows[0][name] for name in ("learning_rate", "rank", "seed", "state")}
    assert first == {"learning_rate": "1e-4", "rank": "4", "seed": "0", "state": "finished"}
    assert float(rows[0]["held_out/nll"]) == pytest.approx(found["settings"][0]["runs"][0]["value"])
    settings = list(csv.DictReader(paths["settings.csv"].open()))
    assert [one["setting"] for one in settings] == [one["name"] for one in found["settings"]]
    assert float(settings[1]["difference_p_holm"]) == pytest.approx(found["settings"][1]["difference"]["p_holm"])
    markdown = paths["report.md"].read_text()
    page = paths["report.html"].read_text()
    for section in sections_of(found):
        assert f"## {section.title}" in markdown
        assert section.title in page
    assert page.count("data:image/png;base64,") == len(plots)
    assert all(f"plots/{name}" in markdown for name in plots)
    assert "learning_rate=1e-4, rank=64" in Parsed(page).text


def test_texts_of_users_are_no_markup(tmp_path):
    """Of an error, of values: what stands there is shown as it is."""
    grid = {"data.reading.prompt_template": ["<script>alert(1)</script>", "$x$ | y"], "seed": [0]}
    names = written.write_sweep(tmp_path, grid, unlike={1: "failed"})
    result = json.loads((tmp_path / names[1] / "result.json").read_text())
    (tmp_path / names[1] / "result.json").write_text(json.dumps(result | {"error": "<b>no</b> [red]disk[/red]"}))
    found, curves = report_of(tmp_path)
    paths = write_sweep_report(found, draw_sweep(found, curves, "steps"), tmp_path / "report")
    page = paths["report.html"].read_text()
    assert "<script>alert" not in page
    assert "<b>no</b>" not in page
    assert "<b>no</b> [red]disk[/red]" in terminal_text(found)


@pytest.mark.parametrize(
    ("score", "text"),
    [
        ({"value": 3.7e-17, "low": -0.2372, "high": 0.2372}, "+0 [-0.2372, +0.2372]"),
        ({"value": -7.9e-16, "low": -0.25, "high": 0.25}, "+0 [-0.25, +0.25]"),
        ({"value": 3.7e-9, "low": -2.5e-9, "high": 9e-9}, "+3.7e-09 [-2.5e-09, +9e-09]"),  # all of it is small
        ({"value": 0.1, "low": 0.1, "high": 0.1}, "+0.1 [+0.1, +0.1]"),
        ({"value": 3.7e-17, "low": None}, "+3.7e-17"),  # there is nothing to tell that from
        ({"value": 0.0, "low": 0.0, "high": 0.0}, "+0 [+0, +0]"),
    ],
)
def test_a_difference_of_rounding_is_zero(score, text):
    assert number_text(score, signed=True) == text
