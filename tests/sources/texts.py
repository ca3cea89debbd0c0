"""Texts to compare tokenizers on: many scripts, code, numbers, emoji, blanks, and special tokens in the middle."""

import random

PIECES = [
    "The quick brown fox",
    "don't we'll I'M they've you'D",
    "Hello, world!!! ... --- (x) [y] {z}",
    "naïve café Ångström",
    "e\u0301 A\u030a n\u0303 \u1e9b\u0323 ﬁ ½ ①",
    "Tiếng Việt có dấu",
    "Москва и Київ",
    "Ελληνικά γράμματα",
    "東京で寿司を食べた。",
    "中文，没有空格！",
    "안녕하세요 세계",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8",
    "مرحبا بالعالم",
    "السَّلَامُ عَلَيْكُمْ ٣٤٥",
    "שלום עולם",
    "नमस्ते दुनिया १२३",
    "বাংলা ভাষা",
    "தமிழ் மொழி",
    "ภาษาไทยไม่เว้นวรรค ๔๕๖",
    "ქართული ენა",
    "አማርኛ",
    "😀👍🏽 👩‍👩‍👧 ❤️ 🇫🇮",
    "def f(x):\n    return x ** y  # comment\n",
    '\tif (a && b) {\r\n\t\tcall("s");\r\n\t}',
    "<html><body class='a'>&nbsp;</body></html>",
    '{"vin": "ABC", "owner": null, "list": [1, 2.5]}',
    "SELECT * FROM t WHERE a >= 10;",
    "a  b   c    d        e",
    " leading and trailing ",
    "   ",
    "\n\n\n \n",
    "\t\t x\t",
    "\r\n\r\n",
    "\u00a0\u2003\u200b\ufeff",
    "▁▁ already ▁written",
    "snake_case_name CamelCaseName SCREAMING",
    "http://example.com/a?b=c&d=e#f",
    "v1.2.3 2024x 1234567890",
    "3.14159 1,000,000 0x1F",
    "x = 1 + 22 - 333",
    "∀x∈ℝ: ∑ᵢ xᵢ² ≤ √n",
    "\x00\x01 \x7f",
    "0",
    "",
]


def varied(special: list[str], count: int = 1200, seed: int = 0) -> list[str]:
    """Every piece, every special token between two letters, and random sequences of two to five of these or of
    parts of them; all different."""
    chosen = random.Random(seed)
    texts = dict.fromkeys([*PIECES, *(f"a{token} b" for token in special)])
    parts = [*PIECES, *special, " ", "\n"]
    while len(texts) < count:
        some = chosen.choices(parts, k=chosen.randint(2, 5))
        texts["".join(part if chosen.random() < 0.3 else _part(part, chosen) for part in some)] = None
    return list(texts)


def _part(text: str, chosen: random.Random) -> str:
    start, end = sorted(chosen.choices(range(len(text) + 1), k=2))
    return text[start:end]
