"""Chunks of the vocabulary head equal the whole, in every sum and every gradient, and the whole never exists."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sft_jax.models import Decoder
from sft_jax.objectives import Settings, cross_entropy
from sft_jax.objectives.head import gather_targets, over_chunks
from tests.models import programs, reference

SEQUENCES, SLOTS, DIM, VOCAB = 2, 7, 4, 16


def linear_objective(trained, frozen, hidden, targets, weights):
    """A head that is trained in one part (kernel) and frozen in another (bias)."""
    logits = jnp.einsum("bsd,dv->bsv", hidden, trained["kernel"]) + frozen["bias"][None, None]
    return cross_entropy(logits, targets, weights, Settings(label_smoothing=0.1, z_loss=1e-2))


def arrays(sequences=SEQUENCES, slots=SLOTS, dim=DIM, vocab=VOCAB, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    trained, frozen = {"kernel": draw(dim, vocab)}, {"bias": draw(vocab)}
    targets = jnp.asarray(rng.integers(0, vocab, (sequences, slots)), jnp.int32)
    weights = jnp.asarray(rng.choice([0.0, 0.5, 1.0], (sequences, slots)), jnp.float32)
    return trained, frozen, draw(sequences, slots, dim), targets, weights


def mean_loss(chunk, objective=linear_objective):
    def loss(trained, frozen, hidden, targets, weights):
        metrics = over_chunks(objective, trained, frozen, hidden, targets, weights, chunk)
        return metrics["loss"][0] / metrics["loss"][1], metrics

    return loss


def assert_close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 6, 7, 100])
def test_chunks_equal_the_whole(chunk):
    case = arrays()
    differentiated = jax.value_and_grad(mean_loss(chunk), argnums=(0, 2), has_aux=True)
    assert_close(differentiated(*case), jax.value_and_grad(mean_loss(0), argnums=(0, 2), has_aux=True)(*case))
    assert_close(mean_loss(chunk)(*case), mean_loss(0)(*case))  # not differentiated: another path


def test_frozen_head_alone():
    """No trained weights: the gradient reaches the hidden states all the same."""
    trained, _, *rest = arrays()

    def objective(nothing, head, hidden, targets, weights):
        assert nothing == {}
        return cross_entropy(hidden @ head["kernel"], targets, weights, Settings())

    gradient = [jax.grad(mean_loss(chunk, objective), argnums=2, has_aux=True)({}, trained, *rest) for chunk in (3, 0)]
    assert_close(*gradient)
    assert float(jnp.abs(gradient[0][0]).max()) > 1e-3


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("matmul_dtype", ["float32", "bfloat16"])
def test_the_decoder_s_head_tied_and_untied(tied, matmul_dtype):
    from sft_jax.models import Execution

    config, params = reference.random_params({"tie_word_embeddings": tied, "num_hidden_layers": 1})
    model = Decoder(config, Execution(layer_layout="unrolled", matmul_dtype=matmul_dtype))
    weights_of_head = {"params": {"embedding": params["embedding"]} if tied else {"head": params["head"]}}
    other = {} if tied else {"params": {"embedding": params["embedding"]}}
    _, _, hidden, targets, weights = arrays(dim=config.model_dim)

    def objective(trained, frozen, hidden, targets, weights):
        variables = {"params": trained["params"] | frozen.get("params", {})}
        return cross_entropy(model.apply(variables, hidden, method="head"), targets, weights, Settings())

    found = [
        jax.jit(jax.value_and_grad(mean_loss(chunk, objective), argnums=(0, 2), has_aux=True))(
            weights_of_head, other, hidden, targets, weights
        )
        for chunk in (3, 0)
    ]
    assert_close(*found) if matmul_dtype == "float32" else jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-2, atol=2e-2), *found
    )


@pytest.mark.parametrize("ignored", [False, True])
def test_chunked_cross_entropy_equals_torch(ignored):
    """B 2, S 8, H 4, V 16, chunk 3; the sum divided by an arbitrary number of items, 5."""
    trained, frozen, hidden, targets, _ = arrays(slots=8)
    weights = np.ones((2, 8), np.float32)
    if ignored:
        weights[0, :3] = weights[1, 5] = 0

    def objective(trained, frozen, hidden, targets, weights):
        logits = jnp.einsum("bsd,dv->bsv", hidden, trained["kernel"]) + frozen["bias"][None, None]
        return cross_entropy(logits, targets, weights, Settings())

    def loss(trained, hidden):
        metrics = over_chunks(objective, trained, frozen, hidden, targets, jnp.asarray(weights), 3)
        return metrics["loss"][0] / 5, metrics["accuracy"]

    (value, accuracy), gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(trained, hidden)
    kernel, states = (torch.tensor(np.asarray(x), requires_grad=True) for x in (trained["kernel"], hidden))
    logits = states @ kernel + torch.tensor(np.asarray(frozen["bias"]))
    labels = torch.where(torch.from_numpy(weights) > 0, torch.tensor(np.asarray(targets)).long(), -100)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / 5
    expected.backward()
    np.testing.assert_allclose(value, expected.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient[0]["kernel"], kernel.grad.numpy(), atol=1e-5)
    np.testing.assert_allclose(gradient[1], states.grad.numpy(), atol=1e-5)
    correct = (logits.argmax(-1) == labels)[labels >= 0]
    assert (float(accuracy[0]), float(accuracy[1])) == (float(correct.sum()), correct.numel())


def test_all_targets_ignored():
    trained, frozen, hidden, targets, weights = arrays()

    def loss(trained, hidden):
        return over_chunks(linear_objective, trained, frozen, hidden, targets, jnp.zeros_like(weights), 3)["loss"][0]

    value, gradient = jax.value_and_grad(loss, argnums=(0, 1))(trained, hidden)
    assert float(value) == 0
    assert all(np.array_equal(leaf, np.zeros_like(leaf)) for leaf in jax.tree.leaves(gradient))


def test_the_full_logits_never_exist():
    """No array of the program is as large as sequences x slots x vocabulary, unless all slots are one chunk."""
    sequences, slots, dim, vocab = 2, 24, 8, 64
    case = arrays(sequences, slots, dim, vocab)
    largest = {
        chunk: max(programs.result_sizes(jax.grad(mean_loss(chunk), argnums=(0, 2), has_aux=True), *case))
        for chunk in (4, 0)
    }
    assert largest[0] == sequences * slots * vocab
    assert largest[4] < sequences * slots * vocab
    assert largest[4] == max(dim * vocab, sequences * 4 * vocab)


def test_gradients_in_chunks_cost_three_products_each():
    found = programs.dot_dtypes(jax.grad(mean_loss(3), argnums=(0, 2), has_aux=True), *arrays())
    assert len(found) == 3


def test_low_precision_weights_lose_nothing_to_many_chunks():
    """Gradients of a bf16 head over 256 chunks differ from those of one chunk by a last rounding only."""
    trained, frozen, *rest = arrays(slots=256)
    trained = {"kernel": trained["kernel"].astype(jnp.bfloat16)}
    one, many = (
        jax.jit(jax.grad(mean_loss(chunk), has_aux=True))(trained, frozen, *rest)[0]["kernel"] for chunk in (0, 1)
    )
    assert many.dtype == jnp.bfloat16
    assert reference.relative(many, np.asarray(one, np.float32)) < 2**-8


def test_gather_targets_by_hand():
    hidden = jnp.arange(12.0).reshape(1, 4, 3)
    np.testing.assert_array_equal(gather_targets(hidden, jnp.asarray([[2, 0]]))[0], [[6, 7, 8], [0, 1, 2]])
    assert gather_targets(hidden, jnp.asarray([[0, 1, 2, 3]])) is hidden


def test_supervised_slots_equal_all_positions():
    """The head on gathered positions, in chunks, equals the head on all positions with weight 0 elsewhere."""
    trained, frozen, hidden, targets, _ = arrays(slots=6)
    supervised = jnp.asarray([[1, 4, 0], [0, 2, 5]])
    used = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    everywhere = jnp.zeros((2, 6)).at[jnp.arange(2)[:, None], supervised].add(used)

    def gathered(trained, hidden):
        chosen = jnp.take_along_axis(targets, supervised, axis=1)
        states = gather_targets(hidden, supervised)
        return over_chunks(linear_objective, trained, frozen, states, chosen, used, 2)["loss"][0]

    def whole(trained, hidden):
        return over_chunks(linear_objective, trained, frozen, hidden, targets, everywhere, 0)["loss"][0]

    assert_close(*(jax.value_and_grad(f, argnums=(0, 1))(trained, hidden) for f in (gathered, whole)))
