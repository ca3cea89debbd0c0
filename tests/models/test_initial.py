"""Random weights from the config of a source: the numbers, where they come from, and that they train."""

import json

import jax
import numpy as np
import pytest

from sft_jax.models import Execution, load_pretrained, load_tokenizer
from sft_jax.models.layouts import to_layout
from sft_jax.runs.base import open_base
from sft_jax.sharding import inference_mesh
from sft_jax.sources import SourceError, open_checkpoint
from sft_jax.training import run
from tests import tiny
from tests.models import reference


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Config and tokenizer, and no weights."""
    made = tiny.write_checkpoint(tmp_path_factory.mktemp("random") / "model", initializer_range=0.05)
    (made / "model.safetensors").unlink()
    return made


def flat(source, layout="scan"):
    return reference.flat(to_layout(load_pretrained(source, execution=Execution(layer_layout=layout))[1], "scan"))


def test_weights_are_normal_and_norms_are_one(directory):
    for path, leaf in flat(f"random:{directory}").items():
        if path.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1.0)
        else:
            assert np.std(leaf) == pytest.approx(0.05, rel=0.1), path
            assert abs(np.mean(leaf)) < 0.01, path


def test_sizes_and_seed_are_chosen_in_the_name(directory):
    wide = f"random:{directory}?num_hidden_layers=2&hidden_size=64&tie_word_embeddings=false"
    model, params = load_pretrained(wide)
    assert (model.config.num_layers, model.config.model_dim) == (2, 64)
    assert params["head"].shape == (64, 320)
    assert open_checkpoint(wide).fingerprint != open_checkpoint(f"{wide}&seed=1").fingerprint
    first, again, other = (flat(f"{wide}{seed}") for seed in ("", "&seed=0", "&seed=1"))
    for path in first:
        np.testing.assert_array_equal(first[path], again[path])
        if not path.endswith("scale"):
            assert np.abs(first[path] - other[path]).max() > 0.01


def test_numbers_do_not_depend_on_layout_or_mesh(directory):
    source = f"random:{directory}"
    expected = flat(source)
    mesh = inference_mesh(jax.devices())
    spread = reference.flat(jax.device_get(open_base(source).params("scan", "float32", mesh)))
    for found in (flat(source, "unrolled"), spread):
        assert found.keys() == expected.keys()
        for path in expected:
            np.testing.assert_array_equal(found[path], expected[path])


def test_norms_that_multiply_by_one_plus_their_scale_begin_at_zero(tmp_path):
    config = {"model_type": "gemma2", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    scales = [leaf for path, leaf in flat(f"random:{tmp_path}").items() if path.endswith("scale")]
    assert len(scales) == 5
    assert not any(np.any(scale) for scale in scales)


def test_a_run_trains_from_scratch(directory, tmp_path):
    source = f"random:{directory}?num_hidden_layers=1"
    config = tiny.config(tmp_path, duration="2 steps", **{"model.source": source, "optimizer.learning_rate": 1e-4})
    result = run(config, tmp_path / "run")
    assert result.metrics["held_out/nll"] == pytest.approx(np.log(320), rel=0.1)
    assert load_tokenizer(config.model.source).chat_template == tiny.CHATML


@pytest.mark.parametrize(
    ("ending", "message"),
    [
        ("?num_hidden_layers", "expected random:SOURCE"),
        ("?seed=one", "a whole number for seed"),
        ("?attention_chunk_size=8", "not implemented for model_type='llama': attention_chunk_size=8"),
    ],
)
def test_names_that_cannot_be_read(directory, ending, message):
    with pytest.raises(ValueError, match=message):
        load_pretrained(f"random:{directory}{ending}")


def test_a_source_must_be_named():
    with pytest.raises(SourceError, match="expected random:SOURCE"):
        load_pretrained("random:?seed=1")
