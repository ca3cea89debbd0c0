"""The decoder computes one function: whatever the packing, the padding, the layout, the remat policy, the cache."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sft_jax.models import Decoder, Execution, init_cache
from sft_jax.models.config import REMAT_POLICIES, DecoderConfig
from sft_jax.models.layouts import layout_of, to_layout
from tests.models import programs, reference

CONFIG, PARAMS = reference.random_params({"attention_bias": True, "num_hidden_layers": 2})
LAYOUTS = ("scan", "unrolled")


def logits(ids, positions=None, segments=None, **execution):
    model = Decoder(CONFIG, Execution(**execution))
    params = to_layout(PARAMS, model.layout)
    arguments = [None if a is None else np.asarray(a, np.int32) for a in (ids, positions, segments)]
    return reference.logits_of(model, params, *arguments)


def packed(documents, length):
    """One sequence: tokens, positions that restart, segment ids from 1, padding at the end."""
    tokens, positions, segments = (np.zeros((1, length), np.int32) for _ in range(3))
    start = 0
    for number, document in enumerate(documents, 1):
        end = start + len(document)
        tokens[0, start:end], positions[0, start:end] = document, np.arange(len(document))
        segments[0, start:end], start = number, end
    positions[0, start:] = np.arange(length - start) + 1
    return tokens, positions, segments


@pytest.mark.parametrize(("length", "layout"), [(9, "unrolled"), (16, "scan")])
def test_packed_documents_equal_documents_alone(length, layout):
    documents = [[11, 12, 13, 14, 15], [21, 22, 23, 24]]
    together = logits(*packed(documents, length), layer_layout=layout)[0]
    for start, document in zip((0, 5), documents, strict=True):
        alone = logits([document], layer_layout=layout)[0]
        np.testing.assert_allclose(together[start : start + len(document)], alone, atol=1e-5, rtol=1e-5)


def test_documents_in_any_order_beside_any_others():
    documents = [[7], [7, 7], [5, 6, 5, 6, 5, 6], [7, 8]]
    seen = {}
    for order in itertools.permutations(range(4)):
        together, start = logits(*packed([documents[i] for i in order], 12))[0], 0
        for index in order:
            length = len(documents[index])
            part = together[start : start + length]
            np.testing.assert_allclose(part, seen.setdefault(index, part), atol=1e-5, rtol=1e-5)
            start += length


def test_one_segment_for_two_documents_would_be_noticed():
    tokens, positions, segments = packed([[11, 12, 13, 14, 15], [21, 22, 23, 24]], 9)
    right = logits(tokens, positions, segments)
    wrong = logits(tokens, positions, np.ones_like(segments))
    assert np.abs(right - wrong)[0, 5:].max() > 0.1


def test_padding_changes_nothing_and_is_finite():
    tokens, positions, segments = packed([[11, 12, 13]], 10)
    alone = logits([[11, 12, 13]])
    for filler in (0, 2, 99):
        tokens[0, 3:] = filler
        padded = logits(tokens, positions, segments)
        np.testing.assert_allclose(padded[:, :3], alone, atol=1e-5, rtol=1e-5)
        assert np.isfinite(padded).all()


def test_an_empty_sequence_has_finite_gradients():
    tokens = jnp.zeros((1, 6), jnp.int32)
    model = Decoder(CONFIG, Execution(layer_layout="unrolled"))
    gradient = reference.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, tokens, tokens, tokens) ** 2)))(
        PARAMS
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_default_positions_and_segments_are_one_document():
    ids = reference.tokens(2, 8)
    positions = np.tile(np.arange(8), (2, 1))
    np.testing.assert_array_equal(logits(ids), logits(ids, positions, np.ones((2, 8))))


def loss_and_gradient(model):
    ids = jnp.asarray(reference.tokens(2, 10))

    def loss(params):
        return jnp.mean(jax.nn.logsumexp(model.apply({"params": params}, ids), axis=-1) ** 2)

    params = to_layout(PARAMS, model.layout)
    value, gradient = reference.jit(jax.value_and_grad(loss))(params)
    return value, reference.flat(to_layout(gradient, "unrolled"))


@pytest.fixture(scope="module")
def plain():
    return loss_and_gradient(Decoder(CONFIG, Execution(layer_layout="unrolled")))


@pytest.mark.parametrize(
    ("layout", "remat"),
    [*(("scan", remat) for remat in REMAT_POLICIES), ("unrolled", "full"), ("unrolled", "attention_products")],
)
def test_layout_and_remat_change_neither_loss_nor_gradient(plain, layout, remat):
    value, gradient = loss_and_gradient(Decoder(CONFIG, Execution(layer_layout=layout, remat=remat)))
    np.testing.assert_allclose(value, plain[0], rtol=1e-6)
    assert gradient.keys() == plain[1].keys()
    errors = {path: reference.relative(gradient[path], plain[1][path]) for path in gradient}
    assert max(errors.values()) <= 1e-5, errors


def scalar(model):
    ids = jnp.asarray(reference.tokens(2, 10))
    return lambda params: jnp.sum(model.apply({"params": params}, ids) ** 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_remat_policies_recompute_what_they_say(layout):
    """Matrix products of the gradient's program beyond those of `none`: a policy that saves nothing would show here."""
    params, count = to_layout(PARAMS, layout), {}
    for remat in REMAT_POLICIES:
        model = Decoder(CONFIG, Execution(layer_layout=layout, remat=remat))
        count[remat] = len(programs.dot_dtypes(jax.grad(scalar(model)), params))
    layers = 1 if layout == "scan" else CONFIG.num_layers
    more = {remat: found - count["none"] for remat, found in count.items()}
    # Of attention the two products and the four projections; of the feed-forward part all but the last projection, of
    # whose result no gradient has need.
    of_attention, of_feed_forward = 2 + 4, 2
    assert more == {
        "none": 0,
        "products": 0,
        "attention_products": of_feed_forward * layers,
        "attention": (of_attention - 2 + of_feed_forward) * layers,
        "full": (of_attention + of_feed_forward) * layers,
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_products_are_close_and_are_all_there_is(layout):
    ids = reference.tokens(2, 10)
    exact = logits(ids, layer_layout=layout)
    rounded = logits(ids, layer_layout=layout, matmul_dtype="bfloat16")
    assert 1e-4 < reference.relative(rounded, exact) < 0.03
    model = Decoder(CONFIG, Execution(layer_layout=layout, matmul_dtype="bfloat16"))
    found = programs.dot_dtypes(jax.grad(scalar(model)), to_layout(PARAMS, layout))
    layers = 1 if layout == "scan" else CONFIG.num_layers
    # 7 projections a layer, and the head: three products each. Attention: two forward, and five backward.
    assert len(found) == 3 * (7 * layers + 1) + (2 + 5) * layers
    assert set(found) == {("bfloat16", "bfloat16", "float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision_activations(dtype):
    ids = reference.tokens(2, 10)
    model = Decoder(CONFIG, Execution(matmul_dtype=dtype, activation_dtype=dtype))
    params = to_layout(PARAMS, "scan")
    hidden, _ = reference.jit(lambda p: model.apply({"params": p}, ids, method="hidden"))(params)
    rounded = reference.logits_of(model, params, ids)
    assert (hidden.dtype, rounded.dtype) == (dtype, "float32")
    assert reference.relative(rounded, logits(ids)) < 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_cache_in_pieces_equals_the_whole(layout):
    ids = reference.tokens(2, 11)
    model = Decoder(CONFIG, Execution(layer_layout=layout))
    variables = {"params": to_layout(PARAMS, layout)}

    @reference.jit
    def extend(tokens, start, cache):
        positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, cache = model.apply(variables, tokens, positions, None, cache, method="hidden")
        return model.apply(variables, hidden, method="head"), cache

    cache, pieces = init_cache(CONFIG, model.execution, 2, 16), []  # more slots than tokens
    for start, end in itertools.pairwise((0, 5, 8, 11)):
        piece, cache = extend(ids[:, start:end], start, cache)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), logits(ids), atol=1e-5, rtol=1e-5)
    assert int(cache.length) == 11


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_cache_with_another_in_front_of_it_equals_the_whole(layout):
    """Two sequences of which five and two tokens were read go on, in a cache that is written from place 4 on round."""
    ids = reference.tokens(2, 11)
    model = Decoder(CONFIG, Execution(layer_layout=layout))
    variables = {"params": to_layout(PARAMS, layout)}
    start = np.asarray([5, 2])
    positions, written = jnp.broadcast_to(jnp.arange(5), (2, 5)), jnp.arange(5)[None] < start[:, None]
    before = init_cache(CONFIG, model.execution, 2, 5)
    _, before = model.apply(variables, ids[:, :5], positions, written.astype(jnp.int32), before, method="hidden")
    cache = init_cache(CONFIG, model.execution, 2, 6).replace(length=jnp.asarray(4, jnp.int32))
    for step in range(6):
        place = start + step
        tokens, at = ids[np.arange(2), place][:, None], jnp.asarray(place[:, None])
        rotations = model.apply(variables, at, method="rotations")
        hidden, cache = model.apply(
            variables, tokens, at, None, cache, rotations=rotations, before=before, method="hidden"
        )
        cache = cache.replace(length=cache.length % 6)
        found = model.apply(variables, hidden, method="head")[:, 0]
        np.testing.assert_allclose(found, np.asarray(logits(ids))[np.arange(2), place], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_beginning_that_is_read_once_serves_several_segments(layout, backend):
    """A cache that is full grows: four tokens are read first, then two continuations of them side by side."""
    ids, other = reference.tokens(1, 9), reference.tokens(2, 9)[1:]
    other = np.concatenate([ids[:, :4], other[:, 4:]], axis=1)
    model = Decoder(CONFIG, Execution(layer_layout=layout, attention_backend=backend))
    variables = {"params": to_layout(PARAMS, layout)}
    empty = init_cache(CONFIG, model.execution, 1, 0).replace(length=None)
    _, beginning = model.apply(variables, ids[:, :4], cache=empty, method="hidden")
    packed = np.concatenate([ids[:, 4:], other[:, 4:]], axis=1)
    positions, segments = np.tile(np.arange(4, 9), 2)[None], np.repeat([2, 3], 5)[None]
    hidden, grown = model.apply(
        variables, packed, positions, segments, beginning, parents=np.ones_like(packed), method="hidden"
    )
    found = model.apply(variables, hidden, method="head")[0]
    whole = np.concatenate([np.asarray(logits(text))[0, 4:] for text in (ids, other)])
    np.testing.assert_allclose(found, whole, atol=1e-5, rtol=1e-5)
    assert grown.segments.tolist() == [[1] * 4 + [2] * 5 + [3] * 5]


def test_head_of_hidden_is_the_whole():
    model, params = Decoder(CONFIG), to_layout(PARAMS, "scan")
    ids = reference.tokens(1, 4)

    def halves(params):
        hidden, cache = model.apply({"params": params}, ids, method="hidden")
        assert cache is None
        return model.apply({"params": params}, hidden, method="head")

    np.testing.assert_allclose(reference.jit(halves)(params), logits(ids), atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_initialised_parameters_have_the_tree_that_is_loaded(layout):
    model = Decoder(CONFIG, Execution(layer_layout=layout))
    made = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    loaded = to_layout(PARAMS, layout)
    assert layout_of(made) == layout
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, loaded)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Execution(matmul_dtype="int8"), "matmul_dtype='int8' is not one of"),
        (
            lambda: Execution(remat="some"),
            "remat='some' is not one of none, products, attention_products, attention, full",
        ),
        (lambda: Execution(attention_backend="magic"), "attention_backend='magic' is not one of blocked, reference, "),
        (lambda: DecoderConfig(8, 1, 8, num_heads=3, num_kv_heads=2, head_dim=4, ffn_dim=8), "num_heads=3 must be a"),
        (lambda: DecoderConfig(8, 1, 8, num_heads=2, num_kv_heads=2, head_dim=3, ffn_dim=8), "head_dim=3 must be even"),
    ],
)
def test_settings_that_cannot_be_are_refused(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_matmul_params_are_the_kernels():
    kernels = sum(leaf.size for path, leaf in reference.flat(PARAMS).items() if path.endswith("kernel"))
    assert CONFIG.matmul_params() == (kernels, PARAMS["embedding"].size)
