"""Mixtures: schedules of weights, the order of draws, how often an example appears, and resuming."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sft_jax.data.packing import PACKINGS
from sft_jax.data.plan import PackPlan, mixture_capacity, order
from sft_jax.data.plan.mixture import MIXTURE_PACKINGS, Mixture, Schedule, Source, interleave
from sft_jax.data.tokenized import TokenizedExamples


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that many blocks are made of few examples."""
    monkeypatch.setattr(order, "_BLOCK_BINS", 32)
    monkeypatch.setattr(order, "_CHANGING_BLOCK_BINS", 16)


SIZES = {"math": 30, "code": 17, "chat": 5}


def weighted(packing="after", **weights):
    return Mixture(tuple(Source(name, Schedule.parse(text)) for name, text in weights.items()), packing)


def with_epochs(packing="after", **epochs):
    return Mixture(tuple(Source(name, epochs=times) for name, times in epochs.items()), packing)


def make_examples(sizes=SIZES, seed=0):
    """Example i is "<source>/<i>"; lengths 2 to 12."""
    rng = np.random.default_rng(seed)
    names = [name for name, count in sizes.items() for _ in range(count)]
    pairs = [(range(1, n + 1), [0.0] * (n // 2) + [1.0] * (n - n // 2)) for n in rng.integers(2, 13, len(names))]
    return TokenizedExamples.from_examples(pairs, [f"{n}/{i}" for i, n in enumerate(names)], sources=names)


def make_plan(examples, mixture, sequences_per_batch=4, **options):
    options = {"sequence_length": 24, "sequence_targets": 12, "seed": 0} | options
    return PackPlan(examples, sequences_per_batch=sequences_per_batch, mixture=mixture, **options)


def stream_of(plan, steps):
    return [members for step in range(steps) for members in plan.batch_bins(step)]


@pytest.mark.parametrize(
    ("text", "steps", "values"),
    [
        ("1", [0, 7], [1, 1]),
        (" 0.25 ", [3], [0.25]),
        ("0: 1, 500: 0.25", [0, 250, 500, 900], [1, 0.625, 0.25, 0.25]),
        ("10:0,20:1", [0, 10, 15, 20, 21], [0, 0, 0.5, 1, 1]),
    ],
)
def test_schedules(text, steps, values):
    assert Schedule.parse(text).at(np.array(steps)).tolist() == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not a weight; give a number, or steps and weights"),
        ("half", "is not a weight"),
        ("0: 1; 500: 2", "is not a weight"),
        ("-1", "must be finite and not negative"),
        ("nan", "must be finite"),
        ("0: 1, 500: inf", "must be finite"),
        ("500: 1, 0: 2", "steps must grow"),
        ("5: 1, 5: 2", "steps must grow"),
        ("1.5: 1", "is not a weight"),
    ],
)
def test_bad_schedules(text, words):
    with pytest.raises(ValueError, match=words):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("sources", "packing", "words"),
    [
        ((), "after", "at least one source"),
        ((Source("a", epochs=1.0),), "later", "packing='later' must be one of before, after"),
        ((Source("a"),), "after", "a: give either a weight or epochs"),
        ((Source("a", Schedule.parse("1"), 1.0),), "after", "a: give either a weight or epochs"),
        ((Source("a", epochs=-1.0),), "after", "a.epochs=-1.0 must be finite and not negative"),
        ((Source("a", epochs=1.0, replacement=True),), "after", "a.replacement"),
        ((Source("a", Schedule.parse("1")), Source("b", epochs=1.0)), "after", "those with epochs are b"),
        (
            (Source("a", Schedule.parse("0: 1, 9: 0")), Source("b", Schedule.parse("0: 0, 9: 0, 20: 1"))),
            "after",
            "at step 9 all weights are 0",
        ),
    ],
)
def test_bad_mixtures(sources, packing, words):
    with pytest.raises(ValueError, match=words):
        Mixture(sources, packing)


def test_turns_by_hand():
    turns, owed = interleave(np.tile([0.5, 0.25, 0.25], (8, 1)), np.zeros(3))
    assert turns.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert owed.tolist() == [0, 0, 0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(weights=st.lists(st.integers(0, 20), min_size=2, max_size=4).filter(any), cut=st.integers(1, 99))
def test_shares_hold_at_any_time(weights, cut):
    """No source is ever more than one draw off, none of weight 0 is drawn, and a cut changes nothing."""
    shares = np.tile(np.array(weights) / sum(weights), (100, 1))
    turns, owed = interleave(shares, np.zeros(len(weights)))
    drawn = np.cumsum(np.eye(len(weights))[turns], axis=0)
    assert np.abs(drawn - np.cumsum(shares, axis=0)).max() < 1 + 1e-9
    assert not drawn[-1][np.array(weights) == 0].any()
    first, between = interleave(shares[:cut], np.zeros(len(weights)))
    second, at_end = interleave(shares[cut:], between)
    assert [*first, *second] == turns.tolist()
    np.testing.assert_array_equal(at_end, owed)


@pytest.mark.parametrize("packing", sorted(PACKINGS))
@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_every_example_as_often_as_its_epochs_say(packing, mixing):
    examples = make_examples()
    plan = make_plan(examples, with_epochs(mixing, math=1.0, code=3.0, chat=0.4), packing=packing)
    flat, begin = np.concatenate(stream_of(plan, plan.steps_for("epochs", 6))), 0
    seen_of_chat = []
    for epoch in range(5):
        size = 30 + 3 * 17 + 2
        block = flat[begin : begin + size]
        begin += size
        times = collections.Counter(examples.ids[i] for i in block)
        assert all(times[f"math/{i}"] == 1 for i in range(30)), epoch
        assert all(times[f"code/{i}"] == 3 for i in range(30, 47)), epoch
        seen_of_chat.append({name for name in times if name.startswith("chat")})
        assert len(seen_of_chat[-1]) == 2
    everyone = {f"chat/{i}" for i in range(47, 52)}
    assert seen_of_chat[0] | seen_of_chat[1] | seen_of_chat[2] == everyone  # 2.5 epochs of the mixture: all were seen
    assert not seen_of_chat[0] & seen_of_chat[1]  # and none twice before
    assert plan.epochs_at(plan.steps_for("epochs", 6)) >= 6


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_sequential_keeps_the_order_of_each_file_and_spreads_sources_evenly(mixing):
    examples = make_examples()
    plan = make_plan(examples, with_epochs(mixing, math=1.0, code=1.0, chat=1.0), packing="sequential")
    flat = plan.first_block.members
    for code in range(3):
        of_source = [example for example in flat if examples.sources.codes[example] == code]
        assert of_source == sorted(of_source)
    half = flat[: len(flat) // 2]
    assert abs(np.count_nonzero(examples.sources.codes[half] == 0) - 15) <= 4


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_before_mixing_a_sequence_has_one_source(mixing):
    examples = make_examples()
    for mixture in (weighted(mixing, math="2", code="1", chat="1"), with_epochs(mixing, math=1.0, code=2.0, chat=9.0)):
        bins = stream_of(make_plan(examples, mixture), 15)
        mixed = [len(set(examples.sources.codes[members])) > 1 for members in bins]
        assert any(mixed) == (mixing == "after")


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_weights_are_shares_of_what_is_drawn(mixing):
    """Before mixing of bins, at any bin; after it of examples, at the end of each block, which is packed as one."""
    examples = make_examples()
    plan = make_plan(examples, weighted(mixing, math="1", code="2", chat="1"))
    drawn = stream_of(plan, 50)
    firsts = np.concatenate([members[:1] if mixing == "before" else members for members in drawn])
    counts = np.cumsum(np.eye(3)[examples.sources.codes[firsts]], axis=0)
    expected = np.outer(np.arange(1, len(firsts) + 1), [0.25, 0.5, 0.25])
    off = np.abs(counts - expected).max(axis=1)
    if mixing == "after":
        sizes = np.cumsum([len(members) for members in drawn])
        off = off[sizes[[plan._stream.start(block) - 1 for block in (1, 2, 3)]] - 1]
    assert off.max() <= 1


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
@pytest.mark.parametrize("replacement", [False, True])
def test_passes_with_and_without_replacement(mixing, replacement):
    examples = make_examples()
    sources = tuple(Source(name, Schedule.parse("1"), replacement=replacement) for name in SIZES)
    plan = make_plan(examples, Mixture(sources, mixing), sequences_per_batch=1)
    flat = np.concatenate(stream_of(plan, 300))
    of_chat = [example for example in flat if examples.sources.codes[example] == 2]
    times = np.bincount(of_chat, minlength=len(examples))[47:]
    if replacement:
        assert times.max() - times.min() > 3  # independent draws: uneven
        assert times.min() > 0.5 * times.mean()
    else:
        assert times.max() - times.min() <= (1 if mixing == "before" else 5)  # all examples once before any twice


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_weights_change_by_step(mixing):
    """All of math at first, all of code from step 80 on, half and half between."""
    examples = make_examples()
    plan = make_plan(examples, weighted(mixing, math="20: 1, 80: 0", code="20: 0, 80: 1"), sequences_per_batch=8)
    codes = [examples.sources.codes[np.concatenate(plan.batch_bins(step))] for step in range(100)]
    share = lambda a, b: np.concatenate(codes[a:b]).mean()
    slack = 0.03 if mixing == "before" else 0.08
    assert share(0, 15) == 0
    assert abs(share(45, 55) - 0.5) < slack
    assert 0.6 < share(60, 70) < 0.9
    assert share(90, 100) == 1


def position_cases():
    for mixing in MIXTURE_PACKINGS:
        yield weighted(mixing, math="1", code="0: 2, 30: 0.5", chat="0.3")
        yield with_epochs(mixing, math=1.0, code=2.5, chat=0.4)
        yield Mixture(tuple(Source(name, Schedule.parse("1"), replacement=True) for name in SIZES), mixing)


@pytest.mark.parametrize("mixture", list(position_cases()))
@pytest.mark.parametrize("packing", ["best_fit", "sequential"])
def test_everything_follows_from_the_position(mixture, packing):
    """A plan that jumps says what one that walked says; counters follow, of all and by source."""
    examples, names = make_examples(), list(SIZES)
    walking, jumping = (make_plan(examples, mixture, packing=packing) for _ in range(2))
    seen = [walking.batch_bins(step) for step in range(40)]
    lengths = examples.lengths
    for step in (33, 2, 39, 20):
        assert [b.tolist() for b in jumping.batch_bins(step)] == [b.tolist() for b in seen[step]]
        flat = np.concatenate([np.zeros(0, np.int64), *itertools.chain(*seen[:step])])
        assert jumping.cumulative_counts(step)["examples"] == len(flat)
        assert jumping.cumulative_counts(step)["tokens"] == lengths[flat].sum()
        by_source = {name: int(lengths[flat][examples.sources.codes[flat] == i].sum()) for i, name in enumerate(names)}
        assert jumping.tokens_by_source(step) == by_source
        passes = {
            name: np.count_nonzero(examples.sources.codes[flat] == i) / SIZES[name] for i, name in enumerate(names)
        }
        assert jumping.epochs_by_source(step) == pytest.approx(passes)
    for unit in ("examples", "tokens"):
        steps = jumping.steps_for(unit, 300)
        assert jumping.cumulative_counts(steps)[unit] >= 300 > jumping.cumulative_counts(steps - 1)[unit]


def test_seeds_differ_and_blocks_that_were_forgotten_come_back():
    examples = make_examples()
    mixture = weighted(math="1", code="1", chat="1")
    plan, other = make_plan(examples, mixture), make_plan(examples, mixture, seed=1)
    first = plan.example_ids(0)
    assert other.example_ids(0) != first
    plan.example_ids(300)
    assert plan.example_ids(0) == first


def test_a_weighted_mixture_has_no_epochs():
    plan = make_plan(make_examples(), weighted(math="1", code="1", chat="1"))
    assert not plan.has_epochs
    for ask in (lambda: plan.steps_for("epochs", 2), lambda: plan.epochs_at(3), lambda: plan.steps_per_epoch):
        with pytest.raises(ValueError, match="no epochs; give steps, examples or tokens"):
            ask()


def test_an_epoch_without_examples_is_refused():
    with pytest.raises(
        ValueError, match=r"An epoch of the mixture has no example \(math\.epochs=0\.01 of 12 examples\)"
    ):
        make_plan(make_examples({"math": 12}), with_epochs(math=0.01))


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_a_pass_is_shuffled_once_however_many_blocks_it_takes(monkeypatch, mixing):
    shuffled, permutation = collections.Counter(), order.permutation

    def counted(count, *key):
        shuffled[count, key] += 1
        return permutation(count, *key)

    monkeypatch.setattr(order, "permutation", counted)
    plan = make_plan(make_examples({"math": 200, "code": 300}), weighted(mixing, math="1", code="1"))
    plan.batch_bins(40)
    assert {count for count, _ in shuffled} >= {200, 300}
    assert max(shuffled.values()) == 1


def test_a_source_without_examples_is_named():
    with pytest.raises(ValueError, match="The source 'poems' has no examples left"):
        make_plan(make_examples(), weighted(math="1", poems="1"))


@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_capacity_is_that_of_what_is_drawn(mixing):
    """Of math only the last token is trained, of code nearly all: shares decide how many slots a bin needs."""
    pairs = [(range(10), [0.0] * 9 + [1.0])] * 40 + [(range(10), [0.0] * 5 + [1.0] * 5)] * 40
    names = ["math"] * 40 + ["code"] * 40
    examples = TokenizedExamples.from_examples(pairs, [str(i) for i in range(80)], sources=names)
    much_math = mixture_capacity(examples, weighted(mixing, math="30", code="1"), 100, 0.5)
    much_code = mixture_capacity(examples, weighted(mixing, math="1", code="30"), 100, 0.5)
    assert (much_math, much_code) == (16, 56)


@pytest.mark.parametrize(
    "weights",
    [
        {"math": "0: 1, 500: 0", "code": "0: 0, 500: 1"},  # code comes later
        {"math": "0: 0, 500: 1", "code": "0: 1, 500: 0"},  # code goes away
        {"math": "1", "code": "0: 0, 400: 30, 500: 0"},  # code is drawn for a while
    ],
)
@pytest.mark.parametrize("mixing", MIXTURE_PACKINGS)
def test_capacity_is_enough_for_every_stretch_of_weights(mixing, weights):
    """Bins of code alone, or nearly, need 50 of 100 slots, whenever they are drawn."""
    pairs = [(range(10), [0.0] * 9 + [1.0])] * 40 + [(range(10), [0.0] * 5 + [1.0] * 5)] * 40
    examples = TokenizedExamples.from_examples(
        pairs, [str(i) for i in range(80)], sources=["math"] * 40 + ["code"] * 40
    )
    assert mixture_capacity(examples, weighted(mixing, **weights), 100, 0.5) == 56
