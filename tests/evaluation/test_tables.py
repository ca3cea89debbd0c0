"""`results.json`, the tables and the verdict."""

import io
import json

import pytest
from rich.console import Console

from sft_jax.evaluation.tables import build_results, markdown_table, terminal_table, verdict


def outcomes(hits: list[int]) -> list[dict[str, bool | int]]:
    """One document of four fields a number: how many of them were found; 0 is an answer without JSON."""
    return [
        {
            "valid_json": n > 0,
            "exact_match": n == 4,
            "true_positives": n,
            "predicted": 4 if n else 0,
            "expected": 4,
        }
        for n in hits
    ]


ZERO_SHOT, TWO_EXAMPLES, TUNED = [0] * 20, [2, 1] * 10, [4] * 18 + [3] * 2


def results(**options):
    before = {"zero_shot": outcomes(ZERO_SHOT), "two_examples": outcomes(TWO_EXAMPLES)}
    return build_results(before, outcomes(TUNED), seed=0, **options)


def test_results_are_the_promised_figures():
    figures = results(held_out_loss=(1.25, 0.25))
    assert figures == json.loads(json.dumps(figures))
    assert figures["examples"] == 20
    assert figures["before_prompt"] == "two_examples"
    assert figures["before"] == {**figures["prompts"]["two_examples"], "held_out_loss": {"value": 1.25}}
    assert figures["prompts"]["zero_shot"]["held_out_loss"] == {"value": 1.25}
    assert figures["after"]["held_out_loss"] == {"value": 0.25}
    for side in ("before", "after"):
        for metric in ("field_f1", "exact_match", "valid_json"):
            assert set(figures[side][metric]) == {"value", "low", "high"}
    assert figures["before"]["field_f1"]["value"] == pytest.approx(30 / 80)
    assert figures["after"]["field_f1"]["value"] == pytest.approx(78 / 80)
    assert figures["difference"]["field_f1"]["value"] == pytest.approx(48 / 80)
    assert figures["difference"]["field_f1"]["p_value"] < 1e-3
    # Two examples and tuned both always give JSON.
    assert figures["difference"]["valid_json"]["p_value"] == 1


@pytest.mark.parametrize(
    ("zero_shot", "two_examples", "best"),
    [([0, 0], [1, 1], "two_examples"), ([2, 2], [1, 1], "zero_shot"), ([1, 1], [1, 1], "zero_shot")],
)
def test_before_is_the_better_prompt(zero_shot, two_examples, best):
    before = {"zero_shot": outcomes(zero_shot), "two_examples": outcomes(two_examples)}
    assert build_results(before, outcomes([4, 4]), seed=0)["before_prompt"] == best


def test_loss_by_example_has_an_interval_and_a_test():
    losses = [[{"loss_sum": x * n, "loss_weight": float(n)} for n in range(1, 21)] for x in (1.5, 0.5)]
    figures = results(held_out_loss=tuple(losses))
    assert set(figures["before"]["held_out_loss"]) == {"value", "low", "high"}
    assert figures["difference"]["held_out_loss"]["value"] == pytest.approx(-1)
    assert verdict(figures, "held_out_loss").startswith("held-out loss: better than the base model (two examples)")
    with pytest.raises(ValueError, match="not one of each"):
        results(held_out_loss=(1.5, losses[1]))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([0] * 20, [4] * 20, "field F1: better than the base model (zero-shot) by +1.000 [+0.772, +1.000]"),
        ([4] * 20, [0] * 20, "field F1: WORSE than the base model (zero-shot) by -1.000"),
        ([2, 1] * 10, [1, 2] * 10, "field F1: no difference shown against the base model"),
        ([0] * 4, [4] * 4, "field F1: no difference shown"),  # p = 2 / 2^4 = 0.125: too few examples to say so
        ([4] * 20, [4] * 19 + [3], "field F1: no difference shown"),
    ],
)
def test_verdict_says_better_only_where_the_test_does(before, after, expected):
    assert verdict(build_results({"zero_shot": outcomes(before)}, outcomes(after), seed=0)).startswith(expected)


def test_verdict_names_its_evidence():
    text = verdict(results())
    assert text.endswith("(p < 0.001, paired permutation test, 20 examples)")


def test_markdown_table():
    lines = markdown_table(results(held_out_loss=(1.25, 0.25))).splitlines()
    assert lines[0] == "|  | base, zero-shot | base, two examples | tuned | difference |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| field F1 | 0.000 [0.000, 0.161] | 0.375 [")
    assert "| valid JSON | 0.000 [0.000, 0.161] | 1.000 [0.839, 1.000] | 1.000 [0.839, 1.000] |" in lines[3]
    assert lines[5] == "| held-out loss | 1.250 | - | 0.250 | -1.000 |"
    assert lines[7].startswith("field F1: better")


def test_terminal_table_shows_the_same_cells():
    console = Console(file=io.StringIO(), width=160)
    console.print(terminal_table(results(held_out_loss=(1.25, 0.25))))
    text = console.file.getvalue()
    for cell in ("20 held-out examples", "base, two examples", "0.375 [", "1.000 [0.839, 1.000]", "1.250", "better"):
        assert cell in text


def test_tables_can_be_made_from_the_file_again():
    figures = results(held_out_loss=(1.25, 0.25))
    assert markdown_table(json.loads(json.dumps(figures))) == markdown_table(figures)


def test_other_tasks_have_their_own_metrics():
    before, after = ([{"exact_match": value} for value in values] for values in ([False] * 8, [True] * 8))
    figures = build_results({"zero_shot": before}, after, seed=0)
    assert figures["primary"] == "exact_match"
    assert verdict(figures).startswith("exact match: better")
    with pytest.raises(ValueError, match="no metric named 'bleu'; there are exact_match"):
        build_results({"zero_shot": before}, after, seed=0, primary="bleu")
    with pytest.raises(ValueError, match="no outcomes of the base model"):
        build_results({}, after, seed=0)
