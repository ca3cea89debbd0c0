"""Parameters written as a Hugging Face checkpoint are the tensors they were read from, bit for bit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from sft_jax.models import Decoder, Execution
from sft_jax.models.families import get_family
from sft_jax.models.loading import decoder_config, load_params, on_one
from sft_jax.models.storing import pending_tensors
from sft_jax.sources.checkpoint import PretrainedCheckpoint
from sft_jax.sources.tensors import TensorEntry
from tests.models import families


def random_weights(config):
    """By path, unrolled."""
    model, rng = Decoder(config, Execution(layer_layout="unrolled")), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"])
    flat = flatten_dict(shapes, sep="/")
    return {path: rng.standard_normal(leaf.shape).astype(np.float32) for path, leaf in sorted(flat.items())}


def makers(weights):
    return {path: jnp.asarray(array).__getitem__ for path, array in weights.items()}


def decoder_of(name):
    return decoder_config(PretrainedCheckpoint("made", "made", families.text_config(name), {}, ""))


def checkpoint_of(tensors, hf_config):
    entries = {
        name: TensorEntry(p.shape, p.dtype, lambda start, stop, made=p.make: made()[start:stop])
        for name, p in tensors.items()
    }
    return PretrainedCheckpoint("made", "made", hf_config, entries, "")


@pytest.mark.parametrize("name", families.CASES)
def test_reading_what_was_written_gives_the_same_parameters(name):
    hf_config, config = families.text_config(name), decoder_of(name)
    weights = random_weights(config)
    tensors = pending_tensors(makers(weights), hf_config, config, "float32")
    read = load_params(checkpoint_of(tensors, hf_config), config, "unrolled", "float32", on_one(jax.devices()[0]))
    found = flatten_dict(read, sep="/")
    assert found.keys() == weights.keys()
    for path, array in weights.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_parameters_that_a_family_does_not_have_are_named():
    hf_config, config = families.hf_config("llama"), decoder_of("llama")
    weights = makers(random_weights(config))
    with pytest.raises(ValueError, match="no tensor for other/kernel"):
        pending_tensors(weights | makers({"other/kernel": np.zeros(2)}), hf_config, config, "float32")
    weights.pop("final_norm/scale")
    with pytest.raises(ValueError, match=r"no parameter final_norm/scale to make model\.norm\.weight of"):
        pending_tensors(weights, hf_config, config, "float32")


def test_a_view_that_is_a_copy_is_refused():
    rule = get_family(families.hf_config("llama")).tensor_table(decoder_of("llama"))[0]
    copying = dataclasses.replace(rule, view=lambda stored: stored.copy())
    with pytest.raises(TypeError, match="is a copy"):
        copying.write(np.zeros(rule.shape), np.zeros(rule.shape))
