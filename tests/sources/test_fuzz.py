"""Damaged and malicious files: read as what they are, or refused with a `SourceError` that names the file.

Inputs made by hand, each with what it is answered with; every truncation; and files that hypothesis damages. Accepted
safetensors files are read by the format's own library too, which must find the same in them.
"""

import json
import struct
import tracemalloc

import gguf
import numpy as np
import pytest
import safetensors.numpy
from etils import epath
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sft_jax.sources import SourceError, load_tokenizer
from sft_jax.sources.gguf_file import read_gguf, tensor_entry
from sft_jax.sources.huggingface import read_checkpoint, read_safetensors
from tests import tiny, work

A = np.arange(12, dtype=np.float32).reshape(3, 4)
ARRAYS = {"a": A, "b": A[0].astype(np.float16), "c": A[:, 0].copy()}
U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10  # type ids of GGUF metadata
STEPS = 200_000  # some 25,000 were taken

fuzzed = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def by_message(value):
    """Ids of parametrised tests: bytes and objects are left out."""
    return value if isinstance(value, str) else ""


def refused(read, path, message):
    """`read(path)` gives a SourceError in few steps, and takes no memory for what the file claims."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=message) as error, work.at_most(STEPS):
            read(epath.Path(path))
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 1500


def read_or_refuse(read, path):
    """What `read(path)` gives, or None for a SourceError that names the path; any other error is a failure."""
    try:
        return read(epath.Path(path))
    except SourceError as error:
        message = str(error)
    assert str(path) in message
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Safetensors


def header_file(header, data=bytes(48)):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def entry(**changes):
    return {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]} | changes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes(8), r"its safetensors header is not valid JSON"),
        (
            struct.pack("<Q", 2**63) + bytes(90),
            r"is not a safetensors file \(its header would have 9223372036854775808",
        ),
        (struct.pack("<Q", 100_000_000) + b"{}", r"the file ends early \(10 bytes, expected at least 100000008\)"),
        (header_file(b"[" * 100_000), r"header is not valid JSON \(maximum recursion depth"),
        (header_file(b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}"), r"entry of 'a' is damaged: \[\[\[\[\[\[\[\.\.\."),
        (header_file(b'{"a": 1, "a": 2}'), r"header is not valid JSON \(it has the key 'a' twice\)"),
        (header_file(b'{"a": NaN}'), r"header is not valid JSON \(NaN is no JSON number\)"),
        (header_file(b'{"a": %s}' % (b"9" * 5000)), r"header is not valid JSON \(Exceeds the limit"),
        (header_file(b'{"\xff": 1}'), r"header is not valid JSON .*utf-8"),
        (header_file([1]), r"header expected a JSON object {…}, found a list"),
        (header_file({"__metadata__": 1}), r"__metadata__ is not a JSON object"),
        (header_file({"a": [1]}), r"entry of 'a' is damaged: \[1\]"),
        (header_file({"a": "dtype"}), r"entry of 'a' is damaged: 'dtype'"),
        (header_file({"a": entry(more=1)}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(dtype=["F32"])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape=[3, -4])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape=[12, True])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape=[3, 4.0])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape=["3", "4"])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape="34")}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(shape=[2**63])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(data_offsets=[0, 48, 48])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(data_offsets={"0": 1, "48": 2})}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(data_offsets=[0, 48.0])}), r"entry of 'a' is damaged"),
        (header_file({"a": entry(data_offsets=[48, 0])}), r"'a' has -48 bytes, which does not fit its shape"),
        (header_file({"a": entry(shape=[2**40, 2**40])}), r"'a' would have the shape \(1099511627776, 1099511627776\)"),
        (header_file({"a": entry(shape=[0, 2**62], data_offsets=[0, 0])}), r"'a' would have the shape \(0, "),
        (header_file({"a": entry(shape=[1] * 70)}), r"'a' would have the shape \(1, 1, .*at most 8 dimensions"),
        (
            header_file({"a": entry(shape=[2**40], data_offsets=[0, 2**42])}),
            r"is truncated: it has \d+ bytes and 'a' w",
        ),
        (header_file({"a": entry(), "b": entry()}), r"'b' overlaps with 'a': damaged file"),
        (header_file({"a": entry(data_offsets=[4, 52])}, bytes(52)), r"'a' leaves unused bytes after the header"),
        (header_file({"a": entry()}, bytes(52)), r"has 4 bytes after its last tensor: damaged file"),
    ],
    ids=by_message,
)
def test_safetensors_by_hand(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    refused(read_safetensors, path, message)


def test_every_truncation_of_a_safetensors_file(tmp_path):
    path, content = tmp_path / "model.safetensors", safetensors.numpy.save(ARRAYS)
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert read_or_refuse(read_safetensors, path) is None


@st.composite
def damage(draw):
    """A function from a file's bytes to damaged ones."""
    numbers = st.sampled_from([0, 1, 7, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]).map(lambda n: struct.pack("<Q", n))
    edits = st.tuples(st.integers(0, 2000), st.sampled_from([0, 0, 1, 4, 8]), numbers | st.binary(max_size=8))
    chosen = draw(st.lists(edits, min_size=1, max_size=3))

    def apply(content):
        for place, removed, inserted in chosen:
            place %= len(content) or 1
            content = content[:place] + inserted + content[place + (removed or len(inserted)) :]
        return content

    return apply


@fuzzed
@given(edit=damage())
def test_damaged_safetensors(tmp_path, edit):
    path, content = tmp_path / "model.safetensors", edit(safetensors.numpy.save(ARRAYS))
    check_safetensors(path, content)


def check_safetensors(path, content):
    path.write_bytes(content)
    tensors = read_or_refuse(read_safetensors, path)
    if tensors is None:
        return
    theirs = safetensors.numpy.load(content)
    assert theirs.keys() == tensors.keys()
    for name, array in theirs.items():
        loaded = tensors[name].load()
        assert (loaded.dtype, loaded.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(loaded, array)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@st.composite
def changed(draw, tree):
    """A JSON object with something in it replaced, taken out or added."""
    tree = json.loads(json.dumps(tree))
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            break
        node = node[key]
    action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if action == "remove":
        del node[key]
    elif action == "add" and isinstance(node, dict):
        node[draw(st.text(max_size=5))] = draw(json_values)
    else:
        node[key] = draw(json_values)
    return tree


HEADER = {
    "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
    "b": {"dtype": "F16", "shape": [4], "data_offsets": [48, 56]},
}


@fuzzed
@given(header=changed(HEADER))
def test_changed_safetensors_headers(tmp_path, header):
    check_safetensors(tmp_path / "model.safetensors", header_file(header, A.tobytes() + bytes(8)))


# ---------------------------------------------------------------------------------------------------------------------
# Directories

SHARDS = ("part-1.safetensors", "part-2.safetensors")
INDEX = {"metadata": {"total_size": 96}, "weight_map": {"a": SHARDS[0], "b": SHARDS[0], "c": SHARDS[1]}}
CONFIG = {"model_type": "llama", "hidden_size": 4}


@pytest.fixture
def sharded(tmp_path):
    safetensors.numpy.save_file({name: ARRAYS[name] for name in "ab"}, tmp_path / SHARDS[0])
    safetensors.numpy.save_file({"c": ARRAYS["c"]}, tmp_path / SHARDS[1])
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(INDEX))
    return tmp_path


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", r"index.json: has 0 bytes; expected from 1 to 100000000"),
        (b"{" * 10, r"index.json: is not valid JSON"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', r"it has the key 'a' twice"),
        (b'{"a":' * 50_000, r"index.json: is not valid JSON \(maximum recursion depth"),
        ({}, r'has no "weight_map"'),
        ({"weight_map": [SHARDS[0]]}, r'has no "weight_map"'),
        ({"weight_map": {}}, r'has no "weight_map"'),
        ({"weight_map": {"a": None}}, r"names the file None; expected the name of a file in the same directory"),
        ({"weight_map": {"a": [SHARDS[0]]}}, r"names the file \['part-1.safetensors'\]; expected the name"),
        ({"weight_map": {"a": "/etc/x.safetensors"}}, r"names the file '/etc/x.safetensors'; expected the name"),
        ({"weight_map": {"a": "../x.safetensors"}}, r"names the file '../x.safetensors'; expected the name"),
        ({"weight_map": {"a": "x.safetensors\0"}}, r"names the file 'x.safetensors\\x00'; expected the name"),
        ({"weight_map": {"a": "\ud800.safetensors"}}, r"names the file '\\ud800.safetensors'; expected the name"),
        (
            {"weight_map": {"a": "config.json"}},
            r"names the file 'config.json'; expected names that end in .safetensors",
        ),
        ({"weight_map": {"a": "x.bin"}}, r"expected names that end in .safetensors. Pickled weights .*save_pretrained"),
        ({"weight_map": {"a": "é" * 200 + ".safetensors"}}, r"1 of the 1 files that .* names are missing"),
        ({"weight_map": {"a": SHARDS[0], "c": SHARDS[1]}}, r"part-1.safetensors: .* disagree about 1 tensors.*'b'"),
        ({"weight_map": INDEX["weight_map"] | {"b": SHARDS[1]}}, r"disagree about 1 tensors.*'b'"),
        ({"weight_map": INDEX["weight_map"] | {"d": SHARDS[1]}}, r"disagree about 1 tensors.*'d'"),
        ({"weight_map": INDEX["weight_map"] | {"d": "folder.safetensors"}}, r"folder.safetensors: is a directory"),
    ],
    ids=by_message,
)
def test_indices_by_hand(sharded, index, message):
    (sharded / "folder.safetensors").mkdir()
    content = index if isinstance(index, bytes) else json.dumps(index).encode()
    (sharded / "model.safetensors.index.json").write_bytes(content)
    refused(read_checkpoint, sharded, message)


def test_the_same_tensor_in_two_shards(sharded):
    safetensors.numpy.save_file({name: ARRAYS[name] for name in "bc"}, sharded / SHARDS[1])
    refused(read_checkpoint, sharded, r"part-2.safetensors: .* disagree about 1 tensors, for example \['b'\]")


def test_links_are_followed(sharded, tmp_path_factory):
    """The hub's cache is made of them."""
    blob = (sharded / SHARDS[0]).rename(tmp_path_factory.mktemp("blobs") / "0123")
    (sharded / SHARDS[0]).symlink_to(blob)
    np.testing.assert_array_equal(read_checkpoint(epath.Path(sharded))[1]["a"].load(), A)
    blob.unlink()
    refused(read_checkpoint, sharded, r"1 of the 2 files that .* are missing: part-1.safetensors")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@fuzzed
@given(edit=damage())
def test_damaged_json(sharded, name, edit):
    good = json.dumps({"config.json": CONFIG, "model.safetensors.index.json": INDEX}[name]).encode()
    (sharded / name).write_bytes(edit(good))
    check_directory(sharded)


@fuzzed
@given(index=changed(INDEX), config=st.just(CONFIG) | changed(CONFIG))
def test_changed_json(sharded, index, config):
    (sharded / "config.json").write_text(json.dumps(config))
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    check_directory(sharded)


def check_directory(directory):
    found = read_or_refuse(read_checkpoint, directory)
    if found is None:
        return
    config, tensors, _ = found
    assert isinstance(config["model_type"], str)
    assert tensors.keys() <= ARRAYS.keys()  # an index may leave out a whole shard: the model layer misses its tensors
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.load(), ARRAYS[name])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", b"{}", r"tokenizer.json: is not a tokenizer"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"type": "BPE", "vocab": 3}}', r"is not a tokenizer"),
        ("tokenizer.json", b"[" * 100_000, r"tokenizer.json: is not valid JSON"),
        ("tokenizer_config.json", b'{"eos_token": [1]}', r"transformers cannot build its tokenizer"),
        ("tokenizer_config.json", b'{"chat_template": 3}', r"its chat_template is 3; expected text"),
        ("tokenizer_config.json", b'{"model_max_length": "x"', r"tokenizer_config.json: is not valid JSON"),
    ],
)
def test_damaged_tokenizers(tmp_path, name, content, message):
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as error:
        load_tokenizer(tmp_path)
    assert str(tmp_path) in str(error.value)


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


def text(value):
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def described(name="a", dimensions=(4,), type_id=0, offset=0):
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, type_id, offset)


def gguf_file(*pairs, tensors=(), num_pairs=None, num_tensors=None, data=bytes(64)):
    """`pairs` are (key, type id, content)."""
    counts = (len(tensors) if num_tensors is None else num_tensors, len(pairs) if num_pairs is None else num_pairs)
    content = b"GGUF" + struct.pack("<IQQ", 3, *counts)
    content += b"".join(text(key) + struct.pack("<I", kind) + value for key, kind, value in pairs) + b"".join(tensors)
    return content + bytes(-len(content) % 32) + data


def array(item_type, count, items=b""):
    return struct.pack("<IQ", item_type, count) + items


CUT = r"the header is truncated or damaged"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gguf_file(num_pairs=2**62), r"has the metadata '' twice"),
        (gguf_file(num_pairs=2**62, data=b"")[:24], CUT),
        (gguf_file(num_tensors=2**62), r"'' has 0 dimensions; expected 1 to 4"),
        (gguf_file(("k", STRING, struct.pack("<Q", 2**62))), CUT),
        (gguf_file(("k", STRING, text(b"\xff"))), r"a string of the header is not UTF-8"),
        (gguf_file((b"\xff", U32, bytes(4))), r"a string of the header is not UTF-8"),
        (gguf_file(("k", ARRAY, array(U32, 2**62))), r"the arrays before byte \d+ have more than 4194304 items"),
        (gguf_file(("k", ARRAY, array(STRING, 2**62))), r"have more than 4194304 items"),
        (gguf_file(("k", ARRAY, array(ARRAY, 2**62))), r"have more than 4194304 items"),
        (gguf_file(("k", ARRAY, array(U64, 2**22))), CUT),
        (gguf_file(("k", ARRAY, array(STRING, 2**22))), CUT),
        (gguf_file(("k", ARRAY, array(13, 1))), r"unknown metadata type 13 at byte"),
        (gguf_file(("k", ARRAY, array(ARRAY, 1) * 100_000)), r"arrays are nested more than 4 deep"),
        (gguf_file(("k", 99, b"")), r"unknown metadata type 99 at byte"),
        (gguf_file(("k", BOOL, b"\2")), r"a truth value before byte \d+ is neither 0 nor 1"),
        (gguf_file(("k", U32, bytes(4)), ("k", U32, bytes(4))), r"has the metadata 'k' twice"),
        (gguf_file(("general.alignment", U32, bytes(4))), r"general.alignment is 0; expected a power of two"),
        (gguf_file(("general.alignment", U32, b"\3\0\0\0")), r"general.alignment is 3; expected a power of two"),
        (gguf_file(("general.alignment", F32, struct.pack("<f", 32))), r"general.alignment is 32.0; expected a power"),
        (gguf_file(("general.alignment", BOOL, b"\1")), r"general.alignment is True; expected a power of two"),
        (gguf_file(("general.alignment", STRING, text("32"))), r"general.alignment is '32'; expected a power of two"),
        (
            gguf_file(("general.alignment", U64, struct.pack("<Q", 2**63)), tensors=[described()]),
            r"general.alignment is 9223372036854775808; expected a power of two",
        ),
        (gguf_file(tensors=[described(dimensions=())]), r"'a' has 0 dimensions; expected 1 to 4"),
        (gguf_file(tensors=[described(dimensions=(1,) * 5)]), r"'a' has 5 dimensions; expected 1 to 4"),
        (gguf_file(tensors=[text("a") + b"\xff" * 4]), r"'a' has 4294967295 dimensions; expected 1 to 4"),
        (gguf_file(tensors=[described(dimensions=(4, 0))]), r"'a' of shape \(0, 4\) does not fit its type F32"),
        (gguf_file(tensors=[described(dimensions=(2**62,) * 4)]), r"'a' would have the shape"),
        (gguf_file(tensors=[described(dimensions=(0, 2**62))]), r"'a' would have the shape"),
        (gguf_file(tensors=[described(dimensions=(2**40,))]), r"is truncated: it has \d+ bytes and 'a' would end at"),
        (gguf_file(tensors=[described(type_id=99)]), r"'a' has the tensor type 99"),
        (gguf_file(tensors=[described(type_id=8)]), r"'a' of shape \(4,\) does not fit its type Q8_0 \(blocks of 32\)"),
        (gguf_file(tensors=[described(offset=8)]), r"'a' lies at 8, which is no multiple of the alignment 32"),
        (gguf_file(tensors=[described(offset=2**63)]), r"is truncated"),
        (gguf_file(tensors=[described(offset=2**64 - 32)]), r"is truncated"),
        (gguf_file(tensors=[described(), described()]), r"names the tensor 'a' twice"),
        (gguf_file(tensors=[described(), described("b")]), r"'b' overlaps with 'a': damaged file"),
    ],
    ids=by_message,
)
def test_gguf_by_hand(tmp_path, content, message):
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    refused(read_gguf, path, message)


@pytest.fixture
def gguf_by_hand():
    """What the table above damages: nested arrays, gaps between tensors and any alignment are allowed."""
    nested = array(ARRAY, 2, array(U32, 1, b"\1\0\0\0") + array(STRING, 1, text("x")))
    alignment = ("general.alignment", U32, struct.pack("<I", 16))
    tensors = [described("late", offset=32), described("early")]
    return gguf_file(("k", ARRAY, nested), alignment, tensors=tensors, data=bytes(48))


def test_gguf_made_by_hand_is_read(tmp_path, gguf_by_hand):
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf_by_hand)
    file = read_gguf(epath.Path(path))
    assert file.metadata == {"k": [[1], ["x"]], "general.alignment": 16}
    assert file.tensors["late"].offset - file.tensors["early"].offset == 32


def test_every_truncation_of_a_gguf_file(tmp_path, gguf_by_hand):
    path = tmp_path / "model.gguf"
    for length in range(len(gguf_by_hand)):
        path.write_bytes(gguf_by_hand[:length])
        assert read_or_refuse(read_gguf, path) is None


@pytest.fixture
def small_gguf(tmp_path, write_gguf):
    """(path, bytes) of a file with strings, arrays and a quantized tensor."""
    path, quantized = tmp_path / "model.gguf", gguf.GGMLQuantizationType.Q8_0
    numbers = np.linspace(-1, 1, 64, dtype=np.float32).reshape(2, 32)
    arrays = {"q": gguf.quantize(numbers, quantized), "a": A}
    metadata = {"tokenizer.ggml.tokens": ["a", "bc"], "tokenizer.ggml.scores": [1.0, 2.0], "x.flag": True}
    write_gguf(path, arrays, metadata, raw_types={"q": quantized})
    return path, path.read_bytes()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # damaged scales may be infinite
@fuzzed
@given(edit=damage())
def test_damaged_gguf(small_gguf, edit):
    path, content = small_gguf
    path.write_bytes(edit(content))
    file = read_or_refuse(read_gguf, path)
    if file is None:
        return
    assert all(isinstance(value, bool | int | float | str | list) for value in file.metadata.values())
    for tensor in file.tensors.values():
        entry = tensor_entry(epath.Path(path), tensor)
        loaded = read_or_refuse(lambda _, entry=entry: entry.load(), path)
        assert loaded is None or (loaded.shape, loaded.dtype) == (entry.shape, entry.dtype)
