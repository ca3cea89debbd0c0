"""What is read off tokens: sizes, ends of turns, what the vocabulary makes of the text."""

import dataclasses

import numpy as np
import pytest

from sft_jax.audit.checks import CheckedData
from sft_jax.audit.checks.endings import end_of_turn, text_ends
from sft_jax.audit.checks.sizes import dropped_rows, histogram, packing_efficiency, sizes
from sft_jax.audit.checks.vocabulary import token_texts, vocabulary
from sft_jax.data.conversations import Chat, Message, Segment, Segments
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.tokenized import DroppedRow, TokenizedExamples
from sft_jax.data.tokenizing import tokenize_records
from tests.command_line import flags_in

END = 9


@pytest.mark.parametrize(
    ("tokens", "weights", "is_good"),
    [
        ([1, 5, 6, END], [0, 0, 1, 1], True),
        ([1, 5, 6, END], [0, 0, 1, 0], False),  # behind the answer, and not trained
        ([1, 5, 6, END, 7], [0, 0, 1, 1, 1], True),  # a newline behind it is trained too
        ([1, 5, 6, 7], [0, 0, 1, 1], False),  # none at all
        ([1, END, 5, 6, END], [0, 0, 0, 1, 1], True),  # the user's own is not trained
        ([1, 6, END, 2, 6, END], [0, 1, 0, 0, 1, 1], False),  # the first answer's is not
        ([1, 6, END, 2, 6, 7], [0, 1, 1, 0, 1, 1], False),  # the last answer is cut
        ([1, 6, 7, 6, END], [0, 1, 0, 1, 1], True),  # a part of the answer is left out
        ([1, 5, 6, END], [0, 0, 0.5, 0.5], True),
    ],
)
def test_end_of_turn(tokens, weights, is_good):
    good = ([END, 1, 6, END], [0, 0, 1, 1])  # begins with one: not the end of the example before
    examples = TokenizedExamples.from_examples([good, (tokens, weights), good], ["a:1", "a:2", "a:3"])
    records = [Record(row_id, Chat((Message("user", "q"), Message("assistant", "a"))), {}) for row_id in examples.ids]
    (seen,) = end_of_turn(CheckedData(records, examples, stop_ids=(END,)))
    assert seen.count == (0 if is_good else 1)
    assert [place.row_id for place in seen.examples] == ([] if is_good else ["a:2"])
    assert seen.numbers == {"examples": 3, "trained": 3 if is_good else 2}


@pytest.mark.parametrize(
    ("masking", "example", "bad"),
    [
        ({"end_of_turn": "last"}, ([1, 6, END, 2, 6, END], [0, 1, 0, 0, 1, 1]), 0),  # the first was not asked for
        ({"end_of_turn": "last"}, ([1, 6, END, 2, 6, END], [0, 1, 0, 0, 1, 0]), 1),
        ({"end_of_turn": "none"}, ([1, 6, END], [0, 1, 0]), 0),
        (
            {"too_long": "truncate_right", "sequence_length": 3},
            ([1, 6, 7], [0, 1, 1]),
            0,
        ),  # full, so it may have been cut
        ({"too_long": "truncate_right", "sequence_length": 4}, ([1, 6, 7], [0, 1, 1]), 1),
        ({"trains_answers": False}, ([1, 6, 7], [0, 1, 1]), 0),  # what users say may end without a token
        ({}, ([1, 6, END, END], [0, 1, 1, 0]), 0),  # the turn has ended, what the template adds does not matter
    ],
)
def test_end_of_turn_follows_the_masking(masking, example, bad):
    records = [Record("a:1", Chat((Message("user", "q"), Message("assistant", "a"))), {})]
    (seen,) = end_of_turn(
        CheckedData(records, TokenizedExamples.from_examples([example], ["a:1"]), stop_ids=(END,), **masking)
    )
    assert seen.count == bad


@pytest.mark.parametrize(("weight", "counted"), [(0.0, 0), (None, 1)])
def test_a_turn_of_which_ranges_alone_are_trained_has_no_end(weight, counted):
    answer = Message("assistant", "abc", weight=weight, ranges=((0, 1, 1.0),))
    records = [Record("a:1", Chat((Message("user", "q"), answer)), {})]
    checked = CheckedData(
        records, TokenizedExamples.from_examples([([1, 6, END], [0, 1, 0])], ["a:1"]), stop_ids=(END,)
    )
    assert sum(seen.count for seen in end_of_turn(checked)) == counted


def test_only_conversations_must_end_and_not_knowing_is_said():
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1])], ["a:1"])
    text = [Record("a:1", Segments((Segment("t", 1.0),)), {})]
    assert end_of_turn(CheckedData(text, examples, stop_ids=(END,))) == []
    chat = [Record("a:1", Chat((Message("user", "q"), Message("assistant", "a"))), {})]
    assert "not checked" in end_of_turn(CheckedData(chat, examples))[0].title


ALL = "2 of 2 rows of text end with an end token: the model learns to stop after them"
NONE = "0 of 2 rows of text end with an end token: the model does not learn to stop after them"
SOME = "1 of 2 rows of text end with an end token: the model does not learn to stop after the others"
SPELT = ["a<|im_end|>", "b<|im_end|>\n"]
TEXTS = [  # (texts, whether the reader asked for an end token, title, rows that are counted)
    (["aa", "bb"], None, NONE, 2),
    (["aa", "bb"], False, NONE, 0),
    (["aa", "bb"], True, ALL, 0),
    (SPELT, None, ALL, 0),
    (SPELT, True, ALL, 0),
    (["a<|im_end|>", "bb"], None, SOME, 1),
    (["a<|im_end|>", "bb"], False, SOME, 0),
]


@pytest.mark.parametrize(("texts", "ends", "title", "count"), TEXTS)
def test_whether_texts_end(chatml_tokenizer, texts, ends, title, count):
    """It is said which it is; the option is named only where it was not given."""
    made = [Record(f"a:{n}", Segments((Segment(text, 1.0),), ends), {}) for n, text in enumerate(texts)]
    renderer = ConversationRenderer(chatml_tokenizer)
    examples, _ = tokenize_records(made, renderer, 100)
    (seen,) = text_ends(CheckedData(made, examples, stop_ids=renderer.stop_ids, tokenizer=chatml_tokenizer))
    assert (seen.title, seen.count) == (title, count)
    assert ("--config.data.reading.text_end=eos" in seen.advice) == bool(count)
    end = chatml_tokenizer.eos_token_id
    assert [int((examples.example(n)[0] == end).sum()) for n in (0, 1)] == [
        int(bool(ends) or "<|" in text) for text in texts
    ]
    if ends and "<|" not in texts[0]:
        assert all(examples.example(n)[0][-1] == end and examples.example(n)[1][-1] == 1 for n in (0, 1))


TOO_LONG = [  # (masking.too_long, texts, rows that are looked at, those that end, those that are counted)
    ("truncate_right", ["abcdef", "ab"], 1, 0, 1),
    ("truncate_right", ["abcdef<|im_end|>", "a<|im_end|>"], 1, 1, 0),
    ("split", ["abcdefgh<|im_end|>", "abcdef", "a<|im_end|>"], 3, 2, 1),
]


@pytest.mark.parametrize(("too_long", "texts", "looked_at", "ended", "count"), TOO_LONG)
def test_texts_end_in_the_last_piece_and_not_where_they_are_cut(
    chatml_tokenizer, too_long, texts, looked_at, ended, count
):
    made = [Record(f"a:{n}", Segments((Segment(text, 1.0),)), {}) for n, text in enumerate(texts)]
    renderer = ConversationRenderer(chatml_tokenizer, masking=Masking(too_long=too_long))
    examples, _ = tokenize_records(made, renderer, 4)
    checked = CheckedData(made, examples, stop_ids=renderer.stop_ids, tokenizer=chatml_tokenizer, sequence_length=4)
    (seen,) = text_ends(dataclasses.replace(checked, too_long=too_long))
    assert (seen.numbers, seen.count) == ({"rows": looked_at, "ended": ended}, count)


@pytest.mark.parametrize(
    ("ends", "count", "advised"),
    [
        (None, 1, ["--config.data.reading.text_end=none"]),
        (True, 1, ["--config.data.reading.text_end=none"]),
        (False, 0, []),
    ],
)
def test_an_end_that_is_not_trained_is_none(chatml_tokenizer, ends, count, advised):
    """No end token is advised where one would not be trained either."""
    made = [Record("a:1", Segments((Segment("abc", 1.0), Segment("<|im_end|>", 0.0)), ends), {})]
    renderer = ConversationRenderer(chatml_tokenizer)
    examples, _ = tokenize_records(made, renderer, 100)
    (seen,) = text_ends(CheckedData(made, examples, stop_ids=renderer.stop_ids, tokenizer=chatml_tokenizer))
    assert (seen.numbers, seen.count) == ({"rows": 1, "ended": 0}, count)
    assert flags_in(seen.advice) == advised
    assert ("a weight above 0 for the last segment of 1 trains their end" in seen.advice) == bool(count)


def test_the_end_of_texts_is_advised_source_by_source(chatml_tokenizer):
    made = [Record(f"{s}/a:1", Segments((Segment("abc", 1.0),)), {}, source=s) for s in ("prose", "code")]
    renderer = ConversationRenderer(chatml_tokenizer)
    examples, _ = tokenize_records(made, renderer, 100)
    (seen,) = text_ends(CheckedData(made, examples, stop_ids=renderer.stop_ids, tokenizer=chatml_tokenizer))
    assert flags_in(seen.advice) == [
        f"--config.data.mixture.{name}.reading.text_end={end}" for end in ("eos", "none") for name in ("prose", "code")
    ]


def test_what_the_renderer_makes_is_good(chatml_tokenizer, records):
    renderer = ConversationRenderer(chatml_tokenizer)
    made = records(("Hi", "Ho"), ("the", "thing"))
    examples, _ = tokenize_records(made, renderer, 100)
    checked = CheckedData(made, examples, stop_ids=renderer.stop_ids, tokenizer=chatml_tokenizer)
    assert end_of_turn(checked)[0].count == 0
    weights = np.where(np.isin(examples.tokens, renderer.stop_ids), 0, examples.weights)
    (seen,) = end_of_turn(dataclasses.replace(checked, examples=dataclasses.replace(examples, weights=weights)))
    assert seen.count == 2
    assert seen.examples[0].text.startswith("ends with: ")
    assert "Ho<|im_end|>" in seen.examples[0].text


def test_sizes():
    examples = TokenizedExamples.from_examples([(range(n), [0] * (n - 1) + [1]) for n in (2, 4, 6, 8)], list("abcd"))
    (seen,) = sizes(CheckedData([], examples, sequence_length=10))
    assert seen.title.startswith(
        "4 examples, 20 tokens, 20.0% of them trained; 5 tokens in the middle one, 8 in the longest"
    )
    assert seen.examples[:2] == (("d", "8 tokens, 1 trained"), ("c", "6 tokens, 1 trained"))
    assert seen.numbers["length_quantiles"] == {
        "0%": 2, "5%": 4, "25%": 4, "50%": 6, "75%": 8, "95%": 8, "99%": 8, "100%": 8
    }  # fmt: skip
    assert seen.numbers["packing"] == {10: {"efficiency": 1.0, "unpacked": 0.5, "too_long": 0}}


@pytest.mark.parametrize(
    ("lengths", "size", "expected"),
    [
        ([2, 4, 6, 8], 10, {"efficiency": 1.0, "unpacked": 0.5, "too_long": 0}),
        ([2, 4, 6, 8], 6, {"efficiency": 1.0, "unpacked": 4 / 6, "too_long": 1}),
        ([8], 4, {"efficiency": 0.0, "unpacked": 0.0, "too_long": 1}),
        ([3] * 10_000, 6, {"efficiency": 1.0, "unpacked": 0.5, "too_long": 0}),
    ],
)
def test_packing_efficiency(lengths, size, expected):
    assert packing_efficiency(np.array(lengths), size) == pytest.approx(expected)


@pytest.mark.parametrize("values", [[3], [1, 1, 1], [5, 6, 9], [1, 2, 3000], list(range(1, 500))])
def test_histogram_counts_every_example(values):
    found = histogram(np.array(values))
    assert sum(found["examples"]) == len(values)
    assert found["edges"][0] == min(values)
    assert found["edges"][-1] > max(values)
    assert len(found["edges"]) == len(found["examples"]) + 1


def test_dropped_rows_by_reason(checked):
    dropped = [DroppedRow("a:7", "too long", "9 tokens"), DroppedRow("a:8", "too long"), DroppedRow("a:9", "odd")]
    whole, many, one = dropped_rows(checked(("q", "a"), ("r", "a"), dropped=dropped))
    assert (many.title, many.examples[0]) == ("2 rows are dropped: too long", ("a:7", "9 tokens"))
    assert (whole.title, whole.share) == ("3 of 5 rows are dropped, for 2 reasons", 3 / 5)
    assert (many.share, one.share) == (2 / 5, 1 / 5)  # of all rows that were read, also those that are no records
    (read,) = dropped_rows(checked(("q", "a"), ("r", "a"), dropped=[DroppedRow("a:1", "too long")]))
    assert read.share == 1 / 2
    assert one.title == "1 row is dropped: odd"


def test_token_texts(chatml_tokenizer):
    texts = token_texts(chatml_tokenizer)
    ids = chatml_tokenizer("the é<|im_end|>", add_special_tokens=False)["input_ids"]
    assert texts.sizes[ids].tolist() == [3, 1, 1, 1, 0]  # "the", " ", the two bytes of é, a special token
    assert texts.characters[ids].tolist() == [3, 1, 1, 0, 0]


def test_examples_the_vocabulary_handles_badly(chatml_tokenizer, records):
    """ "the" is one token of three bytes, everything else a token a byte."""
    made = records(*[("the" * 40, "the" * 10)] * 5, ("ж" * 40, "x"), ("y", "z"))
    examples, _ = tokenize_records(made, ConversationRenderer(chatml_tokenizer), 500)
    middle, bad = vocabulary(CheckedData(made, examples, tokenizer=chatml_tokenizer))
    assert middle.numbers["median"] < 0.5
    assert [place.row_id for place in bad.examples] == ["a:6"]


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("ж" * 40, True),  # two tokens a character
        ("QTY 1 @ 4.99 CHANGE 0.01 SUBTTL 17 CASH 20.00", False),  # a token a byte, and a character
    ],
)
def test_a_script_is_foreign_to_the_vocabulary_where_it_spells_characters_by_bytes(
    chatml_tokenizer, records, text, spelt
):
    made = records((text, text))
    examples, _ = tokenize_records(made, ConversationRenderer(chatml_tokenizer), 500)
    titles = [seen.title for seen in vocabulary(CheckedData(made, examples, tokenizer=chatml_tokenizer))]
    assert any("spells characters by their bytes" in title for title in titles) == spelt


def examples_of(examples, ids):
    chosen = [examples.ids.index(row_id) for row_id in ids]
    return TokenizedExamples.from_examples([examples.example(index) for index in chosen], ids)


def test_unknown_tokens(byte_tokenizer, records):
    tokenizer = byte_tokenizer("<unk>", "<eos>", eos="<eos>")
    tokenizer.unk_token = "<unk>"
    unknown = tokenizer.unk_token_id
    examples = TokenizedExamples.from_examples([([1, 2], [0, 1]), ([1, unknown, unknown], [0, 1, 1])], ["a:1", "a:2"])
    (seen,) = vocabulary(CheckedData([], examples, tokenizer=tokenizer))
    assert seen.examples[0].row_id == "a:2"
    assert seen.examples[0].text.startswith("2 unknown: ")
