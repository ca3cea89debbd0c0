"""Empty thoughts: found by the template's own words, and left out of the loss where the config says so."""

import pytest

from sft_jax.audit.report import plain_highlight
from sft_jax.data.conversations import Chat, Message
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.masking import Masking
from sft_jax.data.rendering.thinking import USUAL, empty_thinking, thinking_words
from tests.data.rendering.chat_formats import FORMATS

ASK, ANSWER, REASONED = Message("user", "Q"), Message("assistant", "A"), Message("assistant", "A", reasoning="R")
LEFT_OUT = Masking(empty_thinking="leave_out", history="expand")
OTHER_WORDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{{ '[THINK]' + (m.reasoning_content or '') + '[/THINK] ' }}{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + opened }}{% endif %}"
)


@pytest.fixture
def renderer():
    def make(template=None, masking=LEFT_OUT, name="Qwen 3"):
        return ConversationRenderer(FORMATS[name].tokenizer(), template, masking)

    return make


@pytest.mark.parametrize(
    ("name", "template", "words"),
    [
        ("Qwen 3", None, USUAL),
        ("ChatML", None, USUAL),
        ("ChatML", OTHER_WORDS.replace("opened", "''"), ("[THINK]", "[/THINK]")),
        ("ChatML", OTHER_WORDS.replace("opened", "'[THINK]'"), ("", "[/THINK]")),
    ],
)
def test_words_are_those_of_the_template(renderer, name, template, words):
    assert thinking_words(renderer(template, name=name)._maker(()).answer_format) == words


@pytest.mark.parametrize(
    ("text", "start", "behind"),
    [
        ("p<think>\n\n</think>\n\nA", 1, 20),
        ("p<think></think>A", 1, 16),
        ("p\n<think> </think>A", 1, 18),
        ("p<think>\n\n</think>\n\nA", 8, 20),  # the prompt has opened it
        ("p<think>\nR\n</think>\n\nA", 1, None),
        ("pA<think>\n\n</think>", 1, None),  # a content that is about such words
        ("p</think>A", 1, None),
    ],
)
def test_where_a_thought_is_empty(text, start, behind):
    found = empty_thinking(text, (start, len(text)), USUAL)
    assert found == (None if behind is None else (start, behind))


@pytest.mark.parametrize(
    ("messages", "trained"),
    [
        ((ASK, ANSWER), "A<|im_end|>"),
        ((ASK, REASONED), "<think>\nR\n</think>\n\nA<|im_end|>"),
        ((ASK, Message("assistant", "<think>\n\n</think>\n\nA")), "A<|im_end|>"),
    ],
)
def test_left_out_of_the_loss_and_still_read(renderer, messages, trained):
    ((example,),) = renderer().render_many([Chat(messages)])
    ((plain,),) = renderer(masking=Masking()).render_many([Chat(messages)])
    assert example.tokens.tolist() == plain.tokens.tolist()
    assert plain_highlight(example).rstrip("\n").endswith(f"⟦{trained}⟧")
    assert "</think>" in plain_highlight(example)


def test_by_default_it_is_trained(renderer):
    ((example,),) = renderer(masking=Masking()).render_many([Chat((ASK, ANSWER))])
    assert plain_highlight(example).rstrip("\n").endswith("⟦<think>\n\n</think>\n\nA<|im_end|>⟧")


def test_where_the_template_marks_answers_and_in_contents_of_others(renderer):
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}"
        "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    said = Message("assistant", "<think>\n</think>A")
    for template in (marked, None):
        ((example,),) = renderer(template, name="ChatML").render_many([Chat((ASK, said))])
        assert plain_highlight(example).rstrip("\n").endswith("<think>\n</think>⟦A<|im_end|>⟧")
