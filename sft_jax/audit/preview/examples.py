"""Examples of the page: tokens with weights and speakers, as plain values that page.js draws.

An example is {"id", "kind", "group", "source", "weight", "note", "pieces", "ids", "weights", "messages", "roles",
"tokens", "trained"}: `pieces` are the texts of the tokens, `weights` and `messages` run-length encoded as [count,
value]. Tokens that share characters (bytes of one emoji) are one piece with several ids. A row that was dropped has the
same form, with its texts as pieces and no ids.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from sft_jax.data.conversations import Chat, Preference, Segments
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, ExampleError, RenderedExample
from sft_jax.data.tokenized import DroppedRow
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

KINDS = ("trained", "dropped", "held out")
_RECORDS_PER_CALL = 256
_MAX_PIECES = 20_000  # tokens of one example that are shown


def rendered_examples(
    records: Sequence[Record],
    renderer: ConversationRenderer,
    kind: str,
    notes: Mapping[str, str],
    sequence_length: int,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """The examples of records that are trained on, or measured with.

    Args:
        records: those to show.
        renderer: as in training.
        kind: one of KINDS.
        notes: by id of the record, what else is to be said of it.
        sequence_length: the most tokens that an example may have.
        progress: called with (records done, records in all).
    """
    for start in range(0, len(records), _RECORDS_PER_CALL):
        chunk = records[start : start + _RECORDS_PER_CALL]
        for record, found in zip(
            chunk, renderer.render_many([record.example for record in chunk], sequence_length), strict=True
        ):
            if isinstance(found, ExampleError):
                yield dropped_row(record, DroppedRow(record.id, found.reason, found.detail))
                continue
            for example in found:
                yield _page_example(record, example, kind, notes.get(record.id, ""), renderer.tokenizer)
        if progress is not None:
            progress(start + len(chunk), len(records))


def dropped_row(record: Record, dropped: DroppedRow) -> dict[str, Any]:
    """A record that was left out, for the page: its text and why."""
    texts = list(_texts(record))
    reason = f"{dropped.reason} ({dropped.detail})" if dropped.detail else dropped.reason
    return _about(record, "dropped", reason) | {
        "pieces": [text for _, text in texts],
        "ids": [],
        "weights": [[len(texts), 0]],
        "messages": [[1, number] for number in range(len(texts))],
        "roles": [role for role, _ in texts],
        "tokens": 0,
        "trained": 0,
    }


def _about(record: Record, kind: str, note: str) -> dict[str, Any]:
    return {
        "id": record.id,
        "kind": kind,
        "group": record.group,
        "source": record.source,
        "weight": record.weight,
        "note": note,
    }


def _page_example(
    record: Record, example: RenderedExample, kind: str, note: str, tokenizer: PreTrainedTokenizerBase
) -> dict[str, Any]:
    tokens, weights = example.tokens[:_MAX_PIECES].tolist(), example.weights[:_MAX_PIECES].tolist()
    pieces = list(_pieces(example, tokenizer, tokens))
    firsts = [first for first, _, _ in pieces]
    cut = f"only the first {_MAX_PIECES:,} tokens are shown" if len(example.tokens) > _MAX_PIECES else ""
    return _about(record, kind, "; ".join(part for part in (note, example.changed, cut) if part)) | {
        "pieces": [text for _, _, text in pieces],
        "ids": [tokens[a] if b == a + 1 else tokens[a:b] for a, b, _ in pieces],
        "weights": _runs([round(weights[first] * record.weight, 4) for first in firsts]),
        "messages": _runs([int(example.messages[first]) for first in firsts]),
        "roles": list(example.roles),
        "tokens": len(example.tokens),
        "trained": int((example.weights > 0).sum()),
    }


def _pieces(
    example: RenderedExample, tokenizer: PreTrainedTokenizerBase, tokens: list[int]
) -> Iterator[tuple[int, int, str]]:
    """(first token, last token + 1, text) in order; characters that no token has go with the token after them."""
    if not example.text:  # came as ids
        yield from ((number, number + 1, tokenizer.decode([token])) for number, token in enumerate(tokens))
        return
    at = first = 0
    for number in range(1, len(tokens) + 1):
        end = int(example.offsets[number - 1][1])
        if number < len(tokens) and int(example.offsets[number][0]) < end:
            continue  # the next token has some of these characters too
        yield first, number, example.text[at : max(end, at)]
        at, first = max(end, at), number


def _runs(values: list[Any]) -> list[list[Any]]:
    """[1, 1, 0] -> [[2, 1], [1, 0]]"""
    return [[len(list(group)), value] for value, group in itertools.groupby(values)]


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    """(speaker, text) of whatever the record is."""
    example = record.example
    if isinstance(example, Chat):
        yield from ((message.role, f"{message.content}\n") for message in example.messages)
    elif isinstance(example, Preference):
        for name in ("prompt", "chosen", "rejected"):
            yield from ((name, f"{message.content}\n") for message in getattr(example, name))
    elif isinstance(example, Segments):
        yield from (("segment", part.text) for part in example.parts)
    else:
        yield "tokens", json.dumps(record.fields, ensure_ascii=False, default=str)
