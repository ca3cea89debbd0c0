"""Generates answers to prompts: sorts them into batches, runs the jitted decoder, and decodes the tokens to text."""

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

from sft_jax.data.rendering.special_tokens import content_text
from sft_jax.generation import decode
from sft_jax.generation.decode import DecodeState, Sampling
from sft_jax.models import positions
from sft_jax.models.config import DecoderConfig
from sft_jax.models.decoder import Decoder
from sft_jax.models.partitioning import BATCH_AXES
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

Tree = Any
Prompt = Int32[np.ndarray, "_"]  # prompts differ in length
Progress = Callable[[int, int], None]  # (prompts done, prompts in all)

STOP, MAX_NEW_TOKENS, MAX_POSITIONS = ("stop", "max_new_tokens", "max_positions")

_PROMPT_MULTIPLE = 64  # prompts are padded to multiples of this: few shapes, few compilations
_BLOCK = 16  # tokens between two checks on the host whether all answers have ended


@dataclasses.dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: its token ids, without the stop token.
        text: the tokens as text, special tokens left out but for those that count in contents.
        finish_reason: what ended it: `stop`, the model did; `max_new_tokens`; or `max_positions`, it goes up to the
            last position that the model knows.
    """

    tokens: Int32[np.ndarray, "length"]
    text: str
    finish_reason: str

    @property
    def stopped(self) -> bool:
        """True if the model ended it."""
        return self.finish_reason == STOP


# Of the module, so that all generators of a model share what is compiled.
_prefill = jax.jit(decode.prefill, static_argnums=0, static_argnames=("max_new_tokens", "stop_ids", "sampling"))
_decode_block = jax.jit(
    decode.decode_block, static_argnums=0, static_argnames=("block", "stop_ids", "sampling"), donate_argnums=2
)


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
        """Keeps what stays the same through all prompts.

        Args:
            model: the decoder.
            tokenizer: decodes answers to text.
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
        self._batch_sharding = None if mesh.empty else NamedSharding(jax.sharding.get_mesh(), P(BATCH_AXES))
        self.batch_size = -(-batch_size // shards) * shards
        self._matmul_dtype, self._config = model.execution.matmul_dtype, model.config
        options = {"stop_ids": tuple(int(i) for i in stop_ids), "sampling": sampling or Sampling()}
        self._prefill = functools.partial(_prefill, model, max_new_tokens=max_new_tokens, **options)
        self._block = functools.partial(_decode_block, model, block=_BLOCK, **options)

    def __call__(
        self,
        variables: Tree,
        prompts: Sequence[Prompt],
        example_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> list[Generated]:
        """Answers to `prompts`, in their order.

        Args:
            variables: what the model's `apply` takes, in its layer layout.
            prompts: token ids, each at least one token.
            example_ids: identity of each prompt, from which the randomness of its answer is folded; by default its
                index.
            progress: called with (prompts done, prompts in all).

        Raises:
            ValueError: a prompt that is empty or cannot be answered (see `problem_of_prompt`), or not one example
                id for each prompt.
        """
        self._check_prompts(prompts)
        example_ids = range(len(prompts)) if example_ids is None else example_ids
        if len(example_ids) != len(prompts):
            raise ValueError(f"{len(example_ids)} example_ids for {len(prompts)} prompts; give one for each")
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
        variables = _cast_kernels(variables, self._matmul_dtype)
        shared = _shared_tokens(prompts)
        answers: list[Generated | None] = [None] * len(prompts)
        for start in range(0, len(order), self.batch_size):
            members = order[start : start + self.batch_size]
            state = self._start(variables, [prompts[i] for i in members], [example_ids[i] for i in members], shared)
            while not self._finished(state):
                state = self._block(variables, state)
            for index, answer in zip(members, self._answers(state), strict=False):
                answers[index] = answer
            if progress:
                progress(start + len(members), len(prompts))
        return answers

    def stream(self, variables: Tree, prompt: Prompt, example_id: int = 0) -> Iterator[Generated]:
        """The answer to one prompt as it grows, a block of tokens at a time; the last item is the whole.

        Raises:
            ValueError: the prompt is empty or cannot be answered (see `problem_of_prompt`).
        """
        self._check_prompts([prompt])
        variables = _cast_kernels(variables, self._matmul_dtype)
        state = self._start(variables, [prompt], [example_id], shared=0)
        while True:
            yield next(iter(self._answers(state)))
            if self._finished(state):
                return
            state = self._block(variables, state)

    def _start(self, variables: Tree, prompts: list[Prompt], example_ids: list[int], shared: int) -> DecodeState:
        """The state after the prompts, which have their first `shared` tokens in common."""
        prefix = np.asarray(prompts[0][:shared], np.int32)
        prompts = [prompt[shared:] for prompt in prompts]
        slots = -(-max(len(prompt) for prompt in prompts) // _PROMPT_MULTIPLE) * _PROMPT_MULTIPLE
        tokens = np.zeros((self.batch_size, slots), np.int32)
        lengths = np.zeros(self.batch_size, np.int32)
        ids = np.zeros(self.batch_size, np.int32)
        for index, (prompt, example_id) in enumerate(zip(prompts, example_ids, strict=True)):
            tokens[index, : len(prompt)] = prompt
            lengths[index], ids[index] = len(prompt), example_id
        return self._prefill(variables, prefix, *(self._put(array) for array in (tokens, lengths, ids)))

    def _put(self, array: np.ndarray) -> jax.Array:
        """Every process has the whole array; each device takes its own sequences of it."""
        if self._batch_sharding is None:
            return jnp.asarray(array)
        return jax.make_array_from_callback(array.shape, self._batch_sharding, lambda index: array[index])

    def _finished(self, state: DecodeState) -> bool:
        return int(state.count) >= self.max_new_tokens or bool(jnp.all(state.done))

    def _answers(self, state: DecodeState) -> Iterator[Generated]:
        arrays = (state.answer, state.lengths, state.stopped, state.done)
        for tokens, length, stopped, done in zip(*(_to_host(array) for array in arrays), strict=True):
            ids, reason = tokens[: int(length)], STOP if stopped else MAX_POSITIONS if done else MAX_NEW_TOKENS
            yield Generated(ids, content_text(self.tokenizer, ids), reason)

    def _check_prompts(self, prompts: Sequence[Prompt]) -> None:
        empty = [index for index, prompt in enumerate(prompts) if not len(prompt)]
        if empty:
            raise ValueError(f"prompts {empty[:5]} are empty: there is nothing to continue")
        for index, prompt in enumerate(prompts):
            if problem := problem_of_prompt(prompt, self._config):
                raise ValueError(f"prompt {index} {problem}")


def problem_of_prompt(prompt: Prompt, decoder: DecoderConfig) -> str:
    """Why this prompt cannot be answered, as the end of a sentence that begins with its name; empty where it can.

    A token has no embedding in the model, or the prompt takes all positions that the model knows.
    """
    if prompt.max() >= decoder.vocab_size:
        return (
            f"has token {prompt.max()}; the model has embeddings of {decoder.vocab_size} tokens. Tokenizer and weights "
            "do not belong together."
        )
    if len(prompt) >= decoder.max_positions:
        return (
            f"has {len(prompt)} tokens; the model knows {decoder.max_positions} positions, which leaves none for an "
            f"answer. Give a shorter one{positions.advice(decoder)}."
        )
    return ""


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
    """Kernels in the matmul dtype, to which they would be cast anyway: the same numbers, and less memory to read."""
    if dtype == "float32":
        return variables
    flat = flatten_dict(variables)
    kernels = {path: leaf for path, leaf in flat.items() if path[-1] in ("kernel", "head")}
    return unflatten_dict({**flat, **_cast(kernels, dtype)})


@functools.partial(jax.jit, static_argnums=1)
def _cast(tree: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
