"""What may differ between runs of one program, and what is refused before anything is read or written."""

import pytest

from configs.sft import source
from sft_jax.training import run
from sft_jax.training.stacked import NotStackableError, fields, groups_of, run_stacked
from sft_jax.training.stacked.fields import may_differ
from tests import tiny
from tests.models import families

ONE_STEP = {"duration": "1 steps", "data.held_out": "", "checkpoint.best_metric": ""}


@pytest.mark.parametrize(
    ("changes", "common", "named"),
    [
        ([{"batch.sequences": 8}, {"batch.sequences": 16}], {}, r"--config\.batch\.sequences: 8, 16 may not differ"),
        ([{}, {"data.sequence_length": 96}], {}, r"--config\.data\.sequence_length: 128, 96 may not differ"),
        ([{}, {"adapter.targets": ("ffn/up",)}], {}, r"--config\.adapter\.targets: .* may not differ"),
        ([{}, {"optimizer.schedule": "linear"}], {}, r"--config\.optimizer\.schedule: 'cosine', 'linear' may not"),
        ([{}, {"precision.matmul": "bfloat16"}], {}, r"--config\.precision\.matmul: 'float32', 'bfloat16' may not"),
        ([{}, {"objective.kl_to_base": 0.1}], {}, r"objective\.kl_to_base: 0\.0, 0\.1: either all are 0, or none"),
        ([{}, {"ema.decay": 0.9}], {}, r"--config\.ema\.decay: 0\.0, 0\.9: either all are 0, or none is"),
        ([{"seed": 1}, {}], {"profile.start": 2}, r"--config\.profile\.start: 2: a run is profiled by itself"),
        (
            [{}, {"optimizer.groups": ("adapters/.*/b: learning_rate_factor=16",)}],
            {},
            r"--config\.optimizer\.groups: .*only their numbers may differ",
        ),
        (
            [{"adapter.rank": 2}, {"adapter.rank": 4}],
            {"optimizer.name": "adam8bit"},
            r"--config\.adapter\.rank: 2, 4: ranks may not differ under --config\.optimizer\.name=adam8bit",
        ),
        (
            [{"model.max_positions": 256}, {"trained.weights": ("x",)}],
            {},
            r"(?s)--config\.model\.max_positions: 256, 0 may not differ.*--config\.trained\.weights: .* may not differ",
        ),
    ],
)
def test_what_cannot_be_a_batch_axis_is_refused(changes, common, named, tmp_path):
    configs = [tiny.config(tmp_path, "lora", **{**common, **change}) for change in changes]
    with pytest.raises(NotStackableError, match=named):
        run_stacked(configs, [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a").exists()


def test_every_field_that_may_differ_is_one(tmp_path):
    """Or a section."""
    names = fields.flatten(tiny.config(tmp_path, "lora").to_dict())
    for allowed in fields.MAY_DIFFER:
        assert any(name == allowed or name.startswith(f"{allowed}.") for name in names) or allowed == "defaults", (
            allowed
        )
    assert may_differ("data.reading.format")
    assert not may_differ("model.source")


@pytest.mark.parametrize(
    ("workdirs", "named"),
    [(["a"], "expected as many workdirs"), (["a", "a"], "each run needs a directory of its own")],
)
def test_calls_that_make_no_sense(workdirs, named, tmp_path):
    configs = [tiny.config(tmp_path, "lora", seed=seed) for seed in range(2)]
    with pytest.raises(ValueError, match=named):
        run_stacked(configs, [tmp_path / name for name in workdirs])


@pytest.mark.slow
def test_slots_of_every_token_beside_fewer(tmp_path):
    """Rows without a prompt have a target at every token, which is not known before they are read."""
    tiny.config(tmp_path)
    configs = [
        tiny.config(tmp_path, "lora", **{"data.masking.train_on": which, "data.sequence_length": 96})
        for which in ("assistant", "all")
    ]
    with pytest.raises(NotStackableError, match=r"slots for targets.*Give --config\.objective\.positions=all"):
        run_stacked(configs, [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "a").exists()
    configs = [config.copy_and_resolve_references().unlock() for config in configs]
    for config in configs:
        config.objective.positions, config.duration = "all", "1 steps"
    assert [end.state for end in run_stacked(configs, [tmp_path / "a", tmp_path / "b"])] == ["finished"] * 2


def test_other_numbers_of_sources(tmp_path):
    """What a mixture mixes may differ, and how; not of how many sources the losses are measured."""
    tiny.config(tmp_path)
    paths = [tiny.write_rows(tmp_path / f"{seed}.jsonl", 24, seed=seed) for seed in (3, 4)]

    def mixed(*weights):
        config = tiny.config(tmp_path, "lora", **ONE_STEP).copy_and_resolve_references().unlock()
        config.data.train = ""
        for path, weight in zip(paths, weights, strict=False):
            config.data.mixture[f"of_{path.stem}"] = source(str(path), weight=weight)
        return config.lock()

    workdirs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(NotStackableError, match=r"the runs have \[1, 2\] sources, .*; expected as many in each$"):
        run_stacked([mixed(1), mixed(1, 2)], workdirs)
    assert not workdirs[0].exists()
    assert [end.state for end in run_stacked([mixed(2, 1), mixed(1, 2)], workdirs)] == ["finished"] * 2


@pytest.mark.slow
def test_ranks_under_a_rule_that_looks_at_whole_matrices(tmp_path):
    """They train in groups that agree in them, as the message says; or under a rule that takes entries one by one."""
    configs = lambda rule: [
        tiny.config(tmp_path, "lora", **ONE_STEP, **{"adapter.rank": rank, "optimizer.name": rule}) for rank in (2, 4)
    ]
    said = r"(?s)ranks may not differ under --config\.optimizer\.name=adam8bit, .*\nTrain them in groups that agree"
    with pytest.raises(NotStackableError, match=said):
        run_stacked(configs("adam8bit"), [tmp_path / "a", tmp_path / "b"])
    groups = groups_of(configs("adam8bit"), lambda config: config, 8)
    assert [[config.adapter.rank for config in group] for group in groups] == [[2], [4]]
    for number, group in enumerate(groups):
        assert [end.state for end in run_stacked(group, [tmp_path / str(number)])] == ["finished"]
    assert len(groups_of(configs("adamw"), lambda config: config, 8)) == 1


def test_groups(tmp_path):
    """In order, as large as they may be; what fits no other stays by itself."""
    changes = [
        {"seed": 0},
        {"seed": 1, "precision.matmul": "bfloat16"},
        {"seed": 2},
        {"optimizer.learning_rate": 1e-3},
        {"batch.sequences": 16},
        {"seed": 3, "precision.matmul": "bfloat16"},
    ]
    runs = [(number, tiny.config(tmp_path, "lora", **change)) for number, change in enumerate(changes)]
    numbers = lambda largest: [
        [number for number, _ in group] for group in groups_of(runs, lambda run: run[1], largest)
    ]
    assert numbers(8) == [[0, 2, 3], [1, 5], [4]]
    assert numbers(2) == [[0, 2], [1, 5], [3], [4]]
    assert numbers(1) == [[number] for number in range(6)]


@pytest.mark.slow
def test_experts_without_a_bound(tmp_path):
    """Those with one are trained; see docs/sweeps.md."""
    families.save(families.torch_model("mixtral"), tmp_path / "model")
    tiny.tokenizer().save_pretrained(tmp_path / "model")
    tiny.write_rows(tmp_path / "train.jsonl", 24)
    configs = lambda **changes: [tiny.config(tmp_path, "lora", seed=n, **ONE_STEP, **changes) for n in (0, 1)]
    workdirs = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(NotStackableError, match=r"--config\.experts\.capacity=0\.0: .*Give a bound"):
        run_stacked(configs(), workdirs)
    assert [end.state for end in run_stacked(configs(**{"experts.capacity": 1.25}), workdirs)] == ["finished"] * 2
    assert run(configs()[0], tmp_path / "by itself").step == 1
