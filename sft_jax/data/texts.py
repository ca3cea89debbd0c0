"""Functions on texts that checks and cleaning share: words, private data, text read in the wrong encoding."""

import re

# Characters of languages written without spaces, in the words of `re`: each counts as a word.
UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
# Control characters but tab and line breaks, the byte order mark, and what Unicode says is no character.
NOT_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
# A character as the byte that Windows-1252 reads it from; bytes it has no character for are read as themselves.
_BYTES = {bytes([byte]).decode("cp1252", "replace"): byte for byte in range(128, 256)}
_BYTES |= {chr(byte): byte for byte in range(256) if chr(byte) not in _BYTES}
_TIMES_BROKEN = 3  # text that was read wrongly, written, and read wrongly again
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b")
# International, or grouped as people write them: a plain run of digits is an order number as likely as not.
PHONE = re.compile(
    r"(?<![\w.-])(?:\+(?=(?:[ .()-]{0,2}\d){9})\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){2,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[ .-]\d{3}[ .-]\d{4})(?![\w-])"
)
KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.|\n)*?-----END [A-Z ]*PRIVATE KEY-----"
    # With 16 letters and digits at a stretch: names of constraints and classes begin with pk_ and sk- too.
    r"|\b(?:sk|pk|rk)[-_][A-Za-z0-9_-]*?(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{16,}[A-Za-z0-9_-]*"
    r"|\b(?:ghp|gho|ghs|ghu|ghr)_[A-Za-z0-9]{36,}|\bgithub_pat_[A-Za-z0-9_]{40,}"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bAIza[A-Za-z0-9_-]{35}|\bhf_[A-Za-z0-9]{30,}|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
)
_KEY_SIGNS = (
    "PRIVATE KEY",
    "sk-",
    "sk_",
    "pk-",
    "pk_",
    "rk-",
    "rk_",
    "gho_",
    "ghp_",
    "ghr_",
    "ghs_",
    "ghu_",
    "github_pat_",
)
_KEY_SIGNS += ("AKIA", "ASIA", "AIza", "hf_", "xox", "eyJ")
_MARKS = ((KEY, "[KEY]"), (EMAIL, "[EMAIL]"), (PHONE, "[PHONE]"))


def words_of(text: str) -> list[str]:
    """Its words: runs of letters and digits; in Chinese, Japanese and Korean each character."""
    return _WORD.findall(text)


def find_private(text: str, pattern: re.Pattern) -> re.Match | None:
    """The first match of EMAIL, PHONE or KEY; fast where nothing can match, which is nearly everywhere."""
    if pattern is EMAIL and "@" not in text:
        return None
    if pattern is KEY and not any(sign in text for sign in _KEY_SIGNS):
        return None
    return pattern.search(text)


def redacted(text: str) -> str:
    """The text with [EMAIL], [PHONE] or [KEY] in place of what looks like one."""
    for pattern, mark in _MARKS:
        text = pattern.sub(mark, text)
    return text


def private_spans(text: str) -> list[tuple[int, int]]:
    """Characters [start, end) of everything that `redacted` would replace."""
    return [match.span() for pattern, _ in _MARKS for match in pattern.finditer(text)]


def repair_mojibake(text: str) -> str:
    """The text as it was before it was read wrongly; the text itself where that is not proven.

    Proven is: all its characters stand for bytes that together are valid UTF-8, the result holds no control
    character, and no pair stands behind a capital ("MANHÃ…" is Portuguese and an ellipsis).

    "cafÃ©" -> "café", "donâ€™t" -> "don’t", "Ã©tÃ© à Paris" stays: à is right, so the text was not read wrongly.
    """
    read, proven = text, text
    for _ in range(_TIMES_BROKEN):
        read = _decoded(read)
        if read is None:
            break
        if not NOT_TEXT.search(read):
            proven = read
    return proven


def _decoded(text: str) -> str | None:
    """The text read rightly; None where it cannot have been read wrongly."""
    if text.isascii():
        return None
    try:
        repaired = bytes(_BYTES[character] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None
    at = 0
    for character in repaired:
        width = len(character.encode("utf-8"))
        if width == 2 and at and text[at - 1].isupper():
            return None
        at += width
    return repaired
