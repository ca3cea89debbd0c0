"""Pairs: one shared prompt is what two whole rows are, and the numbers do not depend on the machine."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from sft_jax.data.batches import assemble
from sft_jax.data.tokenized import TokenizedExamples
from sft_jax.objectives import METHODS, has_reference
from sft_jax.options import options_of
from sft_jax.planning.estimating import work_of_step
from sft_jax.planning.flops import attention_pairs
from sft_jax.runs.base import open_base
from sft_jax.training.forward import Randomness, target_log_probabilities
from sft_jax.training.memory import BatchSizes, step_program
from sft_jax.training.stacked.fields import NotStackableError, groups_of, refuse_what_cannot_be_stacked
from tests import preferences, tiny
from tests.models import families
from tests.training import test_invariance as invariance
from tests.training.test_invariance import MIXTURE_CASES, OF_ANSWERS, measure

PAIRS = 16
BY_KERNELS = [pytest.param(name, marks=pytest.mark.slow) for name in ("splash", "triton")]
MODELS = {"full": {}, "windows": {"model_type": "mistral", "sliding_window": 24}}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Tiny models beside pairs: tied, with windows, one with a head of its own for adapters, a mixture of experts."""
    made = tmp_path_factory.mktemp("pairs")
    for name, changes in (MODELS | {"lora": {"tie_word_embeddings": False}}).items():
        tiny.write_checkpoint(made / name / "model", num_hidden_layers=2, **changes)
    families.save(families.torch_model("mixtral"), made / "mixture" / "model")
    tiny.tokenizer().save_pretrained(made / "mixture" / "model")
    for name in (*MODELS, "lora", "mixture"):
        preferences.write_pairs(made / name / "pairs.jsonl", PAIRS)
        preferences.write_pairs(made / name / "held_out_pairs.jsonl", 4, seed=1)
    return made


def build(root, arg="full", model="", **overrides):
    where = root / (model or arg)
    of_pairs = {
        "objective.name": "dpo",
        "data.train": str(where / "pairs.jsonl"),
        "data.held_out": str(where / "held_out_pairs.jsonl"),
        "data.sequence_length": 288,
        "checkpoint.best_metric": "held_out/loss",
    }
    return invariance.build(root, arg, model, **(of_pairs | overrides))


def reference_of(examples):
    """Log-probabilities of a reference, for each target of all examples."""
    return np.random.default_rng(0).uniform(-6, -1, int(examples.supervised.sum())).astype(np.float32)


def batch_of(built, shared=True):
    examples = built.data.examples
    assert len(examples) == PAIRS
    apart = built.config.data.packing == "none"
    bins = [np.array([i]) for i in range(PAIRS)] if apart else [np.array([2 * i, 2 * i + 1]) for i in range(PAIRS // 2)]
    batch = assemble(examples, bins, sequence_length=288, sequence_targets=160)
    if has_reference(built.config.objective.name):
        batch["reference"] = np.zeros(batch["weights"].shape, np.float32)
        batch["reference"][batch["weights"] > 0] = reference_of(examples)
    return batch


def separate(built, batch):
    """The same pairs, in sequences in which each answer is a segment with the prompt before it."""
    examples, rows = built.data.examples, []
    for number in range(PAIRS):
        (tokens, weights), branch = examples.example(number), examples.branches_of(number)
        for answer in (1, 2):
            inside = (branch == 0) | (branch == answer)
            rows.append((tokens[inside], weights[inside]))
    whole = TokenizedExamples.from_examples(rows, [str(number) for number in range(len(rows))])
    bins = [np.arange(4 * i, 4 * i + 4) for i in range(PAIRS // 2)]
    made = assemble(whole, bins, sequence_length=400, sequence_targets=160)
    return made | {name: batch[name] for name in ("branches", "reference")}


def assert_same(found, expected):
    """Metrics and gradients, relative to 1e-5; a margin relative to the rewards whose difference it is."""
    (metrics, gradient), (expected_metrics, expected_gradient) = found, expected
    assert metrics.keys() == expected_metrics.keys()
    of_rewards = abs(expected_metrics["chosen_reward"][0]) + abs(expected_metrics["rejected_reward"][0])
    for name, pair in expected_metrics.items():
        least = 1e-5 * of_rewards if name == "margin" else 0.0
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5, atol=least, err_msg=name)
    assert gradient.keys() == expected_gradient.keys()
    for path, leaf in expected_gradient.items():
        norm = np.linalg.norm(leaf)
        assert norm > 1e-4, f"{path}: this gradient shows nothing"
        assert np.linalg.norm(gradient[path] - leaf) <= 1e-5 * norm, path


def log_probabilities(built, batch):
    with jax.set_mesh(built.mesh):
        found = jax.jit(
            lambda state, batch: target_log_probabilities(
                built.model, built.settings.head_chunk, state.trained, state, batch, Randomness()
            )[0]
        )(built.state, batch)
    return np.asarray(found)[batch["weights"] > 0]


@pytest.mark.parametrize(
    "attention",
    ["blocked", "reference", *(pytest.param(name, marks=pytest.mark.slow) for name in ("splash", "triton"))],
)
@pytest.mark.parametrize("model", MODELS)
def test_a_shared_prompt_is_two_whole_rows(root, model, attention):
    built = build(root, model=model, **{"execution.attention": attention})
    together = batch_of(built)
    apart = separate(built, together)
    assert (apart["segment_ids"] > 0).sum() > 1.3 * (together["segment_ids"] > 0).sum()
    found, expected = (log_probabilities(built, batch) for batch in (together, apart))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert_same(measure(built, together), measure(built, apart))


def test_the_comparison_can_fail(root):
    """A branch that sees the other one is seen."""
    built = build(root, model="windows")
    batch = batch_of(built)
    expected = log_probabilities(built, batch)
    merged = {name: array.copy() for name, array in batch.items()}
    merged["segment_ids"][0, batch["segment_ids"][0] == 3] = 2
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(log_probabilities(built, merged), expected, rtol=1e-5)


# Of the head 9 slots of a row at a time: the last chunk is padded.
CASES = OF_ANSWERS | {"chunked head": {"objective.head_chunk_tokens": 72}}


@pytest.fixture(scope="module")
def expected(root):
    @functools.cache
    def measured(arg, **overrides):
        built = build(root, arg, **overrides)
        return measure(built, batch_of(built))

    return measured


@pytest.mark.parametrize("case", CASES)
def test_dpo(root, expected, case):
    built = build(root, **CASES[case])
    assert_same(measure(built, batch_of(built)), expected("full"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["fsdp 8", "4 micro-batches", "chunked head", "all at once"])
def test_dpo_of_adapters(root, expected, case):
    built = build(root, "lora", **CASES[case])
    assert_same(measure(built, batch_of(built)), expected("lora"))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["expert 4, fsdp 2", "replica 2, expert 2, tensor 2", "expert 2, context 4"])
def test_dpo_with_experts_on_several_devices(root, expected, case):
    """A balance loss as heavy as the loss itself is that of the whole step, too."""
    heavy = {"model": "mixture", "experts.balance_loss": 1.0}
    built = build(root, **heavy, **MIXTURE_CASES[case])
    assert_same(measure(built, batch_of(built)), expected("full", **heavy))


@pytest.mark.slow
def test_a_shared_prompt_is_two_whole_rows_to_experts_on_several_devices(root):
    """In all but the balance loss, which counts a shared prompt once."""
    built = build(root, model="mixture", **{"experts.balance_loss": 0.0}, **MIXTURE_CASES["expert 4, fsdp 2"])
    together = batch_of(built)
    (metrics, gradient), (expected_metrics, expected_gradient) = (
        measure(built, batch) for batch in (together, separate(built, together))
    )
    of_experts = {name for name in metrics if name.startswith(("balance", "expert"))}
    kept = lambda found: {name: pair for name, pair in found.items() if name not in of_experts}
    assert_same((kept(metrics), gradient), (kept(expected_metrics), expected_gradient))


OPTIONS = {
    "dpo": {"tail_weight": 0.5, "label_smoothing": 0.1},
    "dpo_robust": {"label_smoothing": 0.1, "per_token": True},
    "simpo": {"beta": 2.0, "margin": 1.0},
    "orpo": {"sft_weight": 1.0},
    "cpo": {"sft_weight": 0.5},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method(root, expected, name):
    options = {f"objective.{option}": value for option, value in OPTIONS.get(name, {}).items()}
    options |= {"objective.name": name}
    built = build(root, **CASES["all at once"], **options)
    assert_same(measure(built, batch_of(built)), expected("full", **options))


def test_counts_are_pairs(root):
    built = build(root)
    metrics, _ = measure(built, batch_of(built))
    assert {name: float(metrics[name][1]) for name in ("loss", "margin", "accuracy")} == dict.fromkeys(
        ("loss", "margin", "accuracy"), PAIRS
    )
    assert metrics["nll"][1] == (batch_of(built)["branches"] % 2 == 1).sum()


@pytest.mark.parametrize("attention", BY_KERNELS)
@pytest.mark.parametrize("case", ["replica 2, fsdp 2, tensor 2", "fsdp 2, context 2"])
def test_dpo_by_kernels(root, expected, case, attention):
    built = build(root, **CASES[case], **{"execution.attention": attention})
    assert built.model.execution.attention_backend == attention
    assert_same(measure(built, batch_of(built)), expected("full"))


def test_settings_know_their_terms(root):
    built = build(root, **{"objective.sft_weight": 0.5, "objective.tail_weight": 0.0})
    assert dataclasses.asdict(built.settings.preference) == {
        "numbers": ("beta", "tail_weight", "sft_weight"),
        "per_token": False,
        "divergence": False,
        "scores": False,
    }


@pytest.mark.parametrize("name", ["dpo", "simpo"])
def test_the_step_that_is_planned_has_the_arrays_of_a_run(root, name):
    built = build(root, **{"objective.name": name})
    options, decoder = options_of(built.config), open_base(built.config.model.source).decoder
    planned = step_program(options, decoder, BatchSizes(288, 160), built.mesh).batch
    kinds = lambda batch: {name: (array.shape, array.dtype) for name, array in batch.items()}
    assert kinds(planned) == kinds(batch_of(built))
    every_position = step_program(options, decoder, BatchSizes(288, 288), built.mesh).batch
    assert every_position["targets"].shape[1] != 288


@pytest.mark.parametrize(("name", "score"), [("dpo", False), ("reward", True)])
def test_a_plan_counts_what_pairs_compute(root, name, score):
    """Windows do not bound how far back prompts are, and targets go through the vocabulary's head once more."""
    changes = {"objective.name": name, "objective.head_chunk_tokens": 72, "execution.attention": "splash"}
    built = build(root, model="windows", **changes | ({"model.head": "score"} if score else {}))
    options, decoder = options_of(built.config), open_base(built.config.model.source).decoder
    decoder = dataclasses.replace(decoder, scores=score)
    assert decoder.layer_windows == (24, 24)
    sizes = BatchSizes(288, 160)
    found = work_of_step(options, step_program(options, decoder, sizes, built.mesh), sizes)
    scores = decoder.num_heads * 2 * decoder.head_dim * decoder.num_layers * options.batch.sequences * (2 + 7)
    of_window, of_all = (attention_pairs(288, window, 512) for window in (24, 0))
    assert found.attention == scores * (of_window + of_all)
    layers, head = decoder.matmul_params()
    passes = 3 + (name == "dpo")
    assert found.products == 2 * options.batch.sequences * (3 * 288 * layers + passes * 160 * head)


@pytest.mark.parametrize("differ", [{"seed": 1}, {"objective.beta": 0.5}, {"objective.name": "simpo"}])
def test_several_runs_of_pairs_do_not_train_in_one_program(root, differ):
    """Which is said whatever else is between them, since no grouping helps; each by itself is a group."""
    configs = [build(root, **overrides).config for overrides in ({}, differ)]
    said = r"objective\.name: 'dpo'.*: a run that learns from judged answers is trained by itself"
    with pytest.raises(NotStackableError, match=said) as error:
        refuse_what_cannot_be_stacked(configs)
    assert str(error.value).endswith("or each by itself.")
    assert groups_of(configs, lambda config: config, 8) == [[config] for config in configs]
