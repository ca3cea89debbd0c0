"""Hugging Face directories: what is read, and what each kind of damage is answered with."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from sft_jax.sources import SourceError, open_checkpoint
from tests import buckets

CONFIG = {"model_type": "llama", "hidden_size": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
A = np.arange(12, dtype=np.float32).reshape(3, 4) / 7
B = np.arange(5, dtype=np.float32) - 2


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


@pytest.fixture
def sharded(directory, write_safetensors):
    write_safetensors(directory / "model-00001-of-00002.safetensors", {"a": A})
    write_safetensors(directory / "model-00002-of-00002.safetensors", {"b": B})
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    write_index(directory, weight_map)
    return directory


def write_index(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_one_file(directory, write_safetensors, dtype):
    write_safetensors(directory / "model.safetensors", {"a": A.astype(dtype), "b": B.astype(dtype)})
    checkpoint = open_checkpoint(directory)
    assert checkpoint.config == CONFIG
    assert checkpoint.location == checkpoint.name == str(directory)
    assert checkpoint.revision is None
    assert {name: (entry.shape, entry.dtype) for name, entry in checkpoint.tensors.items()} == {
        "a": ((3, 4), np.dtype(dtype)),
        "b": ((5,), np.dtype(dtype)),
    }
    loaded = checkpoint.tensors["a"].load()
    assert loaded.dtype == dtype
    np.testing.assert_array_equal(loaded.astype(np.float32), A.astype(dtype).astype(np.float32))
    loaded[0, 0] = 99  # writable, and no view of what the next call returns
    assert checkpoint.tensors["a"].load()[0, 0] == 0


def test_reads_what_the_safetensors_library_writes(directory):
    arrays = {"scalar": np.array(3, np.float32), "empty": np.zeros((0, 4), np.float32), "ids": np.arange(3)}
    save_file(arrays, directory / "model.safetensors")
    tensors = open_checkpoint(directory).tensors
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name].load(), array)
        assert tensors[name].dtype == array.dtype


def test_shards(sharded):
    checkpoint = open_checkpoint(sharded)
    np.testing.assert_array_equal(checkpoint.tensors["a"].load(), A)
    np.testing.assert_array_equal(checkpoint.tensors["b"].load(), B)


def test_tensors_are_read_when_asked_for(directory, write_safetensors):
    path = directory / "model.safetensors"
    write_safetensors(path, {"a": A})
    entry = open_checkpoint(directory).tensors["a"]
    content = path.read_bytes()
    path.write_bytes(content[:-4] + np.float32(42).tobytes())
    assert entry.load()[-1, -1] == 42
    path.write_bytes(content[:-4])
    with pytest.raises(SourceError, match=r"model.safetensors: the file ends early"):
        entry.load()


def test_fingerprint_follows_content_and_config(directory, write_safetensors):
    def fingerprint(array, config=CONFIG):
        (directory / "config.json").write_text(json.dumps(config))
        write_safetensors(directory / "model.safetensors", {"a": array})
        return open_checkpoint(directory).fingerprint

    first = fingerprint(A)
    assert len(first) == 64
    assert fingerprint(A) == first
    assert fingerprint(A + 1) != first
    assert fingerprint(A, CONFIG | {"hidden_size": 5}) != first


def test_bucket(directory, write_safetensors):
    write_safetensors(directory / "model.safetensors", {"a": A})
    bucket = buckets.empty("model")
    for path in directory.iterdir():
        (bucket / path.name).write_bytes(path.read_bytes())
    checkpoint = open_checkpoint("gs://bucket/model")
    np.testing.assert_array_equal(checkpoint.tensors["a"].load(), A)
    assert checkpoint.fingerprint == open_checkpoint(directory).fingerprint


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, r"has no config.json.*It holds: model.safetensors"),
        ("config.json", b'{"model_type": ', r"config.json: is not valid JSON .*line 1"),
        ("config.json", b"\xff\xfe", r"config.json: is not valid JSON"),
        ("config.json", b"[1]", r"config.json: expected a JSON object .* found a list"),
        ("config.json", b"{}", r'config.json: has no "model_type"'),
        ("model.safetensors", b"1234", r"model.safetensors: has 4 bytes, too few"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", r"is not a safetensors file"),
        ("model.safetensors", b"\x09" + b"\0" * 7 + b"not json!", r"header is not valid JSON"),
        ("model.safetensors", b"\xff" + b"\0" * 7 + b"{}", r"the file ends early \(10 bytes, expected at least 263\)"),
    ],
)
def test_damaged_files(directory, write_safetensors, name, content, message):
    write_safetensors(directory / "model.safetensors", {"a": A})
    if content is None:
        (directory / name).unlink()
    else:
        (directory / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        open_checkpoint(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "F8_E4M3"}, r"'a' has the dtype F8_E4M3; supported are F64, F32"),
        ({"shape": [3, 5]}, r"'a' has 48 bytes, which does not fit its shape \(3, 5\) F32"),
        ({"data_offsets": [4, 52]}, r"is truncated: it has \d+ bytes and 'a' would end at \d+"),
        ({"data_offsets": [-4, 44]}, r"entry of 'a' is damaged"),
        ({"shape": None}, r"entry of 'a' is damaged"),
    ],
)
def test_damaged_headers(directory, write_safetensors, change, message):
    write_safetensors(directory / "model.safetensors", {"a": A}, a=change)
    with pytest.raises(SourceError, match=message):
        open_checkpoint(directory)


def test_missing_shard(sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match=r"1 of the 2 files .* are missing: model-00002-of-00002.safetensors"):
        open_checkpoint(sharded)


def test_missing_index(sharded):
    (sharded / "model.safetensors.index.json").unlink()
    with pytest.raises(
        SourceError, match=r"neither model.safetensors nor model.safetensors.index.json.*shards together"
    ):
        open_checkpoint(sharded)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", 7, "a\\b"])
def test_index_cannot_lead_out_of_its_directory(sharded, file):
    write_index(sharded, {"a": file})
    with pytest.raises(SourceError, match=r"index.json: names the file .* expected the name of a file in the same"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    "weight_map",
    [
        {"a": "model-00001-of-00002.safetensors"} | dict.fromkeys("bc", "model-00002-of-00002.safetensors"),
        {"c": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    ],
)
def test_index_and_files_must_agree(sharded, weight_map):
    write_index(sharded, weight_map)
    with pytest.raises(SourceError, match=r"the file disagree about .*'c'"):
        open_checkpoint(sharded)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pytorch_model.bin", r"Pickled weights .* Convert them .*save_pretrained"),
        ("consolidated.00.pth", r"pickled weights"),
        ("adapter_config.json", r"PEFT adapter: give the base model"),
        ("consolidated.safetensors", r"other safetensors files"),
        ("README.md", r"It holds: README.md, config.json\."),
    ],
)
def test_other_formats(directory, name, message):
    (directory / name).write_bytes(b"x")
    with pytest.raises(SourceError, match=message):
        open_checkpoint(directory)


def test_directory_with_a_gguf_file(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(SourceError, match=r"It holds \['model.gguf'\]: give the path of the .gguf file itself"):
        open_checkpoint(tmp_path)
