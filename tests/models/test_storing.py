"""Parameters written as a Hugging Face checkpoint are the tensors they were read from, bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest

from sft_jax.models.families import get_family
from sft_jax.models.initial import init_params
from sft_jax.models.loading import decoder_config, load_params
from sft_jax.models.storing import pending_tensors
from sft_jax.sources.checkpoint import PretrainedCheckpoint
from sft_jax.sources.tensors import TensorEntry
from tests.models import families, reference

ONE_DEVICE = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def checkpoint_of(tensors, hf_config):
    entries = {name: TensorEntry(p.shape, p.dtype, p.make) for name, p in tensors.items()}
    return PretrainedCheckpoint("made", "made", hf_config, entries, "")


@pytest.mark.parametrize("name", families.CASES)
@pytest.mark.parametrize("layout", ["scan", "unrolled"])
def test_reading_what_was_written_gives_the_same_parameters(name, layout):
    hf_config = families.hf_config(name)
    config = decoder_config(PretrainedCheckpoint("made", "made", hf_config, {}, ""))
    params = init_params(config, layout, "float32", lambda path, shape: ONE_DEVICE, seed=0, deviation=1.0)
    tensors = pending_tensors(params, hf_config, config, "float32")
    read = load_params(checkpoint_of(tensors, hf_config), config, layout)
    expected, found = reference.flat(params), reference.flat(read)
    assert expected.keys() == found.keys()
    for path in expected:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)


def test_parameters_that_a_family_does_not_have_are_named():
    hf_config = families.hf_config("llama")
    config = decoder_config(PretrainedCheckpoint("made", "made", hf_config, {}, ""))
    params = init_params(config, "scan", "float32", lambda path, shape: ONE_DEVICE, seed=0, deviation=1.0)
    with pytest.raises(ValueError, match="no tensor for other/kernel"):
        pending_tensors(params | {"other": {"kernel": np.zeros(2)}}, hf_config, config, "float32")
    params.pop("final_norm")
    with pytest.raises(ValueError, match=r"no parameter final_norm/scale to make model\.norm\.weight of"):
        pending_tensors(params, hf_config, config, "float32")


def test_a_view_that_is_a_copy_is_refused():
    rule = get_family(families.hf_config("llama")).tensor_table(
        decoder_config(PretrainedCheckpoint("made", "made", families.hf_config("llama"), {}, ""))
    )[0]
    copying = dataclasses.replace(rule, view=lambda stored: stored.copy())
    with pytest.raises(TypeError, match="is a copy"):
        copying.write(np.zeros(rule.shape), np.zeros(rule.shape))
