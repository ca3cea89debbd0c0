"""Writers of small checkpoint files, good and damaged."""

import json
import struct

import gguf
import ml_dtypes
import numpy as np
import pytest

SAFETENSORS_DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(ml_dtypes.bfloat16): "BF16"}


@pytest.fixture
def write_safetensors():
    """Writes {name: array} by hand, so that the reader is not tested against itself."""

    def write(path, arrays, **header_changes):
        header, data = {"__metadata__": {"format": "pt"}}, b""
        for name, array in arrays.items():
            header[name] = {
                "dtype": SAFETENSORS_DTYPES[array.dtype],
                "shape": list(array.shape),
                "data_offsets": [len(data), len(data) + array.nbytes],
            } | header_changes.get(name, {})
            data += array.tobytes()
        content = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(content)) + content + data)

    return write


LLAMA_METADATA = {
    "llama.context_length": 128,
    "llama.embedding_length": 32,
    "llama.block_count": 1,
    "llama.feed_forward_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}
LLAMA_SHAPES = {
    "token_embd.weight": (48, 32),
    "output_norm.weight": (32,),
    "blk.0.attn_norm.weight": (32,),
    "blk.0.attn_q.weight": (32, 32),
    "blk.0.attn_k.weight": (16, 32),
    "blk.0.attn_v.weight": (16, 32),
    "blk.0.attn_output.weight": (32, 32),
    "blk.0.ffn_norm.weight": (32,),
    "blk.0.ffn_gate.weight": (64, 32),
    "blk.0.ffn_up.weight": (64, 32),
    "blk.0.ffn_down.weight": (32, 64),
}


@pytest.fixture
def llama_arrays():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in LLAMA_SHAPES.items()}


@pytest.fixture(scope="session")
def write_gguf():
    """Writes a GGUF file; `metadata` is laid over that of a tiny Llama, and None takes a key out.

    `raw_types`: quantization types of arrays that are blocks of bytes.
    """

    def write(path, arrays, metadata=None, architecture="llama", raw_types=None):
        writer = gguf.GGUFWriter(path, architecture)
        for key, value in (LLAMA_METADATA | (metadata or {})).items():
            if value is None:
                continue
            if isinstance(value, list):
                writer.add_array(key, value)
                continue
            {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[
                type(value)
            ](key, value)
        for name, array in arrays.items():
            writer.add_tensor(name, array, raw_dtype=(raw_types or {}).get(name))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write
