"""Plans for emulated devices: what is read of the compiled step is what the config says, and what the formula says."""

import dataclasses
import io
import json
import re

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from sft_jax.hardware import hardware_named
from sft_jax.options import options_of
from sft_jax.planning import fitting, report
from sft_jax.planning.amounts import Amount, amount_of
from sft_jax.planning.asked import answer, case_of, targets_of
from sft_jax.planning.buffers import largest_results
from sft_jax.planning.compiled import Memory, bytes_needed
from sft_jax.planning.hlo import read
from sft_jax.planning.numbers import numbers_of
from sft_jax.planning.planned import plan_of, state_bytes
from sft_jax.runs.base import base_of
from sft_jax.sharding import make_mesh
from sft_jax.training.memory import BatchSizes
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state, make_model
from tests import tiny
from tests.planning.emulated import LENGTH, QUIET, asked, limited, planned, stand_in, tiny_config


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def plan(config):
    return planned(config)


def test_parameters_and_arguments_are_those_of_the_state(config, plan):
    """Of a state that was made, on the same mesh: numbers, and bytes of a device."""
    options = options_of(config)
    mesh = make_mesh(options.mesh, jax.devices()[:4])
    base = base_of(options.model)
    state = init_state(options, base, make_model(options, base.decoder, mesh), mesh, hyperparameters(options, 1, 2))
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.trained))
    assert plan.parameters() == (parameters, parameters)
    parts = state_bytes(plan.program)
    assert sum(parts.values()) - parts["batch"] == held
    assert plan.memory.arguments == sum(parts.values())
    assert parts["batch"] == 2 * (3 * LENGTH * 4 + 3 * 16 * 4)  # 2 sequences of a device
    assert plan.memory.peak >= plan.memory.arguments + plan.memory.temporaries
    assert plan.memory.fits  # of a CPU nothing is known


def test_parameters_are_gathered_once_a_pass_and_layer(plan):
    """Each kernel of the 2 layers: once forward, and in the backward pass once or twice; the largest is known."""
    gathered = [each for each in plan.collectives if each.kind == "all-gather" and each.scope.startswith("layers")]
    assert gathered
    assert all(each.in_loop and each.axes == ("fsdp",) and each.group == 4 for each in gathered)
    assert all(each.count % 2 == 0 for each in gathered)
    assert (
        max(each.bytes for each in gathered if each.scope == "layers/ffn") == 32 * 48 * 4
    )  # as tiny models multiply, in float32


def test_what_is_largest_is_named(plan):
    sizes = [buffer.bytes for buffer in plan.buffers]
    assert sizes == sorted(sizes, reverse=True)
    assert len(plan.buffers) == 8
    assert any(buffer.scope.startswith("layers") for buffer in plan.buffers)


def test_results_in_the_place_of_arguments_are_not_among_the_largest():
    """[256, 256] in the place of an argument, and a sum of its products that is made and let go of."""

    def step(weights, small):
        return weights - 0.5, jnp.sum(jnp.sin(small @ small.T))

    shapes = (jax.ShapeDtypeStruct((256, 256), jnp.float32), jax.ShapeDtypeStruct((128, 8), jnp.float32))
    program = read(jax.jit(step, donate_argnums=0).lower(*shapes).compile().as_text())
    found = largest_results(program, 3)
    assert found[0].sizes == (128, 128)
    assert found[0].bytes == 128 * 128 * 4


def test_more_micro_batches_take_less_memory_and_gather_more(config, plan):
    more = case_of(asked(config), "tiny", config, QUIET).changed({"batch.micro_batches": 2})
    halves = plan_of(more)
    assert halves.memory.temporaries < plan.memory.temporaries
    total = lambda each: sum(found.total for found in each.collectives if found.kind == "all-gather")
    assert total(halves) > 1.5 * total(plan)


@pytest.mark.parametrize(
    ("duration", "tokens", "expected"),
    [
        ("10 steps", None, Amount(10, 10 * 8 * LENGTH)),
        ("1e4 tokens", None, Amount(20, 20 * 8 * LENGTH)),  # 19.5 steps
        ("2 epochs", None, None),
        ("2 epochs", 1e4, Amount(20, 20 * 8 * LENGTH)),
        ("100 examples", None, None),
    ],
)
def test_amounts_without_data(config, duration, tokens, expected):
    options = dataclasses.replace(options_of(config), duration=duration)
    assert amount_of(options, BatchSizes(LENGTH, 16), None, tokens) == expected


@pytest.mark.parametrize("duration", ["10 steps", "1e4 tokens"])
def test_tokens_beside_a_duration_that_says_them(config, duration):
    options, sizes = dataclasses.replace(options_of(config), duration=duration), BatchSizes(LENGTH, 16)
    with pytest.raises(ValueError, match=f"duration is '{duration}'; leave --tokens out"):
        amount_of(options, sizes, None, 1e6)
    assert amount_of(options, sizes, None, None) is not None


def test_sizes_and_duration_of_the_data(config):
    with_data = config.copy_and_resolve_references()
    with_data.duration = "1 epochs"
    case = case_of(asked(with_data, reads_data=True), "tiny", with_data, QUIET)
    assert case.sizes.sequence_length == LENGTH
    amount = amount_of(case.options, case.sizes, case.plan, None)
    assert amount.steps == case.plan.steps_for("epochs", 1)
    assert amount.tokens == amount.steps * 8 * LENGTH


@pytest.mark.parametrize(("share", "targets"), [(0.25, 16), (0.26, 24), (0.0, 8), (1.0, 64)])
def test_targets_by_share(config, share, targets):
    assert targets_of(options_of(config), share) == targets


def test_all_positions_need_no_share(config):
    everywhere = config.copy_and_resolve_references()
    everywhere.objective.positions = "all"
    assert targets_of(options_of(everywhere), 0.1) == LENGTH


def test_sequences_longer_than_the_model_knows(config):
    long = config.copy_and_resolve_references()
    long.data.sequence_length = 1024
    with pytest.raises(ValueError, match=r"--config.data.sequence_length=1024: the model knows 512 positions; give "):
        case_of(asked(long), "tiny", long, QUIET)
    long.model.max_positions = 1024  # as advised
    assert case_of(asked(long), "tiny", long, QUIET).shape.decoder.max_positions == 1024


def test_the_shape_of_a_model_is_that_of_its_config_alone(config, tmp_path):
    """Neither weights nor tokenizer are there."""
    (tmp_path / "config.json").write_text(json.dumps(tiny.HF_CONFIG | {"num_hidden_layers": 2}))
    bare = config.copy_and_resolve_references()
    bare.model.source = str(tmp_path)
    assert case_of(asked(bare), "tiny", bare, QUIET).shape.decoder == base_of(options_of(config).model).decoder


def test_the_published_shape_of_a_model_that_is_not_there(config):
    published = config.copy_and_resolve_references()
    published.model.source = "random:meta-llama/Llama-3.1-8B?num_hidden_layers=2"
    shape = case_of(asked(published), "tiny", published, QUIET).shape
    assert (shape.decoder.num_layers, shape.decoder.model_dim, shape.decoder.vocab_size) == (2, 4096, 128256)
    assert shape.origin == "the published shape of meta-llama/Llama-3.1-8B, of which nothing was read"


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (64.00G) "
            "exceeds available HBM (15.75G).",
            64 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 21.50G "
            "of 15.75G hbm. Exceeded hbm capacity by 5.75G.",
            int(21.5 * 2**30),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 200.00M of 128.00M vmem.", None),
        ("INTERNAL: the compiler is broken", None),
    ],
)
def test_what_the_tpu_compiler_says_is_needed(message, needed):
    assert bytes_needed(message) == needed


def test_memory_against_what_there_is():
    memory = Memory(arguments=6, temporaries=5, peak=11, limit=8)
    assert (memory.fits, memory.over) == (False, 3)
    assert Memory(6, 2, 8, 8).over == 0
    assert Memory(6, 5, 11, None).fits


@pytest.mark.parametrize("width", [60, 100, 160])
def test_the_report_has_all_that_was_found(plan, width):
    console = Console(width=width, record=True, file=io.StringIO())
    report.show(plan, console, None)
    text = console.export_text()
    assert all(len(line) <= width or not line.startswith(" ") for line in text.splitlines())
    for name in ("parameters", "mesh", "memory a device", "FLOPs a step", "Largest results", "Collectives of a step"):
        assert name in text
    assert "fsdp=4" in text
    assert "all-gather" in text


def test_json_is_complete(plan):
    numbers = json.loads(json.dumps(numbers_of(plan)))
    assert numbers["memory"]["peak"] == plan.memory.peak
    assert numbers["mesh"] == {"replica": 1, "fsdp": 4, "expert": 1, "context": 1, "tensor": 1}
    assert sum(each["bytes"] * each["count"] for each in numbers["collectives"]) == sum(
        each.total for each in plan.collectives
    )
    assert numbers["estimate"] is None  # of a CPU
    assert numbers["memory"]["fits"] is None  # of which it is not known


def test_of_a_program_that_is_not_there_nothing_is_known(plan):
    """Where the compiler gives up there is none: not one without collectives."""
    given_up = dataclasses.replace(plan.compiled, program=None)
    numbers = numbers_of(dataclasses.replace(plan, compiled=given_up, collectives=(), buffers=()))
    assert (numbers["collectives"], numbers["largest_results"]) == (None, None)


def test_a_gpu_is_not_all_for_jax(monkeypatch):
    """Of 80 GB JAX has 60 by default, and NCCL and the driver need some."""
    h100 = hardware_named("h100")
    notes = lambda share: list(report.share_notes(int(share * h100.memory_bytes), h100))
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(name, raising=False)
    assert notes(0.7) == notes(0.95) == []
    asked = re.search(r"JAX takes 75% of a GPU's memory: with (\w+)=([\d.]+) in the environment", notes(0.8)[0])
    monkeypatch.setenv(*asked.groups())
    assert notes(0.8) == []
    assert h100.usable_bytes == int(0.92 * h100.memory_bytes)
    monkeypatch.setenv(asked[1], "1.0")
    assert "No more than about 92%" in notes(0.95)[0]
    monkeypatch.setenv(asked[1], "all")
    with pytest.raises(ValueError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=all in the environment must be a share"):
        notes(0.5)


# ---- What would fit: emulated devices, with the memory of hardware that is smaller than they are ------


@pytest.fixture
def on_emulated(monkeypatch):
    stand_in(monkeypatch)


def test_a_time_without_fused_attention_says_so(config, on_emulated):
    plan = plan_of(limited(config, 2**40))
    assert plan.program.model.execution.attention_backend == "blocked"
    assert "Timed as if attention were a fused kernel, which blocked is not" in " ".join(report.notes(plan))


@pytest.mark.slow
def test_what_would_fit_fits(config, on_emulated):
    """Of half the memory: micro-batches are enough, and so are twice the devices; each is compiled again here."""
    loose = config.copy_and_resolve_references()
    loose.execution.remat, loose.batch.sequences = "none", 32
    needed = plan_of(limited(loose, 2**40)).memory.peak
    limit = int(0.6 * needed)
    plan = plan_of(limited(loose, limit))
    assert not plan.memory.fits
    assert plan.memory.over == needed - limit
    ways = list(fitting.ways_to_fit(plan, QUIET))
    assert len(ways) == 2
    assert all(way.peak <= limit for way in ways)
    by_config, by_devices = ways
    assert by_devices.topology.name == "cpu:8"
    assert not by_devices.changes
    again = plan_of(plan.case.changed(by_config.changes))
    assert again.memory.fits
    text = fitting.text_of(fitting.Ways(plan, tuple(ways)))
    assert "--topology=cpu:8" in text
    for name, value in by_config.changes.items():
        assert f"--config.{name}={value}" in text
    # None of the changes could be left out.
    for name in by_config.changes:
        fewer = {other: value for other, value in by_config.changes.items() if other != name}
        assert not plan_of(plan.case.changed(fewer)).memory.fits


def test_where_nothing_fits_that_is_said(config, on_emulated):
    plan = plan_of(limited(config, 1000))
    ways = fitting.ways_to_fit(plan, QUIET)
    assert list(ways) == []
    assert fitting.text_of(ways).startswith("Nothing that was tried makes it fit")


def test_two_configs_side_by_side(config, plan, tmp_path):
    """The second has an adapter: what differs stands beside one another, also as JSON."""
    lora = config.copy_and_resolve_references()
    lora.adapter.method = "lora"
    console = Console(width=140, record=True, file=io.StringIO())
    both = asked(config, other=("with an adapter", lora))
    assert answer(both, console, str(tmp_path / "both.json"), None)
    text = console.export_text()
    assert "with an adapter" in text
    first, second = json.loads((tmp_path / "both.json").read_text())
    assert first["parameters"]["model"] == second["parameters"]["model"] == first["parameters"]["trained"]
    assert second["parameters"]["trained"] < first["parameters"]["trained"]
    assert second["memory"]["arguments"] < first["memory"]["arguments"]
