"""Pairs of answers: one row, of which each branch is token by token what its whole conversation is."""

import numpy as np
import pytest

from sft_jax.data.conversations import Chat, Message, Preference
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.tokenizing import tokenize_records

ASK, YES, NO = Message("user", "is it the"), Message("assistant", "then"), Message("assistant", "the")
BEFORE = (Message("user", "Hi"), Message("assistant", "Ho"))


@pytest.fixture
def rendered(chatml_tokenizer):
    def render(pair, max_tokens=0, **masking):
        (found,) = ConversationRenderer(chatml_tokenizer, masking=Masking(**masking)).render_many([pair], max_tokens)
        return found

    return render


def branch(pair, number):
    inside = (pair.branches == 0) | (pair.branches == number)
    return pair.tokens[inside].tolist(), pair.weights[inside].tolist()


def without_prompt(prompt, *answer):
    return Chat((*(message._replace(weight=0) for message in prompt), *answer))


@pytest.mark.parametrize("prompt", [(ASK,), (*BEFORE, ASK)])
def test_each_branch_is_its_whole_conversation(rendered, prompt):
    (pair,) = rendered(Preference(prompt, (YES,), (NO,)))
    for number, answer in ((1, YES), (2, NO)):
        (whole,) = rendered(without_prompt(prompt, answer))
        assert branch(pair, number) == (whole.tokens.tolist(), whole.weights.tolist())
    assert sorted(pair.branches.tolist()) == pair.branches.tolist()


def test_targets_are_the_answers_with_their_ends(rendered, chatml_tokenizer):
    (pair,) = rendered(Preference((*BEFORE, ASK), (YES,), (NO,)))
    trained = [chatml_tokenizer.decode(pair.tokens[(pair.branches == n) & (pair.weights > 0)]) for n in range(3)]
    assert trained == ["", "then<|im_end|>", "the<|im_end|>"]
    # What both answers begin with is no part of the trunk: it is a target of each.
    assert chatml_tokenizer.decode(pair.tokens[pair.branches == 0]).endswith("<|im_start|>assistant\n")


def test_tokens_that_merge_over_the_edge_are_those_of_the_whole(byte_tokenizer):
    """A template whose generation prompt ends with "t": "the" is one token of the conversation."""
    template = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content + '<e>t' }}"
        "{% else %}{{ message.content + '<e>' }}{% endif %}{% endfor %}"
    )
    renderer = ConversationRenderer(byte_tokenizer("<e>", eos="<e>", chat_template=template))
    question, answers = Message("user", "q"), tuple(Message("assistant", text) for text in ("hen it is", "an"))
    (pair,), one, other = renderer.render_many(
        [Preference((question,), answers[:1], answers[1:]), *(without_prompt((question,), each) for each in answers)]
    )
    for number, (whole,) in ((1, one), (2, other)):
        assert branch(pair, number) == (whole.tokens.tolist(), whole.weights.tolist())
    assert pair.branches.tolist()[:3] == [0, 0, 1]


def test_texts_offsets_and_roles_go_on(rendered):
    (pair,) = rendered(Preference((ASK,), (YES,), (NO,)))
    spoken = [pair.text[start:end] for start, end in pair.offsets[pair.weights > 0].tolist()]
    assert "".join(spoken) == "then<|im_end|>the<|im_end|>"
    assert {pair.role(int(token)) for token in np.flatnonzero(pair.weights)} == {"assistant"}
    assert pair.roles == ("user", "assistant", "assistant")
    assert {int(pair.messages[token]) for token in np.flatnonzero(pair.branches == 2)} == {2}


REFUSED = [
    (Preference((ASK,), (YES._replace(content=""),), (NO,)), {}, "an answer of a pair is empty: chosen: "),
    (Preference((ASK,), (YES,), (NO._replace(content=" \n"),)), {}, "an answer of a pair is empty: rejected: "),
    (Preference((ASK,), (YES,), (YES,)), {}, "the answers of a pair are equal"),
    (Preference((ASK,), (YES._replace(weight=0.5),), (NO,)), {}, "an answer of a pair has weights: in chosen"),
    (Preference((ASK,), (YES,), (ASK, NO)), {"train_on": "user"}, "nothing to train on: chosen: "),
]


@pytest.mark.parametrize(("pair", "masking", "message"), REFUSED)
def test_what_is_no_pair_is_left_out_with_a_reason(rendered, pair, masking, message):
    found = rendered(pair, **masking)
    assert isinstance(found, ExampleError)
    assert str(found).startswith(message)


@pytest.mark.parametrize("too_long", ["drop", "error", "truncate_left", "truncate_right", "split"])
def test_a_pair_that_is_too_long_goes_whole(rendered, too_long):
    pair = Preference((*BEFORE, ASK), (YES,), (NO,))
    (whole,) = rendered(pair)
    size, prompt = len(whole.tokens), int((whole.branches == 0).sum())
    (fitting,) = rendered(pair, size, too_long=too_long)
    assert len(fitting.tokens) == size
    long, full = rendered(pair, size - 1, too_long=too_long), rendered(pair, prompt + 1, too_long=too_long)
    assert str(long) == (
        f"longer than {size - 1} tokens: {size} tokens, {prompt} of the prompt; neither answer of a pair is cut"
    )
    assert str(full).startswith(f"a prompt that leaves no room for two answers in {prompt + 1} tokens: {prompt} of")
    assert long.tokens == full.tokens == size
    assert long.stops == full.stops == (too_long == "error")


def test_rows_are_counted(chatml_tokenizer):
    pairs = [
        Record("t:1", Preference((ASK,), (YES,), (NO,)), {}, 2.0),
        Record("t:2", Preference((ASK,), (YES,), (YES,)), {}),
        Record("t:3", Preference((ASK,), (YES,), (NO._replace(content="the" * 200),)), {}),
        Record("t:4", Chat((ASK, YES)), {}),
    ]
    examples, dropped = tokenize_records(pairs, ConversationRenderer(chatml_tokenizer), 100)
    assert list(examples.ids) == ["t:1", "t:4"]
    assert [row.id for row in dropped] == ["t:2", "t:3"]
    assert examples.branch_counts.tolist() == [2, 0]
    assert set(examples.example(0)[1].tolist()) == {0.0, 2.0}
    assert examples.branches_of(1) is None
