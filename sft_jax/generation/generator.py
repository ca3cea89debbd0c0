"""Prompts in, answers out: batches of prompts through the jitted decoder."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Int32
from transformers import PreTrainedTokenizerBase

from sft_jax.generation import decode
from sft_jax.generation.decode import DecodeState, Sampling
from sft_jax.models.decoder import Decoder
from sft_jax.models.partitioning import BATCH_AXES

Tree = Any
Prompt = Int32[np.ndarray, "_"]  # prompts differ in length
Progress = Callable[[int, int], None]  # (rows done, rows in all)

_PROMPT_MULTIPLE = 64  # prompts are padded to multiples of this: few shapes, few compilations
_BLOCK = 16  # tokens between two looks at the host


@dataclasses.dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: its token ids, without the stop token.
        text: the tokens as text, special tokens left out.
        stopped: True if the model ended it, False if `max_new_tokens` did.
    """

    tokens: Int32[np.ndarray, "length"]
    text: str
    stopped: bool


class Generator:
    """Generates answers with one model; compiles once for each prompt length (in multiples of 64) and batch size."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: Sequence[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        batch_size: int = 16,
    ):
        """Prepares the jitted functions.

        Args:
            model: the decoder.
            tokenizer: turns answers into text.
            stop_ids: tokens that end an answer.
            max_new_tokens: longest answer.
            sampling: by default greedy.
            batch_size: prompts at a time, rounded up so that a mesh in force (`jax.set_mesh`) divides it.
        """
        if max_new_tokens < 1 or batch_size < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens} and batch_size={batch_size} must be at least 1")
        self.tokenizer, self.max_new_tokens = tokenizer, max_new_tokens
        mesh = jax.sharding.get_abstract_mesh()
        shards = 1 if mesh.empty else math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        self._rows_sharding = None if mesh.empty else NamedSharding(jax.sharding.get_mesh(), P(BATCH_AXES))
        self.batch_size = -(-batch_size // shards) * shards
        self._product_dtype = model.execution.product_dtype
        options = {"stop_ids": tuple(int(i) for i in stop_ids), "sampling": sampling or Sampling()}
        self._prefill = jax.jit(functools.partial(decode.prefill, model, max_new_tokens=max_new_tokens, **options))
        self._block = jax.jit(functools.partial(decode.decode_block, model, block=_BLOCK, **options), donate_argnums=1)

    def __call__(
        self,
        variables: Tree,
        prompts: Sequence[Prompt],
        row_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Answers to `prompts`, in their order.

        Args:
            variables: what the model's `apply` takes, in its layer layout.
            prompts: token ids, each at least one token.
            row_ids: identity of each row, from which its randomness is folded; by default its index.
            progress: called with (rows done, rows in all).

        Raises:
            ValueError: an empty prompt, or not one row id for each prompt.
        """
        _check_prompts(prompts)
        row_ids = range(len(prompts)) if row_ids is None else row_ids
        if len(row_ids) != len(prompts):
            raise ValueError(f"{len(row_ids)} row_ids for {len(prompts)} prompts; give one for each")
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        variables = _cast_kernels(variables, self._product_dtype)
        shared = _shared_tokens(prompts)
        answers: list[Generated | None] = [None] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            state = self._start(variables, [prompts[i] for i in members], [row_ids[i] for i in members], shared)
            while not self._finished(state):
                state = self._block(variables, state)
            for index, answer in zip(members, self._answers(state), strict=False):
                answers[index] = answer
            if progress:
                progress(start + len(members), len(prompts))
        return answers

    def stream(self, variables: Tree, prompt: Prompt, row_id: int = 0) -> Iterator[Generated]:
        """The answer to one prompt as it grows, a block of tokens at a time; the last item is the whole.

        Raises:
            ValueError: the prompt is empty.
        """
        _check_prompts([prompt])
        variables = _cast_kernels(variables, self._product_dtype)
        state = self._start(variables, [prompt], [row_id], shared=0)
        while True:
            yield next(iter(self._answers(state)))
            if self._finished(state):
                return
            state = self._block(variables, state)

    def _start(self, variables: Tree, prompts: list[Prompt], row_ids: list[int], shared: int) -> DecodeState:
        """The state after the prompts, which have their first `shared` tokens in common."""
        prefix = np.asarray(prompts[0][:shared], np.int32)
        prompts = [prompt[shared:] for prompt in prompts]
        slots = -(-max(len(prompt) for prompt in prompts) // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
        tokens = np.zeros((self.batch_size, slots), np.int32)
        lengths = np.zeros(self.batch_size, np.int32)
        ids = np.zeros(self.batch_size, np.int32)
        for line, (prompt, row_id) in enumerate(zip(prompts, row_ids, strict=True)):
            tokens[line, : len(prompt)] = prompt
            lengths[line], ids[line] = len(prompt), row_id
        return self._prefill(variables, prefix, *(self._put(array) for array in (tokens, lengths, ids)))

    def _put(self, array: np.ndarray) -> jax.Array:
        """The whole array is known to every process; each device takes its rows."""
        if self._rows_sharding is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, self._rows_sharding, lambda index: array[index])

    def _finished(self, state: DecodeState) -> bool:
        return int(state.count) >= self.max_new_tokens or bool(jnp.all(state.done))

    def _answers(self, state: DecodeState) -> Iterator[Generated]:
        tokens, lengths, done = (_to_host(array) for array in (state.answer, state.lengths, state.done))
        for row, length, stopped in zip(tokens, lengths, done, strict=True):
            ids = row[: int(length)]
            yield Generated(ids, self.tokenizer.decode(ids, skip_special_tokens=True), bool(stopped))


def _check_prompts(prompts: Sequence[Prompt]) -> None:
    empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise ValueError(f"prompts {empty[:5]} are empty: there is nothing to continue")


def _shared_tokens(prompts: Sequence[Prompt]) -> int:
    """How many tokens all prompts begin with, less what leaves each at least one; in multiples of 64."""
    if len(prompts) < 2:
        return 0
    shortest = min(len(prompt) for prompt in prompts) - 1
    first = prompts[0][:shortest]
    same = np.logical_and.reduce([prompt[:shortest] == first for prompt in prompts])
    common = shortest if same.all() else int(np.argmin(same))
    return common // _PROMPT_MULTIPLE * _PROMPT_MULTIPLE


def _to_host(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _cast_kernels(variables: Tree, dtype: str) -> Tree:
    """Kernels in the dtype of the products they are cast to anyway: the same numbers, less memory to read a token."""
    if dtype == "float32":
        return variables
    flat = flatten_dict(variables)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] in ("kernel", "head")}
    cast = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.astype(dtype), tree))(kernels)
    return unflatten_dict({**flat, **cast})
