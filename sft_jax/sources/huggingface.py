"""Hugging Face directories: config.json and one or many safetensors files.

Safetensors files are read here from their own header (eight bytes of length, JSON, raw data; see
https://huggingface.co/docs/safetensors) because that reads from buckets too, knows bfloat16 without torch, and can
say which file is damaged and how.
"""

import functools
import json
import math
import pathlib

import ml_dtypes
import numpy as np
from etils import epath

from sft_jax.sources.tensors import SourceError, TensorEntry, read_span

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's own library


def read_checkpoint(directory: epath.Path) -> tuple[dict, dict[str, TensorEntry], list[epath.Path]]:
    """(config, tensors by name, files that make the checkpoint) of a Hugging Face directory.

    `model.safetensors` is read if it exists, else the shards that `model.safetensors.index.json` names.

    Raises:
      SourceError: a file is missing, damaged or of another format.
    """
    config = read_config(directory)
    if (directory / WEIGHTS).exists():
        path = directory / WEIGHTS
        return config, read_safetensors(path), [directory / "config.json", path]
    if (directory / INDEX).exists():
        tensors, shards = _read_shards(directory)
        return config, tensors, [directory / "config.json", directory / INDEX, *shards]
    raise SourceError(_missing_weights(directory))


def read_config(directory: epath.Path) -> dict:
    """The config.json of a directory. Raises SourceError if it is missing, not JSON, or has no model_type."""
    path = directory / "config.json"
    if not path.exists():
        found = sorted(file.name for file in directory.glob("*.gguf"))
        hint = f"It holds {found}: give the path of the .gguf file itself." if found else _what_it_holds(directory)
        raise SourceError(f"{directory} has no config.json, so it is not a Hugging Face model directory. {hint}")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise SourceError(f'{path}: has no "model_type"; expected the config.json that transformers writes.')
    return config


def read_json(path: epath.Path) -> dict:
    """The JSON object in a file. Raises SourceError with the line if it is not one."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: is not valid JSON ({error}). Copy or download it again.") from error
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected a JSON object {{…}}, found a {type(content).__name__}.")
    return content


def _read_shards(directory: epath.Path) -> tuple[dict[str, TensorEntry], list[epath.Path]]:
    index_path = directory / INDEX
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f'{index_path}: has no "weight_map" (tensor name -> file name). Download it again.')
    names = sorted({_checked_file_name(index_path, name) for name in weight_map.values()})
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise SourceError(
            f"{directory}: {len(missing)} of the {len(names)} files that {INDEX} names are missing: "
            f"{', '.join(missing[:5])}. Copy or download them too."
        )
    shards = {name: read_safetensors(directory / name) for name in names}
    tensors: dict[str, TensorEntry] = {}
    for name, entries in shards.items():
        indexed = {tensor for tensor, file in weight_map.items() if file == name}
        if indexed != set(entries):
            differing = sorted(indexed ^ set(entries))
            raise SourceError(
                f"{directory / name}: {INDEX} and the file disagree about {len(differing)} tensors, for example "
                f"{differing[:3]}. Index and files are of different checkpoints: download both again."
            )
        tensors |= entries
    return tensors, [directory / name for name in names]


def _checked_file_name(index_path: epath.Path, name: object) -> str:
    """`name`, if it is a plain file name: an index must not lead out of its directory."""
    plain = isinstance(name, str) and name not in ("", ".", "..") and "\\" not in name and "\0" not in name
    if not plain or pathlib.PurePosixPath(name).name != name:
        raise SourceError(f"{index_path}: names the file {name!r}; expected the name of a file in the same directory.")
    return name


def read_safetensors(path: epath.Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, from the header of a safetensors file; the data is read by `entry.load()`.

    Raises:
      SourceError: truncated or damaged file, or a dtype that is not supported.
    """
    size = path.stat().length
    if size < 8:
        raise SourceError(f"{path}: has {size} bytes, too few for a safetensors file. Download it again.")
    header_bytes = int(read_span(path, 0, 8).view("<u8")[0])
    if header_bytes > _MAX_HEADER_BYTES:
        raise SourceError(f"{path}: is not a safetensors file (its header would have {header_bytes} bytes).")
    header = _parse_header(path, read_span(path, 8, header_bytes).tobytes())
    data_start = 8 + header_bytes
    entries = {}
    for name, fields in header.items():
        entries[name] = _entry(path, name, fields, data_start, size)
    return entries


def _parse_header(path: epath.Path, content: bytes) -> dict:
    try:
        header = json.loads(content.decode("utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: its safetensors header is not valid JSON ({error}). Download it again.") from error
    if not isinstance(header, dict):
        raise SourceError(f"{path}: its safetensors header is not a JSON object. Download it again.")
    header.pop("__metadata__", None)
    return header


def _entry(path: epath.Path, name: str, fields: object, data_start: int, size: int) -> TensorEntry:
    try:
        dtype_name, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{path}: the header's entry of {name!r} is damaged: {fields!r}.") from error
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise SourceError(f"{path}: the header's entry of {name!r} is damaged: {fields!r}.")
    if dtype_name not in _DTYPES:
        raise SourceError(
            f"{path}: {name!r} has the dtype {dtype_name}; supported are {', '.join(_DTYPES)}. "
            "Use a checkpoint that is not quantized."
        )
    dtype = _DTYPES[dtype_name]
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise SourceError(
            f"{path}: {name!r} has {end - begin} bytes, which does not fit its shape {shape} {dtype_name}."
        )
    if data_start + end > size:
        raise SourceError(
            f"{path}: the file is truncated: it has {size} bytes and {name!r} would end at {data_start + end}. "
            "Copy or download it again."
        )
    return TensorEntry(shape, dtype, functools.partial(_load, path, data_start + begin, end - begin, shape, dtype))


def _load(path: epath.Path, offset: int, num_bytes: int, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    return read_span(path, offset, num_bytes).view(dtype).reshape(shape)


def _missing_weights(directory: epath.Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    start = f"{directory} has neither {WEIGHTS} nor {INDEX}. "
    if "adapter_config.json" in names:
        return start + "It holds a PEFT adapter: give the base model's directory."
    if any(name.endswith(".safetensors") for name in names):
        return start + (
            f"It holds other safetensors files; expected {WEIGHTS}, or shards together with {INDEX}. "
            + _what_it_holds(directory)
        )
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return start + (
            "It holds pickled weights (.bin, .pt), which can run code when opened and are not read. Convert them where "
            'torch is installed: python -c "from transformers import AutoModelForCausalLM as M; '
            f"M.from_pretrained('{directory}').save_pretrained('{directory}')\""
        )
    return start + _what_it_holds(directory)


def _what_it_holds(directory: epath.Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return "It holds: " + (", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing") + "."
