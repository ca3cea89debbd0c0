"""Sums and counts of sampled answers in a step: log-probabilities now, and those of what the run began with."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sft_jax.models import adapters
from sft_jax.models.decoder import Decoder
from sft_jax.models.experts import Routing
from sft_jax.models.variables import merge
from sft_jax.objectives import Objective, PolicySettings
from sft_jax.training.forward import Randomness, target_log_probabilities
from sft_jax.training.state import TrainState

Tree = Any
Metrics = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class PolicyTerms:
    """What the objective of sampled answers has.

    Attributes:
        per_token: the loss is a mean over tokens, not over answers.
        reference: the divergence from what the run began with is part of the loss.
        tempered: answers are drawn at another temperature than 1.
        teacher: each token is rewarded by how much likelier this decoder thinks it, whose weights the state has.
    """

    per_token: bool = True
    reference: bool = False
    tempered: bool = False
    teacher: Decoder | None = None


def policy_sums(
    model: Decoder,
    terms: PolicyTerms,
    objective: Objective,
    head_chunk: int,
    micro_batches: int,
    trained: Tree,
    state: TrainState,
    batch: Tree,
    randomness: Randomness,
) -> tuple[Metrics, Routing | None]:
    """Sums and counts of the objective over a (micro-)batch, as a function of `trained`; and how it was routed.

    `teacher_kl` is the mean over tokens of how much less likely a teacher thinks them, where there is one: an estimate
    of KL(model || teacher).

    `sampler_gap_max` is the largest gap of each sequence of the step at the place of its number (`batch["number"]`), 0
    elsewhere, so that those of micro-batches add up.

    Args:
        model: the decoder.
        terms: what the objective has.
        objective: its function.
        head_chunk: target slots of a sequence that go through the head at a time; 0 takes all.
        micro_batches: of a step.
        trained: what is differentiated.
        state: of the run.
        batch: of so many sequences of the step.
        randomness: of the step, which draws nothing for the reference.
    """
    hyper = state.hyper
    temperature = hyper["temperature"] if terms.tempered else None
    found, routing = target_log_probabilities(model, head_chunk, trained, state, batch, randomness, temperature)
    reference = None
    if terms.reference:
        with jax.named_scope("reference"):
            began = (_of_start(model, state), head_chunk, {}, _state_of_start(state))
            reference = target_log_probabilities(*began, batch, Randomness(), temperature)[0]
            reference = jax.lax.stop_gradient(reference)
    advantages, of_teacher = batch["advantages"], {}
    if terms.teacher is not None:
        likelier = _likelier_by_teacher(terms.teacher, head_chunk, state, batch, temperature)
        advantages = advantages + hyper["teacher_weight"] * likelier
        used = batch["weights"] > 0
        of_teacher["teacher_kl"] = (-jnp.sum(jnp.where(used, likelier, 0.0)), jnp.sum(used, dtype=jnp.float32))
    weight = hyper["kl_weight"] if terms.reference else None
    numbers = PolicySettings(hyper["clip_low"], hyper["clip_high"], weight, terms.per_token)
    with jax.named_scope("policy_gradient"):
        weights, drawn = batch["weights"], batch["drawn"]
        metrics = objective(found, drawn, advantages, reference, weights, batch["branches"], numbers) | of_teacher
        gap = jnp.where(weights > 0, jnp.abs(found - drawn), 0.0)
        places = jnp.zeros(micro_batches * len(gap), jnp.float32).at[batch["number"]]
        metrics["sampler_gap_max"] = (places.set(jnp.max(gap, axis=1)), jnp.ones(()) / micro_batches)
    return metrics, routing


def _likelier_by_teacher(
    teacher: Decoder, head_chunk: int, state: TrainState, batch: Tree, temperature: Array | None
) -> Array:
    """By how much likelier a teacher thinks each token than the model did that drew it, without gradient.

    As the advantage of a token it makes the gradient that of KL(model || teacher) at the tokens that the model draws,
    one by one (Agarwal et al. 2023, https://arxiv.org/abs/2306.13649; Lu and Thinking Machines 2025,
    https://thinkingmachines.ai/blog/on-policy-distillation).
    """
    with jax.named_scope("teacher"):
        state = state.replace(trained={}, frozen=state.teacher)
        found, _ = target_log_probabilities(teacher, head_chunk, {}, state, batch, Randomness(), temperature)
        return jax.lax.stop_gradient(found) - batch["drawn"]


def _of_start(model: Decoder, state: TrainState) -> Decoder:
    """The decoder of what a run began with: under a fresh adapter the base. Dropout and a bound on experts, by which
    training differs from use, do not go with sampled answers."""
    return model if adapters.COLLECTION in state.base else model.clone(adapter=None)


def _state_of_start(state: TrainState) -> TrainState:
    """The state with what it keeps of the start in the place of what is trained, all of it frozen."""
    frozen = state.frozen
    if adapters.COLLECTION not in state.base:
        frozen = {kind: tree for kind, tree in frozen.items() if kind != adapters.COLLECTION}
    return state.replace(trained={}, frozen=merge(state.base, frozen))
