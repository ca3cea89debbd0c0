"""A model of this project as one of EleutherAI's lm-evaluation-harness, which then runs its tasks on it.

The harness asks for the log-likelihood of continuations, for that of whole documents, and for generated answers; here
they come from `sft_jax.generation`. `harness_tasks.py` finds the tasks and runs them. `lm-eval` is no dependency of the
core install: nothing but the command `sft_jax/harness.py` imports this module.

The harness speaks in text. A special token that a prompt spells is that token, wherever it comes from: so the harness
has it for all models, and it is what makes figures comparable.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from sft_jax.data.conversations import Message
from sft_jax.data.rendering.named_templates import DEFAULT
from sft_jax.data.rendering.special_tokens import TextEncoder
from sft_jax.generation import Sampler, Sampling, loglikelihoods, prepare
from sft_jax.models import positions
from sft_jax.runs.restore import Loaded

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    if error.name != "lm_eval":
        raise
    raise ImportError("the package lm-eval is not installed: pip install -r requirements-harness.txt") from error

Tokens = Int32[np.ndarray, "_"]
ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback (done, in all)
TokenizedPair = tuple[tuple[str, str], list[int], list[int]]  # the texts, ids of the context and of the continuation

_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing; first wins
_READ = {"until", "do_sample", "temperature", "top_k", "top_p", *_LIMITS}


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a task wants an answer generated.

    Attributes:
        until: texts before which the answer ends.
        max_new_tokens: longest answer.
        sampling: how tokens are chosen.
    """

    until: tuple[str, ...]
    max_new_tokens: int
    sampling: Sampling


def generation_of(gen_kwargs: Mapping[str, Any], max_new_tokens: int) -> Generation:
    """What the `generation_kwargs` of a task ask for.

    As in the harness, an answer is drawn where there is a temperature, unless `do_sample` is false. With `do_sample`
    alone the temperature is 1.

    Args:
        gen_kwargs: of a request.
        max_new_tokens: where they give no limit.

    Raises:
        ValueError: they have something that is not implemented; names it.
    """
    unknown = [
        f"{name}={value!r}"
        for name, value in gen_kwargs.items()
        if name not in _READ and (name, value) != ("num_beams", 1)  # which is no search by beams
    ]
    if unknown:
        raise ValueError(
            f"a task asks by its generation_kwargs for {', '.join(unknown)}, which is not implemented; there are "
            f"{', '.join(sorted(_READ))}. Give the path of a task without it (`include:` takes over all else)."
        )
    limit = next((gen_kwargs[name] for name in _LIMITS if gen_kwargs.get(name) is not None), max_new_tokens)
    until = gen_kwargs.get("until") or ()
    do_sample = gen_kwargs.get("do_sample")
    temperature = float(gen_kwargs.get("temperature", 1.0 if do_sample else 0.0))
    sampling = Sampling()
    if do_sample is not False and temperature > 0:
        sampling = Sampling(temperature, int(gen_kwargs.get("top_k", 0)), float(gen_kwargs.get("top_p", 1.0)))
    stops = (until,) if isinstance(until, str) else tuple(until)
    return Generation(tuple(stop for stop in stops if stop), int(limit), sampling)


class HarnessModel(TemplateLM):
    """A loaded model in the harness; make and use it inside `jax.set_mesh`.

    It says that it is one process (`world_size` 1): every process of a mesh asks for everything and gets all results.

    Attributes:
        name: what was asked for, with the step that was found.
        tokenizer: the model's.
        cut: how many contexts were longer than the model's positions allow, and lost their beginning.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        batch_size: int = 32,
        max_new_tokens: int = 256,
        seed: int = 0,
        progress: ProgressFor | None = None,
    ):
        """Prepares the weights.

        Args:
            loaded: the model.
            batch_size: answers in progress at a time.
            max_new_tokens: longest answer where a task gives no limit.
            seed: of sampling.
            progress: makes a progress callback.

        Raises:
            ValueError: the tokenizer has neither a token that begins a text nor one that ends it.
        """
        super().__init__()
        self.tokenizer, self.cut = loaded.renderer.tokenizer, 0
        self.name, self._renderer, self._progress = loaded.name, loaded.renderer, progress
        self._batch_size, self._max_new_tokens, self._seed = batch_size, max_new_tokens, seed
        self._prepared = prepare(loaded.model, loaded.variables)
        self._positions = loaded.model.config.max_positions
        self._advice = positions.advice(loaded.model.config)
        self._beginning = TextEncoder(self.tokenizer).beginning
        self._begin_ids = self._encode(self._beginning)
        if self.tokenizer.bos_token_id is None and self.tokenizer.eos_token_id is None:
            raise ValueError(
                f"{loaded.name}: its tokenizer has neither a bos nor an eos token, after which a text begins"
            )

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        bos = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """The name of the model: its tokenizer and chat template have no other."""
        return self.name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids.

        Args:
            string: a prompt; special tokens in it count.
            add_special_tokens: False leaves out what the tokenizer begins texts with (the bos token of Llama, say).
                None leaves it out where the text begins with it, as that of many chat templates does.
        """
        ids = self._encode(string)
        begins = add_special_tokens or (add_special_tokens is None and not string.startswith(self._beginning))
        return [*self._begin_ids, *ids] if begins else ids

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The Jinja source of the chat template; None where none is asked for.

        Raises:
            ValueError: one is asked for by a name that it does not have.
        """
        if chat_template is False:
            return None
        name = DEFAULT if chat_template is True else chat_template
        sources = self._renderer.chat_template
        known = {DEFAULT: sources} if isinstance(sources, str) else sources
        if name != DEFAULT or name not in known:
            raise ValueError(f"chat template {name!r}: prompts are rendered by {DEFAULT!r}; there are {list(known)}")
        return known[name]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model's chat template writes it.

        Args:
            chat_history: messages with `role` and `content`.
            add_generation_prompt: the answer follows; False: the last message is the beginning of the answer, and the
                text ends where it does.

        Raises:
            ExampleError: the template refuses it.
        """
        messages = [Message(message["role"], message["content"]) for message in chat_history]
        template = self._renderer.template_for()
        if add_generation_prompt:
            return template.render(messages, generation_prompt=True)
        rendered = template.render_with_parts(messages)
        return rendered.text[: rendered.said_by(len(messages) - 1)[-1].end]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Of each request (context, continuation): log-probability (nats), and whether it is the greedy continuation.

        Raises:
            ValueError: a continuation that has no token of its own, or more than the model has positions for.
        """
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm)

    def _loglikelihood_tokens(self, requests: list[TokenizedPair], **_: Any) -> list[tuple[float, bool]]:
        pairs = []
        for (context, continuation), context_ids, ids in requests:
            if not ids:
                raise ValueError(
                    f"the continuation {continuation!r} has no token of its own behind …{context[-40:]!r}: is empty, "
                    "or joined by the tokenizer with what stands before it"
                )
            pairs.append((self._fitting(context_ids, self._positions - len(ids) + 1, repr(continuation[:40])), ids))
        return self._likelihoods(pairs)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """The log-probability (nats) of each whole document (request: its text), each token once.

        A document that is longer than the model's positions is read in windows, as the harness cuts them: each token is
        predicted from what stands before it in its window, and the last window is as long as the others. 0 for a
        document without tokens.
        """
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text, add_special_tokens=False)
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self._positions, 1):
                windows.append(make_disjoint_window(window))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._likelihoods(windows), strict=True):
            sums[owner] += logprob
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """The answer to each request (context, generation_kwargs), without the stop text and what follows it.

        The model stops at the end of a turn or of a text, and at a special token among the stop texts. At any other it
        goes on, and the answer is cut.

        Raises:
            ValueError: something is asked for that is not implemented, or an answer longer than the model's positions.
        """
        asked = [generation_of(request.args[1], self._max_new_tokens) for request in requests]
        prompts = []
        for request, generation in zip(requests, asked, strict=True):
            ids = self.tok_encode(request.args[0]) or [self.prefix_token_id]
            limit = generation.max_new_tokens
            prompts.append(_array(self._fitting(ids, self._positions - limit, f"of max_gen_toks={limit} tokens")))
        added, groups = self.tokenizer.get_added_vocab(), {}
        for index, generation in enumerate(asked):
            stops = {added[stop] for stop in generation.until if stop in added} | set(self._renderer.stop_ids)
            groups.setdefault((generation.sampling, tuple(sorted(stops))), []).append(index)
        texts = [""] * len(requests)
        for (sampling, stop_ids), indices in groups.items():
            answers = Sampler(stop_ids, sampling=sampling, slots=self._batch_size).generate(
                self._prepared,
                [prompts[index] for index in indices],
                max_new_tokens=[asked[index].max_new_tokens for index in indices],
                seed=self._seed,
                example_ids=indices,  # a request that is repeated gets another answer
                progress=self._callback("generating", len(indices)),
            )
            for index, (answer,) in zip(indices, answers, strict=True):
                text = self._renderer.content_text(answer.tokens)
                texts[index] = text[: min((text.find(s) for s in asked[index].until if s in text), default=None)]
        return texts

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        """Of each (context, continuation), which fit the model; contexts that are the same are read once."""
        of_context: dict[tuple[int, ...], list[int]] = {}
        for index, (context, _) in enumerate(pairs):
            of_context.setdefault(tuple(context), []).append(index)
        measured = loglikelihoods(
            self._prepared,
            [_array(context) for context in of_context],
            [[_array(pairs[index][1]) for index in indices] for indices in of_context.values()],
            progress=self._callback("log-likelihoods", len(pairs)),
        )
        results: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for indices, likelihoods in zip(of_context.values(), measured, strict=True):
            for index, likelihood in zip(indices, likelihoods, strict=True):
                results[index] = likelihood.logprob, likelihood.is_greedy
        return results

    def _fitting(self, context: list[int], room: int, what: str) -> list[int]:
        """The last tokens of a context that leave the model room for `what` follows; as in the harness, counted."""
        if room < 1:
            raise ValueError(
                f"an answer {what} leaves no position for its context: the model knows {self._positions}{self._advice}"
            )
        self.cut += len(context) > room
        return context[-room:]

    def _callback(self, title: str, total: int) -> Callable[[int, int], None] | None:
        return self._progress(title, total) if self._progress and total else None


def _array(ids: Sequence[int]) -> Tokens:
    return np.asarray(ids, np.int32)
