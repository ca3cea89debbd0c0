"""Reads Hugging Face directories: config.json and one or many safetensors files.

Safetensors files are parsed here (eight bytes of length, a JSON header, raw data; see
https://huggingface.co/docs/safetensors) and not by the `safetensors` library, so that they can lie in buckets, bfloat16
needs no torch, and errors say which file is damaged and how.
"""

import collections
import functools
import json
import math
import pathlib
import reprlib

import ml_dtypes
import numpy as np
from etils import epath

from sft_jax.sources import mxfp4, stacked_experts
from sft_jax.sources.tensors import (
    MAX_HEADER_BYTES,
    SourceError,
    TensorEntry,
    check_apart,
    check_shape,
    file_size,
    is_whole,
    read_rows,
    read_span,
)

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"

DTYPES = {
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
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_MAX_JSON_BYTES = 100_000_000  # the largest tokenizer.json known has 35 MB


def read_checkpoint(directory: epath.Path) -> tuple[dict, dict[str, TensorEntry], list[epath.Path]]:
    """(config, tensors by name, files that make the checkpoint) of a Hugging Face directory.

    `model.safetensors` is read if it exists, else the shards that `model.safetensors.index.json` names.

    Raises:
      SourceError: a file is missing, damaged or of another format.
    """
    config = read_config(directory)
    if (directory / WEIGHTS).exists():
        path = directory / WEIGHTS
        tensors, files = read_safetensors(path), [path]
    elif (directory / INDEX).exists():
        tensors, shards = _read_shards(directory)
        files = [directory / INDEX, *shards]
    else:
        raise SourceError(_missing_weights(directory))
    if config["model_type"] in mxfp4.MODEL_TYPES:
        tensors = mxfp4.decoded(tensors, str(directory))
    if config["model_type"] in stacked_experts.MODEL_TYPES:
        tensors = stacked_experts.one_by_one(tensors)
    return config, tensors, [directory / "config.json", *files]


def read_config(directory: epath.Path) -> dict:
    """The config.json of a directory, which no longer says that weights are in few bits where they are decoded.

    Raises:
      SourceError: it is missing, not JSON, has no model_type, or is of weights in few bits that are not read.
    """
    path = directory / "config.json"
    if not path.exists():
        found = sorted(file.name for file in directory.glob("*.gguf"))
        hint = f"It holds {found}: give the path of the .gguf file itself." if found else _what_it_holds(directory)
        raise SourceError(f"{directory} has no config.json, so it is not a Hugging Face model directory. {hint}")
    config = read_json(path)
    if not isinstance(config.get("model_type"), str):
        raise SourceError(f'{path}: has no "model_type"; expected the config.json that transformers writes.')
    if mxfp4.is_read(config):
        del config["quantization_config"]
    if config.get("quantization_config"):
        raise SourceError(f"{path}: {_quantized(config['quantization_config'])}")
    return config


_WITH_TRANSFORMERS = (
    " Where there is none, write one with transformers: python -c 'import transformers as T; "
    'T.AutoModelForCausalLM.from_pretrained("SOURCE"{}).save_pretrained("DIRECTORY"); '
    'T.AutoTokenizer.from_pretrained("SOURCE").save_pretrained("DIRECTORY")\''
)
_DEQUANTIZED = {  # methods of which transformers gives plain weights back; of others, as gptq and awq, it does not
    "bitsandbytes": _WITH_TRANSFORMERS.format(").dequantize("),
    "fp8": _WITH_TRANSFORMERS.format(", quantization_config=T.FineGrainedFP8Config(dequantize=True)"),
}


def _quantized(settings: object) -> str:
    """What to do with a checkpoint in few bits."""
    given = settings if isinstance(settings, dict) else {}
    method = given.get("quant_method", "an unknown method")
    bits = next((f" in {bits} bits" for bits in (4, 8) if given.get(f"load_in_{bits}bit")), "")
    return (
        f"the weights are quantized ({method}{bits}), which is not read. Give the checkpoint that they were made of; "
        "under an adapter its weights are kept in few bits by --config.precision.quantized=nf4 or int8."
        f"{_DEQUANTIZED.get(str(method), '')}"
    )


def read_json(path: epath.Path) -> dict:
    """The JSON object in a file. Raises SourceError with the line if it is not one."""
    size = file_size(path)
    if not 0 < size <= _MAX_JSON_BYTES:
        raise SourceError(f"{path}: has {size} bytes; expected from 1 to {_MAX_JSON_BYTES}. Copy or download it again.")
    return _parse_json(f"{path}:", read_span(path, 0, size).tobytes())


def _parse_json(what: str, content: bytes) -> dict:
    """The JSON object that `content` is, by the letter: no key twice, no NaN. Errors begin with `what`."""
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, a number of 5,000 digits
        raise SourceError(f"{what} is not valid JSON ({error}). Copy or download it again.") from error
    if not isinstance(found, dict):
        raise SourceError(f"{what} expected a JSON object {{…}}, found a {type(found).__name__}.")
    return found


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = collections.Counter(key for key, _ in pairs)
        raise ValueError(f"it has the key {reprlib.repr(counts.most_common(1)[0][0])} twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def shard_names(directory: epath.Path) -> dict[str, set[str]]:
    """File name -> names of its tensors, from `model.safetensors.index.json`.

    The names must be plain: an index cannot lead out of its directory. Symbolic links are followed, because the
    cache of the hub consists of them.

    Raises:
      SourceError: it names no files, files of another format, or files elsewhere.
    """
    path = directory / INDEX
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f'{path}: has no "weight_map" (tensor name -> file name). Download it again.')
    shards: dict[str, set[str]] = {}
    for tensor, file in weight_map.items():
        shards.setdefault(_checked_file_name(path, file), set()).add(tensor)
    return dict(sorted(shards.items()))


def _checked_file_name(index_path: epath.Path, name: object) -> str:
    plain = isinstance(name, str) and name.isprintable() and "\\" not in name
    if not plain or name in ("", "..") or pathlib.PurePosixPath(name).name != name:
        raise SourceError(
            f"{index_path}: names the file {reprlib.repr(name)}; expected the name of a file in the same directory."
        )
    if not name.endswith(".safetensors"):
        advice = f" {pickle_advice(index_path.parent)}" if name.endswith(_PICKLED) else ""
        raise SourceError(f"{index_path}: names the file {name!r}; expected names that end in .safetensors.{advice}")
    return name


def _read_shards(directory: epath.Path) -> tuple[dict[str, TensorEntry], list[epath.Path]]:
    shards = shard_names(directory)
    missing = [name for name in shards if not (directory / name).exists()]
    if missing:
        raise SourceError(
            f"{directory}: {len(missing)} of the {len(shards)} files that {INDEX} names are missing: "
            f"{', '.join(missing[:5])}. Copy or download them too."
        )
    tensors: dict[str, TensorEntry] = {}
    for name, indexed in shards.items():
        entries = read_safetensors(directory / name)
        if indexed != set(entries):
            differing = sorted(indexed ^ set(entries))
            raise SourceError(
                f"{directory / name}: {INDEX} and the file disagree about {len(differing)} tensors, for example "
                f"{reprlib.repr(differing[:3])}. Index and files are of different checkpoints: download both again."
            )
        tensors |= entries
    return tensors, [directory / name for name in shards]


def read_safetensors(path: epath.Path) -> dict[str, TensorEntry]:
    """Tensor name -> entry, from the header of a safetensors file; the data is read by `entry.load()`.

    Raises:
      SourceError: truncated or damaged file, or a dtype that is not supported.
    """
    size = file_size(path)
    if size < 8:
        raise SourceError(f"{path}: has {size} bytes, too few for a safetensors file. Download it again.")
    header_bytes = int(read_span(path, 0, 8).view("<u8")[0])
    if header_bytes > MAX_HEADER_BYTES:
        raise SourceError(f"{path}: is not a safetensors file (its header would have {header_bytes} bytes).")
    data_start = 8 + header_bytes
    if data_start > size:
        raise SourceError(
            f"{path}: the file ends early ({size} bytes, expected at least {data_start}). "
            "It is incomplete: copy or download it again."
        )
    header = _parse_json(f"{path}: its safetensors header", read_span(path, 8, header_bytes).tobytes())
    if not isinstance(header.pop("__metadata__", {}), dict):
        raise SourceError(f"{path}: the header's __metadata__ is not a JSON object. Download it again.")
    parsed = {name: _entry(path, name, fields, data_start, size) for name, fields in header.items()}
    check_apart(path, [(begin, end, name) for name, (begin, end, _) in parsed.items()], gapless=True)
    data_end = data_start + max((end for _, end, _ in parsed.values()), default=0)
    if data_end != size:
        raise SourceError(
            f"{path}: has {size - data_end} bytes after its last tensor: damaged file. Copy or download it again."
        )
    return {name: entry for name, (_, _, entry) in parsed.items()}


def _entry(path: epath.Path, name: str, fields: object, data_start: int, size: int) -> tuple[int, int, TensorEntry]:
    """(begin and end after the header, entry) of one tensor."""
    numbers = _numbers(fields)
    if numbers is None:
        raise SourceError(f"{path}: the header's entry of {name!r} is damaged: {reprlib.repr(fields)}.")
    shape, begin, end = numbers
    dtype_name = fields["dtype"]
    if dtype_name not in DTYPES:
        raise SourceError(
            f"{path}: {name!r} has the dtype {dtype_name}; supported are {', '.join(DTYPES)}. "
            "Use a checkpoint that is not quantized."
        )
    dtype = DTYPES[dtype_name]
    check_shape(path, name, shape)
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise SourceError(
            f"{path}: {name!r} has {end - begin} bytes, which does not fit its shape {shape} {dtype_name}."
        )
    if data_start + end > size:
        raise SourceError(
            f"{path}: the file is truncated: it has {size} bytes and {name!r} would end at {data_start + end}. "
            "Copy or download it again."
        )
    read = functools.partial(_read, path, data_start + begin, end - begin, shape, dtype)
    return begin, end, TensorEntry(shape, dtype, read)


def _numbers(fields: object) -> tuple[tuple[int, ...], int, int] | None:
    """(shape, begin, end) of a header's entry, or None if it is not of the form that the format prescribes."""
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    shape, offsets = fields["shape"], fields["data_offsets"]
    if not isinstance(fields["dtype"], str) or not isinstance(shape, list) or not isinstance(offsets, list):
        return None
    if len(offsets) != 2 or not all(is_whole(number) for number in (*shape, *offsets)):
        return None
    return tuple(shape), *offsets


def _read(
    path: epath.Path, offset: int, num_bytes: int, shape: tuple[int, ...], dtype: np.dtype, start: int, stop: int
) -> np.ndarray:
    content = read_rows(path, offset, num_bytes, shape, start, stop).view(dtype)
    return content.reshape(stop - start, *shape[1:]) if shape else content.reshape(())


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
    if any(name.endswith(_PICKLED) for name in names):
        return start + "It holds pickled weights. " + pickle_advice(directory)
    return start + _what_it_holds(directory)


def is_pickled(path: epath.Path) -> bool:
    """A file of the kind that torch writes with pickle."""
    return path.suffix in _PICKLED


def pickle_advice(directory: epath.Path) -> str:
    """Why pickled weights are not read, and what to do."""
    return (
        "Pickled weights (.bin, .pt) can run code when opened and are not read. Convert them where torch is "
        'installed: python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{directory}').save_pretrained('{directory}')\""
    )


def _what_it_holds(directory: epath.Path) -> str:
    names = sorted(path.name for path in directory.iterdir())
    return "It holds: " + (", ".join(names[:8]) + (" …" if len(names) > 8 else "") if names else "nothing") + "."
