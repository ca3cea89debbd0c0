"""How likely a model holds given continuations of given prompts: for choices, for classification, for perplexity.

A prompt is read once for all of its continuations: each is a segment of its own that sees the prompt and itself. The
last token of a continuation predicts nothing, and is not read. Several prompts share a row, and only the positions that
predict a token of a continuation go through the head. Where rotary frequencies change with the length of a text
(LongRoPE), a prompt is read twice if some of its continuations make a long text of it, and others a short one.

Dimensions: R rows, S tokens of a row, N predicted tokens of a row, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from sft_jax.generation.prepared import Prepared
from sft_jax.generation.prompts import check_tokens
from sft_jax.generation.sizes import on_host, put, rounded_size, shards
from sft_jax.models import positions, rope
from sft_jax.models.decoder import Decoder

Tokens = Int32[np.ndarray, "_"]
Progress = Callable[[int, int], None]  # (continuations done, continuations in all)

_ROW_TOKENS = 1024  # unless a prompt with a single continuation is longer
_HEAD_TOKENS = 128  # of a row that go through the head at a time
_PROMPT = 1  # segment of a row's first prompt


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """How likely one continuation is.

    Attributes:
        logprob: log-probability (nats) of all its tokens, in float64.
        tokens: how many they are.
        greedy_tail: of its last tokens, how many in a row are the most likely ones: what greedy decoding would write
            if it were given those before.
    """

    logprob: float
    tokens: int
    greedy_tail: int

    @property
    def is_greedy(self) -> bool:
        """Whether each of its tokens is the most likely one."""
        return self.greedy_tail == self.tokens


OnPrompt = Callable[[int, list[Likelihood]], None]  # (prompt, likelihoods of its continuations)


@flax.struct.dataclass
class _Rows:
    """Prompts and continuations in rows, and which slot predicts which token."""

    tokens: Int[Array, "R S"]
    positions: Int[Array, "R S"]
    segments: Int[Array, "R S"]
    parents: Int[Array, "R S"]
    predictors: Int[Array, "R N"]
    targets: Int[Array, "R N"]


def loglikelihoods(
    prepared: Prepared,
    prompts: Sequence[Tokens],
    continuations: Sequence[Sequence[Tokens]],
    *,
    progress: Progress | None = None,
    on_prompt: OnPrompt | None = None,
) -> list[list[Likelihood]]:
    """The likelihood of each continuation after its prompt.

    With several processes, all of them call this with the same arguments, and all get all results.

    Args:
        prepared: the model and its weights.
        prompts: token ids, each at least one token.
        continuations: of each prompt, each at least one token.
        progress: called with (continuations done, continuations in all).
        on_prompt: called with each prompt and the likelihoods of its continuations, when all of them are there.

    Raises:
        ValueError: an empty prompt or continuation, a token without an embedding, or a prompt that is longer with a
            continuation, but for its last token, than the model has positions.
    """
    _check(prepared, prompts, continuations)
    total = sum(len(of_prompt) for of_prompt in continuations)
    found: list[list[Likelihood]] = [[None] * len(of_prompt) for of_prompt in continuations]
    done = 0
    for rows, owners in _packed(prompts, continuations, shards(), rope.short_positions(prepared.model.config)):
        logprobs, best = on_host(_predicted(prepared.model, prepared.variables, rows))
        for number, of_row in enumerate(owners):
            for prompt, continuation, first, end in of_row:
                found[prompt][continuation] = Likelihood(
                    float(np.sum(logprobs[number, first:end], dtype=np.float64)),
                    end - first,
                    _tail(best[number, first:end]),
                )
                done += 1
                if on_prompt and None not in found[prompt]:
                    on_prompt(prompt, found[prompt])
        if progress:
            progress(done, total)
    return found


def _tail(best: Bool[np.ndarray, "tokens"]) -> int:
    """How many at the end are True."""
    others = np.flatnonzero(~best)
    return int(len(best) - 1 - others[-1]) if len(others) else len(best)


def _check(prepared: Prepared, prompts: Sequence[Tokens], continuations: Sequence[Sequence[Tokens]]) -> None:
    if len(prompts) != len(continuations):
        raise ValueError(f"{len(continuations)} lists of continuations for {len(prompts)} prompts; give one for each")
    config = prepared.model.config
    check_tokens(prompts, config)
    for number, (prompt, of_prompt) in enumerate(zip(prompts, continuations, strict=True)):
        for place, continuation in enumerate(of_prompt):
            if not len(continuation):
                raise ValueError(f"continuation {place} of prompt {number} is empty: there is nothing to measure")
            if continuation.max() >= config.vocab_size:
                raise ValueError(
                    f"continuation {place} of prompt {number} has token {continuation.max()}; the model has embeddings "
                    f"of {config.vocab_size} tokens. Tokenizer and weights do not belong together."
                )
            if _read(prompt, continuation) > config.max_positions:
                raise ValueError(
                    f"prompt {number} has {len(prompt)} tokens and its continuation {place} has {len(continuation)}, "
                    f"all of which but the last are read; the model knows {config.max_positions} positions. Give "
                    f"shorter ones{positions.advice(config)}."
                )


def _read(prompt: Tokens, continuation: Tokens) -> int:
    """How many tokens of the two are read."""
    return len(prompt) + len(continuation) - 1


class _Row:
    """One row as it is filled."""

    def __init__(self):
        self.tokens: list[Tokens] = []
        self.positions: list[np.ndarray] = []
        self.segments: list[np.ndarray] = []
        self.parents: list[np.ndarray] = []
        self.predictors: list[int] = []
        self.targets: list[int] = []
        self.owners: list[tuple[int, int, int, int]] = []  # prompt, continuation, its first predicted token, their end
        self.used, self._segment, self._prompt, self._end = 0, 0, None, 0

    def room_for(self, number: tuple[int, bool], prompt: Tokens, continuation: Tokens) -> int:
        """Tokens that it would have with one more continuation."""
        return self.used + _read(prompt[:0] if number == self._prompt else prompt, continuation)

    def add(self, number: tuple[int, bool], place: int, prompt: Tokens, continuation: Tokens) -> None:
        """Adds a continuation, and its prompt if that is not the one before.

        Args:
            number: of the prompt, and whether the text is a long one.
            place: of the continuation among those of the prompt.
            prompt: its tokens.
            continuation: its tokens.
        """
        if number != self._prompt:
            self._prompt, self._own = number, self._segment + _PROMPT
            self._append(prompt, 0, parent=0)
            self._end = self.used - 1
        first = len(self.targets)
        self.predictors += [self._end, *range(self.used, self.used + len(continuation) - 1)]
        self.targets += continuation.tolist()
        self.owners.append((number[0], place, first, len(self.targets)))
        self._append(continuation[:-1], len(prompt), parent=self._own)

    def _append(self, tokens: Tokens, position: int, parent: int) -> None:
        self._segment += 1
        self.tokens.append(tokens)
        self.positions.append(np.arange(position, position + len(tokens)))
        self.segments.append(np.full(len(tokens), self._segment))
        self.parents.append(np.full(len(tokens), parent or self._segment))
        self.used += len(tokens)


def _packed(
    prompts: Sequence[Tokens], continuations: Sequence[Sequence[Tokens]], count: int, short: int | None
) -> Iterator[tuple[_Rows, list[list[tuple[int, int, int, int]]]]]:
    """Batches of `count` rows, and in each row which predicted tokens are whose.

    Texts of more than `short` tokens share no prompt with others.
    """
    longest = max(
        (_read(prompt, one) for prompt, of in zip(prompts, continuations, strict=True) for one in of), default=0
    )
    size, rows = rounded_size(max(longest, _ROW_TOKENS)), [_Row()]
    for number, (prompt, of_prompt) in enumerate(zip(prompts, continuations, strict=True)):
        is_long = [short is not None and _read(prompt, continuation) > short for continuation in of_prompt]
        for place in sorted(range(len(of_prompt)), key=is_long.__getitem__):
            read_with, continuation = (number, is_long[place]), of_prompt[place]
            if rows[-1].used and rows[-1].room_for(read_with, prompt, continuation) > size:
                rows.append(_Row())
            rows[-1].add(read_with, place, prompt, continuation)
    for start in range(0, len(rows) if rows[0].used else 0, count):
        batch = rows[start : start + count]
        predicted = -(-max(len(row.targets) for row in batch) // _HEAD_TOKENS) * _HEAD_TOKENS
        batch += [_Row()] * (count - len(batch))
        arrays = _Rows(
            *(
                put(np.stack([_padded(getattr(row, name), width) for row in batch]))
                for name, width in (
                    *((name, size) for name in ("tokens", "positions", "segments", "parents")),
                    *((name, predicted) for name in ("predictors", "targets")),
                )
            )
        )
        yield arrays, [row.owners for row in batch]


def _padded(parts: Sequence[Any], width: int) -> Int32[np.ndarray, "width"]:
    array = np.zeros(width, np.int32)
    values = np.concatenate(parts) if parts and isinstance(parts[0], np.ndarray) else np.asarray(parts, np.int32)
    array[: len(values)] = values
    return array


@functools.partial(jax.jit, static_argnums=0)
def _predicted(model: Decoder, variables: Any, rows: _Rows) -> tuple[Float[Array, "R N"], Bool[Array, "R N"]]:
    """The log-probability of each predicted token, and whether it is the most likely one."""
    hidden, _ = model.apply(
        variables, rows.tokens, rows.positions, rows.segments, parents=rows.parents, method="hidden"
    )
    states = jnp.take_along_axis(hidden, rows.predictors[..., None], axis=1)
    in_chunks = lambda x: jnp.moveaxis(x.reshape(x.shape[0], -1, _HEAD_TOKENS, *x.shape[2:]), 1, 0)

    def of_chunk(chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        states, targets = chunk
        logits = model.apply(variables, states, method="head")
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=2)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=2), jnp.argmax(logits, axis=2) == targets

    logprobs, best = jax.lax.map(of_chunk, (in_chunks(states), in_chunks(rows.targets)))
    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(rows.targets.shape)
    return whole(logprobs), whole(best)
