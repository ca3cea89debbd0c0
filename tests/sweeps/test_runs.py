"""Runs of a sweep: overrides are as strict as flags, all mistakes are named at once, and names stay what they are."""

import re

import ml_collections
import numpy as np
import pytest

from configs import sft
from sft_jax.sweeps import product, seeds, values
from sft_jax.sweeps.names import name_of, short_keys, value_text
from sft_jax.sweeps.problems import SweepError
from sft_jax.sweeps.runs import config_of, fields_of, runs_of
from tests.command_line import SFT
from tests.command_line import config_of as config_by


@pytest.fixture(scope="module")
def base():
    return sft.get_config("lora")


def said(base, *stated):
    with pytest.raises(SweepError) as error:
        runs_of(base, list(stated))
    return str(error.value)


def test_a_run_is_the_config_that_flags_make(base):
    stated = {"optimizer.learning_rate": 1e-3, "adapter.targets": ("attention/query",), "seed": 3, "ema.evaluate": True}
    (run,) = runs_of(base, [stated | {"ema.decay": 0.5}])
    flags = ["--config.optimizer.learning_rate=1e-3", "--config.adapter.targets=attention/query", "--config.seed=3"]
    wanted = config_by(f"--config={SFT}:lora", *flags, "--config.ema.decay=0.5", "--config.ema.evaluate=True")
    assert run.config.to_dict() == wanted.to_dict()
    assert run.config.is_locked
    assert base.seed == 0


TAKEN = [  # (field, what is stated, what the run has)
    ("optimizer.weight_decay", 1, 1.0),
    ("optimizer.weight_decay", np.float32(0.5), 0.5),
    ("seed", np.int64(3), 3),
    ("optimizer.betas", [0.8, 0.9], (0.8, 0.9)),
    ("optimizer.betas", (0, 0.5), (0.0, 0.5)),
    ("data.cleaning", ["strip_whitespace"], ("strip_whitespace",)),
    ("data.cleaning", (), ()),
]


@pytest.mark.parametrize(("field", "stated", "has"), TAKEN, ids=[f"{field}={stated!r}" for field, stated, _ in TAKEN])
def test_values_are_taken_as_the_field_has_them(base, field, stated, has):
    (run,) = runs_of(base, [{field: stated}])
    section, _, name = field.rpartition(".")
    found = (run.config[section] if section else run.config)[name]
    assert (found, type(found), run.overrides[field]) == (has, type(has), has)


def test_a_mixture_is_a_value(base):
    mixtures = [ml_collections.ConfigDict({"math": sft.source("m.jsonl", weight=weight)}) for weight in (1, 2)]
    runs = runs_of(base, values("data.mixture", mixtures))
    assert [run.config.data.mixture.math.weight for run in runs] == ["1", "2"]
    assert all(re.fullmatch(r"mixture=math-[0-9a-f]{8}", run.name) for run in runs)
    by_field = runs_of(runs[0].config, [{"data.mixture.math.weight": "3"}])
    assert by_field[0].config.data.mixture.math.weight == "3"


MISTAKES = [  # (overrides, what the message says)
    ({"lr": 1}, "run 1: lr=1: the config has no field 'lr'. config has: adapter, batch,"),
    (
        {"optimizer.lr": 1},
        "run 1: optimizer.lr=1: the section config.optimizer has no field 'lr'. config.optimizer has:",
    ),
    ({"learning_rate": 1}, "the config has no field 'learning_rate'. Did you mean optimizer.learning_rate?"),
    ({"optimizer.learning_rat": 1}, "has no field 'learning_rat'. Did you mean optimizer.learning_rate?"),
    ({"optimiser.x": 1}, "has no field 'optimiser'. Did you mean optimizer, a section? config.optimizer has:"),
    ({"seed.x": 1}, "seed.x=1: config.seed is no section but a value, 0. Set it by seed=VALUE"),
    ({"": 1}, "'': expected the path of a field, as 'optimizer.learning_rate'"),
    ({3: 1}, "3: expected the path of a field"),
    ({"seed": 1.5}, "seed=1.5: expected a whole number; config.seed is 0 where it is not set"),
    ({"seed": True}, "seed=True: expected a whole number"),
    ({"seed": "1"}, "seed='1': expected a whole number"),
    ({"optimizer.learning_rate": "1e-4"}, "='1e-4': expected a number; config.optimizer.learning_rate is 0.0002"),
    ({"optimizer.learning_rate": True}, "=True: expected a number"),
    ({"optimizer.learning_rate": None}, "=None: expected a number"),
    ({"ema.evaluate": 1}, "ema.evaluate=1: expected True or False"),
    ({"optimizer.name": 3}, "optimizer.name=3: expected a text; config.optimizer.name is 'adamw'"),
    ({"data.cleaning": "strip"}, "data.cleaning='strip': expected a tuple"),
    ({"data.cleaning": (1,)}, "data.cleaning=(1,): expected a tuple of texts"),
    ({"optimizer.betas": ("a", "b")}, "expected a tuple of what config.optimizer.betas is made of"),
    ({"batch": 4}, "batch=4: config.batch is a section; set its fields: batch.micro_batches."),
    ({"batch": {"sequences": 4}}, "config.batch is a section; set its fields one by one"),
    ({"data.mixture": 4}, "data.mixture=4: config.data.mixture is a section; expected a ConfigDict"),
    ({"adapter.rank": 0}, "run 1: --config.adapter.rank=0 must be at least 1"),
    ({"optimizer.learning_rate": float("nan")}, "--config.optimizer.learning_rate=nan must be at least 0"),
    ({"optimizer.momentum": 0.5}, "--config.optimizer.momentum=0.5 is not read by --config.optimizer.name=adamw"),
    ({"duration": "6"}, "--config.duration='6' is not a duration"),
    ({"duration": "10 percent"}, "--config.duration='10 percent': percent of the run makes no sense here; give steps"),
]


@pytest.mark.parametrize(("overrides", "text"), MISTAKES, ids=[str(overrides) for overrides, _ in MISTAKES])
def test_a_mistake_names_run_and_field(base, overrides, text):
    assert text in said(base, overrides)


def test_the_flag_of_a_message_is_taken(base):
    """What is advised for a duration is one."""
    assert "give steps" in said(base, {"duration": "10 percent"})
    assert runs_of(base, [{"duration": "10 steps", "optimizer.warmup": "10 percent"}])


def test_all_mistakes_are_named_at_once_and_each_one_once(base):
    stated = product(values("adapter.rank", [4, 0]), seeds(3), values("optimizer.weight_decay", [0.0, "no"]))
    assert said(base, *stated).splitlines() == [
        "runs 2, 4, 6, 8, 10, 12: optimizer.weight_decay='no': expected a number; config.optimizer.weight_decay is "
        "0.01 where it is not set",
        "runs 7, 9, 11: --config.adapter.rank=0 must be at least 1",
    ]


def test_runs_that_are_the_same_are_named(base):
    assert said(base, {"seed": 1}, {"seed": 0}, {}, {"optimizer.weight_decay": 0.01}).splitlines() == [
        "runs 2-4 are the same: seed=0",
        "Leave out all but one of them.",
    ]


def test_an_empty_sweep_is_refused(base):
    assert said(base) == "the sweep is empty: its get_sweep() gives no runs"


# ---- Names ----------------------------------------------------------------------------------------------------------


def names(base, *stated, known=None):
    return [run.name for run in runs_of(base, list(stated), known)]


def test_names_say_what_differs(base):
    stated = [{"optimizer.name": "adamw", "seed": seed, "optimizer.learning_rate": 1e-4} for seed in (0, 1)]
    assert [re.sub("-[0-9a-f]{8}$", "", name) for name in names(base, *stated)] == ["seed=0", "seed=1"]
    assert [name[:-9] for name in names(base, *stated, {"adapter.rank": 4})] == [
        "seed=0,learning_rate=1e-4,rank=16",
        "seed=1,learning_rate=1e-4,rank=16",
        "seed=0,learning_rate=2e-4,rank=4",
    ]
    assert names(base, {"seed": 5})[0].startswith("seed=5-")
    assert names(base, {})[0].startswith("run-")


def test_a_hash_is_of_what_the_run_is(base):
    """Not of what may be another when it goes on, unless the sweep is about that."""
    ending = lambda config, overrides: names(config, overrides)[0][-8:]
    changed = base.copy_and_resolve_references().unlock()
    changed.loader.threads, changed.mesh.fsdp, changed.data.date = 3, 1, "2026-01-01"
    assert ending(changed, {"seed": 1}) == ending(base, {"seed": 1})
    changed.optimizer.weight_decay = 0.5
    assert ending(changed, {"seed": 1}) != ending(base, {"seed": 1})
    assert ending(base, {"batch.micro_batches": 2}) != ending(base, {"batch.micro_batches": 4})
    assert ending(base, {"data.date": "2026-01-01"}) != ending(base, {"data.date": "2026-01-02"})
    assert ending(base, {"optimizer.weight_decay": 0.01}) == ending(base, {"seed": 0})  # the same config


def test_known_runs_keep_their_names(base):
    (run,) = runs_of(base, [{"seed": 1}])
    again = names(base, {"seed": 1}, {"adapter.rank": 4}, known={run.identity: "seed=1-old"})
    assert again[0] == "seed=1-old"
    assert again[1].startswith("seed=0,rank=4-")


def test_names_are_safe_and_bounded(base):
    patterns = ("attention/(query|key|value|out)", "(ffn|experts)/(gate|up|down)", "../../etc", "a b\n\x00:*?", ".")
    stated = [
        {"adapter.targets": (pattern,), "data.train": f"{'x' * 300}{number}", "optimizer.weight_decay": number / 7}
        for number, pattern in enumerate(patterns)
    ]
    made = names(base, *stated)
    assert len(set(made)) == len(made)
    for name in made:
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+,=-]*", name)
        assert len(name) <= 120
    long = name_of(
        {f"section.field_{number}": "v" * 30 for number in range(20)},
        short_keys([]) | dict.fromkeys((f"section.field_{number}" for number in range(20)), "field"),
        "0123456789",
    )
    assert len(long) <= 120
    assert long.endswith("-01234567")


def test_keys_are_lengthened_where_they_are_ambiguous():
    fields = ["optimizer.name", "objective.name", "data.reading.format", "evaluation.every", "checkpoint.every", "seed"]
    assert list(short_keys(fields).values()) == [
        "optimizer.name",
        "objective.name",
        "format",
        "evaluation.every",
        "checkpoint.every",
        "seed",
    ]


NUMBERS = [
    (0.0, "0"),
    (1.0, "1"),
    (2e-05, "2e-5"),
    (0.025, "0.025"),
    (1 / 3, "0.3333"),
    (-1e-4, "-1e-4"),
    (150.0, "150"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS, ids=[text for _, text in NUMBERS])
def test_numbers_are_short(value, text):
    assert value_text(value) == text
    assert float(text) == pytest.approx(value, rel=1e-3)


def test_fields_and_back(base):
    with_mixture = runs_of(base, [{"data.mixture": {"a": sft.source("a.jsonl", weight=1).to_dict()}}])[0].config
    for config in (base, with_mixture):
        back = config_of(fields_of(config))
        assert back.to_dict() == config.to_dict()
        assert back.is_locked
    assert fields_of(base)["data.mixture"] == {}
