"""The answer to a prompt is its own: whatever the cache, the batch, the neighbours, the order, the mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.generation import Generator, Sampling
from sft_jax.generation.generator import _shared_tokens
from sft_jax.models import Decoder, DecoderConfig, Execution, load_pretrained
from sft_jax.models.layouts import to_layout
from sft_jax.sharding import make_mesh, shardings_of
from tests import tiny

NEW = 20  # two blocks of 16, the second cut
SAMPLED = Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=3)
TOKENIZER = tiny.tokenizer()


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("generation") / "model", num_hidden_layers=2)
    return load_pretrained(directory)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 259, length).astype(np.int32) for length in (5, 1, 17, 9, 33, 2, 12, 64, 8, 3)]


def generator(model, *, stop_ids=(), **options):
    return Generator(model, TOKENIZER, stop_ids, **{"max_new_tokens": NEW, "batch_size": 4} | options)


def ids(answers):
    return [answer.tokens.tolist() for answer in answers]


@pytest.fixture(scope="module")
def greedy(tiny_model):
    """The generator that most tests share."""
    return generator(tiny_model[0])


@pytest.fixture(scope="module")
def sampler(tiny_model):
    return generator(tiny_model[0], sampling=SAMPLED)


@pytest.fixture(scope="module")
def sampled(tiny_model, sampler, prompts):
    return ids(sampler({"params": tiny_model[1]}, prompts))


@pytest.fixture(scope="module")
def answers(tiny_model, greedy, prompts):
    return greedy({"params": tiny_model[1]}, prompts)


@pytest.fixture(scope="module")
def uncached(tiny_model, prompts):
    """Argmax decoding that reads the whole sequence for every token."""
    model, params = tiny_model
    last = jax.jit(lambda tokens, end: model.apply({"params": params}, tokens)[0, end - 1].argmax())
    found = []
    for prompt in prompts:
        sequence = np.zeros((1, 96), np.int32)
        sequence[0, : len(prompt)] = prompt
        for end in range(len(prompt), len(prompt) + NEW):
            sequence[0, end] = last(sequence, end)
        found.append(sequence[0, len(prompt) : len(prompt) + NEW].tolist())
    return found


def test_cached_equals_uncached(answers, uncached):
    assert ids(answers) == uncached
    assert len({tuple(tokens) for tokens in uncached}) == len(uncached)  # the prompts matter


def test_unrolled_layout_equals_uncached(tiny_model, prompts, uncached):
    model = Decoder(tiny_model[0].config, Execution(layer_layout="unrolled"))
    params = to_layout(tiny_model[1], "unrolled")
    assert ids(generator(model)({"params": params}, prompts)) == uncached


def test_answers_that_the_length_ends(answers):
    for answer in answers:
        assert not answer.stopped
        assert len(answer.tokens) == NEW
        assert answer.text == TOKENIZER.decode(answer.tokens, skip_special_tokens=True)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_batch_size_and_order_do_not_matter(tiny_model, prompts, sampling, batch_size, answers, sampled):
    expected = ids(answers) if sampling == Sampling() else sampled
    made = generator(tiny_model[0], sampling=sampling, batch_size=batch_size)
    order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
    found = made({"params": tiny_model[1]}, [prompts[i] for i in order], example_ids=order)
    assert ids(found) == [expected[i] for i in order]


def test_neighbours_do_not_matter(tiny_model, greedy, prompts, answers):
    """Alone, and beside a prompt so long that all of the batch is padded further."""
    variables = {"params": tiny_model[1]}
    assert ids(greedy(variables, prompts[2:3])) == ids(answers[2:3])
    long = np.full(70, 9, np.int32)
    assert ids(greedy(variables, [prompts[2], long]))[0] == answers[2].tokens.tolist()


def test_seed_and_example_id_matter(tiny_model, sampler, prompts, sampled):
    model, params = tiny_model
    other = generator(model, sampling=Sampling(temperature=1.0, top_k=50, top_p=0.95, seed=4))
    assert all(a != b for a, b in zip(ids(other({"params": params}, prompts)), sampled, strict=True))
    same = sampler({"params": params}, [prompts[0]] * 3, example_ids=[0, 1, 0])
    first, second, third = ids(same)
    assert first == third == sampled[0] != second


def test_stop_ids_end_an_answer(tiny_model, prompts, uncached):
    """The stop token is not part of the answer, sequences end one by one, and text after the stop is never shown."""
    stop_ids = (uncached[0][3], uncached[4][18])
    found = generator(tiny_model[0], stop_ids=stop_ids)({"params": tiny_model[1]}, prompts)
    for answer, whole in zip(found, uncached, strict=True):
        places = [i for i, token in enumerate(whole) if token in stop_ids]
        assert answer.tokens.tolist() == (whole[: places[0]] if places else whole)
        assert answer.stopped == bool(places)
    assert {answer.stopped for answer in found} == {True, False}


def test_max_new_tokens_cuts(tiny_model, prompts, uncached):
    stop_ids = (uncached[0][3],)
    assert uncached[0].index(stop_ids[0]) == 3
    found = {
        limit: generator(tiny_model[0], stop_ids=stop_ids, max_new_tokens=limit)({"params": tiny_model[1]}, prompts[:1])
        for limit in (3, 4)
    }
    assert ids(found[3]) == ids(found[4]) == [uncached[0][:3]]
    assert [found[limit][0].stopped for limit in (3, 4)] == [False, True]


def test_stream_grows_to_the_whole(tiny_model, greedy, prompts, answers):
    parts = list(greedy.stream({"params": tiny_model[1]}, prompts[0]))
    assert [len(part.tokens) for part in parts] == [1, 17, NEW]
    assert parts[-1].tokens.tolist() == answers[0].tokens.tolist()
    assert (parts[-1].text, parts[-1].stopped) == (answers[0].text, answers[0].stopped)
    for part in parts:
        assert part.tokens.tolist() == answers[0].tokens[: len(part.tokens)].tolist()


def test_progress_counts_prompts(tiny_model, greedy, prompts):
    seen = []
    greedy({"params": tiny_model[1]}, prompts, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(("fsdp", "tensor", "sampling"), [(8, 1, SAMPLED), (4, 2, Sampling())])
def test_a_mesh_gives_the_same_tokens(tiny_model, prompts, fsdp, tensor, sampling, answers, sampled):
    model, params = tiny_model
    sizes = {"replica": 1, "fsdp": fsdp, "expert": 1, "tensor": tensor}
    mesh = make_mesh(sizes, jax.devices())
    variables = {"params": params}
    variables = jax.device_put(variables, shardings_of(variables, mesh))
    with jax.set_mesh(mesh):
        made = generator(model, sampling=sampling, batch_size=3)
        assert made.batch_size == fsdp  # rounded up so that the mesh divides it
        found = made(variables, prompts)
    assert ids(found) == (ids(answers) if sampling == Sampling() else sampled)


def test_low_precision_matmul(tiny_model, prompts, answers):
    """Kernels are cast once; the first token of nearly every answer is that of float32."""
    model = Decoder(tiny_model[0].config, Execution(matmul_dtype="bfloat16"))
    found = generator(model, max_new_tokens=1)({"params": tiny_model[1]}, prompts)
    same = [a.tokens[0] == b.tokens[0] for a, b in zip(found, answers, strict=True)]
    assert sum(same) >= 8


def test_nothing_to_do(tiny_model, greedy):
    assert greedy({"params": tiny_model[1]}, []) == []


def test_bad_calls_are_refused(tiny_model, greedy, prompts):
    variables, empty = {"params": tiny_model[1]}, np.zeros(0, np.int32)
    with pytest.raises(ValueError, match=r"prompts \[1, 2\] are empty"):
        greedy(variables, [prompts[0], empty, empty])
    with pytest.raises(ValueError, match=r"prompts \[0\] are empty"):
        list(greedy.stream(variables, empty))
    for example_ids in ([0], [0, 1, 2]):
        with pytest.raises(ValueError, match=f"{len(example_ids)} example_ids for 2 prompts"):
            greedy(variables, prompts[:2], example_ids=example_ids)
    for options in ({"max_new_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=r"max_new_tokens=\d+ and batch_size=\d+ must be at least 1"):
            generator(tiny_model[0], **options)


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_a_shared_beginning_changes_nothing(tmp_path, layout):
    """Read once for all prompts, it gives the answers of prompts read one by one."""
    directory = tiny.write_checkpoint(tmp_path / "model")
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, 250, 150).astype(np.int32)
    prompts = [np.concatenate([beginning, rng.integers(3, 250, n).astype(np.int32)]) for n in (1, 9, 30)]
    assert _shared_tokens(prompts) == 128
    assert _shared_tokens([prompts[0], beginning[:129]]) == 128
    assert _shared_tokens([prompts[0], beginning[:128]]) == 64  # at least one token is left
    assert _shared_tokens([prompts[0]]) == 0
    generator = Generator(model, tiny.tokenizer(), [2], max_new_tokens=12, batch_size=2)
    together = generator({"params": params}, prompts)
    alone = [generator({"params": params}, [prompt])[0] for prompt in prompts]
    assert [list(answer.tokens) for answer in together] == [list(answer.tokens) for answer in alone]
    assert max(len(answer.tokens) for answer in alone) > 4


@pytest.fixture(scope="module", params=["learned", "rotary"])
def short(request):
    """A model of 24 positions, its variables, and prompts that leave 1, 4 and 20 of them."""
    options = {"learned_positions": request.param == "learned", "max_positions": 24}
    model = Decoder(DecoderConfig(320, 2, 32, 4, 2, 8, 48, **options), Execution(layer_layout="unrolled"))
    variables = model.init(jax.random.key(1), np.ones((1, 4), np.int32))
    rng = np.random.default_rng(2)
    return model, variables, [rng.integers(3, 250, 24 - left).astype(np.int32) for left in (1, 4, 20)]


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_answers_end_at_the_last_position(short, sampling):
    """Each alone, whatever the neighbours; said so; and until there as by a model that knows more positions."""
    model, variables, prompts = short
    found = generator(model, sampling=sampling)(variables, prompts)
    assert [len(answer.tokens) for answer in found] == [1, 4, 20]
    assert [answer.finish_reason for answer in found] == ["max_positions", "max_positions", "max_positions"]
    assert not any(answer.stopped for answer in found)
    alone = [generator(model, sampling=sampling)(variables, [p], example_ids=[i])[0] for i, p in enumerate(prompts)]
    assert ids(alone) == ids(found)
    (streamed,) = [list(generator(model, sampling=sampling).stream(variables, prompts[1], example_id=1))[-1]]
    assert (streamed.tokens.tolist(), streamed.finish_reason) == (ids(found)[1], "max_positions")
    if not model.config.learned_positions:
        longer = Decoder(dataclasses.replace(model.config, max_positions=99), model.execution)
        further = generator(longer, sampling=sampling)(variables, prompts)
        assert [answer.finish_reason for answer in further] == ["max_new_tokens"] * 3
        assert [tokens[:n] for tokens, n in zip(ids(further), (1, 4, 20), strict=True)] == ids(found)


def test_every_reason_to_end_in_one_batch(short):
    model, variables, prompts = short
    stop = int(generator(model, sampling=SAMPLED)(variables, prompts)[2].tokens[1])
    ended = generator(model, sampling=SAMPLED, stop_ids=(stop,), max_new_tokens=2)
    found = ended(variables, [prompts[0], prompts[2], prompts[1]], example_ids=[0, 2, 1])
    assert [answer.finish_reason for answer in found] == ["max_positions", "stop", "max_new_tokens"]
    assert [answer.stopped for answer in found] == [False, True, False]


def test_a_stop_at_the_last_position_is_a_stop(short):
    model, variables, prompts = short
    whole = generator(model, sampling=SAMPLED)(variables, [prompts[1]])[0].tokens.tolist()
    answer = generator(model, sampling=SAMPLED, stop_ids=(whole[-1],))(variables, [prompts[1]])[0]
    assert (answer.tokens.tolist(), answer.stopped) == (whole[: whole.index(whole[-1])], True)


def test_prompts_without_room_or_a_place_are_refused(short):
    model, variables, prompts = short
    for length in (24, 100):
        with pytest.raises(
            ValueError, match=f"prompt 1 has {length} tokens; the model knows 24 positions, which leaves"
        ):
            generator(model)(variables, [prompts[0], np.full(length, 5, np.int32)])
    with pytest.raises(ValueError, match="prompt 0 has token 320; the model has embeddings of 320 tokens"):
        list(generator(model).stream(variables, np.asarray([5, 320], np.int32)))
