"""Options of `config.data.reading` that could read rows whose columns fit no format, the most likely first.

Found by the names of columns alone: records.py tries a suggestion on the rows before it is made.
"""

import difflib
import re
from collections.abc import Container, Iterator, Sequence
from typing import NamedTuple

_QUESTIONS = ("prompt", "question", "query", "instruction", "input", "request", "problem", "user", "human", "source")
_CONTEXTS = ("input", "context", "passage", "document", "background")
_ANSWERS = ("completion", "answer", "response", "output", "reply", "solution", "target", "assistant", "gpt", "summary")
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns")
_CHOSEN = ("chosen", "preferred", "accepted")
_REJECTED = ("rejected", "dispreferred", "refused")
_UNWANTED = {"incorrect", "wrong", "bad", "negative", *_REJECTED}  # parts of names of answers that are not right
_TEXTS = ("text", "content", "context", "document", "passage", "article", "body", "story", "code", "page")
_TEXTS += ("sentence", "utterance", "review", "comment", "tweet")
_LABELS = ("label", "class", "category", "intent", "sentiment", "emotion", "topic", "tag")

# Columns that say something about a row, and are no part of what is asked or answered.
_DESCRIBING = {"id", "idx", "index", "uuid", "url", "source", "title", "date", "timestamp", "meta", "metadata"}
_DESCRIBING |= {"language", "license", "split", "dataset", "category", "topic", "type", "difficulty", "author"}
_DESCRIBING |= {"unnamed"}  # the index of pandas: "Unnamed: 0"
SYSTEM = {"system"}  # read in every form of a conversation
_NOT_IN_TEMPLATES = set("{}|")


class Nearest(NamedTuple):
    """One way to read the rows.

    Attributes:
        format: what they are then.
        options: of `Reading`.
        read: the columns that take part.
    """

    format: str
    options: dict[str, tuple[str, ...] | str]
    read: frozenset[str]

    def unread(self, columns: Sequence[str]) -> list[str]:
        """The columns that do not."""
        return [column for column in columns if column not in self.read]


def nearest(columns: Sequence[str], prompts_only: bool = False) -> Iterator[Nearest]:
    """Ways to read rows with these columns, in the order in which a person would try them.

    Args:
        columns: in the order of the file.
        prompts_only: an answer may be missing.
    """
    found = [*_renamed(columns)]
    found += _by_roles("prompt_completion", {"prompt": _QUESTIONS}, columns) if prompts_only else ()
    found += [*_labelled(columns), *_texts(columns)]
    telling = {column for column in columns if not describes(column)}
    yield from sorted(found, key=lambda one: len(telling.difference(one.read)))


def describes(column: str) -> bool:
    """Whether a column merely describes its row."""
    return _plain(column) in _DESCRIBING


def _renamed(columns: Sequence[str]) -> Iterator[Nearest]:
    """Formats of named columns under other names for them."""
    for name, old in (("alpaca", _CONTEXTS), ("alpaca", ())):
        roles = {"instruction": _QUESTIONS if old else ("instruction",), "input": old, "output": _ANSWERS}
        yield from _by_roles(name, {role: names for role, names in roles.items() if names}, columns)
    yield from _by_roles("preference", {"prompt": _QUESTIONS, "chosen": _CHOSEN, "rejected": _REJECTED}, columns)
    yield from _by_roles("prompt_completion", {"prompt": _QUESTIONS, "completion": _ANSWERS}, columns)
    yield from _by_roles("messages", {"messages": _CONVERSATIONS}, columns)
    yield from _by_roles("sharegpt", {"conversations": _CONVERSATIONS}, columns)


def _by_roles(name: str, roles: dict[str, Sequence[str]], columns: Sequence[str]) -> Iterator[Nearest]:
    chosen: dict[str, str] = {}
    for role, names in roles.items():
        left = [column for column in columns if column not in chosen.values()]
        column = role if role in left else _like(names, left)
        if column is None:
            return
        chosen[role] = column
    renames = tuple(f"{role}={column}" for role, column in chosen.items() if role != column)
    options = {"columns": renames} if renames else {"format": name}
    yield Nearest(name, options, frozenset(chosen.values()) | SYSTEM)


def _labelled(columns: Sequence[str]) -> Iterator[Nearest]:
    """A text, and what it is."""
    text = _like(_TEXTS + _QUESTIONS, columns)
    label = _like(_LABELS + _ANSWERS, [column for column in columns if column != text])
    if text is not None and label is not None:
        yield from _asked((text,), label)


def _texts(columns: Sequence[str]) -> Iterator[Nearest]:
    """Every token of one column."""
    column = _like(_TEXTS, columns)
    if column is not None and _like(_LABELS + _ANSWERS, columns) is None:
        options = {"format": "text"} if column == "text" else {"columns": (f"text={column}",)}
        yield Nearest("text", options, frozenset((column,)))


def as_table(columns: Sequence[str]) -> Iterator[Nearest]:
    """A question of all columns but those of answers, and one that answers it, whose name says so.

    Nothing without such a name, but where rows are arrays: their columns are numbers, and the answer comes last.
    Answers that are not wanted, and other answers than the one, take no part.
    """
    if {*_CHOSEN} & {*columns} and {*_REJECTED} & {*columns}:
        return  # two answers, of which neither is asked
    telling = [column for column in columns if not describes(column) and not _names(_words(column), _UNWANTED)]
    answers = _ANSWERS + _LABELS
    ends = [column for column in telling if _names(_words(column)[-1:], answers)]  # best_answer before answer_text
    named = ends or [column for column in telling if _names(_words(column), answers)]
    if all(column.isdigit() for column in telling):
        named = telling[-1:]
    answer = _like(answers, columns) or next(iter(named), None)
    others = {column for column in telling if _names(_words(column)[-1:], _ANSWERS)} - {*_QUESTIONS}
    asked = tuple(column for column in telling if column != answer and column not in others)
    if asked and answer is not None:
        yield from _asked(asked, answer)


def _asked(asked: Sequence[str], answer: str) -> Iterator[Nearest]:
    if _NOT_IN_TEMPLATES.isdisjoint("".join((*asked, answer))):
        question = " ".join(f"{{{column}}}" for column in asked)
        options = {"prompt_template": question, "answer_template": f"{{{answer}}}"}
        yield Nearest("table", options, frozenset((*asked, answer)))


def _like(names: Sequence[str], columns: Sequence[str]) -> str | None:
    """The column that bears one of these names, earlier ones first; else one whose name is nearly one of them."""
    plain = {_plain(column): column for column in reversed(columns)}
    plain |= {key.removesuffix("s"): column for key, column in plain.items() if key.removesuffix("s") not in plain}
    exact = next((plain[name] for name in names if name in plain), None)
    if exact is not None:
        return exact
    similar = (difflib.get_close_matches(name, plain, n=1, cutoff=0.85) for name in names)
    return next((plain[found[0]] for found in similar if found), None)


def _words(column: str) -> list[str]:
    """The words of a name: best_answer, bestAnswer and "Best Answer" have two."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", column)]


def _names(words: Sequence[str], names: Container[str]) -> bool:
    """Whether one of the words is one of the names, or several of it."""
    return any(word in names or word.removesuffix("s") in names for word in words)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
