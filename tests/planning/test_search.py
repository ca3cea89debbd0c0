"""A search over meshes and memory savings, on emulated devices with the memory of smaller hardware."""

import dataclasses
import io
import os

import pytest
from rich.console import Console

from sft_jax.planning import planned, search
from sft_jax.planning.apart import Apart, Figures, figures_of
from sft_jax.planning.asked import case_of
from sft_jax.planning.compiled import Memory
from sft_jax.training.step_memory import step_memory
from tests.models import families
from tests.planning.emulated import LENGTH, QUIET, asked, limited, stand_in, tiny_config

PLENTY = 2**40


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """Four experts, of which a token takes two."""
    root = tmp_path_factory.mktemp("mixture")
    config = tiny_config(root)
    families.save(families.torch_model("mixtral"), root / "mixtral")
    config.model.source = str(root / "mixtral")
    return config


@pytest.fixture
def on_emulated(monkeypatch):
    stand_in(monkeypatch)


def sizes(case, axis):
    return {mesh[axis] for mesh in search.meshes(case)}


def by_formula(case):
    """In place of a compiler: what is estimated before it is asked."""
    program, limit = case.program(), case.topology.hardware.usable_bytes
    peak = step_memory(case.options, case.shape.decoder, program.mesh, program.model.execution).total
    estimate = planned.estimate_of(case.options, program, case.sizes, (), case.topology.hardware)
    return Figures(Memory(0, 0, peak, limit), estimate)


# ---- Meshes --------------------------------------------------------------------------------------------------------


def test_experts_are_split_where_there_are_some(config, mixture, on_emulated):
    assert sizes(limited(mixture, PLENTY), "expert") == {1, 2, 4}
    assert sizes(limited(config, PLENTY), "expert") == {1}


@pytest.mark.parametrize(("experts", "expected"), [(8, {1, 2, 4}), (6, {1, 2}), (3, {1}), (64, {1, 2, 4}), (0, {1})])
def test_sizes_of_expert_divide_experts_and_devices(mixture, experts, expected, on_emulated):
    case = limited(mixture, PLENTY)
    decoder = dataclasses.replace(case.shape.decoder, num_experts=experts)
    case = dataclasses.replace(case, shape=dataclasses.replace(case.shape, decoder=decoder))
    assert sizes(case, "expert") == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {1}),
        ({"data.sequence_length": 16_384}, {1, 2, 4}),
        ({"data.sequence_length": 16_383}, {1}),
        ({"data.sequence_length": 16_388}, {1, 2}),  # 4 devices want a multiple of 8
        ({"batch.sequences": 2}, {1, 2, 4}),
        ({"batch.sequences": 4}, {1}),
        ({"mesh.context": 2}, {2}),
        ({"mesh.expert": 2, "mesh.fsdp": 2}, {1}),
    ],
)
def test_sizes_of_context(config, changes, expected, on_emulated):
    assert sizes(limited(config, PLENTY).changed(changes), "context") == expected


def test_the_config_has_its_own_sizes_tried_too(config, on_emulated):
    case = limited(config, PLENTY).changed({"mesh.expert": 2, "mesh.context": 2, "mesh.fsdp": 1})
    assert (sizes(case, "expert"), sizes(case, "context")) == ({2}, {2})


def test_meshes_make_the_devices_and_are_all_different(mixture, on_emulated):
    case = limited(mixture, PLENTY).changed({"batch.sequences": 2})
    found = list(search.meshes(case))
    assert len({tuple(mesh.values()) for mesh in found}) == len(found)
    for mesh in found:
        case.changed({f"mesh.{axis}": size for axis, size in mesh.items()}).mesh()


# ---- The front -----------------------------------------------------------------------------------------------------


def test_a_search_finds_the_front(config, on_emulated, monkeypatch):
    """Against all combinations: none that fits is faster and smaller than one that is shown."""
    many = config.copy_and_resolve_references()
    many.batch.sequences = 16
    found = search.search(limited(many, PLENTY), QUIET, by_formula)
    assert {trial.changes["mesh.tensor"] for trial in found.trials} == {1, 2}  # of 2 heads of keys and values
    assert {trial.changes["batch.micro_batches"] for trial in found.trials} >= {1, 2, 4}
    assert all(trial.fits or trial.reason == search.OUTDONE for trial in found.trials)  # with so much memory
    monkeypatch.setattr(search, "outdone", lambda *_: False)
    everything = search.search(limited(many, PLENTY), QUIET, by_formula)
    assert all(trial.fits for trial in everything.trials)
    points = lambda front: [(trial.seconds, trial.peak) for trial in front]
    assert points(found.front) == points(everything.front)
    smallest = min(trial.peak for trial in everything.trials)
    assert found.front[-1].peak == smallest
    # With less memory than the smallest takes nothing fits, and less is compiled.
    none = search.search(limited(many, smallest - 1), QUIET, by_formula)
    assert not none.front
    assert len(none.trials) < len(found.trials)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "axis"), [({"batch.sequences": 4}, "expert"), ({"batch.sequences": 2}, "context")])
def test_meshes_of_experts_and_of_parts_of_sequences_are_tried(mixture, changes, axis, on_emulated):
    found = search.search(limited(mixture, PLENTY).changed(changes), QUIET, by_formula)
    assert {trial.changes[f"mesh.{axis}"] for trial in found.trials} >= {2, 4}
    assert {trial.changes[f"mesh.{axis}"] for trial in found.trials if trial.fits} & {2, 4}


def test_what_ends_the_compiler_is_named_and_the_rest_is_found(config, on_emulated):
    def ends_with_tensor(case):
        return None if case.options.mesh["tensor"] == 2 else by_formula(case)

    case = limited(config, PLENTY).changed({"batch.sequences": 4})
    found = search.search(case, QUIET, ends_with_tensor)
    ended = [trial for trial in found.trials if trial.reason == search.ENDED]
    assert len(ended) == 1  # what is larger on its mesh is left out
    assert {trial.changes["mesh.tensor"] for trial in found.front} == {1}
    console = Console(width=200, record=True, file=io.StringIO())
    search.show(found, console)
    text = console.export_text()
    assert f"as the compiler ended its process: {search.flags_of(ended[0])}" in text
    assert "The fastest: " in text


def test_where_the_compiler_always_ends_nothing_fits(config, on_emulated):
    found = search.search(limited(config, PLENTY), QUIET, lambda case: None)
    assert found.front == ()
    console = Console(width=200, record=True, file=io.StringIO())
    search.show(found, console)
    assert console.export_text().rstrip().endswith("None fits.")


def test_a_search_where_no_time_is_known(config):
    case = case_of(asked(config), "tiny", config, QUIET)
    with pytest.raises(ValueError, match="--search: times of cpu:4 are not known; give --topology of a TPU or GPU"):
        search.search(case, QUIET, by_formula)


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 9), (2, 5), (3, 7), (4, 1)], [(1, 9), (2, 5), (4, 1)]),
        ([(1, 9), (1, 3)], [(1, 3)]),
        ([(2, 3), (1, 3)], [(1, 3)]),
        ([], []),
    ],
)
def test_front_of_points(points, front):
    trials = [search.Trial({}, peak, True, True, seconds) for seconds, peak in points]
    trials.append(search.Trial({}, 0, False, True))
    trials.append(search.Trial({}, 0, None, False, reason=search.ENDED))
    assert [(trial.seconds, trial.peak) for trial in search.pareto(trials)] == front


@pytest.mark.parametrize(
    ("least", "seconds", "expected"),
    [(5, 2.0, True), (6, 3.0, True), (4, 2.0, False), (6, 1.9, False)],
)
def test_outdone_by_one_that_fits(least, seconds, expected):
    """Both as slow and as large as one of 2 s and 5 bytes; by what does not fit nothing is."""
    trials = [search.Trial({}, 5, True, True, 2.0), search.Trial({}, 1, False, True)]
    assert search.outdone(least, seconds, trials) == expected


# ---- A process of its own ------------------------------------------------------------------------------------------


def ended_by_micro_batches(case):
    return os.abort() if case.options.batch.micro_batches > 1 else Figures(Memory(0, 0, 1, None), None)


@pytest.mark.slow
def test_a_process_that_ends_is_started_again(config):
    case = case_of(asked(config), "tiny", config, QUIET)
    whole, halves = (case.changed({"batch.micro_batches": parts}) for parts in (1, 2))
    with Apart(ended_by_micro_batches) as apart:
        assert [apart(each) is not None for each in (whole, halves, whole)] == [True, False, True]


@pytest.mark.slow
def test_figures_of_another_process_are_those_of_this_one(config):
    case = dataclasses.replace(case_of(asked(config), "tiny", config, QUIET), quick=True)
    assert case.sizes.sequence_length == LENGTH
    with Apart() as apart:
        assert apart(case) == figures_of(case)
        with pytest.raises(ValueError, match="must be a multiple of"):
            apart(case.changed({"batch.micro_batches": 3}))
