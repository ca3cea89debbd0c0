"""The sampler: prompts in, answers out. It keeps the slots of the compiled decoder filled.

Everything that generates goes through `Sampler.generate`: evaluations inside a run, the commands, and whatever scores
answers. Those that may become longest are begun first, so that at the end no slot waits long for another; of these the
ones with the longest prompts, so that later the slots can be shorter. Which prompt shares the slots with which changes
no answer.

Where rotary frequencies change with the length of a text (LongRoPE), an answer with which a text becomes a long one is
read again, with its prompt, and goes on with the frequencies of long texts. So each token is chosen as if the text
before it were read as a whole, and `generate` of transformers does the same.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float32, Int32

from sft_jax.generation import decode
from sft_jax.generation.decode import Prompts, Slots
from sft_jax.generation.prepared import Prepared
from sft_jax.generation.prompts import check_prompts, shared_tokens
from sft_jax.generation.sampling import Sampling
from sft_jax.generation.sizes import ROW_TOKENS, SMALLEST_PROMPT, Sizes, on_host, put, rounded_size, row_size, shards
from sft_jax.models import rope
from sft_jax.models.cache import Cache

Prompt = Int32[np.ndarray, "_"]  # prompts differ in length
Progress = Callable[[int, int], None]  # (answers done, answers in all)

STOP, MAX_NEW_TOKENS, MAX_POSITIONS = ("stop", "max_new_tokens", "max_positions")

_STEPS = 64  # tokens at most between two looks at which answers have ended
_REFILLED = 8  # slots are filled again when one of so many is free


@dataclasses.dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: its token ids, without the stop token.
        logprobs: log-probability (nats) of each of them under the model, before temperature and cuts (of `Sampling`
            that is `tempered`, behind the temperature); of the stop token too, as the last one, where it stopped.
        finish_reason: what ended it: `stop`, the model did; `max_new_tokens`; or `max_positions`, it goes up to the
            last position that the model knows.
        stop_token: which one ended it, where one did.
    """

    tokens: Int32[np.ndarray, "length"]
    logprobs: Float32[np.ndarray, "chosen"]
    finish_reason: str
    stop_token: int | None = None

    @property
    def stopped(self) -> bool:
        """True if the model ended it."""
        return self.finish_reason == STOP

    @property
    def chosen(self) -> Int32[np.ndarray, "chosen"]:
        """All tokens that were chosen, the stop token included."""
        return self.tokens if self.stop_token is None else np.append(self.tokens, np.int32(self.stop_token))

    def followed_by(self, rest: "Generated") -> "Generated":
        """This answer, which was not at its end, with the rest of it."""
        tokens, logprobs = (
            np.concatenate(both) for both in ((self.tokens, rest.tokens), (self.logprobs, rest.logprobs))
        )
        return Generated(tokens, logprobs, rest.finish_reason, rest.stop_token)


OnAnswer = Callable[[int, int, Generated], None]  # (prompt, sample, answer)


@dataclasses.dataclass(frozen=True)
class _Request:
    """An answer that is asked for: which, its prompt (on the board without the shared beginning), and its limit."""

    prompt: int
    sample: int
    rest: Prompt
    identity: tuple[int, int]
    limit: int

    @property
    def key(self) -> tuple[int, int]:
        """Which answer it is."""
        return self.prompt, self.sample

    def while_short(self, short: int) -> "_Request":
        """The part of it whose tokens are chosen from texts of at most `short` tokens."""
        return dataclasses.replace(self, limit=min(self.limit, short + 1 - len(self.rest)))

    def continued(self, begun: Generated) -> "_Request | None":
        """The rest of it, which draws from randomness of its own; None where the beginning is all."""
        if begun.stopped or len(begun.tokens) == self.limit:
            return None
        return dataclasses.replace(
            self,
            rest=np.concatenate([self.rest, begun.tokens]),
            identity=(self.identity[0], -1 - self.sample),
            limit=self.limit - len(begun.tokens),
        )


# Of the module, so that all samplers of a model share what is compiled.
_read_prefix = jax.jit(decode.read_prefix, static_argnums=0)
_begin = jax.jit(decode.begin, static_argnums=(0, 2, 3, 4))
_empty_slots = jax.jit(decode.empty_slots, static_argnums=(0, 2, 3, 4))
_fill = jax.jit(decode.fill, static_argnums=0, static_argnames=("stop_ids", "sampling"), donate_argnums=2)
_decode = jax.jit(decode.decode, static_argnums=0, static_argnames=("steps", "stop_ids", "sampling"), donate_argnums=2)
_with_shorter_prompts = jax.jit(decode.with_shorter_prompts, static_argnums=1)


class Sampler:
    """Generates answers, greedily or by sampling.

    Compiles for few sizes (`rounded_size`): of the rows in which prompts are read, of a slot, and of an answer. With
    `sizes` for one of each, and so three programs in all: empty slots, reading prompts, and going on.
    """

    def __init__(
        self,
        stop_ids: Sequence[int],
        *,
        sampling: Sampling | None = None,
        slots: int = 16,
        sizes: Sizes | None = None,
    ):
        """Keeps what stays the same through all prompts.

        Args:
            stop_ids: tokens that end an answer.
            sampling: by default greedy.
            slots: answers in progress at a time, rounded up so that a mesh in force (`jax.set_mesh`) divides it.
            sizes: by default chosen for what is asked.
        """
        if slots < 1:
            raise ValueError(f"slots={slots} must be at least 1")
        self._slots, self._sizes = slots, sizes
        self._options = {"stop_ids": tuple(int(i) for i in stop_ids), "sampling": sampling or Sampling()}

    def generate(
        self,
        prepared: Prepared,
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int | Sequence[int],
        samples: int = 1,
        seed: int = 0,
        example_ids: Sequence[int] | None = None,
        progress: Progress | None = None,
        on_answer: OnAnswer | None = None,
    ) -> list[list[Generated]]:
        """`samples` answers to each of the prompts, in their order.

        With several processes, all of them call this with the same arguments, and all get all answers.

        Args:
            prepared: the model and its weights.
            prompts: token ids, each at least one token.
            max_new_tokens: longest answer; one number, or one for each prompt.
            samples: answers to each prompt, which differ in their randomness.
            seed: of the randomness.
            example_ids: identity of each prompt, from which the randomness of its answers is folded; by default its
                index.
            progress: called with (answers done, answers in all).
            on_answer: called with each answer when it has ended, in any order.

        Raises:
            ValueError: a prompt that is empty or cannot be answered (see `problem_of_prompt`), or not one example
                id or limit for each prompt.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
        example_ids = range(len(prompts)) if example_ids is None else example_ids
        _check(prepared, prompts, limits, example_ids, samples)
        answers: list[list[Generated]] = [[None] * samples for _ in prompts]
        if not prompts:
            return answers
        ended = self._answered(prepared, prompts, limits, samples, seed, example_ids)
        for done, (request, answer) in enumerate(ended, 1):
            answers[request.prompt][request.sample] = answer
            if on_answer:
                on_answer(request.prompt, request.sample, answer)
            if progress:
                progress(done, samples * len(prompts))
        return answers

    def stream(
        self, prepared: Prepared, prompt: Prompt, *, max_new_tokens: int, seed: int = 0, steps: int = 16
    ) -> Iterator[Generated]:
        """The answer to one prompt as it grows, `steps` tokens at a time; the last item is the whole.

        Raises:
            ValueError: the prompt is empty or cannot be answered (see `problem_of_prompt`).
        """
        _check(prepared, [prompt], [max_new_tokens], [0], 1)
        limit = min(max_new_tokens, prepared.model.config.max_positions - len(prompt))
        request, short = _Request(0, 0, prompt, (0, 0), limit), rope.short_positions(prepared.model.config)
        if short is None or len(prompt) > short:
            yield from self._growing(prepared.for_texts_of(len(prompt)), request, seed, steps)
            return
        for begun in self._growing(prepared.for_texts_of(short), request.while_short(short), seed, steps):
            yield begun
        if (rest := request.continued(begun)) is not None:
            for answer in self._growing(prepared.for_texts_of(len(rest.rest)), rest, seed, steps):
                yield begun.followed_by(answer)

    def _growing(self, prepared: Prepared, request: _Request, seed: int, steps: int) -> Iterator[Generated]:
        board = _Board(prepared, [request], request.rest[:0], self._slots_on_mesh(1), seed, self._options, self._sizes)
        board.fill([request])
        while not board.is_done(0):
            yield board.answer(0)
            board.decode(steps, board.count)
        yield board.answer(0)

    def _slots_on_mesh(self, slots: int) -> int:
        return -(-slots // shards()) * shards()

    def _answered(
        self,
        prepared: Prepared,
        prompts: Sequence[Prompt],
        limits: Sequence[int],
        samples: int,
        seed: int,
        example_ids: Sequence[int],
    ) -> Iterator[tuple[_Request, Generated]]:
        known, short = prepared.model.config.max_positions, rope.short_positions(prepared.model.config)
        room = lambda index: min(limits[index], known - len(prompts[index]))  # no answer goes beyond the last position
        asked = {
            (index, sample): _Request(index, sample, prompt, (int(example_ids[index]), sample), room(index))
            for index, prompt in enumerate(prompts)
            for sample in range(samples)
        }
        if short is None:
            yield from self._in_slots(prepared, list(asked.values()), seed)
            return
        beginnings = [request.while_short(short) for request in asked.values() if len(request.rest) <= short]
        long, begun = [request for request in asked.values() if len(request.rest) > short], {}
        for request, answer in self._in_slots(prepared.for_texts_of(short), beginnings, seed):
            if (rest := asked[request.key].continued(answer)) is None:
                yield request, answer
            else:
                long.append(rest)
                begun[request.key] = answer
        for request, answer in self._in_slots(prepared.for_texts_of(short + 1), long, seed):
            yield request, begun[request.key].followed_by(answer) if request.key in begun else answer

    def _in_slots(
        self, prepared: Prepared, requests: list[_Request], seed: int
    ) -> Iterator[tuple[_Request, Generated]]:
        if not requests:
            return
        shared = shared_tokens([request.rest for request in requests]) if self._sizes is None else 0
        prefix = requests[0].rest[:shared]
        order = sorted(requests, key=lambda request: (request.limit, len(request.rest)), reverse=True)
        queue = [dataclasses.replace(request, rest=request.rest[shared:]) for request in order]
        count = self._slots_on_mesh(min(self._slots, len(queue)) if self._sizes is None else self._slots)
        board = _Board(prepared, queue, prefix, count, seed, self._options, self._sizes)
        while queue or board.active:
            if queue and board.free >= min(len(queue), -(-count // _REFILLED)):
                queue = board.fill(queue)
            free_enough = board.free + min(len(queue), -(-count // _REFILLED)) if queue else count
            board.fit_to(queue)
            board.decode(_STEPS, min(free_enough, count))
            yield from board.take_ended()


def _check(
    prepared: Prepared, prompts: Sequence[Prompt], limits: Sequence[int], example_ids: Sequence[int], samples: int
) -> None:
    if samples < 1:
        raise ValueError(f"samples={samples} must be at least 1")
    if len(example_ids) != len(prompts):
        raise ValueError(f"{len(example_ids)} example_ids for {len(prompts)} prompts; give one for each")
    if len(limits) != len(prompts) or any(limit < 1 for limit in limits):
        raise ValueError(f"max_new_tokens={limits} must be at least 1, one number or one for each prompt")
    check_prompts(prompts, prepared.model.config)


class _Board:
    """The slots on their devices, and what the host knows of them."""

    def __init__(
        self,
        prepared: Prepared,
        requests: Sequence[_Request],
        prefix: Prompt,
        slots: int,
        seed: int,
        options: dict,
        sizes: Sizes | None,
    ):
        self._model, self._variables = prepared.model, prepared.variables
        self._options, self._seed, self.count = options, np.int32(seed), slots
        self._shared, self._may_shrink = len(prefix), sizes is None
        self._shards = shards()
        self._per_shard = slots // self._shards
        self._held: list[_Request | None] = [None] * slots
        self._done, self._stopped = np.ones(slots, bool), np.zeros(slots, bool)
        self._counts, self._chosen, self._logprobs = np.zeros(slots, np.int32), None, None
        self._prefix: Cache
        self._slots: Slots
        if sizes is not None:
            self._prompt, self._rows = sizes.prompt, [sizes.row]
            self._prefix, self._slots = _begin(self._model, self._variables, slots, sizes.new, sizes.prompt)
            return
        self._prefix = _read_prefix(self._model, self._variables, np.asarray(prefix, np.int32))
        new = rounded_size(max(request.limit for request in requests), 16)
        self._prompt = _prompt_size(requests)
        self._slots = _empty_slots(self._model, self._prefix, slots, new, self._prompt)
        longest = max(len(request.rest) for request in requests)
        usual = int(np.median([len(request.rest) for request in requests]))
        largest = row_size(max(longest, min(ROW_TOKENS, usual * self._per_shard)))
        self._rows = sorted({row_size(largest * quarters // 4) for quarters in (1, 2, 3, 4)})

    @property
    def free(self) -> int:
        """Slots without an answer in progress."""
        return self._held.count(None)

    @property
    def active(self) -> bool:
        """Whether any answer is in progress."""
        return self.free < self.count

    def is_done(self, slot: int) -> bool:
        """Whether the answer of a slot has ended."""
        return bool(self._done[slot])

    def fill(self, queue: list[_Request]) -> list[_Request]:
        """Puts requests into free slots while there are both; returns those that are left."""
        while queue and self.free:
            queue = self._fill_once(queue)
        self._look()
        return queue

    def _fill_once(self, queue: list[_Request]) -> list[_Request]:
        """Reads one row of prompts a shard; at least one prompt is read."""
        rows = self._placed(queue)
        size = next(size for size in self._rows if size >= max(row.used for row in rows))
        tokens, positions, segments = (np.zeros((self._shards, size), np.int32) for _ in range(3))
        start, length, limit = (np.zeros(self.count, np.int32) for _ in range(3))
        identity = np.zeros((self.count, 2), np.int32)
        taken = 0
        for number, row in enumerate(rows):
            for segment, (begin, rest, slots) in enumerate(row.prompts, decode.PREFIX + 1):
                here = slice(begin, begin + len(rest))
                tokens[number, here], segments[number, here] = rest, segment
                positions[number, here] = self._shared + np.arange(len(rest))
                for slot, request in slots:
                    start[slot], length[slot], limit[slot] = begin, len(rest), request.limit
                    identity[slot] = request.identity
                    self._held[slot] = request
                    taken += 1
        prompts = Prompts(*(put(x) for x in (tokens, positions, segments, start, length, identity, limit)))
        self._slots = _fill(
            self._model, self._variables, self._slots, self._prefix, prompts, self._seed, **self._options
        )
        return queue[taken:]

    def _placed(self, queue: list[_Request]) -> list["_Row"]:
        """The next requests, in their order, in a row for each shard. Samples of a prompt share its tokens."""
        rows = [_Row() for _ in range(self._shards)]
        free = [
            [slot for slot in range(shard * self._per_shard, (shard + 1) * self._per_shard) if self._held[slot] is None]
            for shard in range(self._shards)
        ]
        for request in queue:
            # The shard with the fewest tokens so far, among those with a free slot.
            open_shards = [shard for shard in range(self._shards) if free[shard]]
            if not open_shards:
                break
            shard = min(open_shards, key=lambda shard: rows[shard].used)
            if not rows[shard].take(request, free[shard][0], self._rows[-1]):
                break
            free[shard].pop(0)
        return rows

    def fit_to(self, queue: Sequence[_Request]) -> None:
        """Makes slots shorter where the prompts in them and those to come need at most half of their places."""
        if not self._may_shrink:
            return
        needed = _prompt_size([*queue, *(request for request in self._held if request is not None)])
        if needed <= self._prompt // 2:
            self._prompt = needed
            self._slots = _with_shorter_prompts(self._slots, self._shared + needed)

    def decode(self, steps: int, enough: int) -> None:
        """At most `steps` tokens in each slot, until `enough` slots are done."""
        self._slots = _decode(
            self._model,
            self._variables,
            self._slots,
            np.int32(enough),
            self._seed,
            steps=steps,
            **self._options,
        )
        self._look()

    def _look(self) -> None:
        """Takes to the host which answers have ended."""
        slots = self._slots
        self._done, self._stopped, self._counts, self._chosen, self._logprobs = on_host(
            (slots.done, slots.stopped, slots.count, slots.chosen, slots.logprobs)
        )

    def answer(self, slot: int) -> Generated:
        """The answer of a slot so far."""
        request, count, stopped = self._held[slot], int(self._counts[slot]), bool(self._stopped[slot])
        at_limit = self._shared + len(request.rest) + count >= self._model.config.max_positions
        reason = STOP if stopped else MAX_POSITIONS if at_limit else MAX_NEW_TOKENS
        stop_token = int(self._chosen[slot, count - 1]) if stopped else None
        tokens, logprobs = self._chosen[slot, : count - stopped].copy(), self._logprobs[slot, :count].copy()
        return Generated(tokens, logprobs, reason, stop_token)

    def take_ended(self) -> Iterator[tuple[_Request, Generated]]:
        """The answers that have ended; their slots are free."""
        for slot, request in enumerate(self._held):
            if request is not None and self._done[slot]:
                yield request, self.answer(slot)
                self._held[slot] = None


def _prompt_size(requests: Sequence[_Request]) -> int:
    """Places that a slot needs for the prompt of any of these."""
    return rounded_size(max(len(request.rest) for request in requests), SMALLEST_PROMPT)


class _Row:
    """Prompts that are read together: where each begins, its tokens, and the slots it fills."""

    def __init__(self):
        self.used = 0
        self.prompts: list[tuple[int, Prompt, list[tuple[int, _Request]]]] = []

    def take(self, request: _Request, slot: int, size: int) -> bool:
        """Adds a request; False where its prompt has no room."""
        if self.prompts and np.array_equal(self.prompts[-1][1], request.rest):
            self.prompts[-1][2].append((slot, request))
            return True
        if self.used + len(request.rest) > size:
            return False
        self.prompts.append((self.used, request.rest, [(slot, request)]))
        self.used += len(request.rest)
        return True
