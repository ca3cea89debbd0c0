"""The tokenizer that a GGUF file carries in its metadata: vocabulary, merges, special tokens, chat template.

Built with the `tokenizers` library, so that no torch is needed. Byte-level BPE is made here, SentencePiece's kind and
that of Gemma 4 in `gguf_sentencepiece`. How byte-level BPE splits text before the merges apply is not stored in the
file but named (`tokenizer.ggml.pre`); the table below gives, for the names that are supported, what the models' own
tokenizer.json does. Other names are refused, since a guess would give almost the same ids, and the difference would not
be noticed.
"""

import dataclasses

from etils import epath
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sft_jax.sources import gguf_sentencepiece
from sft_jax.sources.gguf_file import GgufFile, read_gguf
from sft_jax.sources.tensors import SourceError
from sft_jax.sources.transformers_types import PreTrainedTokenizerFast

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # token types: of text, special, and added but not special

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN35_SPLIT = _QWEN2_SPLIT.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(
    r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]"
)


def _cased_split(endings: str, numbers: str) -> str:
    """A pattern that cuts words before a capital behind a small letter; `endings` go with the word before them."""
    capital, small = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{capital}*{small}+{endings}|{before}{capital}+{small}*{endings}"
    return rf"{words}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


_TEKKEN_SPLIT = _cased_split("", r"\p{N}")
# Of DeepSeek V3: numbers first, then Chinese and kana, then the rest.
_DEEPSEEK3_SPLITS = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_GPT4O_SPLIT = _cased_split(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?", r"\p{N}{1,3}")
_ADVICE = "Use the model's Hugging Face directory (with tokenizer.json) instead."


@dataclasses.dataclass(frozen=True)
class _Splitting:
    """How text is split; whether it is composed (NFC) first; whether a piece that is itself a token is taken whole;
    whether BOS is added by default."""

    before: tuple[pre_tokenizers.PreTokenizer, ...]
    gpt2_regex: bool
    composed: bool = False
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = _Splitting(before=(), gpt2_regex=True)
_DIGITS = _Splitting(before=(pre_tokenizers.Digits(individual_digits=True),), gpt2_regex=True)


def _split(*patterns: str, **fields: bool) -> _Splitting:
    splits = (pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns)
    return _Splitting(tuple(splits), gpt2_regex=False, **fields)


_LLAMA3 = _split(_LLAMA3_SPLIT, ignore_merges=True, add_bos=True)
SPLITTINGS = {
    "gpt-2": _GPT2,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _split(_QWEN2_SPLIT, composed=True),
    "deepseek-r1-qwen": _split(_QWEN2_SPLIT, composed=True),
    "deepseek-v3": _split(*_DEEPSEEK3_SPLITS),
    "glm4": _split(_LLAMA3_SPLIT),
    "qwen35": _split(_QWEN35_SPLIT, composed=True),
    "refact": _DIGITS,  # Granite
    "dbrx": _split(_LLAMA3_SPLIT),  # OLMo 2 and 3
    "gpt-4o": _split(_GPT4O_SPLIT),  # gpt-oss, Phi-4-mini
    "tekken": _split(_TEKKEN_SPLIT, ignore_merges=True, add_bos=True),  # Mistral
}


def read_tokenizer(path: epath.Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file; `chat_template` is None if the file has none.

    Where the file has named chat templates besides, `chat_template` has them all by name, the usual one as "default".
    `pad_token` is what the file says; it may be the same as `eos_token`, so never tell padding by it.

    Raises:
      SourceError: no tokenizer in the file, one of a kind that is not supported, or a damaged one.
    """
    import transformers  # slow to import

    file = read_gguf(path)
    file.require("tokenizer.ggml.model")
    kind = file.checked("tokenizer.ggml.model", "a string")
    if kind not in ("gpt2", "llama", "gemma4"):
        raise SourceError(
            f"{file.path}: has a tokenizer of the kind {kind!r} (tokenizer.ggml.model); supported are 'gpt2', that is "
            f"byte-level BPE, 'llama', that is SentencePiece, and 'gemma4'. {_ADVICE}"
        )
    file.require("tokenizer.ggml.tokens")
    tokens = file.checked("tokenizer.ggml.tokens", "a list of strings")
    vocabulary = _vocabulary(file, gguf_sentencepiece.respelled(file, tokens) if kind == "llama" else tokens)
    types = _token_types(file, tokens)
    special = {
        "bos_token": _special_token(file, tokens, "bos_token_id"),
        "eos_token": _special_token(file, tokens, "eos_token_id"),
        "unk_token": _special_token(file, tokens, "unknown_token_id"),
        "pad_token": _special_token(file, tokens, "padding_token_id"),
    }
    if kind == "gpt2":
        splitting = _splitting(file)
        add_bos, backend = _adds_bos(file, splitting.add_bos), _byte_level(file, vocabulary, splitting)
    elif kind == "llama":
        backend = gguf_sentencepiece.backend(file, vocabulary, types, special["unk_token"])
        add_bos = _adds_bos(file, True)
    else:  # the model's own tokenizer leaves BOS to the chat template, whatever the file says
        backend = gguf_sentencepiece.of_gemma4(file, vocabulary, _merges(file, vocabulary), special["unk_token"])
        add_bos = False
    _add_tokens(tokens, types, vocabulary, backend)
    architecture = file.metadata.get("general.architecture")
    context_length = file.checked(f"{architecture}.context_length", "a whole number")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **{name: token for name, token in special.items() if token is not None},
        **({} if context_length is None else {"model_max_length": context_length}),
        add_bos_token=add_bos,
        add_eos_token=file.checked("tokenizer.ggml.add_eos_token", "true or false", False),
        chat_template=_chat_templates(file),
        clean_up_tokenization_spaces=False,
        name_or_path=str(path),
    )


def _adds_bos(file: GgufFile, default: bool) -> bool:
    return file.checked("tokenizer.ggml.add_bos_token", "true or false", default)


def _chat_templates(file: GgufFile) -> str | dict[str, str] | None:
    """The chat template, or all of them by name; see `add_chat_template` of the package gguf, which writes them."""
    default = file.checked("tokenizer.chat_template", "a string")
    named = {}
    for name in file.checked("tokenizer.chat_templates", "a list of strings", []):
        file.require(f"tokenizer.chat_template.{name}")
        named[name] = file.checked(f"tokenizer.chat_template.{name}", "a string")
    if not named:
        return default
    return named if default is None else {"default": default} | named


def _splitting(file: GgufFile) -> _Splitting:
    name = file.checked("tokenizer.ggml.pre", "a string")
    if name not in SPLITTINGS:
        raise SourceError(
            f"{file.path}: splits text by the pre-tokenizer {name!r} (tokenizer.ggml.pre); supported are "
            f"{', '.join(SPLITTINGS)}. {_ADVICE}"
        )
    return SPLITTINGS[name]


def _vocabulary(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        raise SourceError(
            f"{file.path}: its vocabulary holds {len(tokens) - len(vocabulary)} tokens twice: damaged file."
        )
    return vocabulary


def _token_types(file: GgufFile, tokens: list[str]) -> list[int]:
    types = file.checked("tokenizer.ggml.token_type", "a list of whole numbers", [_NORMAL] * len(tokens))
    if len(types) != len(tokens):
        raise SourceError(f"{file.path}: {len(types)} token types for {len(tokens)} tokens: damaged file.")
    return types


def _merges(file: GgufFile, vocabulary: dict[str, int]) -> list[tuple[str, ...]]:
    file.require("tokenizer.ggml.merges")
    merges = [tuple(merge.split(" ")) for merge in file.checked("tokenizer.ggml.merges", "a list of strings")]
    for rank, merge in enumerate(merges):
        if len(merge) != 2 or not {merge[0], merge[1], "".join(merge)} <= vocabulary.keys():
            raise SourceError(f"{file.path}: merge {rank} {merge!r} is not of two tokens into one of the vocabulary.")
    return merges


def _byte_level(file: GgufFile, vocabulary: dict[str, int], splitting: _Splitting) -> Tokenizer:
    merges = _merges(file, vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=splitting.ignore_merges))
    if splitting.composed:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splitting.before, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting.gpt2_regex)]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_tokens(tokens: list[str], types: list[int], vocabulary: dict[str, int], backend: Tokenizer) -> None:
    """Tokens that are found in text whole, before it is split: special ones and those the file marks as added.

    A Gemma's tokens of blanks are not among them: they are in the vocabulary under another spelling and are merged.
    """
    added = {_CONTROL: [], _USER_DEFINED: []}
    for token, type_ in zip(tokens, types, strict=True):
        if type_ in added and token in vocabulary:
            added[type_].append(AddedToken(token, normalized=False, special=type_ == _CONTROL))
    backend.add_special_tokens(added[_CONTROL])
    backend.add_tokens(added[_USER_DEFINED])


def _special_token(file: GgufFile, tokens: list, key: str) -> str | None:
    id_ = file.checked(f"tokenizer.ggml.{key}", "a whole number")
    if id_ is None:
        return None
    if id_ >= len(tokens):
        raise SourceError(f"{file.path}: tokenizer.ggml.{key} is {id_}, but there are {len(tokens)} tokens.")
    return tokens[id_]
