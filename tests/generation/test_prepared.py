"""Weights for inference are loaded in their dtype once, and no token gathers them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from flax.traverse_util import flatten_dict

from sft_jax.generation import prepare, sampler
from sft_jax.generation.decode import decode
from sft_jax.generation.sampling import Sampling
from sft_jax.models import Decoder, Execution
from sft_jax.models.loading import decoder_config, load_params
from sft_jax.runs.restore import load_for_inference
from sft_jax.sharding import inference_mesh, make_mesh, placement
from sft_jax.sources import open_checkpoint
from tests import tiny
from tests.models import families

_COLLECTIVE = re.compile(
    r"= (?P<results>[^=]*?) (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(-start)?\("
)
SLOTS, WIDTH, VOCABULARY = 8, 64, 320


def moved(compiled: jax.stages.Compiled) -> list[int]:
    """How many elements each collective of a program gives a device."""
    sizes = []
    for found in _COLLECTIVE.finditer(compiled.as_text()):
        shapes = re.findall(r"\[([\d,]*)\]", found["results"])
        sizes.append(sum(math.prod(map(int, filter(None, shape.split(",")))) for shape in shapes))
    return sizes


def decode_program(model: Decoder, variables: dict) -> jax.stages.Compiled:
    """The loop over tokens, for `SLOTS` answers."""
    prefix = sampler._read_prefix(model, variables, np.zeros(3, np.int32))
    slots = sampler._empty_slots(model, prefix, SLOTS, 16, 8)
    leaves, tree = jax.tree.flatten(slots)
    options = {"steps": 4, "stop_ids": (2,), "sampling": Sampling()}

    def decoded(variables, leaves):
        return jax.tree.leaves(
            decode(model, variables, tree.unflatten(leaves), jnp.int32(SLOTS), jnp.int32(0), **options)
        )

    return jax.jit(decoded).lower(variables, leaves).compile()


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_no_token_gathers_weights(tmp_path, kind):
    """What moves for each token are activations and logits of the slots of a device, far smaller than any kernel."""
    fields = families.hf_config(kind) | {"hidden_size": WIDTH, "intermediate_size": 96, "head_dim": 32}
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    checkpoint = open_checkpoint(families.save(families.random_model(config), tmp_path))
    decoder = decoder_config(checkpoint)
    mesh = inference_mesh(jax.devices(), tensor=2)
    with jax.set_mesh(mesh):
        model = Decoder(decoder, Execution(matmul_dtype="bfloat16"))
        variables = {"params": load_params(checkpoint, decoder, "scan", "bfloat16", placement(mesh))}
        smallest_kernel = WIDTH * decoder.num_kv_heads * decoder.head_dim
        of_logits = SLOTS // 4 * VOCABULARY
        assert of_logits < smallest_kernel // 2
        prepared = prepare(model, variables)
        assert 0 < max(moved(decode_program(prepared.model, prepared.variables))) <= of_logits
        assert max(moved(decode_program(model, variables))) >= smallest_kernel // 2, "as they are split for training"


def test_weights_are_loaded_in_the_dtype_that_products_read(tmp_path):
    """So `prepare` makes no other copy of them, and the numbers are those of a load in float32."""
    directory = tiny.write_checkpoint(tmp_path / "model", tie_word_embeddings=False)
    mesh = make_mesh({"tensor": 8}, jax.devices())
    with jax.set_mesh(mesh):
        loaded = load_for_inference(str(directory), mesh, "bfloat16")
        prepared = prepare(loaded.model, loaded.variables)
        checkpoint = open_checkpoint(directory)
        layout = loaded.model.layout
        wide = load_params(checkpoint, decoder_config(checkpoint), layout, "float32", placement(mesh))
        expected = prepare(loaded.model, {"params": wide})
    found, before = (flatten_dict(tree["params"]) for tree in (prepared.variables, loaded.variables))
    for path, leaf in found.items():
        is_operand = path[-1] in ("kernel", "head")
        assert before[path].dtype == leaf.dtype == (jnp.bfloat16 if is_operand else jnp.float32), path
        for ours, theirs in zip(leaf.addressable_shards, before[path].addressable_shards, strict=True):
            assert ours.data.unsafe_buffer_pointer() == theirs.data.unsafe_buffer_pointer(), path
        np.testing.assert_array_equal(leaf, flatten_dict(expected.variables["params"])[path])


def test_an_embedding_that_is_stored_in_bfloat16_stays_so_where_nothing_is_rounded(tmp_path):
    for kind, expected in (("llama", jnp.bfloat16), ("gemma2", jnp.float32)):
        directory = families.save(families.torch_model(kind).bfloat16(), tmp_path / kind)
        tiny.tokenizer().save_pretrained(directory)
        mesh = inference_mesh(jax.devices())
        with jax.set_mesh(mesh):
            found = load_for_inference(str(directory), mesh, "bfloat16").variables["params"]
        assert found["embedding"].dtype == expected, kind
        assert found["final_norm"]["scale"].dtype == jnp.float32
