"""The end of a turn, and of a text: where it is not trained, the model does not learn to stop."""

from collections.abc import Sequence

import numpy as np

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, places
from sft_jax.data.conversations import Chat, Example, Segments
from sft_jax.data.reading import flags_of_source
from sft_jax.data.records import Record


def end_of_turn(data: CheckedData) -> list[Observation]:
    """Examples of conversations in which a trained answer is not followed by a trained end of turn.

    Read off tokens and weights, whatever wrote them: a stop token right after a trained token must be trained, and the
    last trained stretch of an example must hold one. What the run's masking leaves out on purpose is not asked for.
    """
    if data.end_of_turn == "none":
        return [Observation("No end of turn is trained, by --config.data.masking.end_of_turn=none", 0, 0.0)]
    if not data.trains_answers:
        return [Observation("No answer is trained, by --config.data.masking.train_on", 0, 0.0)]
    chats = {record.id for record in data.records if _asks_for_ends(record.example)}
    checked = np.array([row_id in chats for row_id in data.examples.ids], bool)
    if not checked.any():
        return []
    if not data.stop_ids:
        advice = "Give the tokens that end an answer to the data of the checks."
        return [Observation("The end of turns was not checked: no stop token is known", 0, 0.0, advice=advice)]
    examples = data.examples
    stops = np.isin(examples.tokens, data.stop_ids)
    trained = examples.weights > 0
    is_bad = _without_end(data, stops, trained)
    if data.too_long == "truncate_right":
        is_bad &= examples.lengths < data.sequence_length
    if data.end_of_turn != "last":
        is_bad |= _untrained_ends(data, stops, trained)
    bad = np.flatnonzero(checked & is_bad)
    good = int(checked.sum()) - len(bad)
    title = f"The end of turn is trained in {good / checked.sum():.0%} of {int(checked.sum()):,} kept conversations"
    return [
        Observation(
            title if not len(bad) else f"{title}: not in {len(bad):,}",
            len(bad),
            len(bad) / int(checked.sum()),
            places((examples.ids[number], _ending(data, int(number))) for number in bad),
            "The model will not learn to stop: train the end of turns (config.data.masking), and drop cut answers."
            if len(bad)
            else "",
            {"examples": int(checked.sum()), "trained": good},
        )
    ]


def text_ends(data: CheckedData) -> list[Observation]:
    """Whether rows of text and segments end with a trained stop token, which trains the model to stop after them.

    Nothing is wrong with either; counted are rows that do not, where `Reading.text_end` does not say that it is meant.
    Of a record that is split the last piece is looked at; one that is cut at its end cannot end.
    """
    texts = {record.id: record for record in data.records if isinstance(record.example, Segments)}
    last = {row_id: number for number, row_id in enumerate(data.examples.ids) if row_id in texts}
    numbers = [number for number in last.values() if not _is_cut(data, number)]
    if not numbers or not data.stop_ids:
        return []
    open_examples = [number for number in numbers if not _ends(data, number)]
    ended = len(numbers) - len(open_examples)
    of = {number: texts[data.examples.ids[number]] for number in open_examples}
    untrained = [number for number in open_examples if not _trains_last(data, number)]
    without = [number for number in open_examples if number not in untrained and of[number].example.ends is None]
    unasked = sorted({*without, *(number for number in untrained if of[number].example.ends is not False)})
    after = "the others" if ended else "them"
    learns = f"does not learn to stop after {after}" if open_examples else "learns to stop after them"
    return [
        Observation(
            f"{ended:,} of {len(numbers):,} rows of text end with an end token: the model {learns}",
            len(unasked),
            len(unasked) / len(numbers),
            places((data.examples.ids[number], _ending(data, number)) for number in open_examples),
            _advice([of[number] for number in without], [of[n] for n in unasked], len(unasked) - len(without)),
            {"rows": len(numbers), "ended": ended},
        )
    ]


def _advice(without: Sequence[Record], unasked: Sequence[Record], untrained: int) -> str:
    """Options that put an end token behind these rows, train it where the last segment is not, or say neither."""
    if not unasked:
        return ""
    ways = [f"{_options(without, 'eos')} puts the end token behind each of them"] if without else []
    if untrained:
        ways.append(f"a weight above 0 for the last segment of {untrained:,} trains their end")
    ways.append(f"{_options(unasked, 'none')} says that it is meant")
    return f"{', '.join(ways)}."


def _options(records: Sequence[Record], value: str) -> str:
    """The flags that give the option this value for the sources of these records."""
    flags = dict.fromkeys(flags_of_source(record.source) for record in records)
    return " and ".join(f"{flag}text_end={value}" for flag in flags)


def _is_cut(data: CheckedData, number: int) -> bool:
    """Whether the end of an example was cut off, or may have been."""
    return data.too_long == "truncate_right" and int(data.examples.lengths[number]) >= data.sequence_length


def _trains_last(data: CheckedData, number: int) -> bool:
    """Whether the last token of an example is trained, as one behind it would be."""
    return bool(data.examples.example(number)[1][-1] > 0)


def _ends(data: CheckedData, number: int) -> bool:
    """Whether an example ends with a trained stop token, perhaps with white space behind it."""
    tokens, weights = data.examples.example(number)
    stops = np.flatnonzero(np.isin(tokens, data.stop_ids))
    if not len(stops) or not weights[stops[-1]]:
        return False
    behind = tokens[stops[-1] + 1 :].tolist()
    return not behind or (data.tokenizer is not None and data.tokenizer.decode(behind).isspace())


def _asks_for_ends(example: Example) -> bool:
    """A conversation; not one with a turn of weight 0 of which ranges are trained, and so no end."""
    return isinstance(example, Chat) and not any(turn.weight == 0 and turn.ranges for turn in example.messages)


def _untrained_ends(data: CheckedData, stops: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Examples in which a stop token behind a trained token, which is none itself, is not trained."""
    at = np.flatnonzero(stops[1:] & ~trained[1:] & trained[:-1] & ~stops[:-1]) + 1
    at = at[~np.isin(at, data.examples.offsets)]  # the token before the first of an example is another's
    found = np.zeros(len(data.examples), bool)
    found[data.examples.offsets.searchsorted(at, side="right") - 1] = True
    return found


def _without_end(data: CheckedData, stops: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """Examples that have no trained stop token from the last stretch of trained tokens on."""
    offsets = data.examples.offsets
    numbers = np.arange(len(trained))
    is_first = np.zeros(len(trained), bool)
    is_first[offsets[:-1]] = True
    begins = trained & (is_first | ~np.concatenate([[False], trained[:-1]]))
    stretch = np.maximum.reduceat(np.where(begins, numbers, -1), offsets[:-1])
    last_stop = np.maximum.reduceat(np.where(stops & trained, numbers, -1), offsets[:-1])
    return (stretch >= 0) & (last_stop < stretch)


def _ending(data: CheckedData, number: int) -> str:
    tokens, weights = data.examples.example(number)
    last = int(np.flatnonzero(weights)[-1]) if weights.any() else 0
    after = tokens[max(0, last - 8) : last + 4].tolist()
    if data.tokenizer is None:
        return f"tokens around the end: {after}"
    return f"ends with: {data.tokenizer.decode(after)!r}"
