"""Has a model respond to requests: renders prompts, generates and judges, and keeps each answer when it is there.

Answers are kept by what they depend on (`answer_store.py`), so that an evaluation goes on where it was stopped.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int32

from sft_jax.data.conversations import Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError, Masking
from sft_jax.data.rendering.pairs import shared_beginning
from sft_jax.evaluation.answer_store import AnswerStore, key_of
from sft_jax.evaluation.requests import Generate, Judged, LogLikelihood, Request, Response, Written
from sft_jax.generation import Generated, Prepared, Sampler, Sampling, loglikelihoods, problem_of_prompt
from sft_jax.models import positions

ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback (done, in all)
Tokens = Int32[np.ndarray, "_"]
Keep = Callable[[int, Any], None]  # (place, value)


class Respondent:
    """A model that responds to requests; call it inside `jax.set_mesh`."""

    def __init__(
        self,
        prepared: Prepared,
        renderer: ConversationRenderer,
        *,
        slots: int = 32,
        seed: int = 0,
        store: AnswerStore | None = None,
        progress: ProgressFor | None = None,
    ):
        """Keeps what stays the same through all requests.

        Args:
            prepared: the model and its weights.
            renderer: chat template and tokenizer.
            slots: answers in progress at a time.
            seed: of sampling.
            store: where answers are kept; None: they are not.
            progress: makes a progress callback.
        """
        self.prepared, self.renderer = prepared, renderer
        # Whatever a run trains: an answer is judged whole, with its end, and what was said before it is prompt.
        last = Masking(train_on="last")
        self._judging = ConversationRenderer(renderer.tokenizer, renderer.chat_template, last, renderer.now)
        self._slots, self._seed, self._store, self._progress = slots, seed, store, progress

    def __call__(self, requests: Sequence[Request], names: Sequence[str], title: str = "answers") -> list[Response]:
        """One response to each request; the same request twice is answered once, unless its answers are drawn.

        Args:
            requests: what is asked.
            names: of their records, for errors.
            title: of the progress.

        Raises:
            ValueError: a prompt that the chat template refuses, or that leaves no position for an answer; names it.
        """
        groups: dict[tuple[Sampling, int] | None, list[_Asked]] = {}
        for number, (request, name) in enumerate(zip(requests, names, strict=True)):
            kind = (request.sampling, request.samples) if isinstance(request, Generate) else None
            groups.setdefault(kind, []).append(_Asked(number, name, request, self._prompt(request, name)))
        responses: dict[int, Response] = {}
        for kind, asked in groups.items():
            respond = self._judge if kind is None else self._generate
            responses |= zip((one.number for one in asked), respond(asked, title), strict=True)
        return [responses[number] for number in range(len(requests))]

    def positions_needed(self, request: Request, name: str) -> int:
        """How many positions prompt and answer take: an answer to write its limit, of given answers the longest.

        Raises:
            ValueError: the chat template refuses the prompt or an answer; names the record.
        """
        prompt = self._rendered(request, name)
        if isinstance(request, Generate):
            return len(prompt) + request.max_new_tokens
        return max(len(self._with_answer(request, prompt, text, name)) for text in request.continuations)

    def _prompt(self, request: Request, name: str) -> Tokens:
        ids = self._rendered(request, name)
        if problem := problem_of_prompt(ids, self.prepared.model.config):
            raise ValueError(f"the prompt of {name} {problem}")
        return ids

    def _rendered(self, request: Request, name: str) -> Tokens:
        try:
            return self.renderer.render_prompt(request.prompt, request.tools)
        except ExampleError as error:
            raise ValueError(f"{name}: {error}") from error

    def _answered(self, keys: Sequence[str], answer: Callable[[list[int], Keep], None]) -> list[Any]:
        """The value of each key.

        Args:
            keys: of what is asked.
            answer: called with the places of those that are not there yet, each once, and with what keeps a value.
        """
        values = {key: None if self._store is None else self._store.get(key) for key in keys}
        places: dict[str, int] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, place)

        def keep(place: int, value: Any) -> None:
            values[keys[place]] = value
            if self._store is not None:
                self._store.put(keys[place], value)

        missing = [place for key, place in places.items() if values[key] is None]
        _check_processes_ask_the_same([keys[place] for place in missing])
        if missing:
            answer(missing, keep)
            if self._store is not None:
                self._store.flush()
        return [values[key] for key in keys]

    def _generate(self, asked: Sequence["_Asked"], title: str) -> list[Response]:
        """What the model writes; all are sampled alike."""
        sampling, samples = asked[0].request.sampling, asked[0].request.samples
        keys = []
        for one in asked:
            drawn = [self._seed, one.number] if sampling.temperature else []
            keys.append(
                key_of(["generate", one.prompt.tolist(), one.request.max_new_tokens, repr(sampling), samples, drawn])
            )

        def answer(missing: list[int], keep: Keep) -> None:
            clock, parts = _Clock(), {place: {} for place in missing}

            def on_answer(prompt: int, sample: int, found: Generated) -> None:
                of_prompt = parts[missing[prompt]]
                of_prompt[sample] = (found.tokens.tolist(), float(found.logprobs.sum()), found.finish_reason, clock())
                if len(of_prompt) == samples:
                    keep(missing[prompt], [of_prompt[sample] for sample in range(samples)])

            Sampler(self.renderer.stop_ids, sampling=sampling, slots=self._slots).generate(
                self.prepared,
                [asked[place].prompt for place in missing],
                max_new_tokens=[asked[place].request.max_new_tokens for place in missing],
                samples=samples,
                seed=self._seed,
                example_ids=[asked[place].number for place in missing],
                progress=self._progress and self._progress(title, samples * len(missing)),
                on_answer=on_answer,
            )

        return [self._written(one, value) for one, value in zip(asked, self._answered(keys, answer), strict=True)]

    def _written(self, asked: "_Asked", kept: Sequence[Any]) -> Response:
        answers = tuple(
            Written(self.renderer.written_text(tokens, asked.request.tools), len(tokens), logprob, reason)
            for tokens, logprob, reason, _ in kept
        )
        return Response(answers, len(asked.prompt), sum(seconds for *_, seconds in kept))

    def _judge(self, asked: Sequence["_Asked"], title: str) -> list[Response]:
        """How likely the given answers are."""
        judged = [self._continuations(one) for one in asked]
        keys = [key_of(["judge", prompt.tolist(), [ids.tolist() for ids in given]]) for prompt, given in judged]

        def answer(missing: list[int], keep: Keep) -> None:
            clock = _Clock()
            prompts, continuations = zip(*(judged[place] for place in missing), strict=True)
            total = sum(map(len, continuations))
            loglikelihoods(
                self.prepared,
                prompts,
                continuations,
                progress=self._progress and self._progress(title, total),
                on_prompt=lambda prompt, found: keep(
                    missing[prompt], [[(one.logprob, one.tokens, one.greedy_tail) for one in found], clock()]
                ),
            )

        responses = []
        for one, (answers, seconds) in zip(asked, self._answered(keys, answer), strict=True):
            responses.append(Response(tuple(Judged(*each) for each in answers), len(one.prompt), seconds))
        return responses

    def _continuations(self, asked: "_Asked") -> tuple[Tokens, list[Tokens]]:
        """The prompt of a request, and the given answers behind it, for which there are positions.

        A token that reaches over the edge, such as one of the spaces that an answer begins with and of the line break
        before it, is judged with the answers; the prompt ends before it, for all answers of the request.
        """
        decoder, prompt, wholes = self.prepared.model.config, asked.prompt, []
        for given in asked.request.continuations:
            ids = self._with_answer(asked.request, prompt, given, asked.name)
            if len(ids) > decoder.max_positions:
                text = given if isinstance(given, str) else given.content
                raise ValueError(
                    f"the prompt of {asked.name} has {len(prompt)} tokens, and its answer {text[:60]!r} "
                    f"{len(ids) - len(prompt)}; the model knows {decoder.max_positions} positions. Give shorter ones"
                    f"{positions.advice(decoder)}."
                )
            wholes.append(ids)
        edge = min(shared_beginning(prompt, ids) for ids in wholes)
        return prompt[:edge], [ids[edge:] for ids in wholes]

    def _with_answer(self, request: LogLikelihood, prompt: Tokens, given: str | Message, name: str) -> Tokens:
        """The tokens of a prompt and an answer, up to the end of its turn."""
        answer = Message("assistant", given) if isinstance(given, str) else given._replace(weight=None, ranges=())
        text = answer.content
        try:
            rendered = self._judging.render((*request.prompt, answer), request.tools)
        except ExampleError as error:
            raise ValueError(f"{name}, answer {text[:60]!r}: {error}") from error
        ids, supervised = np.asarray(rendered.tokens, np.int32), np.flatnonzero(rendered.weights)
        ids = ids[: int(supervised[-1]) + 1 if len(supervised) else 0]
        if not self._continues(prompt, ids, text):
            raise ValueError(
                f"{name}, answer {text[:60]!r}: the chat template does not write it behind the prompt as it is, so its "
                "likelihood cannot be told"
            )
        return ids

    def _continues(self, prompt: Tokens, ids: Tokens, answer: str) -> bool:
        """Whether tokens go on from a prompt; where a token reaches over its edge, with the answer itself."""
        edge = shared_beginning(ids, prompt)
        if edge == len(prompt):
            return len(ids) > edge
        if not edge:
            return False
        # With the token before, since tokenizers leave out a space that a text begins with.
        text = lambda tokens: self.renderer.tokenizer.decode(tokens[edge - 1 :], clean_up_tokenization_spaces=False)
        whole, before = text(ids.tolist()), text(prompt.tolist())
        return len(whole) > len(before) and whole.startswith(before + answer)


@dataclasses.dataclass(frozen=True)
class _Asked:
    """A request with its number, by which samples are drawn, the name of its record, and its prompt."""

    number: int
    name: str
    request: Any
    prompt: Tokens


class _Clock:
    """Seconds since it was asked last."""

    def __init__(self):
        self._last = time.monotonic()

    def __call__(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before


def _check_processes_ask_the_same(keys: Sequence[str]) -> None:
    """Checks that all processes lack the same answers: they compute them together.

    Raises:
        AssertionError: they do not.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256("\n".join(keys).encode()).digest(), np.uint8)
    multihost_utils.assert_equal(
        digest, "the processes have different rows, or different answers that are kept; give all of them the same files"
    )
