"""Has a model respond to requests: renders prompts, generates and judges, and keeps each answer when it is there.

Answers are kept by what they depend on (`answer_store.py`), so that an evaluation goes on where it was stopped.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sft_jax.data.conversations import Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.evaluation.answer_store import AnswerStore
from sft_jax.evaluation.requests import Generate, Judged, LogLikelihood, Request, Response, Written
from sft_jax.generation import Generated, Prepared, Sampler, loglikelihoods, problem_of_prompt

ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback (done, in all)


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
        self._slots, self._seed, self._store, self._progress = slots, seed, store, progress

    def __call__(self, requests: Sequence[Request], names: Sequence[str], title: str = "answers") -> list[Response]:
        """One response to each request.

        Args:
            requests: what is asked.
            names: of their records, for errors.
            title: of the progress.

        Raises:
            ValueError: a prompt that the chat template refuses, or that leaves no position for an answer; names it.
        """
        prompts = [self._prompt(request, name) for request, name in zip(requests, names, strict=True)]
        responses: list[Response | None] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}
        for number, request in enumerate(requests):
            kind = (request.sampling, request.samples) if isinstance(request, Generate) else None
            groups.setdefault(kind, []).append(number)
        for kind, members in groups.items():
            answer = self._judge if kind is None else self._generate
            answer([requests[n] for n in members], [prompts[n] for n in members], members, responses, names, title)
        return responses

    def prompt_tokens(self, request: Request) -> int:
        """How many tokens the prompt of a request has.

        Raises:
            ExampleError: the template refuses it.
        """
        return len(self.renderer.render_prompt(request.prompt, request.tools))

    def _prompt(self, request: Request, name: str) -> np.ndarray:
        try:
            ids = self.renderer.render_prompt(request.prompt, request.tools)
        except ExampleError as error:
            raise ValueError(f"{name}: {error}") from error
        if problem := problem_of_prompt(ids, self.prepared.model.config):
            raise ValueError(f"the prompt of {name} {problem}")
        return ids

    def _generate(self, requests, prompts, numbers, responses, names, title) -> None:
        """Fills `responses` at `numbers` with what the model writes."""
        del names
        sampling, samples = requests[0].sampling, requests[0].samples
        keys, missing = [], []
        for place, (request, prompt, number) in enumerate(zip(requests, prompts, numbers, strict=True)):
            drawn = [self._seed, number] if sampling.temperature else []
            keys.append(["generate", prompt.tolist(), request.max_new_tokens, repr(sampling), samples, drawn])
            kept = self._store and self._store.get(keys[place])
            if kept:
                responses[number] = self._written(request, prompt, kept)
            else:
                missing.append(place)
        if not missing:
            return
        callback = self._progress(title, samples * len(missing)) if self._progress else None
        clock, parts = _Clock(), {place: {} for place in missing}

        def keep(prompt: int, sample: int, answer: Generated) -> None:
            place = missing[prompt]
            parts[place][sample] = (answer.tokens.tolist(), float(answer.logprobs.sum()), answer.finish_reason, clock())
            if len(parts[place]) == samples:
                value = [parts[place][sample] for sample in range(samples)]
                if self._store:
                    self._store.put(keys[place], value)
                responses[numbers[place]] = self._written(requests[place], prompts[place], value)

        Sampler(self.renderer.stop_ids, sampling=sampling, slots=self._slots).generate(
            self.prepared,
            [prompts[place] for place in missing],
            max_new_tokens=[requests[place].max_new_tokens for place in missing],
            samples=samples,
            seed=self._seed,
            example_ids=[numbers[place] for place in missing],
            progress=callback,
            on_answer=keep,
        )

    def _written(self, request: Generate, prompt: np.ndarray, kept: Sequence[Any]) -> Response:
        answers = tuple(
            Written(self.renderer.written_text(tokens, request.tools), len(tokens), logprob, reason)
            for tokens, logprob, reason, _ in kept
        )
        return Response(answers, len(prompt), sum(seconds for *_, seconds in kept))

    def _judge(self, requests, prompts, numbers, responses, names, title) -> None:
        """Fills `responses` at `numbers` with how likely the given answers are."""
        continuations = [
            [self._continuation(request, prompt, text, names[number]) for text in request.continuations]
            for request, prompt, number in zip(requests, prompts, numbers, strict=True)
        ]
        keys = [
            ["judge", prompt.tolist(), [ids.tolist() for ids in of_prompt]]
            for prompt, of_prompt in zip(prompts, continuations, strict=True)
        ]
        kept = [self._store and self._store.get(key) for key in keys]
        missing = [place for place, value in enumerate(kept) if not value]
        if missing:
            callback = self._progress(title, sum(len(continuations[p]) for p in missing)) if self._progress else None
            clock = _Clock()
            found = loglikelihoods(
                self.prepared,
                [prompts[place] for place in missing],
                [continuations[place] for place in missing],
                progress=callback,
            )
            seconds = clock() / len(missing)
            for place, likelihoods in zip(missing, found, strict=True):
                kept[place] = [[(one.logprob, one.tokens, one.greedy_tail) for one in likelihoods], seconds]
                if self._store:
                    self._store.put(keys[place], kept[place])
        for place, (judged, seconds) in enumerate(kept):
            answers = tuple(Judged(*one) for one in judged)
            responses[numbers[place]] = Response(answers, len(prompts[place]), seconds)

    def _continuation(self, request: LogLikelihood, prompt: np.ndarray, text: str, name: str) -> np.ndarray:
        """The tokens of an answer, with the end of its turn."""
        try:
            rendered = self.renderer.render((*request.prompt, Message("assistant", text)), request.tools)
        except ExampleError as error:
            raise ValueError(f"{name}, answer {text[:60]!r}: {error}") from error
        ids, weights = np.asarray(rendered.tokens, np.int32), np.asarray(rendered.weights)
        end = int(np.flatnonzero(weights)[-1]) + 1
        if not np.array_equal(ids[: len(prompt)], prompt) or end <= len(prompt):
            raise ValueError(
                f"{name}, answer {text[:60]!r}: the chat template does not write it behind the prompt as it is, so its "
                "likelihood cannot be told"
            )
        return ids[len(prompt) : end]


class _Clock:
    """Seconds since it was asked last."""

    def __init__(self):
        self._last = time.monotonic()

    def __call__(self) -> float:
        before, self._last = self._last, time.monotonic()
        return self._last - before
