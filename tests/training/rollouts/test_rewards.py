"""What answers are worth: scorers of evaluations, weighted; those that fail are told apart from wrong answers."""

import numpy as np
import pytest

from sft_jax.data.conversations import Chat, Message
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.options import RewardOptions
from sft_jax.training.rollouts.rewards import Rewards
from tests import tiny


def record(reference="12", name="rows:1"):
    return Record(name, Chat((Message("user", "6 + 6"), Message("assistant", reference))), {})


def of(scorer, metric="", weight=1.0, **options):
    return RewardOptions(scorer, options, metric, weight)


def rewards_of(records=None, **entries):
    return Rewards(entries, records or [record()], ConversationRenderer(tiny.tokenizer(), None, Masking()))


def raises(answer, case):
    if answer == "boom":
        raise KeyError("no such key")
    return {"good": answer == case.reference}


def nests(answer, case):
    def deeper(number):
        return deeper(number + 1) if answer == "boom" else number

    return {"good": bool(deeper(1))}


def gives_nan(answer, case):
    return {"share": float("nan") if answer == "boom" else 1.0}


HERE = "tests.training.rollouts.test_rewards"


def test_right_or_wrong():
    rewards = rewards_of(answer=of("exact_match"))
    assert [rewards(record(), text).total for text in ("12", "13", "")] == [1.0, 0.0, 0.0]


def test_weighted():
    rewards = rewards_of(
        answer=of("numeric", marker="####"), said=of("numeric", metric="has_number", weight=0.25, marker="####")
    )
    found = [rewards(record("#### 12"), text) for text in ("so #### 12", "#### 13", "12")]
    assert [one.total for one in found] == [1.25, 0.25, 0.0]
    assert found[1].parts == {"answer": 0.0, "said": 1.0}
    assert rewards_of(answer=of("exact_match", weight=-2.0))(record(), "12").total == -2.0


def test_a_share():
    """Of a scorer that calls nothing right the first metric that is better high."""
    assert 0 < rewards_of(answer=of("rouge_l"), records=[record("one two")])(record("one two"), "one").total < 1


@pytest.mark.parametrize("scorer", ["raises", "nests"])
def test_a_scorer_that_fails(scorer):
    rewards = rewards_of(answer=of(f"{HERE}:{scorer}"), match=of("exact_match", weight=0.5))
    failed, wrong, right = (rewards(record(), text) for text in ("boom", "13", "12"))
    assert (failed.total, failed.failed, failed.parts) == (0.0, ("answer",), {"answer": 0.0, "match": 0.0})
    assert (wrong.failed, right.failed) == ((), ())
    assert right.total == 1.5


def test_failures_do_not_move_others():
    """Answers keep their own rewards, whichever of them fails."""
    rewards = rewards_of(answer=of(f"{HERE}:raises"))
    assert [rewards(record(), text).total for text in ("12", "boom", "12", "13", "boom", "12")] == [1, 0, 1, 0, 0, 1]


def test_what_is_not_finite_stops():
    rewards = rewards_of(answer=of(f"{HERE}:gives_nan"))
    with pytest.raises(ValueError, match=r"rewards\.answer: .*row rows:1: column 'share' must be a finite .*got nan"):
        rewards(record(), "boom")
    huge = rewards_of(answer=of("exact_match", weight=1e308), again=of("exact_match", weight=1e308))
    with pytest.raises(ValueError, match=r"rows:1: the reward of an answer is inf"):
        huge(record(), "12")
    assert np.isfinite(huge(record(), "13").total)


@pytest.mark.parametrize(
    ("rows", "entry", "said"),
    [
        (
            [record("twelve", "rows:7")],
            of("numeric"),
            r"rewards\.answer: row rows:7: numeric: the reference has no num",
        ),
        (
            [Record("rows:3", Chat((Message("user", "hm"),)), {})],
            of("exact_match"),
            "rows:3: sampled answers are judged by",
        ),
        ([record()], of("exact_match", metric="f1"), "metric='f1' is not measured; there are exact_match"),
    ],
)
def test_what_cannot_be_judged_is_named(rows, entry, said):
    with pytest.raises(ValueError, match=said):
        rewards_of(rows, answer=entry)


def test_a_bound_on_work_that_is_exceeded_is_told_apart():
    rewards = rewards_of(answer=of("regex", pattern="(?:a|b)*c", compare=False))
    long, wrong, right = (rewards(record(), text) for text in ("ab" * 500_000, "ab", "abc"))
    assert (long.total, long.failed) == (0.0, ("answer",))
    assert (wrong.total, wrong.failed) == (0.0, ())
    assert (right.total, right.failed) == (1.0, ())
