"""Methods of adapting a model, side by side: by its prompt, by what is looked up, by its weights, and combinations.

A method is a name such as `base`, `few_shot`, `rag`, `sft`, or several joined by `+` (`sft+rag`). `sft` takes the tuned
weights, every other part changes prompts: `prompted` puts an instruction in front, `few_shot` solved examples, `rag`
passages of a corpus into the question. All of a method's requests go through `Method.changed`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from sft_jax.data.conversations import Conversation, Message
from sft_jax.data.records import Record
from sft_jax.data.rendering import ExampleError
from sft_jax.evaluation.baselines import choose_examples, with_examples
from sft_jax.evaluation.requests import Generate, Request
from sft_jax.options import FewShotOptions
from sft_jax.preparation.retrieved import Retriever
from sft_jax.retrieval import Passage
from sft_jax.retrieval.nearest import Nearest

BASE, TUNED, PROMPTED, FEW_SHOT, RAG = "base", "sft", "prompted", "few_shot", "rag"
PARTS = (BASE, TUNED, PROMPTED, FEW_SHOT, RAG)


@dataclasses.dataclass(frozen=True)
class Method:
    """One way of adapting a model.

    Attributes:
        name: as it was given.
        parts: of the name.
    """

    name: str
    parts: tuple[str, ...]

    @property
    def is_tuned(self) -> bool:
        """Whether it takes the tuned weights."""
        return TUNED in self.parts


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names.

    Raises:
        ValueError: there are none, one twice, or one with parts that there are not or that contradict one another.
    """
    if not names:
        raise ValueError(f"--methods: give at least one; parts of methods are {', '.join(PARTS)}")
    methods = []
    for name in names:
        parts = tuple(name.split("+"))
        unknown = [part for part in parts if part not in PARTS]
        if unknown:
            raise ValueError(
                f"--methods={name}: there is no {unknown[0]!r}; a method is one of {', '.join(PARTS)}, or "
                "several of them joined by '+', such as sft+rag"
            )
        if len(set(parts)) < len(parts) or (BASE in parts and len(parts) > 1):
            raise ValueError(
                f"--methods={name}: a part is given twice, or beside base, which is the model as it is: rag alone is "
                "the base model with passages"
            )
        methods.append(Method(name, parts))
    twice = {
        method.name for method in methods if [frozenset(m.parts) for m in methods].count(frozenset(method.parts)) > 1
    }
    if twice:
        raise ValueError(f"--methods: {', '.join(sorted(twice))} are the same; give each once")
    return methods


@dataclasses.dataclass(frozen=True)
class Prompting:
    """What the parts of methods put into prompts.

    Attributes:
        instruction: of `prompted`; empty where no method needs one.
        solved: of `few_shot`: the question of a record -> solved examples, the nearest or first last.
        retriever: of `rag`.
    """

    instruction: str = ""
    solved: Callable[[Conversation], Sequence[Conversation]] | None = None
    retriever: Retriever | None = None


class Changed:
    """Requests with prompts as a method makes them, within the positions that the model has.

    Attributes:
        cut: requests for which solved examples or passages were left out because they did not fit.
    """

    def __init__(self, method: Method, prompting: Prompting, prompt_tokens: Callable[[Request], int], positions: int):
        """Keeps what stays the same through all requests.

        Args:
            method: that changes them.
            prompting: what it puts into prompts.
            prompt_tokens: of a request.
            positions: that the model knows.
        """
        self._method, self._prompting = method, prompting
        self._tokens, self._positions = prompt_tokens, positions
        self.cut = 0

    def __call__(self, requests: Sequence[Request], names: Sequence[str]) -> list[Request]:
        """The requests as the method asks them.

        Raises:
            ValueError: one without a message of the user, or one that does not fit even without examples and passages.
        """
        passages = self._passages(requests)
        return [
            self._fitted(request, found, name) for request, found, name in zip(requests, passages, names, strict=True)
        ]

    def _passages(self, requests: Sequence[Request]) -> list[list[Passage]]:
        if RAG not in self._method.parts:
            return [[] for _ in requests]
        return self._prompting.retriever.passages([request.prompt for request in requests])

    def _fitted(self, request: Request, passages: list[Passage], name: str) -> Request:
        """The request with as many examples and passages as fit: the examples that stand first go first."""
        examples = list(self._prompting.solved(request.prompt)) if FEW_SHOT in self._method.parts else []
        wanted = (len(examples), len(passages))
        while True:
            changed = self._with(request, examples, passages)
            try:
                fits = self._tokens(changed) + _answer_tokens(request) <= self._positions
            except ExampleError as error:
                raise ValueError(f"{name}, method {self._method.name}: {error}") from error
            if fits or not (examples or passages):
                self.cut += wanted != (len(examples), len(passages))
                return changed
            if examples:
                examples = examples[1:]
            else:
                passages = passages[:-1]

    def _with(self, request: Request, examples: Sequence[Conversation], passages: Sequence[Passage]) -> Request:
        prompt = request.prompt
        if PROMPTED in self._method.parts:
            prompt = with_instruction(prompt, self._prompting.instruction)
            examples = [with_instruction(example, self._prompting.instruction) for example in examples]
        if passages:
            prompt = self._prompting.retriever.put_into(prompt, passages)
        return dataclasses.replace(request, prompt=with_examples(prompt, examples))


def _answer_tokens(request: Request) -> int:
    """Room that the answer may need; of given answers a token at least, they are measured when they are judged."""
    return request.max_new_tokens if isinstance(request, Generate) else 1


def with_instruction(conversation: Conversation, instruction: str) -> Conversation:
    """The conversation with this instruction as its system message, in the place of its own."""
    turns = conversation
    if turns and turns[0].role in ("system", "developer"):
        turns = turns[1:]
    return (Message("system", instruction), *turns)


def solved_examples(
    options: FewShotOptions, train: Sequence[Record], held_out: Sequence[Record], seed: int
) -> Callable[[Conversation], Sequence[Conversation]]:
    """Which solved examples are put before a question.

    Args:
        options: how many, and how they are chosen.
        train: rows to take them from; those that ask what a held-out row asks are never taken.
        held_out: rows that are measured.
        seed: of drawing.

    Raises:
        ValueError: too few rows.
    """
    conversations = [record.conversation for record in train]
    measured = [record.conversation for record in held_out]
    if options.choose == "seed":
        drawn = choose_examples(conversations, options.examples, seed, measured)
        return lambda question: drawn
    asked = {_questions(conversation) for conversation in measured}
    allowed = [conversation for conversation in conversations if _questions(conversation) not in asked]
    if len(allowed) < options.examples:
        raise ValueError(
            f"--config.evaluation.few_shot.examples={options.examples}: only {len(allowed)} of {len(train)} rows are "
            "not held out"
        )
    if options.choose == "first":
        first = allowed[: options.examples]
        return lambda question: first
    nearest = Nearest(allowed)
    return lambda question: nearest(question, options.examples)


def _questions(conversation: Conversation) -> tuple[str, ...]:
    return tuple(message.content for message in conversation if message.role == "user")


def describe(method: Method, prompting: Prompting, options: Any) -> str:
    """A method in words, for tables."""
    said = {
        BASE: "the model as it is",
        TUNED: "the tuned weights",
        PROMPTED: f"the instruction {prompting.instruction[:80]!r}",
        FEW_SHOT: f"{options.few_shot.examples} solved examples ({options.few_shot.choose})",
        RAG: f"{options.retrieval.passages} passages by {options.retrieval.method}",
    }
    return ", ".join(said[part] for part in method.parts)
