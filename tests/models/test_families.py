"""Every family: logits and gradients equal torch's, packed or cached sequences equal plain ones, nothing is missing."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from etils import epath
from flax.traverse_util import unflatten_dict
from transformers.core_model_loading import revert_weight_conversion

from sft_jax.exports.source import merged_weights
from sft_jax.generation import Sampler, prepare
from sft_jax.models import Decoder, Execution, load_pretrained
from sft_jax.models.cache import init_cache
from sft_jax.models.families import FAMILIES, get_family
from sft_jax.models.rope import of_length
from sft_jax.models.storing import pending_tensors, put_back
from sft_jax.models.variables import is_buffer
from sft_jax.objectives import Settings, cross_entropy
from sft_jax.runs.metric_log import read_metrics
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh
from sft_jax.sources import open_checkpoint
from sft_jax.sources.safetensors_writer import write_safetensors
from sft_jax.sources.wrappers import WRAPPERS
from sft_jax.training import run
from tests import tiny
from tests.models import families, reference

TOLERANCE = 1e-4
FIRST = list({fields["model_type"]: name for name, (fields, _) in reversed(families.CASES.items())}.values())
TRAINED = (*FIRST, "gemma4_text with experts")  # a case a model type; of Gemma 4 the wrapper has keys of other layers
SEQUENCES, LENGTH = 2, 24


@pytest.fixture(scope="module", params=families.CASES)
def case(request, tmp_path_factory):
    """(name, torch model, directory, token ids, torch's logits)."""
    model = families.torch_model(request.param)
    directory = families.save(model, tmp_path_factory.mktemp("family"))
    ids = reference.tokens(SEQUENCES, LENGTH)
    return request.param, model, directory, ids, families.torch_logits(model, ids)


@pytest.fixture(scope="module", params=TRAINED)
def trainable(request, tmp_path_factory):
    """(name, directory with a tokenizer)."""
    root = tmp_path_factory.mktemp("trainable")
    directory = families.save(families.torch_model(request.param), root / "model")
    tiny.tokenizer().save_pretrained(directory)
    tiny.write_rows(root / "train.jsonl", 24)
    tiny.write_rows(root / "held_out.jsonl", 8, seed=1)
    return request.param, root


def test_every_family_has_a_case():
    assert {fields["model_type"] for fields, _ in families.CASES.values()} == FAMILIES.keys() | WRAPPERS.keys()


def mean_loss(model, params, ids):
    ids = jnp.asarray(ids)
    logits = model.apply({"params": params}, ids)
    loss, count = cross_entropy(logits[:, :-1], ids[:, 1:], jnp.ones(ids[:, 1:].shape, jnp.float32), Settings())["loss"]
    return loss / count, logits


def torch_gradients(model, name, ids, config, checkpoint):
    """By our paths, unrolled."""
    model.zero_grad()
    wide = torch.from_numpy(ids).long()
    logits = model(input_ids=wide, use_cache=False).logits[:, :-1]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), wide[:, 1:].flatten()).backward()
    gradients = {label: parameter.grad for label, parameter in model.named_parameters() if parameter.grad is not None}
    if name.startswith("gpt_neox"):  # the name in the file
        gradients["embed_out.weight"] = gradients.pop("lm_head.weight")
    stored = {label: gradient.numpy() for label, gradient in revert_weight_conversion(model, gradients).items()}
    if (wrapper := checkpoint.wrapper) is not None:
        stored = {text: gradient for label, gradient in stored.items() if (text := wrapper.text_name(label))}
    made = {}
    for rule in get_family(checkpoint.config).tensor_table(config):
        if rule.path and is_buffer(rule.path):
            made[rule.path] = np.zeros(rule.shape, np.float32)
        elif rule.path and rule.part:
            made.setdefault(rule.path, []).append(rule.read(stored[rule.source]))
        elif rule.path:
            made[rule.path] = rule.read(stored[rule.source])
    return unflatten_dict({path: np.asarray(array) for path, array in made.items()}, sep="/")


@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_logits_and_gradients_equal_torch(case, layout):
    name, torch_model, directory, ids, expected = case
    assert expected.std() >= 1
    model, params = load_pretrained(directory, execution=Execution(layer_layout=layout))
    (_, logits), gradient = reference.jit(
        jax.value_and_grad(lambda params: mean_loss(model, params, ids), has_aux=True)
    )(params)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=0)
    theirs = torch_gradients(torch_model, name, ids, model.config, open_checkpoint(directory))
    theirs = reference.flat(reference.in_layout(theirs, model.layout))
    ours = reference.flat(gradient)
    assert ours.keys() == theirs.keys()
    # The keys' biases: a number added to all scores of a query, with a gradient of rounding errors.
    errors = {p: reference.relative(ours[p], theirs[p]) for p in ours if np.abs(theirs[p]).max() > 1e-6}
    assert not any(np.any(ours[path]) for path in ours if is_buffer(path))
    assert max(errors.values()) <= TOLERANCE, errors


def test_what_is_written_is_what_torch_loads(case, tmp_path):
    """Written from our parameters, read by transformers: the logits of the model that they first came from."""
    name, _, directory, ids, expected = case
    model, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
    checkpoint = open_checkpoint(directory)
    tensors = pending_tensors(merged_weights({"params": params}, None), checkpoint.config, model.config, "float32")
    if checkpoint.wrapper is not None:
        tensors = put_back(tensors, checkpoint.wrapper, checkpoint.config, model.config)
    write_safetensors(epath.Path(tmp_path / "model.safetensors"), tensors)
    shutil.copy(directory / "config.json", tmp_path)
    loaded = type(families.torch_model(name)).from_pretrained(tmp_path, dtype=torch.float32).eval()
    np.testing.assert_allclose(families.torch_logits(loaded, ids), expected, atol=TOLERANCE)


def test_every_feature_is_noticed_when_it_is_off(case):
    name, _, directory, ids, expected = case
    model, params = load_pretrained(directory, execution=Execution(layer_layout="unrolled"))
    moved = {}
    for switch, edit in families.CASES[name][1].items():
        config, edited = edit(model.config, params)
        logits = reference.logits_of(Decoder(config, model.execution), edited, ids)
        moved[switch] = np.abs(logits - expected).max()
    assert min(moved.values()) >= 100 * TOLERANCE, moved


def test_packed_sequences_and_cached_reading_equal_plain_ones(case):
    _, _, directory, ids, expected = case
    model, params = load_pretrained(directory)
    # Both texts one after the other in one sequence.
    packed = np.concatenate(list(ids))[None]
    positions = np.tile(np.arange(LENGTH, dtype=np.int32), SEQUENCES)[None]
    segments = np.repeat(np.arange(1, SEQUENCES + 1, dtype=np.int32), LENGTH)[None]
    found = reference.logits_of(model, params, packed, positions, segments)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=TOLERANCE, rtol=0)

    @reference.jit
    def extend(tokens, start, cache):
        positions = start + jnp.broadcast_to(jnp.arange(tokens.shape[1])[None], tokens.shape)
        hidden, cache = model.apply({"params": params}, tokens, positions, None, cache, method="hidden")
        return model.apply({"params": params}, hidden, method="head"), cache

    model = model.clone(config=of_length(model.config, LENGTH))
    cache, pieces = init_cache(model.config, model.execution, SEQUENCES, LENGTH + 3), []
    for start in range(0, LENGTH, 8):
        piece, cache = extend(ids[:, start : start + 8], start, cache)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, axis=1), expected, atol=TOLERANCE, rtol=0)


def test_weights_prepared_for_inference_give_the_same_logits(case):
    _, _, directory, ids, expected = case
    model, params = load_pretrained(directory)
    prepared = prepare(model, {"params": params})
    assert prepared.model.execution.prepared
    hidden, _ = prepared.model.apply(prepared.variables, ids, method="hidden")
    found = prepared.model.apply(prepared.variables, hidden, method="head")
    np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
def test_greedy_text_equals_uncached(case):
    _, _, directory, ids, _ = case
    model, params = load_pretrained(directory)
    prompts = [ids[0, :6], ids[1, :9]]
    answers = Sampler(()).generate(prepare(model, {"params": params}), prompts, max_new_tokens=4)
    for prompt, (answer,) in zip(prompts, answers, strict=True):
        text = np.zeros((SEQUENCES, LENGTH), np.int32)
        places = np.tile(np.arange(LENGTH, dtype=np.int32), (SEQUENCES, 1))
        text[:, : len(prompt)] = prompt
        for end in range(len(prompt), len(prompt) + 4):
            read = (places < end).astype(np.int32)  # what stands behind is padding
            text[:, end] = reference.logits_of(model, params, text, places, read)[0, end - 1].argmax()
        assert answer.tokens.tolist() == text[0, len(prompt) : len(prompt) + 4].tolist()


@pytest.mark.slow
def test_a_run_trains_and_its_result_is_loaded(trainable):
    """LoRA on eight devices: every adapter has moved."""
    name, root = trainable
    changes = {"mesh.tensor": 2, "checkpoint.best_metric": "", "execution.layer_layout": "scan"}
    config = tiny.config(root, "lora", duration="2 steps", **changes)
    assert (
        families.CASES[name][0]["model_type"] == json.loads((root / "model" / "config.json").read_text())["model_type"]
    )
    run(config, root / "run")
    losses = [line["train/loss"] for line in read_metrics(root / "run" / "metrics.jsonl") if "train/loss" in line]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(root / "run"), mesh, "float32")
        assert np.isfinite(reference.apply(loaded.model, loaded.variables, reference.tokens(1, 8))).all()
    adapters = reference.flat(loaded.variables["adapters"])
    still = [path for path, leaf in adapters.items() if path.endswith("/b") and not np.any(leaf)]
    assert not still
