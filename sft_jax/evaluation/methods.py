"""Methods of adapting a model, side by side: by its prompt, by what is looked up, by its weights, and combinations.

A method is a name such as `base`, `few_shot`, `rag`, `sft`, or several joined by `+` (`sft+rag`). `sft` takes the tuned
weights, `sft@0.5` those half-way from the base's; every other part changes prompts: `prompted` puts an instruction in
front, `few_shot` solved examples, `rag` passages of a corpus into the question. All of a method's requests go through
`Changed`.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence

from sft_jax.data.conversations import Conversation, Message
from sft_jax.data.records import Record
from sft_jax.evaluation.baselines import choose_examples, questions_of, right_conversation, with_examples
from sft_jax.evaluation.requests import Request
from sft_jax.options import EvaluationOptions, FewShotOptions
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
        parts: of the name, without a mix.
        mix: of the tuned weights: base + mix x (tuned - base), as `sft@0.5` asks for; 1: the tuned ones.
    """

    name: str
    parts: tuple[str, ...]
    mix: float = 1.0

    @property
    def is_tuned(self) -> bool:
        """Whether it takes the tuned weights, or some between these and the base's."""
        return TUNED in self.parts

    @property
    def weights(self) -> float:
        """Whose weights it takes, as their mix: 0 for the base's."""
        return self.mix if self.is_tuned else 0.0


def parse_methods(names: Sequence[str]) -> list[Method]:
    """The methods of these names.

    Raises:
        ValueError: there are none, one twice, or one with parts that there are not or that contradict one another.
    """
    if not names:
        raise ValueError(f"--methods: give at least one; parts of methods are {', '.join(PARTS)}")
    methods = []
    for name in names:
        given = name.split("+")
        mixes = [_mix(name, part) for part in given if part.startswith(f"{TUNED}@")]
        parts = tuple(TUNED if part.startswith(f"{TUNED}@") else part for part in given)
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
        methods.append(Method(name, parts, *mixes))
    made_of = [(frozenset(method.parts), method.weights) for method in methods]
    same = [method.name for method, parts in zip(methods, made_of, strict=True) if made_of.count(parts) > 1]
    if same:
        raise ValueError(f"--methods: {', '.join(same)} are the same; give each once")
    return methods


def mixes(names: Sequence[str]) -> dict[str, float]:
    """How much of the tuned weights those methods take that are weights alone, from 0 (base) to 1; in this order."""
    weights_alone = (name for name in names if name in (BASE, TUNED) or re.fullmatch(rf"{TUNED}@[0-9.e-]+", name))
    found = {name: parse_methods([name])[0].weights for name in weights_alone}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _mix(name: str, part: str) -> float:
    """The mix of `sft@0.5`.

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    text = part.removeprefix(f"{TUNED}@")
    try:
        mix = float(text)
    except ValueError:
        mix = math.nan
    if not 0 < mix < 1:
        raise ValueError(
            f"--methods={name}: {text!r} must be a number between 0 ({BASE}) and 1 ({TUNED}), as in {TUNED}@0.5"
        )
    return mix


@dataclasses.dataclass(frozen=True)
class Prompting:
    """What the parts of methods put into prompts.

    Attributes:
        instruction: of `prompted`; empty where no method needs one.
        solved: of `few_shot`: the question of a record -> solved examples, the nearest last.
        looks_at_question: `solved` depends on the last message of the user.
        retriever: of `rag`.
    """

    instruction: str = ""
    solved: Callable[[Conversation], Sequence[Conversation]] | None = None
    looks_at_question: bool = False
    retriever: Retriever | None = None


PositionsNeeded = Callable[[Request, str], int]  # (request, name of its record) -> positions of prompt and answer


class Changed:
    """Requests with prompts as a method makes them, within the positions that the model has.

    Attributes:
        cut: requests for which solved examples or passages were left out because they did not fit.
    """

    def __init__(self, method: Method, prompting: Prompting, positions_needed: PositionsNeeded, positions: int):
        """Keeps what stays the same through all requests.

        Args:
            method: that changes them.
            prompting: what it puts into prompts.
            positions_needed: by a request with its answer.
            positions: that the model knows.
        """
        self._method, self._prompting = method, prompting
        self._needed, self._positions = positions_needed, positions
        self.cut, self._found, self._asked = 0, 0, 0

    def __call__(self, requests: Sequence[Request], names: Sequence[str]) -> list[Request]:
        """The requests as the method asks them.

        A request that does not fit even without examples and passages stays as it is.

        Raises:
            ValueError: one whose question cannot be looked for or whose prompt the chat template refuses, a solved
                example that does not go with it, or there are no passages for any.
        """
        passages = self._passages(requests, names)
        return [
            self._fitted(request, found, name) for request, found, name in zip(requests, passages, names, strict=True)
        ]

    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know of the prompts."""
        notes = []
        if RAG in self._method.parts:
            notes.append(
                f"Passages were found for {self._found:,} of {self._asked:,} prompts, from "
                f"{self._prompting.retriever.report.note()}."
            )
        if self.cut:
            notes.append(
                f"Solved examples or passages were left out of {self.cut:,} prompts, which had not fitted into the "
                f"{self._positions:,} positions of the model."
            )
        return tuple(notes)

    def _passages(self, requests: Sequence[Request], names: Sequence[str]) -> list[list[Passage]]:
        looked_for = RAG in self._method.parts or self._prompting.looks_at_question
        for request, name in zip(requests, names, strict=True):
            if looked_for and not any(message.role == "user" for message in request.prompt):
                raise ValueError(f"{name}, method {self._method.name}: there is no message of the user to look for")
        if RAG not in self._method.parts:
            return [[] for _ in requests]
        passages = self._prompting.retriever.passages([request.prompt for request in requests])
        self._found, self._asked = sum(map(bool, passages)), sum(map(_asks, requests))
        if not self._found:
            raise ValueError(
                f"method {self._method.name}: no passage of {self._prompting.retriever.options.corpus} was found for "
                f"any of {self._asked:,} prompts; give the corpus that these questions are about"
            )
        return passages

    def _fitted(self, request: Request, passages: list[Passage], name: str) -> Request:
        """The request with as many examples and passages as fit; examples go first, those that stand first."""
        if not _asks(request):
            return request
        examples = list(self._prompting.solved(request.prompt)) if FEW_SHOT in self._method.parts else []
        changed = self._with(request, examples, passages, name)
        self.cut += bool(examples or passages) and not self._fits(changed, name)
        while (examples or passages) and not self._fits(changed, name):
            if examples:
                examples = examples[1:]
            else:
                passages = passages[:-1]
            changed = self._with(request, examples, passages, name)
        return changed

    def _fits(self, request: Request, name: str) -> bool:
        return self._needed(request, f"{name}, method {self._method.name}") <= self._positions

    def _with(
        self, request: Request, examples: Sequence[Conversation], passages: Sequence[Passage], name: str
    ) -> Request:
        prompt = request.prompt
        if PROMPTED in self._method.parts:
            prompt = with_instruction(prompt, self._prompting.instruction)
            examples = [with_instruction(example, self._prompting.instruction) for example in examples]
        if passages:
            prompt = self._prompting.retriever.put_into(prompt, passages)
        try:
            return dataclasses.replace(request, prompt=with_examples(prompt, examples))
        except ValueError as error:
            raise ValueError(f"{name}, method {self._method.name}: {error}") from error


def _asks(request: Request) -> bool:
    """Whether it has a question: an empty one is there to be compared with, and stays empty."""
    return any(message.content.strip() for message in request.prompt if message.role == "user")


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
    asked = {questions_of(right_conversation(record)) for record in held_out}
    allowed = [record for record in train if questions_of(record.conversation) not in asked]
    if len(allowed) < options.examples:
        raise ValueError(
            f"method few_shot: {options.examples} solved examples wanted, but only {len(allowed)} of {len(train)} rows "
            "ask what no held-out row asks; give more rows or fewer examples"
        )
    for record in allowed:
        if record.conversation[-1].role != "assistant":
            raise ValueError(f"method few_shot: {record.id} is no solved example: it must end with an answer")
    conversations = [record.conversation for record in allowed]
    if options.choose == "nearest":
        nearest = Nearest(conversations)
        return lambda question: nearest(question, options.examples)
    if options.choose == "seed":
        same = choose_examples(conversations, options.examples, seed)
    else:
        same = conversations[: options.examples]
    return lambda question: same


def describe(method: Method, prompting: Prompting, options: EvaluationOptions) -> str:
    """A method in words, for tables."""
    said = {
        BASE: "the model as it is",
        TUNED: "the tuned weights" if method.mix == 1 else f"base + {method.mix:g} x (tuned - base)",
        PROMPTED: f"the instruction {prompting.instruction[:80]!r}",
        FEW_SHOT: f"{options.few_shot.examples} solved examples ({options.few_shot.choose})",
        RAG: f"{options.retrieval.passages} passages by {options.retrieval.method}",
    }
    return ", ".join(said[part] for part in method.parts)
