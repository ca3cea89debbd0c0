"""From a config to what a run needs beside its data (preparation/run_data.py): model, step, state. It only reads."""

import dataclasses
from typing import Any

import jax
import ml_collections
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.variables import canonical_path, merge, split
from sft_jax.objectives import Settings, get_objective
from sft_jax.runs.adapting import adapter_spec, has_adapters, init_beside
from sft_jax.runs.base import Base
from sft_jax.runs.freezing import base_dtype, trained_predicate
from sft_jax.sharding import data_shards
from sft_jax.training.abstract import abstract_state, beside_given, filled, made_beside
from sft_jax.training.initial_adapter import InitialAdapter
from sft_jax.training.optimizer import OptimizerSettings, optimizer_settings
from sft_jax.training.state import TrainState
from sft_jax.training.step import StepSettings

Tree = Any
_SCAN_TOKENS = 1024  # of a micro-batch, see `resolve_execution`


def resolve_execution(config: ml_collections.ConfigDict, platform: str) -> Execution:
    """How the decoder runs; `auto` takes what was measured faster (see benchmarks/).

    On accelerators: scanned layers (compile time) and full remat (memory). On CPU: unrolled without remat for full
    fine-tuning and for small batches under adapters; above `_SCAN_TOKENS`, adapters are no slower with scan and full
    remat, in much less memory. Where only the last layers are trained they are never scanned: stacked layers are one
    array, trained or not.
    """
    layout, remat = config.execution.layer_layout, config.execution.remat
    tokens = config.batch.sequences * config.data.sequence_length // config.batch.micro_batches
    in_little_memory = platform != "cpu" or (has_adapters(config) and tokens > _SCAN_TOKENS)
    scanned = in_little_memory and not config.trained.last_layers
    return Execution(
        matmul_dtype=config.precision.matmul,
        activation_dtype=config.precision.activations,
        layer_layout=("scan" if scanned else "unrolled") if layout == "auto" else layout,
        remat=("full" if in_little_memory else "none") if remat == "auto" else remat,
        attention_backend=config.execution.attention,
    )


def make_model(
    config: ml_collections.ConfigDict, decoder: DecoderConfig, platform: str, new_token_ids: range = range(0)
) -> Decoder:
    """The decoder with its adapters, as the config asks, for training; `in_use` is what to measure.

    Args:
        config: the experiment config.
        decoder: of the base.
        platform: of the devices it runs on (`sharding.platform_of`).
        new_token_ids: ids of the new tokens.

    Raises:
        ValueError: a bound on experts for a model that has none.
    """
    if config.experts.capacity:
        if not decoder.num_experts:
            raise ValueError(f"--config.experts.capacity={config.experts.capacity}: this model has no experts")
        decoder = dataclasses.replace(decoder, expert_capacity=config.experts.capacity)
    spec = adapter_spec(config, new_token_ids, training=True)
    return Decoder(decoder, resolve_execution(config, platform), spec)


def in_use(model: Decoder) -> Decoder:
    """The decoder as it is measured and put to use, without what only training has: dropout, a bound on experts."""
    adapter = model.adapter and dataclasses.replace(model.adapter, dropout=False)
    return model.clone(config=dataclasses.replace(model.config, expert_capacity=0.0), adapter=adapter)


def step_settings(config: ml_collections.ConfigDict, mesh: Mesh) -> StepSettings:
    """What is static in the compiled step.

    Raises:
        ValueError: rows, micro-batches and mesh do not divide; names the flags.
    """
    rows, parts, shards = config.batch.sequences, config.batch.micro_batches, data_shards(mesh)
    if rows % (parts * shards):
        raise ValueError(
            f"--config.batch.sequences={rows} must be a multiple of --config.batch.micro_batches={parts} x {shards} "
            "(the mesh axes replica x fsdp x expert, over which rows are split)"
        )
    chunk_tokens = config.objective.head_chunk_tokens
    rows_at_once = rows // (parts * shards)
    return StepSettings(
        objective=get_objective(config.objective.name),
        objective_settings=Settings(config.objective.label_smoothing, config.objective.z_loss),
        optimizer=optimizer_settings(config),
        schedule=config.optimizer.schedule,
        micro_batches=parts,
        head_chunk=max(1, chunk_tokens // rows_at_once) if chunk_tokens else 0,
        noise=config.objective.neftune_alpha > 0,
        balance=config.experts.balance_loss > 0,
        seed=config.seed,
    )


def init_state(
    config: ml_collections.ConfigDict,
    base: Base,
    model: Decoder,
    mesh: Mesh,
    hyper: dict[str, jax.Array],
    initial: InitialAdapter | None = None,
) -> TrainState:
    """The state at step 0, every array on its devices.

    Pretrained weights are read on the host, then placed, and so is an adapter to begin with; fresh adapters and moments
    are made where they live.
    """
    layout = model.execution.layer_layout
    abstract = abstract_state(config, base.decoder, mesh, layout)
    tree = {"params": base.params(layout, base_dtype(config), mesh, config.precision.quantized)}
    if has_adapters(config):
        beside = merge(abstract.trained, abstract.frozen)[adapters.COLLECTION]
        tree[adapters.COLLECTION] = _fresh_adapters(config, tree["params"], beside, hyper, layout, base.new_token_ids)
    if initial is not None:
        tree[adapters.COLLECTION] |= initial.placed(tree["params"], layout, mesh)
    trained, frozen = split(tree, trained_predicate(config, base.decoder.num_layers))
    if not has_adapters(config):
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.precision.frozen), frozen)
    return fresh_state(abstract, trained, frozen, hyper, optimizer_settings(config))


def _fresh_adapters(
    config: ml_collections.ConfigDict,
    params: Tree,
    abstract: Tree,
    hyper: dict[str, jax.Array],
    layout: LayerLayout,
    new_token_ids: range,
) -> Tree:
    """What is trained beside the weights at step 0, as `abstract` says.

    Where kernels are read for it, one weight (of all layers) after the other: so no more than one is dequantized, or
    taken apart by PiSSA, at a time. All in one program would also set several decompositions and collectives side by
    side, in which emulated CPU devices were seen to wait for each other for ever.
    """

    def make(params: Tree) -> dict[str, jax.Array]:
        kernels = to_layout(dequantized_tree(params), "scan")
        return flatten_dict(init_beside(kernels, config, hyper, layout, new_token_ids), sep="/")

    shardings = {path: leaf.sharding for path, leaf in flatten_dict(abstract, sep="/").items()}
    reads = config.adapter.method != "none" and adapters.get_method(config.adapter.method).INIT_READS_KERNEL
    by_program: dict[str, list[str]] = {}
    for path in shardings:
        weight = canonical_path(path).rpartition("/")[0]
        by_program.setdefault(weight if reads else "", []).append(path)
    made: dict[str, jax.Array] = {}
    for paths in by_program.values():
        pick = lambda params, paths=paths: _only(make(params), paths)
        made |= jax.block_until_ready(jax.jit(pick, out_shardings={path: shardings[path] for path in paths})(params))
    return unflatten_dict(made, sep="/")


def _only(arrays: dict[str, jax.Array], paths: list[str]) -> dict[str, jax.Array]:
    return {path: arrays[path] for path in paths}


def fresh_state(
    abstract: TrainState, trained: Tree, frozen: Tree, hyper: dict[str, jax.Array], optimizer: OptimizerSettings
) -> TrainState:
    """The state at step 0 that `abstract` describes, around its parameters; the rest is made where it lives.

    Raises:
        ValueError: these are not the parameters that it describes; names them.
    """
    ema = bool(abstract.ema)
    trained, frozen = filled((abstract.trained, abstract.frozen), (trained, frozen))
    hyper = filled(abstract.hyper, hyper)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, beside_given(abstract))
    made = jax.jit(lambda trained, hyper: made_beside(trained, hyper, optimizer, ema=ema), out_shardings=shardings)
    return TrainState(trained=trained, frozen=frozen, hyper=hyper, **made(trained, hyper))
