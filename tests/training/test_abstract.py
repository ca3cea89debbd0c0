"""What is said of a train state without one is what `init_state` makes, whatever is trained and however it is kept."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.options import options_of
from sft_jax.runs.base import base_of
from sft_jax.sharding import make_mesh, path_string
from sft_jax.training.abstract import abstract_state
from sft_jax.training.initial_adapter import open_initial_adapter
from sft_jax.training.optimizer import hyperparameters
from sft_jax.training.setup import init_state, make_model
from tests import tiny
from tests.chips import torus
from tests.training.options.combinations import write_inputs

SCAN, UNROLLED = {"execution.layer_layout": "scan"}, {"execution.layer_layout": "unrolled"}
CUBE = {"mesh.replica": 2, "mesh.fsdp": 2, "mesh.tensor": 2}
EXPERTS = {"mesh.fsdp": 1, "mesh.expert": 4, "mesh.tensor": 2}
NEW = {"model.new_tokens": ("<|x|>", "<|y|>")}
ALL = {"adapter.targets": (".*",)}
CASES: dict[str, tuple[str, str, dict]] = {  # model, argument of the config, options
    "all weights": ("tied", "full", SCAN),
    "all weights, unrolled, their average": ("untied", "full", {**UNROLLED, **CUBE, "ema.decay": 0.9}),
    "bfloat16": ("tied", "full", {**SCAN, **NEW, "precision.params": "bfloat16"}),
    "a sum over all steps": ("tied", "full", {"precision.params": "bfloat16", "optimizer.name": "schedule_free"}),
    "a mixture of experts": ("experts", "full", {**SCAN, **EXPERTS, "optimizer.name": "muon"}),
    "moments in 8 bits": ("tied", "full", {**CUBE, "optimizer.name": "adam8bit"}),
    "moments by rows and columns": ("wide", "full", {**SCAN, "optimizer.name": "adafactor"}),
    "one moment, groups": ("tied", "full", {"optimizer.name": "lion", "optimizer.groups": (".*: weight_decay=0",)}),
    "the last layer": ("tied", "full", {"trained.last_layers": 1, "precision.frozen": "bfloat16"}),
    "norms": ("untied", "full", {**SCAN, "trained.weights": (".*norm/scale",), "precision.frozen": "float16"}),
    "LoRA beside 8 bits, their average": ("untied", "lora", {**SCAN, "precision.quantized": "int8", "ema.decay": 0.9}),
    "LoRA and new rows beside 4 bits": (
        "tied",
        "lora",
        {**UNROLLED, **CUBE, **NEW, "precision.quantized": "nf4", "adapter.train_new_tokens": True},
    ),
    "LoRA of experts": ("experts", "lora", {**UNROLLED, **EXPERTS, **ALL, "precision.quantized": "nf4"}),
    "DoRA beside float16": ("untied", "lora", {"adapter.method": "dora", "precision.frozen": "float16"}),
    "PiSSA": ("untied", "lora", {**SCAN, **CUBE, **ALL, "adapter.method": "pissa"}),
    "new rows alone": (
        "untied",
        "full",
        {**SCAN, **NEW, "adapter.train_new_tokens": True, "precision.frozen": "bfloat16"},
    ),
    "an adapter to begin with": ("tied", "full", {"adapter.method": "lora", "adapter.initial": "adapter"}),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    made = write_inputs(tmp_path_factory.mktemp("abstract"))
    tiny.write_checkpoint(made / "wide", num_hidden_layers=2, hidden_size=128, intermediate_size=160, head_dim=32)
    return made


def set_up(root, case):
    """Config, base, layer layout and adapter to begin with of a case."""
    model, arg, options = CASES[case]
    options = {name: str(root / value) if name == "adapter.initial" else value for name, value in options.items()}
    config = tiny.config(root, arg, **{"model.source": str(root / model)} | options)
    base = base_of(options_of(config).model)
    initial = open_initial_adapter(options_of(config).adapter, base)
    return config if initial is None else initial.in_config(config), base, initial


def made_state(root, case):
    """What the run of a case begins with, and what is said of it."""
    config, base, initial = set_up(root, case)
    mesh = make_mesh(config.mesh.to_dict(), jax.devices())
    model = make_model(options_of(config), base.decoder, mesh, base.new_token_ids)
    described = abstract_state(options_of(config), base.decoder, mesh, model.layout)
    with jax.set_mesh(mesh):
        return init_state(
            options_of(config), base, model, mesh, hyperparameters(options_of(config), 2, 6), initial
        ), described


def by_path(state, of_leaf):
    return {path_string(path): of_leaf(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


@pytest.mark.parametrize("case", CASES)
def test_the_state_is_as_described(root, case):
    state, described = made_state(root, case)
    assert jax.tree.structure(state) == jax.tree.structure(described)
    kind = lambda leaf: (leaf.shape, np.dtype(leaf.dtype), leaf.sharding)
    assert by_path(state, kind) == by_path(described, kind)


@pytest.mark.parametrize("case", CASES)
def test_devices_need_not_be_there_and_nothing_is_computed(root, case):
    config, base, _ = set_up(root, case)
    here, elsewhere = (make_mesh(config.mesh.to_dict(), devices) for devices in (jax.devices(), torus(2, 4)))
    compiled = []
    listen = lambda name, _, **more: compiled.append(name) if "backend_compile" in name else None
    jax.clear_caches()  # what was compiled before would be computed without being compiled
    jax.monitoring.register_event_duration_secs_listener(listen)
    layout = "unrolled" if config.trained.last_layers else "scan"
    try:
        with jax.transfer_guard("disallow_explicit"):
            described = abstract_state(options_of(config), base.decoder, elsewhere, layout)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    kind = lambda leaf: (leaf.shape, np.dtype(leaf.dtype), leaf.sharding.spec)
    assert by_path(described, kind) == by_path(abstract_state(options_of(config), base.decoder, here, layout), kind)
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(described)} == {elsewhere}


def test_a_base_with_other_weights_is_refused(root):
    config, base, _ = set_up(root, "all weights")
    mesh = make_mesh(config.mesh.to_dict(), jax.devices())
    model = make_model(options_of(config), base.decoder, mesh)
    in_half = lambda *asked: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), base.params(*asked))
    with (
        jax.set_mesh(mesh),
        pytest.raises(ValueError, match=r"params/embedding is bfloat16 \[320, 32\], expected float32 \[320, 32\]"),
    ):
        init_state(
            options_of(config),
            dataclasses.replace(base, params=in_half),
            model,
            mesh,
            hyperparameters(options_of(config), 2, 6),
        )
