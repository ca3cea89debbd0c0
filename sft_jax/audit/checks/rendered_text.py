"""Finds conversations that are already rendered: in a text, their prompts would be trained too; in a message, the chat
template would be applied twice.
"""

from collections.abc import Iterable

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, excerpt_around, observed
from sft_jax.data.conversations import Chat, Preference

# What stands before a user's turn, and before the answer to it, in common templates.
HEADERS = (
    ("<|im_start|>user", "<|im_start|>assistant"),  # ChatML
    ("<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>assistant<|end_header_id|>"),  # Llama 3
    ("<|header_start|>user<|header_end|>", "<|header_start|>assistant<|header_end|>"),  # Llama 4
    ("[INST]", "[/INST]"),  # Llama 2, Mistral
    ("<start_of_turn>user", "<start_of_turn>model"),  # Gemma
    ("<|user|>", "<|assistant|>"),  # Phi 3, Zephyr, OLMo
    ("<|start|>user<|message|>", "<|start|>assistant"),  # gpt-oss
    ("<|start_of_role|>user<|end_of_role|>", "<|start_of_role|>assistant<|end_of_role|>"),  # Granite
    ("<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),  # Command R
    ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"),  # DeepSeek
    ("### Instruction:", "### Response:"),  # Alpaca
    ("### Human:", "### Assistant:"),  # Guanaco
    ("### User:", "### Assistant:"),
    ("USER: ", "ASSISTANT: "),  # Vicuna
    ("\nHuman: ", "\nAssistant: "),
)

Hit = tuple[str, str, int]  # id of the row, text, where the first header stands


def rendered_text(data: CheckedData) -> list[Observation]:
    """Rows with a user's turn and an answer to it, with their headers, in what is trained of a text or in a message.

    Headers are those of the model's own template and those of `HEADERS`.
    """
    headers = [pair for pair in dict.fromkeys((data.turn_headers, *HEADERS)) if all(pair)]
    texts, chats = [], []
    for record, view in zip(data.records, data.views, strict=True):
        is_chat = isinstance(record.example, Chat | Preference)
        said = _contents(record.example) if is_chat else ["".join(view.answers)]
        hits = ((record.id, text, at) for text in said if (at := _first_header(text, headers)) >= 0)
        if hit := next(hits, None):
            (chats if is_chat else texts).append(hit)
    return [
        *_rows(
            data,
            texts,
            "of text holds a whole conversation: what users say is trained like the answers",
            "of text hold whole conversations: what users say is trained like the answers",
            'Give them as conversations, {"messages": [{"role", "content"}, ...]}, of which answers are trained, or as '
            "segments that say what is trained.",
        ),
        *_rows(
            data,
            chats,
            "has a message that holds a whole conversation, headers included",
            "have a message that holds a whole conversation, headers included",
            "The chat template is put around it once more, and its headers are text there: make each turn a message.",
        ),
    ]


def _contents(example: Chat | Preference) -> Iterable[str]:
    turns = example.messages if isinstance(example, Chat) else example.prompt + example.chosen
    return (turn.content for turn in turns)


def _first_header(text: str, headers: list[tuple[str, str]]) -> int:
    """Where the first user's turn begins that an answer follows; -1 for nowhere."""
    found = [at for user, answer in headers if (at := text.find(user)) >= 0 and text.find(answer, at + len(user)) >= 0]
    return min(found, default=-1)


def _rows(data: CheckedData, hits: list[Hit], one: str, many: str, advice: str) -> list[Observation]:
    title = counted(len(hits), f"row {one}", f"rows {many}")
    show = lambda hit: (hit[0], excerpt_around(hit[1], hit[2]))
    return observed(title, hits, len(data.views), show, advice)
