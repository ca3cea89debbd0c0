"""The answer to a prompt is its own: whatever the cache, the slots, the neighbours, the order, the mesh."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.generation import Sampler, Sampling, prepare, sampler, sizes
from sft_jax.generation.prompts import shared_tokens
from sft_jax.models import Decoder, DecoderConfig, Execution, load_pretrained
from sft_jax.models.layouts import to_layout
from sft_jax.sharding import make_mesh, shardings_of
from tests import tiny
from tests.generation.brute_force import log_probabilities

NEW = 20
SAMPLED, SEED = Sampling(temperature=1.0, top_k=50, top_p=0.95), 3


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    directory = tiny.write_checkpoint(tmp_path_factory.mktemp("generation") / "model", num_hidden_layers=2)
    return load_pretrained(directory)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 259, length).astype(np.int32) for length in (5, 1, 17, 9, 33, 2, 12, 64, 8, 3)]


def generate(
    model, variables, prompts, *, stop_ids=(), sampling=None, slots=4, max_new_tokens=NEW, seed=SEED, **options
):
    """One answer to each prompt."""
    made = Sampler(stop_ids, sampling=sampling, slots=slots)
    options |= {"max_new_tokens": max_new_tokens, "seed": seed}
    return [answer for (answer,) in made.generate(prepare(model, variables), prompts, **options)]


def stream(model, variables, prompt, **options):
    made = Sampler((), sampling=options.pop("sampling", None))
    return list(made.stream(prepare(model, variables), prompt, max_new_tokens=NEW, seed=SEED, **options))


def ids(answers):
    return [answer.tokens.tolist() for answer in answers]


@pytest.fixture(scope="module")
def variables(tiny_model):
    return {"params": tiny_model[1]}


@pytest.fixture(scope="module")
def sampled(tiny_model, variables, prompts):
    return ids(generate(tiny_model[0], variables, prompts, sampling=SAMPLED))


@pytest.fixture(scope="module")
def answers(tiny_model, variables, prompts):
    return generate(tiny_model[0], variables, prompts)


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
    assert ids(generate(model, {"params": params}, prompts)) == uncached


def test_answers_that_the_length_ends(answers):
    for answer in answers:
        assert not answer.stopped
        assert len(answer.tokens) == len(answer.logprobs) == NEW


def test_logprobs_are_the_models(tiny_model, variables, prompts):
    """Before temperature and cuts, the stop token's included."""
    model, _ = tiny_model
    whole = generate(model, variables, prompts, sampling=SAMPLED)
    stop_ids = (int(whole[3].tokens[5]),)
    for prompt, answer in zip(
        prompts, generate(model, variables, prompts, sampling=SAMPLED, stop_ids=stop_ids), strict=True
    ):
        chosen = [*answer.tokens, *(stop_ids if answer.stopped else ())]
        whole_text = log_probabilities(model, variables, np.concatenate([prompt, chosen]))
        expected = whole_text[len(prompt) - 1 : -1][np.arange(len(chosen)), chosen]
        np.testing.assert_allclose(answer.logprobs, expected, atol=1e-4)
    assert answer.logprobs.dtype == np.float32


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_slots_and_order_do_not_matter(tiny_model, variables, prompts, sampling, slots, answers, sampled):
    expected = ids(answers) if sampling == Sampling() else sampled
    order = [7, 2, 9, 0, 4, 1, 8, 3, 6, 5]
    found = generate(
        tiny_model[0], variables, [prompts[i] for i in order], example_ids=order, sampling=sampling, slots=slots
    )
    assert ids(found) == [expected[i] for i in order]


def test_neighbours_do_not_matter(tiny_model, variables, prompts, answers):
    """Alone, and beside a longer prompt."""
    assert ids(generate(tiny_model[0], variables, prompts[2:3])) == ids(answers[2:3])
    long = np.full(70, 9, np.int32)
    assert ids(generate(tiny_model[0], variables, [prompts[2], long]))[0] == answers[2].tokens.tolist()


@pytest.mark.parametrize("rows", [40, 70])
def test_slots_are_filled_again_while_others_go_on(tiny_model, variables, prompts, answers, monkeypatch, rows):
    """With a limit for each answer, few slots, and rows that hold few prompts: each answer begins like the long one."""
    for module in (sampler, sizes):
        monkeypatch.setattr(module, "ROW_TOKENS", rows)
    monkeypatch.setattr(sampler, "rounded_size", lambda size, smallest=8: sizes.rounded_size(size, 8))
    filled = []
    monkeypatch.setattr(
        sampler, "_fill", lambda *args, _fill=sampler._fill, **kw: filled.append(args) or _fill(*args, **kw)
    )
    limits = [3, 20, 1, 7, 2, 20, 5, 9, 1, 4]
    found = generate(tiny_model[0], variables, prompts, max_new_tokens=limits, slots=4)
    assert ids(found) == [tokens[:limit] for tokens, limit in zip(ids(answers), limits, strict=True)]
    assert len(filled) >= 4


def test_several_samples_of_a_prompt(tiny_model, variables, prompts, sampled):
    """They differ, the first is the one of a single sample, and each is the same in any company."""
    made = Sampler((), sampling=SAMPLED, slots=5)
    options = {"max_new_tokens": NEW, "seed": SEED}
    three = made.generate(prepare(tiny_model[0], variables), prompts, samples=3, **options)
    assert [len(answers) for answers in three] == [3] * len(prompts)
    assert [ids(answers)[0] for answers in three] == sampled
    assert all(len({tuple(tokens) for tokens in ids(answers)}) == 3 for answers in three)
    two = made.generate(prepare(tiny_model[0], variables), prompts[4:6], samples=2, example_ids=[4, 5], **options)
    assert [ids(answers) for answers in two] == [ids(answers)[:2] for answers in three[4:6]]


def test_seed_and_example_id_matter(tiny_model, variables, prompts, sampled):
    other = generate(tiny_model[0], variables, prompts, sampling=SAMPLED, seed=4)
    assert all(a != b for a, b in zip(ids(other), sampled, strict=True))
    same = generate(tiny_model[0], variables, [prompts[0]] * 3, example_ids=[0, 1, 0], sampling=SAMPLED)
    first, second, third = ids(same)
    assert first == third == sampled[0] != second


def test_stop_ids_end_an_answer(tiny_model, variables, prompts, uncached):
    """The stop token is not part of the answer, sequences end one by one, and text after the stop is never shown."""
    stop_ids = (uncached[0][3], uncached[4][18])
    found = generate(tiny_model[0], variables, prompts, stop_ids=stop_ids)
    for answer, whole in zip(found, uncached, strict=True):
        places = [i for i, token in enumerate(whole) if token in stop_ids]
        assert answer.tokens.tolist() == (whole[: places[0]] if places else whole)
        assert answer.stopped == bool(places)
    assert {answer.stopped for answer in found} == {True, False}


def test_max_new_tokens_cuts(tiny_model, variables, prompts, uncached):
    stop_ids = (uncached[0][3],)
    assert uncached[0].index(stop_ids[0]) == 3
    found = {
        limit: generate(tiny_model[0], variables, prompts[:1], stop_ids=stop_ids, max_new_tokens=limit)
        for limit in (3, 4)
    }
    assert ids(found[3]) == ids(found[4]) == [uncached[0][:3]]
    assert [found[limit][0].stopped for limit in (3, 4)] == [False, True]


def test_stream_grows_to_the_whole(tiny_model, variables, prompts, answers):
    parts = stream(tiny_model[0], variables, prompts[0])
    assert [len(part.tokens) for part in parts] == [1, 17, NEW]
    assert parts[-1].tokens.tolist() == answers[0].tokens.tolist()
    assert parts[-1].finish_reason == answers[0].finish_reason
    for part in parts:
        assert part.tokens.tolist() == answers[0].tokens[: len(part.tokens)].tolist()


def test_answers_are_told_as_they_end(tiny_model, variables, prompts, answers):
    progress, ended = [], {}
    made = Sampler((), slots=4)
    made.generate(
        prepare(tiny_model[0], variables),
        prompts,
        max_new_tokens=NEW,
        progress=lambda done, total: progress.append((done, total)),
        on_answer=lambda prompt, sample, answer: ended.setdefault((prompt, sample), answer.tokens.tolist()),
    )
    assert progress == [(done, 10) for done in range(1, 11)]
    assert ended == {(number, 0): answer.tokens.tolist() for number, answer in enumerate(answers)}


@pytest.mark.parametrize(("fsdp", "tensor", "sampling"), [(8, 1, SAMPLED), (4, 2, Sampling())])
def test_a_mesh_gives_the_same_tokens(tiny_model, prompts, fsdp, tensor, sampling, answers, sampled):
    model, params = tiny_model
    sizes = {"replica": 1, "fsdp": fsdp, "expert": 1, "tensor": tensor}
    mesh = make_mesh(sizes, jax.devices())
    variables = {"params": params}
    variables = jax.device_put(variables, shardings_of(variables, mesh))
    with jax.set_mesh(mesh):
        found = generate(
            model, variables, prompts, sampling=sampling, slots=3
        )  # rounded up so that the mesh divides it
    assert ids(found) == (ids(answers) if sampling == Sampling() else sampled)


def test_low_precision_matmul(tiny_model, variables, prompts, answers):
    """Kernels are cast once; the first token of nearly every answer is that of float32."""
    model = Decoder(tiny_model[0].config, Execution(matmul_dtype="bfloat16"))
    found = generate(model, variables, prompts, max_new_tokens=1)
    same = [a.tokens[0] == b.tokens[0] for a, b in zip(found, answers, strict=True)]
    assert sum(same) >= 8


def test_nothing_to_do(tiny_model, variables):
    assert generate(tiny_model[0], variables, []) == []


def test_bad_calls_are_refused(tiny_model, variables, prompts):
    model, empty = tiny_model[0], np.zeros(0, np.int32)
    with pytest.raises(ValueError, match=r"prompts \[1, 2\] are empty"):
        generate(model, variables, [prompts[0], empty, empty])
    with pytest.raises(ValueError, match=r"prompts \[0\] are empty"):
        stream(model, variables, empty)
    for example_ids in ([0], [0, 1, 2]):
        with pytest.raises(ValueError, match=f"{len(example_ids)} example_ids for 2 prompts"):
            generate(model, variables, prompts[:2], example_ids=example_ids)
    for limits in (0, [1], [1, 0], [1, 2, 3]):
        with pytest.raises(ValueError, match=r"max_new_tokens=\[.*\] must be at least 1, one number or one for each"):
            generate(model, variables, prompts[:2], max_new_tokens=limits)
    with pytest.raises(ValueError, match="slots=0 must be at least 1"):
        generate(model, variables, prompts[:2], slots=0)
    with pytest.raises(ValueError, match="samples=0 must be at least 1"):
        generate(model, variables, prompts[:2], samples=0)


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_a_shared_beginning_changes_nothing(tmp_path, layout):
    """Read once for all prompts, it gives the answers of prompts read one by one."""
    directory = tiny.write_checkpoint(tmp_path / "model")
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    rng = np.random.default_rng(0)
    beginning = rng.integers(3, 250, 150).astype(np.int32)
    prompts = [np.concatenate([beginning, rng.integers(3, 250, n).astype(np.int32)]) for n in (1, 9, 30)]
    assert shared_tokens(prompts) == 128
    assert shared_tokens([prompts[0], beginning[:129]]) == 128
    assert shared_tokens([prompts[0], beginning[:128]]) == 64  # at least one token is left
    assert shared_tokens([prompts[0]]) == 0
    options = {"stop_ids": [2], "max_new_tokens": 12, "slots": 2}
    together = generate(model, {"params": params}, prompts, **options)
    alone = [generate(model, {"params": params}, [prompt], **options)[0] for prompt in prompts]
    assert [list(answer.tokens) for answer in together] == [list(answer.tokens) for answer in alone]
    assert max(len(answer.tokens) for answer in alone) > 4


@pytest.fixture(scope="module", params=["learned", "rotary"])
def short(request):
    """A model of 24 positions, its variables, and prompts that leave 1, 4 and 20 of them."""
    options = {"learned_positions": request.param == "learned", "max_positions": 24}
    model = Decoder(DecoderConfig(320, 2, 32, 4, 2, 8, 48, **options), Execution(layer_layout="unrolled"))
    variables = jax.jit(model.init)(jax.random.key(1), np.ones((1, 4), np.int32))
    rng = np.random.default_rng(2)
    return model, variables, [rng.integers(3, 250, 24 - left).astype(np.int32) for left in (1, 4, 20)]


@pytest.mark.parametrize("sampling", [Sampling(), SAMPLED])
def test_answers_end_at_the_last_position(short, sampling):
    """Each alone, whatever the neighbours; said so; and until there as by a model that knows more positions."""
    model, variables, prompts = short
    found = generate(model, variables, prompts, sampling=sampling)
    assert [len(answer.tokens) for answer in found] == [1, 4, 20]
    assert [answer.finish_reason for answer in found] == ["max_positions", "max_positions", "max_positions"]
    assert not any(answer.stopped for answer in found)
    alone = [generate(model, variables, [p], example_ids=[i], sampling=sampling)[0] for i, p in enumerate(prompts)]
    assert ids(alone) == ids(found)
    streamed = stream(model, variables, prompts[0], sampling=sampling)[-1]
    assert (streamed.tokens.tolist(), streamed.finish_reason) == (ids(found)[0], "max_positions")
    if not model.config.learned_positions:
        longer = Decoder(dataclasses.replace(model.config, max_positions=99), model.execution)
        further = generate(longer, variables, prompts, sampling=sampling)
        assert [answer.finish_reason for answer in further] == ["max_new_tokens"] * 3
        assert [tokens[:n] for tokens, n in zip(ids(further), (1, 4, 20), strict=True)] == ids(found)


def test_every_reason_to_end_in_one_batch(short):
    model, variables, prompts = short
    stop = int(generate(model, variables, prompts, sampling=SAMPLED)[2].tokens[1])
    options = {"sampling": SAMPLED, "stop_ids": (stop,), "max_new_tokens": 2, "example_ids": [0, 2, 1]}
    found = generate(model, variables, [prompts[0], prompts[2], prompts[1]], **options)
    assert [answer.finish_reason for answer in found] == ["max_positions", "stop", "max_new_tokens"]
    assert [answer.stopped for answer in found] == [False, True, False]


def test_a_stop_at_the_last_position_is_a_stop(short):
    model, variables, prompts = short
    whole = generate(model, variables, [prompts[1]], sampling=SAMPLED)[0].tokens.tolist()
    answer = generate(model, variables, [prompts[1]], sampling=SAMPLED, stop_ids=(whole[-1],))[0]
    assert (answer.tokens.tolist(), answer.stopped) == (whole[: whole.index(whole[-1])], True)


def test_prompts_without_room_or_a_place_are_refused(short):
    model, variables, prompts = short
    for length in (24, 100):
        with pytest.raises(
            ValueError, match=f"prompt 1 has {length} tokens; the model knows 24 positions, which leaves"
        ):
            generate(model, variables, [prompts[0], np.full(length, 5, np.int32)])
    with pytest.raises(ValueError, match="prompt 0 has token 320; the model has embeddings of 320 tokens"):
        stream(model, variables, np.asarray([5, 320], np.int32))
