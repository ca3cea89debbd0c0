"""What the compiled programs of generation need."""

import jax
import jax.numpy as jnp

from sft_jax.generation import Sampling
from sft_jax.generation.decode import Prompts, empty_slots, fill, read_prefix
from sft_jax.models import Decoder, DecoderConfig, Execution

MODEL = Decoder(DecoderConfig(320, 2, 64, 4, 2, 16, 96, max_positions=8192), Execution(layer_layout="unrolled"))
SLOTS = 4


def temporary_bytes(tokens):
    """Of the program that reads a row of so many tokens into slots."""

    def inputs(key):
        variables = MODEL.init(key, jnp.zeros((1, 4), jnp.int32))
        prefix = read_prefix(MODEL, variables, jnp.zeros(0, jnp.int32))
        row, slot = jnp.zeros((1, tokens), jnp.int32), jnp.zeros(SLOTS, jnp.int32)
        prompts = Prompts(row, row, row, slot, slot, jnp.zeros((SLOTS, 2), jnp.int32), slot)
        return variables, empty_slots(MODEL, prefix, SLOTS, tokens + 64, 64), prefix, prompts, jnp.zeros((), jnp.int32)

    leaves, structure = jax.tree.flatten(inputs(jax.random.key(0)))

    def program(leaves):
        arguments = jax.tree.unflatten(structure, leaves)
        return jax.tree.leaves(fill(MODEL, *arguments, stop_ids=(2,), sampling=Sampling()))

    memory = jax.jit(program, donate_argnums=0).lower(leaves).compile().memory_analysis()
    return memory.temp_size_in_bytes


def test_memory_of_reading_prompts_grows_with_their_tokens_and_not_with_the_square():
    """Scores of all queries with all keys would be four times as many. Prompts are read row by row, however many."""
    small, large = temporary_bytes(1024), temporary_bytes(2048)
    assert large / small < 2.2
