"""The SentencePiece kind of tokenizer in a GGUF file (`tokenizer.ggml.model` = "llama"), as Gemma and Llama 2 have it,
and the kind of Gemma 4 ("gemma4").

Byte-pair encoding over characters, blanks written as ▁; what the vocabulary lacks is written byte by byte. The file
holds tokens and scores, from which the merges follow; that of Gemma 4 holds the merges.

The ▁ before the first word (`add_space_prefix`) is transformers': once, where the text begins, and not before a blank.
llama.cpp, and the tokenizer.json that Llama 2 itself comes with, write it before a blank too, and again after each
special token; the tokenizer.json of other models does not, and a GGUF file does not tell.
"""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from sft_jax.sources.gguf_file import GgufFile
from sft_jax.sources.tensors import SourceError

_NORMAL, _USER_DEFINED = 1, 4  # token types that text may become by merging
_GEMMAS = ("gemma2", "gemma3")
_BLANK = "▁"


def respelled(file: GgufFile, tokens: list[str]) -> list[str]:
    """The vocabulary as text is looked up in it: llama.cpp stores Gemma's tokens of ▁ alone as blanks."""
    if not _is_gemma(file):
        return tokens
    return [_BLANK * len(token) if token.strip(" ") == "" else token for token in tokens]


def backend(file: GgufFile, vocabulary: dict[str, int], types: list[int], unknown: str | None) -> Tokenizer:
    """The tokenizer without its added tokens.

    Args:
      file: with `tokenizer.ggml.scores`.
      vocabulary: token -> id, in the order of ids.
      types: the type of each token.
      unknown: the token for what has none and no bytes either.

    Raises:
      SourceError: scores are missing or too few, or there is no token for text that the vocabulary lacks.
    """
    made = Tokenizer(_model(file, vocabulary, types, unknown))
    prefix = file.checked("tokenizer.ggml.add_space_prefix", "true or false", not _is_gemma(file))
    made.pre_tokenizer = pre_tokenizers.Metaspace(_BLANK, prepend_scheme="first" if prefix else "never", split=False)
    made.decoder = _decoder(decoders.Strip(content=" ", left=1)) if prefix else _decoder()
    return made


def of_gemma4(
    file: GgufFile, vocabulary: dict[str, int], merges: list[tuple[str, ...]], unknown: str | None
) -> Tokenizer:
    """The tokenizer of Gemma 4 without its added tokens: text is not split before it is merged.

    llama.cpp splits it at line ends, which no token has beside other characters.

    Args:
      file: it is of.
      vocabulary: token -> id, in the order of ids.
      merges: pairs of tokens, the first ones first.
      unknown: the token for what has none and no bytes either.

    Raises:
      SourceError: there is no token for text that the vocabulary lacks.
    """
    made = Tokenizer(_bytes_where_unknown(file, vocabulary, merges, unknown))
    made.normalizer = normalizers.Replace(" ", _BLANK)
    made.decoder = _decoder()
    return made


def _decoder(*last: decoders.Decoder) -> decoders.Decoder:
    return decoders.Sequence([decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse(), *last])


def _is_gemma(file: GgufFile) -> bool:
    return file.metadata.get("general.architecture") in _GEMMAS


def _model(file: GgufFile, vocabulary: dict[str, int], types: list[int], unknown: str | None) -> models.BPE:
    file.require("tokenizer.ggml.scores")
    scores = file.checked("tokenizer.ggml.scores", "a list of numbers")
    if len(scores) != len(vocabulary):
        raise SourceError(f"{file.path}: {len(scores)} token scores for {len(vocabulary)} tokens: damaged file.")
    # A Gemma's scores do not follow the order of its merges, its ids do.
    priorities = [-id_ for id_ in range(len(scores))] if _is_gemma(file) else scores
    return _bytes_where_unknown(file, vocabulary, merges(vocabulary, priorities, types), unknown)


def _bytes_where_unknown(
    file: GgufFile, vocabulary: dict[str, int], merged: list[tuple[str, ...]], unknown: str | None
) -> models.BPE:
    if unknown is None and not {f"<0x{byte:02X}>" for byte in range(256)} <= vocabulary.keys():
        raise SourceError(
            f"{file.path}: its vocabulary has neither a token for each byte (<0x00> to <0xFF>) nor an unknown token "
            "(tokenizer.ggml.unknown_token_id): other text would vanish. Use the model's Hugging Face directory (with "
            "tokenizer.json) instead."
        )
    return models.BPE(vocab=vocabulary, merges=merged, unk_token=unknown, fuse_unk=True, byte_fallback=True)


def merges(vocabulary: dict[str, int], priorities: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token; first those of the highest priority, then of the longest left token.

    {"a": 0, "b": 1, "ab": 2, "bb": 3, "abb": 4} with the priorities 0, 0, -1, -3, -2 has the merges (a, b), (ab, b),
    (a, bb), (b, b).
    """
    pairs = []
    for (token, id_), type_ in zip(vocabulary.items(), types, strict=True):
        if type_ not in (_NORMAL, _USER_DEFINED):
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocabulary and right in vocabulary:
                pairs.append(((-priorities[id_], -len(left), -len(right)), (left, right)))
    return [pair for _, pair in sorted(pairs, key=lambda entry: entry[0])]
