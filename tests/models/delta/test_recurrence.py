"""The gated delta rule in chunks: equal to torch's and to the rule token by token, and blind to other documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import programs
from tests.models.delta import rows

TOLERANCE = 2e-5  # of the largest value, float32


@pytest.mark.parametrize("name", ["chunk", "recurrent"])
@pytest.mark.parametrize("length", [1, 7, 64, 65, 200])
def test_values_and_state_are_those_of_torch(length, name):
    arrays = rows.inputs(2, length)
    read, state = rows.chunked(arrays, rows.one_segment(2, length))
    theirs, theirs_state, _ = rows.of_torch(arrays, name)
    assert rows.distance(read, theirs) < TOLERANCE
    assert rows.distance(state[:, 0], theirs_state) < TOLERANCE


@pytest.mark.parametrize("decay", [0.01, 1.0, 40.0])
def test_gradients_are_those_of_torch(decay):
    """Also where the ratio of decays of a pair that is masked would be infinite."""
    arrays = rows.inputs(2, 150, decay=decay)
    weights = np.random.default_rng(1).standard_normal((2, 150, rows.HEADS, rows.VALUE_DIM)).astype(np.float32)
    order = rows.one_segment(2, 150)
    gradients = jax.grad(lambda arrays: jnp.sum(rows.chunked(arrays, order)[0] * weights))(arrays)
    _, _, theirs = rows.of_torch(arrays, weights=weights)
    for name in rows.NAMES:
        scale = max(np.max(np.abs(theirs[name])), 1e-3)
        assert np.max(np.abs(gradients[name] - theirs[name])) < 1e-4 * scale, name


def test_a_state_goes_on():
    arrays = rows.inputs(2, 130)
    part = lambda places: {name: array[:, places] for name, array in arrays.items()}
    whole, last = rows.chunked(arrays, rows.one_segment(2, 130))
    _, state = rows.chunked(part(slice(50)), rows.one_segment(2, 50))
    order = rows.order(np.ones((2, 80)), carried=[1, 1])
    read, after = rows.chunked(part(slice(50, None)), order, state[:, 0])
    assert rows.distance(read, whole[:, 50:]) < TOLERANCE
    assert rows.distance(after, last) < TOLERANCE
    theirs, _, _ = rows.of_torch(part(slice(50, None)), state=state[:, 0])
    assert rows.distance(read, theirs) < TOLERANCE
    one_by_one, one_state = rows.recurrent(part(slice(50, None)), np.ones((2, 80)), state[:, 0], jnp.asarray([1, 1]))
    assert rows.distance(one_by_one, theirs) < TOLERANCE
    assert rows.distance(one_state, after[:, 0]) < TOLERANCE


SPANS = [(0, 5, 1), (5, 9, 2), (11, 75, 3), (75, 76, 4), (80, 200, 5)]  # begin, end, segment; padding between


def _segments(spans, length):
    segments = np.zeros((1, length), np.int32)
    for begin, end, segment in spans:
        segments[:, begin:end] = segment
    return segments


@pytest.mark.parametrize("size", [16, 64])
def test_documents_of_a_packed_row_are_as_by_themselves(size):
    length = 210
    arrays, segments = rows.inputs(1, length, decay=0.05), _segments(SPANS, length)
    read, state = rows.chunked(arrays, rows.order(segments), size=size)
    one_by_one, one_state = rows.recurrent(arrays, segments)
    for begin, end, _ in SPANS:
        theirs, theirs_state, _ = rows.of_torch({name: array[:, begin:end] for name, array in arrays.items()})
        assert rows.distance(read[:, begin:end], theirs) < TOLERANCE
        assert rows.distance(one_by_one[:, begin:end], theirs) < TOLERANCE
    assert rows.distance(state[:, 0], theirs_state) < TOLERANCE  # padding behind the last changes nothing
    assert rows.distance(one_state, theirs_state) < TOLERANCE
    assert not np.any(np.asarray(read)[segments == 0])


def test_a_state_that_is_not_reset_is_noticed():
    """The documents of a row read as one text differ by far more than the tolerance."""
    arrays, segments = rows.inputs(1, 210, decay=0.05), _segments(SPANS, 210)
    read, _ = rows.chunked(arrays, rows.order(segments))
    leaking, _ = rows.chunked(arrays, rows.order(segments > 0))
    for begin, end, _ in SPANS[1:]:
        assert rows.distance(leaking[:, begin:end], read[:, begin:end]) > 100 * TOLERANCE


def test_gradients_of_a_packed_row_are_those_of_its_documents():
    arrays, segments = rows.inputs(1, 210, decay=0.05), _segments(SPANS, 210)
    weights = np.random.default_rng(1).standard_normal((1, 210, rows.HEADS, rows.VALUE_DIM)).astype(np.float32)
    order = rows.order(segments)
    gradients = jax.grad(lambda arrays: jnp.sum(rows.chunked(arrays, order)[0] * weights))(arrays)
    for begin, end, _ in SPANS:
        part = {name: array[:, begin:end] for name, array in arrays.items()}
        _, _, theirs = rows.of_torch(part, weights=weights[:, begin:end])
        for name in rows.NAMES:
            scale = max(np.max(np.abs(theirs[name])), 1e-3)
            assert np.max(np.abs(gradients[name][:, begin:end] - theirs[name])) < 1e-4 * scale, name
    for name in rows.NAMES:
        assert not np.any(np.asarray(gradients[name])[segments == 0]), name


def test_padding_within_a_text_changes_nothing():
    arrays, kept = rows.inputs(1, 150), np.ones((1, 150), bool)
    kept[:, [0, 3, 4, 63, 64, 100]] = False
    read, state = rows.chunked(arrays, rows.order(kept))
    theirs, theirs_state, _ = rows.of_torch({name: array[kept][None] for name, array in arrays.items()})
    assert rows.distance(np.asarray(read)[kept][None], theirs) < TOLERANCE
    assert rows.distance(state[:, 0], theirs_state) < TOLERANCE


CHILDREN = [(0, 40, 1, 1), (40, 52, 2, 1), (54, 130, 3, 1), (130, 140, 4, 1), (140, 150, 5, 5), (150, 190, 6, 5)]


@pytest.mark.parametrize("carried", [False, True])
def test_segments_go_on_from_their_parent(carried):
    """Also from one that was read before the row, and the state after each is given."""
    arrays, segments = rows.inputs(1, 200, decay=0.05), _segments([span[:3] for span in CHILDREN], 200)
    parents = np.zeros((1, 200), np.int32)
    for begin, end, _, parent in CHILDREN:
        parents[:, begin:end] = parent
    spans = {segment: np.arange(begin, end) for begin, end, segment, _ in CHILDREN}
    ends, first = jnp.asarray([[end - 1 for _, end, _, _ in CHILDREN]]), 0
    row = lambda array: array
    order, state = rows.order(segments, parents), None
    if carried:  # the first text was read before
        first = 40
        row = lambda array: array[:, first:]
        _, state = rows.chunked({name: array[:, :first] for name, array in arrays.items()}, rows.one_segment(1, first))
        order, state = rows.order(segments[:, first:], parents[:, first:], [1]), state[:, 0]
        ends = ends[:, 1:] - first
    read, states = rows.chunked({name: row(array) for name, array in arrays.items()}, order, state, ends, 32)
    for number, (_, _, segment, parent) in enumerate(CHILDREN[1:] if carried else CHILDREN):
        places = spans[segment] if segment == parent else np.concatenate([spans[parent], spans[segment]])
        theirs, theirs_state, _ = rows.of_torch({name: array[:, places] for name, array in arrays.items()})
        own = len(spans[segment])
        assert rows.distance(read[:, spans[segment] - first], theirs[:, -own:]) < TOLERANCE
        assert rows.distance(states[:, number], theirs_state) < TOLERANCE


def test_memory_is_linear_in_the_length():
    """No array of the forward or backward pass grows with the square of it."""

    def largest(length):
        arrays, order = rows.inputs(1, length), rows.one_segment(1, length)
        gradient = jax.grad(lambda arrays: jnp.sum(rows.chunked(arrays, order, size=16)[0]))
        return max(programs.result_sizes(gradient, arrays))

    assert largest(512) <= 2 * largest(256)
