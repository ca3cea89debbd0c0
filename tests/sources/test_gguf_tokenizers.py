"""Tokenizers of GGUF files on a thousand texts, beside transformers' reading of the same files and what is truer."""

import functools
import itertools
import unicodedata

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AddedToken, AutoTokenizer, LlamaTokenizer, Qwen2Tokenizer
from transformers.tokenization_utils_base import generate_merges

from sft_jax.sources import SourceError, load_tokenizer
from sft_jax.sources.gguf_file import read_gguf
from sft_jax.sources.gguf_sentencepiece import merges
from sft_jax.sources.locate import locate
from tests.sources import texts

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def differing(samples, ours, theirs):
    """Texts whose ids differ, with both lists."""
    both = zip(samples, ours(samples)["input_ids"], theirs(samples)["input_ids"], strict=True)
    return [(text, a, b) for text, a, b in both if a != b][:5]


def read_by_transformers(path):
    return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def byte_level(write_gguf, directory, pre, **others):
    """The first tokens of SmolLM2 and a splitting; <repo_name> is an added token that is not special."""
    metadata = read_gguf(locate("smollm2-135m-instruct").path).metadata
    tokens, types = metadata["tokenizer.ggml.tokens"][:8000], metadata["tokenizer.ggml.token_type"][:8000]
    types[tokens.index("<repo_name>")] = USER_DEFINED
    known = set(tokens)
    merges = [merge for merge in metadata["tokenizer.ggml.merges"] if merge.replace(" ", "") in known]
    changed = {"pre": pre, "tokens": tokens, "token_type": types, "merges": merges} | others
    changed = {f"tokenizer.ggml.{key}": value for key, value in changed.items()}
    keys = ("model", "bos_token_id", "eos_token_id", "unknown_token_id", "add_bos_token")
    kept = {f"tokenizer.ggml.{key}": metadata[f"tokenizer.ggml.{key}"] for key in keys}
    return write_gguf(directory / "tiny.gguf", {}, kept | changed), kept | changed


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory, write_gguf):
    return byte_level(write_gguf, tmp_path_factory.mktemp("qwen2"), "qwen2")


SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]


def test_qwen2(qwen2):
    """transformers has Qwen's splitting and composition (NFC) in its own class; its reading of the file loses NFC."""
    path, metadata = qwen2
    ours = load_tokenizer(path)
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    own = Qwen2Tokenizer(
        vocab={token: id_ for id_, token in enumerate(tokens)},
        merges=[tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]],
    )
    added = [type_ in (CONTROL, USER_DEFINED) for type_ in types]
    own.add_tokens([AddedToken(token, normalized=False) for token in itertools.compress(tokens, added)])
    samples = texts.varied(SPECIAL)
    assert differing(samples, ours, own) == []
    composed = [text for text in samples if unicodedata.is_normalized("NFC", text)]
    assert len(composed) >= 1000
    theirs = read_by_transformers(path)
    assert differing(composed, ours, theirs) == []
    assert differing(["e\u0301"], ours, theirs) != []
    ids = ours(composed)["input_ids"]
    assert ours.batch_decode(ids) == composed
    for skipped in (True, False):
        expected = theirs.batch_decode(ids, skip_special_tokens=skipped)
        assert ours.batch_decode(ids, skip_special_tokens=skipped) == expected
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name


# Where a text with an ending, a number and a capital within a word is cut.
SPLIT = {
    "refact": "It|'s|·|2|0|2|6|·McDonald",
    "dbrx": "It|'s|·|202|6|·McDonald",
    "gpt-4o": "It's|·|202|6|·Mc|Donald",
    "tekken": "It|'s|·|2|0|2|6|·Mc|Donald",
    "qwen35": "It|'s|·|2|0|2|6|·McDonald",
    "deepseek-r1-qwen": "It|'s|·|2|0|2|6|·McDonald",
    "glm4": "It|'s|·|202|6|·McDonald",
}
OF_TRANSFORMERS = {"glm4": "dbrx"}  # what it does not know, and under which name it has the same splitting


@pytest.mark.parametrize("pre", SPLIT)
def test_where_text_is_split(tmp_path, write_gguf, pre):
    """By hand; and tokens as transformers has them. It loses NFC, and has no `refact`: that is SmolLM's splitting."""
    (tmp_path / "other").mkdir()
    path, _ = byte_level(write_gguf, tmp_path, pre)
    ours = load_tokenizer(path)
    pieces = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 2026 McDonald")
    assert "|".join(piece for piece, _ in pieces).replace("\u0120", "·") == SPLIT[pre]
    samples = [text for text in texts.varied(SPECIAL) if unicodedata.is_normalized("NFC", text)]
    assert len(samples) >= 1000
    if pre == "refact":
        theirs = load_tokenizer(byte_level(write_gguf, tmp_path / "other", "smollm")[0])
    else:
        known = OF_TRANSFORMERS.get(pre, pre)
        theirs = read_by_transformers(path if pre == known else byte_level(write_gguf, tmp_path / "other", known)[0])
    assert differing(samples, ours, theirs) == []
    assert ours.batch_decode(ours(samples)["input_ids"]) == samples


@pytest.mark.parametrize(
    "pieces",
    [
        ["It", "'s", " ", "202", "6", " McDonald"],
        ["x", "_y", "東京", "now", " (", "a", ")"],
        ["ありがとう", "1", "中", " é", "\n\n", " ", " a", "!?\r\n", "b"],
    ],
)
def test_where_deepseek_v3_splits(tmp_path, write_gguf, pieces):
    """By hand, after the three patterns of its tokenizer.json; transformers has them nowhere."""
    ours = load_tokenizer(byte_level(write_gguf, tmp_path, "deepseek-v3")[0])
    text = "".join(pieces)
    found = ours.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:stop] for _, (start, stop) in found] == pieces
    samples = texts.varied(SPECIAL)
    assert ours.batch_decode(ours(samples)["input_ids"]) == samples


@functools.cache
def learnt():
    """(pieces in the order in which they were merged, single characters) of a small vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁*[^▁\n]+|▁+|\n+"), "isolated")
    rare = set("▁𓀀") | set("ქართული ენაአማርኛ∀∈ℝ")  # left to bytes
    corpus = ["".join(char for char in text if char not in rare) for text in texts.PIECES] * 2 + ["        " * 3] * 2
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=1200, min_frequency=2, show_progress=False))
    vocabulary = tokenizer.get_vocab()
    by_id = sorted(vocabulary.keys() - {"\n\n"}, key=vocabulary.get)
    return [piece for piece in by_id if len(piece) > 1], [piece for piece in by_id if len(piece) == 1]


LLAMA_SPECIAL = ["<s>", "</s>", "<unk>", "<|tool|>", "\n\n"]


def llama_metadata(**changed):
    """Llama 2's order: special tokens, bytes, pieces with falling scores, characters, tokens added later."""
    pieces, characters = learnt()
    learnt_tokens = [*pieces, *characters]
    tokens = ["<unk>", "<s>", "</s>", *BYTES, *learnt_tokens, "<|tool|>", "\n\n", "[PAD1]"]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(learnt_tokens))] + [-1000.0, -1000.0, -10000.0]
    types = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(learnt_tokens), CONTROL, USER_DEFINED, UNUSED]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    } | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}


GEMMA_SPECIAL = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "\n\n", "<td>"]


def gemma_metadata():
    """Gemma's order: special tokens, added runs of line ends and blanks, bytes, pieces, characters; scores mislead."""
    pieces, characters = learnt()
    blanks = sorted((piece for piece in pieces if set(piece) == {"▁"}), key=len)
    assert len(blanks) > 3
    pieces = [piece for piece in pieces if piece not in blanks]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
    added = ["\n\n", "<td>", *(blank.replace("▁", " ") for blank in blanks)]
    types = [*[CONTROL] * 3, UNKNOWN, *[CONTROL] * 3, *[USER_DEFINED] * len(added), *[BYTE] * 256]
    tokens = [*special, *added, *BYTES, *pieces, *characters]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(id_ * 7919 % 101) for id_ in range(len(tokens))],
        "tokenizer.ggml.token_type": types + [NORMAL] * (len(tokens) - len(types)),
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


@pytest.mark.parametrize(
    ("architecture", "metadata", "special"),
    [
        ("llama", llama_metadata(), LLAMA_SPECIAL),
        ("llama", llama_metadata(add_bos_token=False, add_eos_token=True), LLAMA_SPECIAL),
        ("gemma2", gemma_metadata(), GEMMA_SPECIAL),
        ("gemma3", gemma_metadata(), GEMMA_SPECIAL),
    ],
)
def test_sentencepiece(tmp_path, write_gguf, architecture, metadata, special):
    path = write_gguf(tmp_path / "tiny.gguf", {}, metadata, architecture=architecture)
    ours, theirs = load_tokenizer(path), read_by_transformers(path)
    samples = texts.varied(special)
    assert len(samples) >= 1000
    assert differing(samples, ours, theirs) == []
    ids = ours(samples)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert ours.batch_decode(ids, skip_special_tokens=True) == theirs.batch_decode(ids, skip_special_tokens=True)
    assert len({id_ for row in ids for id_ in row}) > 500
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.get_vocab() == theirs.get_vocab()


def gemma4_metadata(**changed):
    """Gemma 4's order; runs of line ends and of blanks are tokens as others are, and the file has the merges."""
    pieces, characters = learnt()
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<|turn>", "<turn|>"]
    tokens = [*special, "<|tool_call>", *BYTES, *pieces, "\n\n", *characters]
    types = [CONTROL] * len(special) + [USER_DEFINED] + [BYTE] * 256
    scored = {piece: -rank for rank, piece in enumerate([*pieces, "\n\n"])}
    merged = generate_merges({token: id_ for id_, token in enumerate(tokens)}, scored)
    return {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": types + [NORMAL] * (len(tokens) - len(types)),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merged],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    } | {f"tokenizer.ggml.{key}": value for key, value in changed.items()}


def test_gemma4(tmp_path, write_gguf):
    """transformers reads the file with the class of the model's own tokenizer, which adds no BOS."""
    path = write_gguf(tmp_path / "tiny.gguf", {}, gemma4_metadata(), architecture="gemma4")
    ours, theirs = load_tokenizer(path), read_by_transformers(path)
    samples = texts.varied(["<bos>", "<|turn>", "<turn|>", "<|tool_call>", "\n\n"])
    assert len(samples) >= 1000
    assert differing(samples, ours, theirs) == []
    ids = ours(samples)["input_ids"]
    assert ours.batch_decode(ids) == theirs.batch_decode(ids)
    assert len({id_ for row in ids for id_ in row}) > 500
    assert ours.get_vocab() == theirs.get_vocab()
    assert ours.tokenize("a \n\n<|turn>b") == ["a", "▁", "\n\n", "<|turn>", "b"]
    assert ours.decode(ours("Hello  world\n")["input_ids"]) == "Hello  world\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"merges": None}, r"has no metadata 'tokenizer.ggml.merges'"),
        ({"merges": ["a zz"]}, r"merge 0 \('a', 'zz'\) is not of two tokens"),
        (
            {"tokens": ["a", "b", "ab"], "token_type": [1, 1, 1], "merges": ["a b"], "unknown_token_id": None},
            r"neither a token for each byte .*: other text would vanish",
        ),
    ],
)
def test_gemma4_that_is_refused(tmp_path, write_gguf, changed, message):
    changed = {"bos_token_id": None, "eos_token_id": None, "padding_token_id": None} | changed
    path = write_gguf(tmp_path / "tiny.gguf", {}, gemma4_metadata(**changed), architecture="gemma4")
    with pytest.raises(SourceError, match=f"tiny.gguf: .*({message})"):
        load_tokenizer(path)


def test_add_space_prefix(tmp_path, write_gguf):
    """transformers 5.23 puts a ▁ before the first word whatever the file says; its own class can be told not to."""
    metadata = llama_metadata(add_space_prefix=False)
    path = write_gguf(tmp_path / "tiny.gguf", {}, metadata)
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    vocabulary = {token: id_ for id_, token in enumerate(tokens)}
    scored = dict(zip(tokens, scores, strict=True))
    own = LlamaTokenizer(vocab=vocabulary, merges=generate_merges(vocabulary, scored), add_prefix_space=False)
    own.add_tokens([AddedToken("<|tool|>", normalized=False, special=True), AddedToken("\n\n", normalized=False)])
    own.add_bos_token = True
    ours, samples = load_tokenizer(path), texts.varied(LLAMA_SPECIAL)
    assert differing(samples, ours, own) == []
    assert ours.tokenize("Hello world")[0][0] == "H"
    assert differing(["Hello world"], ours, read_by_transformers(path)) != []


def test_pieces_are_merged_by_score(tmp_path, write_gguf):
    """SentencePiece's own rule, where no added token is: the best score first, of equals the leftmost."""
    metadata = llama_metadata(add_bos_token=False, add_space_prefix=False)
    ours = load_tokenizer(write_gguf(tmp_path / "tiny.gguf", {}, metadata))
    scores = dict(zip(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], strict=True))

    def pieces(text):
        symbols = list(text.replace(" ", "▁"))
        while True:
            pairs = [(scores.get(a + b), -i) for i, (a, b) in enumerate(itertools.pairwise(symbols))]
            best = max((pair for pair in pairs if pair[0] is not None), default=None)
            if best is None:
                break
            symbols[-best[1] : 2 - best[1]] = ["".join(symbols[-best[1] : 2 - best[1]])]
        return [part for s in symbols for part in ([s] if s in scores else (f"<0x{b:02X}>" for b in s.encode()))]

    samples = [text for text in texts.varied([]) if "\n\n" not in text]
    assert len(samples) > 500
    found = zip(samples, ours(samples)["input_ids"], strict=True)
    assert [text for text, ids in found if ours.convert_ids_to_tokens(ids) != pieces(text)] == []


def test_merges():
    vocabulary = {"a": 0, "b": 1, "ab": 2, "bb": 3, "abb": 4, "<s>": 5, "<": 6, "s>": 7}
    types = [NORMAL] * 5 + [CONTROL] + [NORMAL] * 2
    found = merges(vocabulary, [0.0, 0.0, -1.0, -3.0, -2.0, 9.0, 0.0, 0.0], types)
    assert found == [("a", "b"), ("ab", "b"), ("a", "bb"), ("b", "b")]


NO_IDS = {"bos_token_id": None, "eos_token_id": None}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scores": None}, r"has no metadata 'tokenizer.ggml.scores'"),
        ({"scores": [0.0]}, r"1 token scores for \d+ tokens"),
        ({"token_type": [1]}, r"1 token types for \d+ tokens"),
        ({"unknown_token_id": 10**6}, r"unknown_token_id is 1000000, but there are \d+ tokens"),
        (
            {"tokens": ["a", "b"], "scores": [0.0, 0.0], "token_type": [1, 1], "unknown_token_id": None} | NO_IDS,
            r"neither a token for each byte .* nor an unknown token .*: other text would vanish",
        ),
    ],
)
def test_sentencepiece_that_is_refused(tmp_path, write_gguf, changed, message):
    path = write_gguf(tmp_path / "tiny.gguf", {}, llama_metadata(**changed))
    with pytest.raises(SourceError, match=f"tiny.gguf: .*{message}"):
        load_tokenizer(path)
