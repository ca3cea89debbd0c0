"""Builds what a run needs beside its data: the model, the static settings of the step, and the state at step 0."""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, Sharding

from sft_jax.models import adapters
from sft_jax.models.attention.choice import choose_backend
from sft_jax.models.config import DecoderConfig, Execution
from sft_jax.models.context import check_length
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import resolved, to_layout
from sft_jax.models.loading import cast
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.variables import canonical_path, merge, split
from sft_jax.objectives import OF_ANSWERS, distils, get_objective, judges_answers, reads_of, samples_groups
from sft_jax.objectives.head import chunk_of
from sft_jax.options import AdapterOptions, ObjectiveOptions, Options
from sft_jax.runs.adapting import adapter_spec, arrays_of, has_adapters, init_beside
from sft_jax.runs.base import Base
from sft_jax.runs.freezing import base_dtype, trained_predicate, trains_all_weights
from sft_jax.runs.workdir import AUTO
from sft_jax.sharding import data_shards, platform_of
from sft_jax.training.abstract import (
    abstract_rest,
    abstract_state,
    dtype_of_kept,
    init_rest,
    keeps_base,
    placed_as_described,
)
from sft_jax.training.distillation_sums import DistillationTerms
from sft_jax.training.initial_adapter import InitialAdapter
from sft_jax.training.optimizer import OptimizerSettings, optimizer_settings
from sft_jax.training.policy_sums import PolicyTerms
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.state import TrainState, seed_array
from sft_jax.training.step import PreferenceTerms, StepSettings
from sft_jax.training.step_memory import least_recomputed
from sft_jax.training.teacher import Teacher, is_in_step, needs_teacher, open_teacher_base
from sft_jax.training.update_rules import RULES, Rule

Tree = Any


_SCAN_TOKENS = 1024  # of a micro-batch, see `resolve_execution`


def resolve_execution(
    options: Options,
    decoder: DecoderConfig,
    mesh: Mesh,
    runs: int = 1,
    memory: int | None = None,
    teacher: Decoder | None = None,
) -> Execution:
    """How the decoder runs; `auto` takes what was measured faster (see benchmarks/), or what fits.

    On accelerators: scanned layers (compile time), and of what a layer may save for the backward pass as much as fits
    beside the state (`least_recomputed`). On CPU: unrolled without remat for full fine-tuning and for small batches
    under adapters; above `_SCAN_TOKENS`, adapters are no slower with scan and full remat, in much less memory. Where
    only the last layers are trained they are never scanned: stacked layers are one array, trained or not.

    Args:
        options: of the run.
        decoder: that is trained.
        mesh: on which.
        runs: that are trained in one program.
        memory: bytes that a program can have of a device; by default as this process knows them.
        teacher: that is in the step.

    Raises:
        ValueError: attention by a backend that cannot compute it here.
    """
    layout, remat, platform = options.execution.layer_layout, options.execution.remat, platform_of(mesh)
    backend = choose_backend(options.execution.attention, platform, decoder, options.precision.matmul)
    tokens = options.batch.sequences * options.data.sequence_length // options.batch.micro_batches
    save_memory = platform != "cpu" or (has_adapters(options.adapter) and tokens > _SCAN_TOKENS)
    scanned = save_memory and not options.trained.last_layers
    execution = Execution(
        matmul_dtype=options.precision.matmul,
        activation_dtype=options.precision.activations,
        product_dtype=product_dtype(options.precision.matmul, options.precision.activations, platform),
        gradient_dtype=options.precision.gradients,
        gathers_weights=True,
        layer_layout=("scan" if scanned else "unrolled") if layout == AUTO else layout,
        remat=("full" if save_memory else "none") if remat == AUTO else remat,
        attention_backend=backend,
    )
    if remat != AUTO or platform == "cpu":
        return execution
    return dataclasses.replace(
        execution, remat=least_recomputed(options, decoder, mesh, execution, runs, memory, teacher)
    )


def product_dtype(matmul: str, activations: str, platform: str) -> str:
    """The dtype in which matrix products give their results.

    Accelerators accumulate in float32 and round on the way out: a product in the activations' dtype makes no float32
    array, and a saved one takes half the memory. On CPUs bfloat16 inputs are fast with a float32 result alone.
    """
    return activations if platform != "cpu" and matmul == "bfloat16" else "float32"


def make_model(
    options: Options,
    decoder: DecoderConfig,
    mesh: Mesh,
    new_token_ids: range = range(0),
    runs: int = 1,
    memory: int | None = None,
    teacher: Decoder | None = None,
) -> Decoder:
    """The decoder with its adapters, for training; `in_use` is what to measure.

    Args:
        options: of the run.
        decoder: of the base.
        mesh: on which it is trained.
        new_token_ids: ids of the new tokens.
        runs: that are trained in one program.
        memory: bytes that a program can have of a device; by default as this process knows them.
        teacher: that is in the step.

    Raises:
        ValueError: a bound on experts for a model that has none.
    """
    decoder = trained_decoder(options, decoder)
    spec = adapter_spec(options.adapter, new_token_ids, training=True)
    return Decoder(decoder, resolve_execution(options, decoder, mesh, runs, memory, teacher), spec)


def open_teacher(options: Options, student: Base, mesh: Mesh) -> Teacher | None:
    """The teacher of a run that has one; its decoder draws nothing, and keeps nothing for a backward pass.

    Args:
        options: of the run.
        student: what is trained.
        mesh: on which.

    Raises:
        ValueError: as `open_teacher_base`.
    """
    if not needs_teacher(options):
        return None
    base = open_teacher_base(options, student)
    execution = dataclasses.replace(options.execution, remat="none")
    options = dataclasses.replace(options, execution=execution)
    decoder = Decoder(base.decoder, resolve_execution(options, base.decoder, mesh))
    return Teacher(base, decoder, options.precision.frozen)


def trained_decoder(options: Options, decoder: DecoderConfig) -> DecoderConfig:
    """The base's decoder with what only training has, a bound on experts.

    Raises:
        ValueError: a bound on experts for a model that has none.
    """
    capacity = options.experts.capacity
    if not capacity:
        return decoder
    if not decoder.num_experts:
        raise ValueError(f"--config.experts.capacity={capacity}: this model has no experts")
    return dataclasses.replace(decoder, expert_capacity=capacity)


def chosen_by_platform(options: Options, model: Decoder, platform: str) -> dict[str, str]:
    """What a config may leave to the platform, by what it is of: as the run has it, whoever decided.

    Args:
        options: of the run, with plain dtypes.
        model: as it is trained.
        platform: on which.
    """
    execution = model.execution
    chosen = {"activations": execution.activation_dtype}
    frozen = keeps_base(options) or needs_teacher(options)
    if frozen or not trains_all_weights(options.adapter, options.trained):
        chosen["frozen weights"] = options.precision.frozen
    return chosen | {
        "layers": "scanned" if execution.layer_layout == "scan" else "unrolled",
        "remat": execution.remat,
        "attention": execution.attention_backend,
        # What nobody can choose is said too, in case it was asked for.
        "deterministic": ("yes" if options.execution.deterministic else "no") if platform == "gpu" else "always",
    }


def in_use(model: Decoder) -> Decoder:
    """The decoder as it is evaluated and exported, without what only training has: dropout, a bound on experts."""
    adapter = model.adapter and dataclasses.replace(model.adapter, dropout=False)
    return model.clone(config=dataclasses.replace(model.config, expert_capacity=0.0), adapter=adapter)


def sequences_at_once(options: Options, shards: int) -> int:
    """The sequences of a micro-batch on a device.

    Args:
        options: of the run.
        shards: into which the mesh splits sequences.

    Raises:
        ValueError: sequences, micro-batches and mesh do not divide; names the flags.
    """
    sequences, parts = options.batch.sequences, options.batch.micro_batches
    if sequences % (parts * shards):
        raise ValueError(
            f"--config.batch.sequences={sequences} must be a multiple of --config.batch.micro_batches={parts} x "
            f"{shards} (the mesh axes replica x fsdp x expert, over which sequences are split)"
        )
    return sequences // (parts * shards)


def step_settings(options: Options, mesh: Mesh, teacher: Decoder | None = None) -> StepSettings:
    """What is static in the compiled step.

    Args:
        options: of the run.
        mesh: on which it is trained.
        teacher: of the run; without it the settings of a step that has one do not say which.

    Raises:
        ValueError: sequences, micro-batches, the length of a sequence and mesh do not divide; names the flags.
    """
    at_once = sequences_at_once(options, data_shards(mesh))
    check_length(options.data.sequence_length, mesh.shape["context"])
    objective = options.objective
    return StepSettings(
        preference=_preference_terms(objective) if judges_answers(objective.name) else None,
        policy=_policy_terms(options, teacher) if samples_groups(objective.name) else None,
        distillation=_distillation_terms(options, teacher) if distils(objective.name) else None,
        objective=get_objective(objective.name),
        optimizer=optimizer_settings(options.optimizer),
        label_smoothing=objective.label_smoothing > 0,
        z_loss=objective.z_loss > 0,
        schedule=options.optimizer.schedule,
        micro_batches=options.batch.micro_batches,
        head_chunk=chunk_of(objective.head_chunk_tokens, at_once),
        noise=objective.neftune_alpha > 0,
        kl_to_base=objective.kl_to_base > 0,
        balance=options.experts.balance_loss > 0,
        deterministic=options.execution.deterministic and platform_of(mesh) == "gpu",
    )


def _preference_terms(objective: ObjectiveOptions) -> PreferenceTerms:
    """What the method of `config.objective` has: a term whose number changes nothing is left out."""
    if objective.name in OF_ANSWERS:
        known, numbers = OF_ANSWERS[objective.name], reads_of(objective.name)
        numbers = tuple(name for name in numbers if name != "centring" or objective.centring > 0)
        return PreferenceTerms(numbers, divergence=known.divergence, scores=known.scores)
    terms = {
        "margin": objective.margin != 0,
        "label_smoothing": objective.label_smoothing > 0,
        "tail_weight": objective.tail_weight != 1,
        "sft_weight": objective.sft_weight > 0,
    }
    return PreferenceTerms(("beta", *(name for name, used in terms.items() if used)), objective.per_token)


def _policy_terms(options: Options, teacher: Decoder | None) -> PolicyTerms:
    """What the objective of sampled answers has."""
    objective = options.objective
    used = (objective.normalize == "tokens", objective.kl_weight > 0, options.rollouts.temperature != 1)
    return PolicyTerms(*used, teacher if needs_teacher(options) else None)


def _distillation_terms(options: Options, teacher: Decoder | None) -> DistillationTerms:
    """What distillation has: a term whose number changes nothing is left out."""
    left_out = {"temperature": 1.0, "cross_entropy_share": 0.0}
    numbers = reads_of(options.objective.name)
    numbers = tuple(name for name in numbers if getattr(options.objective, name) != left_out.get(name))
    if is_in_step(options):
        return DistillationTerms(numbers, teacher)
    return DistillationTerms(numbers, vocabulary=None if teacher is None else teacher.config.vocab_size)


def init_state(
    options: Options,
    base: Base,
    model: Decoder,
    mesh: Mesh,
    hyper: dict[str, jax.Array],
    initial: InitialAdapter | None = None,
    teacher: Teacher | None = None,
) -> TrainState:
    """The state at step 0, every array on its devices.

    Pretrained weights are read on the host, then placed, and so is an adapter to begin with; fresh adapters and moments
    are made where they live.
    """
    layout = model.layout
    teacher = teacher if is_in_step(options) else None
    abstract = abstract_state(options, base.decoder, mesh, layout, teacher and teacher.model)
    hyper, seed = placed_as_described((abstract.hyper, abstract.seed), (hyper, seed_array(options.seed)))
    tree = {"params": base.params(layout, base_dtype(options), mesh, options.precision.quantized)}
    if has_adapters(options.adapter):
        beside = merge(abstract.trained, abstract.frozen)[adapters.COLLECTION]
        stacked = resolved("scan", base.decoder)
        make = functools.partial(_fresh_adapters, options.adapter, (stacked, layout), base.new_token_ids)
        tree[adapters.COLLECTION] = make(beside, tree["params"], seed, hyper)
    if initial is not None:
        tree[adapters.COLLECTION] |= initial.placed(tree["params"], layout, mesh)
    trained, frozen = split(tree, trained_predicate(options.adapter, options.trained, base.decoder.num_layers))
    if not has_adapters(options.adapter):  # the base was read in the dtype of what is trained
        frozen = cast(frozen, options.precision.frozen)
    kept = _copied(trained, dtype_of_kept(options)) if keeps_base(options) else {}
    of_teacher = {} if teacher is None else teacher.variables(mesh)
    return fresh_state(abstract, trained, frozen, hyper, seed, optimizer_settings(options.optimizer), kept, of_teacher)


def _copied(trained: Tree, dtype: str) -> Tree:
    """Arrays of their own, where those of `trained` are: a step takes these over."""
    return _copier(signature_of(trained), dtype)(trained)


@shared
def _copier(trained: Signature, dtype: str) -> Callable[[Tree], Tree]:
    copy = lambda tree: jax.tree.map(lambda leaf: jnp.copy(leaf).astype(dtype), tree)
    return jax.jit(copy, out_shardings=trained.shardings)


def _fresh_adapters(
    adapter: AdapterOptions,
    layouts: tuple[str, str],
    new_token_ids: range,
    abstract: Tree,
    params: Tree,
    seed: jax.Array,
    hyper: dict[str, jax.Array],
) -> Tree:
    """What is trained beside the weights at step 0, as `abstract` says; made in the first layout, and then the second.

    Where kernels are read for it, one weight (of all layers) after the other: so no more than one is dequantized, or
    taken apart by PiSSA, at a time. All in one program would also set several decompositions and collectives side by
    side, in which emulated CPU devices were seen to wait for each other for ever.
    """
    shardings = {path: leaf.sharding for path, leaf in flatten_dict(abstract, sep="/").items()}
    method = None if adapter.method == "none" else adapters.get_method(adapter.method)
    reads = method is not None and method.INIT_READS_KERNEL
    by_program: dict[str, list[str]] = {}
    for path in shardings:
        weight = canonical_path(path).rpartition("/")[0]
        by_program.setdefault(weight if reads else "", []).append(path)
    made: dict[str, jax.Array] = {}
    for paths in by_program.values():
        places = tuple((path, shardings[path]) for path in paths)
        make = _adapter_maker(arrays_of(adapter), method, layouts, new_token_ids, places)
        made |= jax.block_until_ready(make(params, seed, hyper))
    return unflatten_dict(made, sep="/")


@shared
def _adapter_maker(
    adapter: AdapterOptions,
    method: ModuleType | None,
    layouts: tuple[str, str],
    new_token_ids: range,
    places: tuple[tuple[str, Sharding], ...],
) -> Callable[[Tree, jax.Array, dict[str, jax.Array]], dict[str, jax.Array]]:
    """Makes those arrays, each where it lives, of (parameters, seed, hyperparameters)."""
    del method  # which is looked up by name
    stacked, layout = layouts

    def fresh_adapters(params: Tree, seed: jax.Array, hyper: dict[str, jax.Array]) -> dict[str, jax.Array]:
        kernels = to_layout(dequantized_tree(params), stacked)
        made = flatten_dict(init_beside(kernels, adapter, seed, hyper, layout, new_token_ids), sep="/")
        return {path: made[path] for path, _ in places}

    return jax.jit(fresh_adapters, out_shardings=dict(places))


def fresh_state(
    abstract: TrainState,
    trained: Tree,
    frozen: Tree,
    hyper: dict[str, jax.Array],
    seed: jax.Array,
    optimizer: OptimizerSettings,
    base: Tree | None = None,
    teacher: Tree | None = None,
) -> TrainState:
    """The state at step 0 that `abstract` describes, around its parameters; the rest is made where it lives.

    Raises:
        ValueError: these are not the parameters that it describes; names them.
    """
    trained, frozen, base, teacher = placed_as_described(
        (abstract.trained, abstract.frozen, abstract.base, abstract.teacher),
        (trained, frozen, base or {}, teacher or {}),
    )
    hyper, seed = placed_as_described((abstract.hyper, abstract.seed), (hyper, seed))
    rest = signature_of(abstract_rest(abstract))
    made = _rest_maker(optimizer, RULES[optimizer.rule], bool(abstract.ema), rest)(trained, hyper)
    kept = {"base": base, "teacher": teacher}
    return TrainState(trained=trained, frozen=frozen, hyper=hyper, seed=seed, **kept, **made)


@shared
def _rest_maker(optimizer: OptimizerSettings, rule: Rule, ema: bool, rest: Signature) -> Callable[..., dict[str, Tree]]:
    del rule  # which is looked up by name
    return jax.jit(functools.partial(init_rest, optimizer=optimizer, ema=ema), out_shardings=rest.shardings)
