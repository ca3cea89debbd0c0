"""The train step and the evaluation step: functions of (state, batch), compiled once.

`train_step(state, batch) -> (state, metrics)`; every metric is a (sum, count) pair until it is logged.
"""

import dataclasses
import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from sft_jax.models import adapters, probes
from sft_jax.models.decoder import Decoder
from sft_jax.models.experts import Routing
from sft_jax.models.variables import head_weights, merge
from sft_jax.objectives import Objective, PreferenceSettings, Settings
from sft_jax.objectives.balance import balance_loss
from sft_jax.objectives.branches import pair_weights
from sft_jax.objectives.head import gather_targets, over_chunks
from sft_jax.objectives.head_on_mesh import head_on_mesh
from sft_jax.objectives.kl import KL_TO_BASE, kl_divergence, with_kl
from sft_jax.objectives.kto import KL, answer_weights, mean_divergence
from sft_jax.objectives.policy_gradient import count_of
from sft_jax.objectives.slices import LOSS_BY_SLICE, loss_by_slice
from sft_jax.sharding import batch_sharding, shardings_of
from sft_jax.training.distillation_sums import DistillationTerms, beside_the_student, objective_of
from sft_jax.training.effect import counted, squares
from sft_jax.training.forward import (
    Randomness,
    frozen_head_weights,
    frozen_target_states,
    hidden_states,
    target_log_probabilities,
    target_scores,
    trained_head_weights,
)
from sft_jax.training.optimizer import OptimizerSettings, learning_rate, make_optimizer
from sft_jax.training.policy_sums import PolicyTerms, policy_sums
from sft_jax.training.programs import Signature, shared, signature_of
from sft_jax.training.rounding import in_float32, kept_like, rounding_key
from sft_jax.training.state import TrainState
from sft_jax.training.update_rules import RULES, Rule

Tree = Any
Metrics = dict[str, tuple[Array, Array]]
Step = Callable[..., tuple[TrainState, Metrics]]
# Whose gradient has a norm of its own.
_MODULES = ("attention", "delta", "ffn", "experts", "shared", "per_layer", "embedding", "head", "score")


@dataclasses.dataclass(frozen=True)
class PreferenceTerms:
    """What an objective of answers has.

    Attributes:
        numbers: names of its numbers, as `PreferenceSettings` has them.
        per_token: scores are means over tokens.
        divergence: its loss follows from how far the policy is from its reference over the whole step.
        scores: it is of a decoder that scores texts.
    """

    numbers: tuple[str, ...]
    per_token: bool = False
    divergence: bool = False
    scores: bool = False

    def count(self, batch: Tree) -> Float[Array, ""]:
        """The count of the loss of a batch."""
        of_branches = answer_weights if self.divergence else pair_weights
        return jnp.sum(of_branches(batch["weights"], batch["branches"]))


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What is static in the compiled step.

    Attributes:
        objective: the objective's function.
        optimizer: the update rule and groups of parameters.
        label_smoothing: the objective smooths labels.
        z_loss: the objective has the squared log-partition function.
        schedule: kind of learning-rate schedule.
        micro_batches: parts into which the global batch is split, one after the other.
        head_chunk: target slots of a sequence that go through the head at a time; 0 takes all.
        noise: embeddings get noise.
        kl_to_base: the divergence from the base is part of the loss.
        balance: the loss that spreads tokens over experts, where there are some, is part of the gradient.
        deterministic: the compiler takes no operation whose result may differ from time to time, on GPUs.
        slices: slices of the data whose loss is measured apart; 0 for none. Batches then say of each target which.
        preference: what the objective has, if it is of answers that were judged; None for one that imitates.
        policy: what the objective has, if it is of answers that the model samples.
        distillation: what the objective has, if it compares the model with a teacher at each target.
    """

    objective: Objective
    optimizer: OptimizerSettings
    label_smoothing: bool = False
    z_loss: bool = False
    schedule: str = "cosine"
    micro_batches: int = 1
    head_chunk: int = 0
    noise: bool = False
    kl_to_base: bool = False
    balance: bool = False
    deterministic: bool = False
    slices: int = 0
    preference: PreferenceTerms | None = None
    policy: PolicyTerms | None = None
    distillation: DistillationTerms | None = None

    @property
    def compiler_options(self) -> dict[str, bool] | None:
        """For `jax.jit` of the step. It also keeps XLA from choosing kernels by how long they take, which another
        compilation might choose otherwise (https://openxla.org/xla/determinism)."""
        return {"xla_gpu_deterministic_ops": True} if self.deterministic else None


def loss_sums(
    model: Decoder,
    settings: StepSettings,
    trained: Tree,
    state: TrainState,
    batch: Tree,
    randomness: Randomness,
    kl: Array | None = None,
) -> tuple[Metrics, Routing | None]:
    """Sums and counts of the objective over a (micro-)batch, as a function of `trained`; and how it was routed.

    `kl` is that of `PreferenceSettings`, where the batch is a part of what has it.
    """
    if settings.preference is not None:
        return preference_sums(model, settings, trained, state, batch, randomness, kl)
    if settings.policy is not None:
        how = (settings.policy, settings.objective, settings.head_chunk, settings.micro_batches)
        return policy_sums(model, *how, trained, state, batch, randomness)
    hidden, routing = hidden_states(model, trained, state, batch, randomness)
    hidden = gather_targets(hidden, batch["target_slots"])
    trained_head = trained_head_weights(model, trained)
    base = _of_base(model) if settings.kl_to_base else None
    frozen, more = _beside_the_model(settings, base, state, batch)
    frozen |= {"head": frozen_head_weights(trained_head, trained, state)}

    execution = model.execution
    on_mesh = head_on_mesh(trained_head, frozen, hidden, execution.matmul_dtype, execution.gradient_dtype)
    by_vocabulary = on_mesh.logits if on_mesh else lambda logits: logits

    def head_objective(trained_head, frozen, hidden, targets, weights, *of_slots):
        of_slots = dict(zip(more, of_slots, strict=True))
        logits = by_vocabulary(model.apply(merge(trained_head, frozen["head"]), hidden, method="head"))
        objective = _objective_of_chunk(settings, base, logits, frozen, of_slots, by_vocabulary)
        metrics = objective(logits, targets, weights)
        if settings.slices:
            by_slice = loss_by_slice(objective, logits, targets, weights, of_slots["slices"], settings.slices)
            metrics[LOSS_BY_SLICE] = by_slice
        return metrics

    with jax.named_scope("head_and_loss"):
        metrics = over_chunks(
            head_objective,
            trained_head,
            frozen,
            hidden,
            batch["targets"],
            batch["weights"],
            settings.head_chunk,
            tuple(more.values()),
            on_mesh,
        )
    return metrics, routing


def _beside_the_model(
    settings: StepSettings, base: Decoder | None, state: TrainState, batch: Tree
) -> tuple[Tree, Tree]:
    """What the head and the loss read beside the model: (weights and numbers, arrays of slots)."""
    frozen = {"objective": objective_numbers(settings, state)}
    of_slots = {"slices": batch["slices"]} if settings.slices else {}
    if settings.distillation is not None:
        of_teacher, slots_of_teacher = beside_the_student(settings.distillation, state, batch)
        frozen, of_slots = frozen | of_teacher, of_slots | slots_of_teacher
    if base is not None:
        with jax.named_scope("base"):
            of_slots["base_hidden"] = frozen_target_states(base, base_variables(state), batch)
        frozen |= {"base_head": head_weights(base_variables(state)), KL_TO_BASE: state.hyper[KL_TO_BASE]}
    return frozen, of_slots


def _objective_of_chunk(
    settings: StepSettings,
    base: Decoder | None,
    logits: Array,
    frozen: Tree,
    of_slots: Tree,
    by_vocabulary: Callable[[Array], Array],
) -> Callable[[Array, Array, Array], Metrics]:
    """The objective of a chunk, of (logits, targets, weights); arguments as in `loss_sums`."""
    if settings.distillation is not None:
        return objective_of(settings.distillation, settings.objective, logits, frozen, of_slots, by_vocabulary)
    objective = functools.partial(settings.objective, settings=frozen["objective"])
    if base is None:
        return objective
    base_logits = by_vocabulary(base.apply(frozen["base_head"], of_slots["base_hidden"], method="head"))
    return _near_base(objective, kl_divergence(base_logits, logits), frozen[KL_TO_BASE])


def preference_sums(
    model: Decoder,
    settings: StepSettings,
    trained: Tree,
    state: TrainState,
    batch: Tree,
    randomness: Randomness,
    kl: Array | None,
) -> tuple[Metrics, Routing | None]:
    """`loss_sums` of an objective of answers that were judged."""
    terms, data = settings.preference, (trained, state, batch, randomness)
    if terms.scores:
        found, routing = target_scores(model, *data)
    else:
        found, routing = target_log_probabilities(model, settings.head_chunk, *data)
    numbers = {"beta": None} | {name: state.hyper[name] for name in terms.numbers}
    own = PreferenceSettings(**numbers, kl=kl, per_token=terms.per_token)
    beside = batch["margins"] if terms.scores else batch.get("reference")
    of_weights = lambda values, weights, own: settings.objective(values, beside, weights, batch["branches"], own)
    with jax.named_scope("preference"):
        metrics = of_weights(found, batch["weights"], own)
        if settings.slices:
            whole = own
            if terms.divergence and kl is None:  # a slice is a part of the batch
                whole = own.replace(kl=mean_divergence(metrics[KL]))
            of_slice = lambda values, _, weights: of_weights(values, weights, whole)
            arrays = (found, batch["targets"], batch["weights"], batch["slices"])
            metrics[LOSS_BY_SLICE] = loss_by_slice(of_slice, *arrays, settings.slices)
    return metrics, routing


def objective_numbers(settings: StepSettings, state: TrainState) -> Settings:
    """The numbers of the objective's terms, of those that it has."""
    used = {name: state.hyper[name] for name in ("label_smoothing", "z_loss") if getattr(settings, name)}
    return Settings(**used)


def _near_base(objective: Callable, divergence: Array, factor: Array) -> Callable:
    """The objective, of (logits, targets, weights), with the divergence from the base in its loss."""
    return lambda logits, targets, weights: with_kl(objective(logits, targets, weights), divergence, weights, factor)


def _of_base(model: Decoder) -> Decoder:
    """The decoder of the base: no adapter, and no bound on experts, which measuring never has."""
    return model.clone(config=dataclasses.replace(model.config, expert_capacity=0.0), adapter=None)


def base_variables(state: TrainState) -> Tree:
    """The parameters of the base: what is frozen, and what the state keeps of what is trained."""
    params = {kind: tree for kind, tree in state.frozen.items() if kind != adapters.COLLECTION}
    return merge(state.base, params)


def gradients(
    model: Decoder, settings: StepSettings, state: TrainState, batch: Tree, constrain: Callable[[Tree], Tree]
) -> tuple[Metrics, Tree]:
    """Metrics, and the gradient of loss sum / loss count over all micro-batches; float32, like the trained parameters.

    That of layers' kernels lies in memory in the dtype of `precision.gradients`: XLA multiplies it in the operations
    that read it, and makes no float32 array. With micro-batches their sum, in float32, lies beside it.
    """
    dropout = model.adapter is not None and model.adapter.dropout
    sequences = batch["tokens"].shape[0]
    balanced = settings.balance and model.config.num_experts > 0
    step_key = jax.random.fold_in(jax.random.key(state.seed), state.step)
    keys = jax.random.split(step_key, sequences)

    def in_parts(function, argnums):
        if settings.micro_batches == 1:
            return function
        size = sequences // settings.micro_batches
        return optax.microbatching.microbatch(function, argnums=argnums, microbatch_size=size)

    def random(keys):
        return Randomness(keys[0] if dropout else None, keys if settings.noise else None)

    def chosen(batch, keys):
        return hidden_states(model, state.trained, state, batch, random(keys))[1].chosen

    # The balance loss is not a sum over micro-batches: each needs to know what the whole step chose.
    chosen_in_step = in_parts(chosen, (0, 1))(batch, keys) if balanced and settings.micro_batches > 1 else None
    tokens = jnp.sum(batch["segment_ids"] > 0, dtype=jnp.float32)
    weight = jnp.sum(batch["weights"])
    if settings.preference is not None:
        weight = settings.preference.count(batch)
    if settings.policy is not None:
        weight = count_of(batch["weights"], batch["branches"], per_token=settings.policy.per_token)
        batch = {**batch, "number": jnp.arange(sequences)}

    def divergence(batch, keys):
        return loss_sums(model, settings, state.trained, state, batch, random(keys))[0][KL]

    # Nor is a loss that follows from the divergence of the whole step.
    kl = None
    if settings.preference is not None and settings.preference.divergence and settings.micro_batches > 1:
        kl = mean_divergence(in_parts(divergence, (0, 1))(batch, keys))

    def sums(trained, batch, keys):
        metrics, routing = loss_sums(model, settings, trained, state, batch, random(keys), kl)
        minimised = metrics["loss"][0]
        if balanced:
            chosen = jax.lax.stop_gradient(routing.chosen) if chosen_in_step is None else chosen_in_step
            balance = balance_loss(routing, chosen, tokens, model.config.layers_with_experts)
            metrics["balance_loss"] = (balance, jnp.ones(()) / settings.micro_batches)
            minimised += state.hyper["balance_loss"] * weight * balance  # scaled with the loss by 1 / its count
        return minimised, metrics

    def value_and_grad(batch, keys):
        differentiated, kernels = probes.with_probes(state.trained, model.execution)
        of_differentiated = lambda tree, *data: sums(merge(tree, kernels), *data)
        (_, metrics), gradient = jax.value_and_grad(of_differentiated, has_aux=True)(differentiated, batch, keys)
        of_kernels = {"params": gradient.pop(probes.COLLECTION, {})}
        # Micro-batches are summed in float32 whatever the dtype of the parameters.
        of_kernels = in_float32(of_kernels) if settings.micro_batches > 1 else of_kernels
        return metrics, constrain(merge(in_float32(gradient), of_kernels))

    metrics, gradient = in_parts(value_and_grad, (0, 1))(batch, keys)
    if settings.policy is not None:
        metrics["sampler_gap_max"] = (jnp.max(metrics["sampler_gap_max"][0]), jnp.ones(()))
    scale = 1.0 / jnp.maximum(metrics["loss"][1], jnp.finfo(jnp.float32).tiny)
    return metrics, jax.tree.map(lambda g: g.astype(jnp.float32) * scale, gradient)


def train_step(
    model: Decoder, settings: StepSettings, constrain: Callable[[Tree], Tree], state: TrainState, batch: Tree
) -> tuple[TrainState, Metrics]:
    """One optimizer step. Where loss, gradient or update is not finite nothing but the counters changes."""
    metrics, gradient = gradients(model, settings, state, batch, constrain)
    with jax.named_scope("optimizer"):
        gradient_squares = squares(gradient)
        norms = _module_norms(gradient_squares)
        norm = jnp.sqrt(sum(norms.values()))
        clip = jnp.minimum(1.0, state.hyper["clip_norm"] / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
        gradient = jax.tree.map(lambda g: (g * clip).astype(g.dtype), gradient)
        rate = learning_rate(settings.schedule, state.step, state.hyper)
        trained, opt_state, update_squares, update_ratio = updated(settings, state, gradient, rate)
        # That the update is checked too has a second use: all of the old state is read before any of the new one can be
        # written, so that XLA updates it in place. Otherwise it begins with a copy of parameters and moments.
        finite = jnp.isfinite(metrics["loss"][0]) & jnp.isfinite(norm) & jnp.isfinite(update_ratio)
        ema = {}
        if state.ema:
            keep = state.hyper["ema_decay"]
            ema = jax.tree.map(lambda a, w: keep * a + (1 - keep) * w.astype(a.dtype), state.ema, trained)
    skip = jnp.where(finite, 0, 1).astype(jnp.int32)
    logged = {
        "learning_rate": rate,
        "grad_norm": norm,
        "update_ratio": update_ratio,
        "skipped": skip.astype(jnp.float32),
        "skipped_in_a_row": jnp.where(finite, 0, state.skipped_in_a_row + 1).astype(jnp.float32),
        **{f"grad_norm/{name}": jnp.sqrt(square) for name, square in norms.items()},
    }
    state = state.replace(
        step=state.step + 1,
        trained=_where(finite, trained, state.trained),
        opt_state=_where(finite, opt_state, state.opt_state),
        ema=_where(finite, ema, state.ema),
        effect=counted(state.effect, finite, gradient_squares, update_squares),
        skipped=state.skipped + skip,
        skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1).astype(jnp.int32),
    )
    one = jnp.ones((), jnp.float32)
    return state, metrics | {name: (value.astype(jnp.float32), one) for name, value in logged.items()}


def updated(
    settings: StepSettings, state: TrainState, gradient: Tree, rate: Float[Array, ""]
) -> tuple[Tree, Tree, dict[str, Array], Float[Array, ""]]:
    """(trained parameters, optimizer state, `squares` of the change, its norm over that of the parameters).

    The update is computed in float32 and rounded to what parameters and moments are kept in.

    Args:
        settings: what is static.
        state: before the update.
        gradient: float32, like the trained parameters.
        rate: learning rate of this step.
    """
    optimizer = make_optimizer(settings.optimizer, state.hyper, rate)
    before, key = in_float32(state.trained), rounding_key(state.seed, state.step)
    updates, opt_state = optimizer.update(gradient, in_float32(state.opt_state), before)
    changes = squares(updates)
    norm = jnp.sqrt(sum(jnp.sum(square) for square in changes.values()))
    ratio = norm / jnp.maximum(optax.global_norm(before), 1e-12)
    trained = kept_like(optax.apply_updates(before, updates), state.trained, key)
    return trained, kept_like(opt_state, state.opt_state, key), changes, ratio


def _where(condition: Array, yes: Tree, no: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _module_norms(by_path: dict[str, Array]) -> dict[str, Array]:
    """Squared norm of the gradient by kind of module: those of `_MODULES`, and norms."""
    norms: dict[str, Array] = {}
    for path, square in by_path.items():
        kinds = (part for part in path.split("/") if part in _MODULES)
        name = next(kinds, "norms")
        norms[name] = norms.get(name, 0.0) + jnp.sum(square)
    return norms


def eval_step(model: Decoder, settings: StepSettings, state: TrainState, batch: Tree) -> Metrics:
    """Sums and counts of the objective over a batch, of a decoder that draws nothing.

    Where the objective needs the divergence of all that is measured, it is a number of the state.
    """
    parts = settings.preference is not None and settings.preference.divergence
    kl = state.hyper[KL] if parts else None
    return loss_sums(model, settings, state.trained, state, batch, Randomness(), kl)[0]


def compile_train_step(model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> Step:
    """The jitted train step: state donated, shardings of state, batch and results given, so that it compiles once.

    The same function for all runs of a process whose steps are the same program.

    Args:
        model: the decoder.
        settings: what is static.
        state: the state or its shapes.
        mesh: the mesh; call the step inside `jax.set_mesh(mesh)`.
    """
    rule = RULES[settings.optimizer.rule]
    return _shared_train_step(model, settings, rule, method_of(model), _signature(state, mesh), mesh)


@shared
def _shared_train_step(
    model: Decoder, settings: StepSettings, rule: Rule, method: ModuleType | None, state: Signature, mesh: Mesh
) -> Step:
    del rule, method  # what the step looks up by name
    constrain = functools.partial(jax.lax.with_sharding_constraint, shardings=state.shardings.trained)
    return jax.jit(
        functools.partial(train_step, model, settings, constrain),
        donate_argnums=0,
        in_shardings=(state.shardings, batch_sharding(mesh)),
        out_shardings=(state.shardings, NamedSharding(mesh, P())),
        compiler_options=settings.compiler_options,
    )


def compile_eval_step(model: Decoder, settings: StepSettings, state: TrainState, mesh: Mesh) -> Callable:
    """The jitted evaluation step (state, batch) -> metrics, of a decoder that draws nothing (`setup.in_use`); shared as
    the train step is."""
    return _shared_eval_step(model, settings, method_of(model), _signature(state, mesh), mesh)


@shared
def _shared_eval_step(
    model: Decoder, settings: StepSettings, method: ModuleType | None, state: Signature, mesh: Mesh
) -> Callable:
    del method
    return jax.jit(
        functools.partial(eval_step, model, settings),
        in_shardings=(state.shardings, batch_sharding(mesh)),
        out_shardings=NamedSharding(mesh, P()),
        compiler_options=settings.compiler_options,
    )


def _signature(state: TrainState, mesh: Mesh) -> Signature:
    return signature_of(state, shardings_of(state, mesh))


def method_of(model: Decoder) -> ModuleType | None:
    """The module of its adapters, which the step looks up by name; None without."""
    return adapters.METHODS.get(model.adapter.method) if model.adapter else None
