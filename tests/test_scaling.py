"""The writer of docs/scaling.md: which plans it makes, how, and what of them stands in its tables."""

import importlib
from pathlib import Path

import pytest

from benchmarks.scaling import (
    CHIPS,
    HEADS,
    MODULES,
    SHIPPED,
    all_plans,
    chips_of,
    chips_row,
    shipped_row,
    table_of,
    tables_of,
    with_tables,
)
from sft_jax.hardware import hardware_named
from sft_jax.runs.workdir import flatten

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
GIB = 2**30
PLAN = {
    "topology": {"name": "v5e:4x4", "devices": 16},
    "batch": {"sequences": 16, "sequence_length": 4096, "micro_batches": 2},
    "execution": {"remat": "full"},
    "memory": {"peak": 10 * GIB, "limit": 15.75 * GIB, "fits": True, "state": {"trained": GIB, "optimizer": 2 * GIB}},
    "flops": {"model": 3e15, "computed": 3.9e15},
    "collectives": [
        {"axes": ["fsdp"], "bytes": GIB // 32, "count": 64},
        {"axes": ["replica", "fsdp"], "bytes": GIB // 2, "count": 1},
    ],
    "estimate": {"seconds": 2.345, "mfu": 0.412, "tokens_per_second": 32000.0, "bound_by": "matrix products"},
}


def test_every_shipped_config_is_planned_for_its_hardware():
    plans = {plan.config: plan for plan in all_plans() if plan.table == SHIPPED and not plan.overrides}
    for module in MODULES:
        for arg, (topology, _) in importlib.import_module(f"configs.{module}").SHIPPED.items():
            assert plans.pop(f"{module}.py:{arg}").topology == topology
            hardware_named(topology.partition(":")[0])
    assert plans == {}


def test_all_configs_for_hardware_are_in_the_modules():
    configs = Path(__file__).parents[1] / "configs"
    assert {path.stem for path in configs.glob("*.py") if "SHIPPED = {" in path.read_text()} == set(MODULES)


def test_one_model_goes_from_16_to_4096_chips_with_a_sequence_each():
    plans = [plan for plan in all_plans() if plan.table == CHIPS]
    assert [chips_of(plan.topology) for plan in plans] == [16, 64, 256, 1024, 4096]
    for plan in plans:
        assert dict(plan.overrides)["batch.sequences"] == chips_of(plan.topology)


def test_commands_override_fields_that_exist(tmp_path):
    fields = flatten(importlib.import_module("configs.sft").get_config().to_dict())
    for plan in all_plans():
        assert all(name in fields for name, _ in plan.overrides)
    (long,) = (plan for plan in all_plans() if plan.table == SHIPPED and ("mesh.context", 1) in plan.overrides)
    given = ["--config.mesh.context=1", "--config.batch.sequences=16", "--topology=v5p:2x2x4"]
    assert set(given) < set(long.command(tmp_path / long.file, quick=False))
    assert "--quick" in long.command(tmp_path / long.file, quick=True)
    least = [plan for plan in all_plans() if ("precision.gradients", "bfloat16") in plan.overrides]
    assert [plan.name for plan in least] == ["llama3.py:8b_v5e_4x4 execution.remat=full precision.gradients=bfloat16"]
    assert len({plan.file for plan in all_plans()}) == len(all_plans())


def test_a_row_of_a_shipped_config():
    assert shipped_row("llama3.py:8b_v5e_4x4", PLAN) == [
        "`llama3.py:8b_v5e_4x4`",
        "v5e:4x4",
        "16 x 4,096 in 2",
        "full",
        "10.0 of 15.8",
        "2.5",
        "3,000 (1.30)",
        "2.35",
        "41 %",
        "2,000",
        "matrix products",
    ]
    assert len(shipped_row("x", PLAN)) == len(HEADS[SHIPPED])


def test_what_does_not_fit_says_so():
    full = PLAN | {"estimate": None, "memory": PLAN["memory"] | {"peak": 20 * GIB, "fits": False}}
    row = shipped_row("x", full)
    assert row[4] == "20.0 of 15.8: does not fit"
    assert row[-4:] == ["–"] * 4
    assert len(chips_row(full)) == len(HEADS[CHIPS])


def test_a_row_of_chips():
    row = chips_row(PLAN)
    assert row == ["v5e:4x4", "16", "3.00", "10.0 of 15.8", "fsdp 2.0, replica x fsdp 0.5", "2.35", "41 %"]


def test_tables_go_between_their_marks():
    page = "a\n<!-- one: begin -->\nold\n<!-- one: end -->\nb\n"
    once = with_tables(page, {"one": table_of(("x", "y"), [["1", "2"]])})
    assert once == "a\n<!-- one: begin -->\n\n| x | y |\n| --- | --- |\n| 1 | 2 |\n\n<!-- one: end -->\nb\n"
    assert with_tables(once, {"one": table_of(("x", "y"), [["1", "2"]])}) == once
    with pytest.raises(ValueError, match="no marks <!-- two: begin -->"):
        with_tables(page, {"two": ""})


def test_the_page_has_the_marks_and_plans_that_are_missing_have_no_row(tmp_path):
    tables = tables_of(all_plans(), tmp_path)
    assert all(table.count("\n") == 1 for table in tables.values())
    with_tables(PAGE.read_text(), tables)


def test_what_the_compiler_gave_up_has_no_figures_of_collectives():
    """Not those of a program that exchanges nothing."""
    given_up = PLAN | {"collectives": None, "estimate": None}
    assert shipped_row("a", given_up)[HEADS[SHIPPED].index("collectives, GiB")] == "–"
    assert chips_row(given_up)[HEADS[CHIPS].index("collectives, GiB")] == "–"
