"""Reads GGUF files, as llama.cpp writes them, as a config, tensor names and layouts of Hugging Face.

llama.cpp's conventions are undone here, as `gguf_architectures` lists them for each architecture.
"""

import dataclasses
import re

from etils import epath

from sft_jax.sources.gguf_architectures import ARCHITECTURES
from sft_jax.sources.gguf_conventions import INSTEAD, PREDICTED, Architecture, num_layers
from sft_jax.sources.gguf_file import GgufFile, read_gguf, tensor_entry
from sft_jax.sources.gguf_metadata import ModelMetadata
from sft_jax.sources.tensors import SourceError, TensorEntry

_OF_LAYER = re.compile(r"blk\.(?P<layer>\d+)\.(?P<name>.+)")


def read_checkpoint(path: epath.Path) -> tuple[dict, dict[str, TensorEntry], list[epath.Path]]:
    """(config, float32 tensors by Hugging Face name, [path]) of a GGUF file.

    Raises:
      SourceError: not a GGUF file, damaged, of another architecture, or with tensors or metadata that are not known.
    """
    metadata = ModelMetadata(read_gguf(path))
    if metadata.architecture not in ARCHITECTURES:
        raise SourceError(
            f"{path}: is of the architecture {metadata.architecture!r}; GGUF files of {', '.join(ARCHITECTURES)} are "
            f"supported. {INSTEAD}"
        )
    architecture = ARCHITECTURES[metadata.architecture]
    _check_supported(metadata, architecture)
    if PREDICTED in architecture.keys:
        metadata = _without_predicted_tokens(metadata)
    config = architecture.config(metadata)
    return config, _tensors(metadata.file, architecture, config), [path]


def _check_supported(metadata: ModelMetadata, architecture: Architecture) -> None:
    file = metadata.file
    if metadata.get("expert_count", 0) and not architecture.composed:
        raise SourceError(
            f"{file.path}: is a mixture of experts, which is not supported for GGUF files of this architecture. "
            + INSTEAD
        )
    if file.metadata.get("split.count", 1) != 1:
        raise SourceError(
            f"{file.path}: is one part of a split GGUF file. Join the parts with `llama-gguf-split --merge`."
        )
    unknown = sorted(set(metadata.keys()) - architecture.keys)
    if unknown:
        raise SourceError(
            f"{file.path}: has metadata of features that are not supported: "
            + ", ".join(f"{metadata.name(key)} = {str(metadata.get(key))[:60]}" for key in unknown)
            + f". {INSTEAD}"
        )


def _without_predicted_tokens(metadata: ModelMetadata) -> ModelMetadata:
    """Layers of multi-token prediction lie behind the others, and are left aside as those of other formats are."""
    layers, file = num_layers(metadata), metadata.file
    kept = {
        name: tensor
        for name, tensor in file.tensors.items()
        if not (found := _OF_LAYER.fullmatch(name)) or not layers <= int(found["layer"]) < metadata.get("block_count")
    }
    return ModelMetadata(dataclasses.replace(file, tensors=kept))


def _tensors(file: GgufFile, architecture: Architecture, config: dict) -> dict[str, TensorEntry]:
    tensors, unknown, used = {}, [], set()
    for compose in architecture.composed:
        made, parts = compose(file, config)
        tensors |= made
        used |= parts
    for name, tensor in file.tensors.items():
        match = _OF_LAYER.fullmatch(name)
        within = match["name"] if match else name
        part = within.partition(".")[0]
        if name in used or (match is None and part in architecture.read_by_config):
            continue
        target = _hugging_face_name(within, architecture.layer if match else architecture.outer)
        if target is None:
            unknown.append(name)
            continue
        entry = tensor_entry(file.path, tensor)
        if part in architecture.layouts:
            entry = architecture.layouts[part](entry, config, f"{file.path}: {name}")
        tensors[f"model.layers.{match['layer']}.{target}" if match else target] = entry
    if unknown:
        raise SourceError(
            f"{file.path}: {len(unknown)} tensors are not part of a {config['model_type']} model: "
            f"{', '.join(sorted(unknown)[:5])}. {INSTEAD}"
        )
    return tensors


def _hugging_face_name(name: str, known: dict[str, str]) -> str | None:
    """The name of a tensor in its layer; None if it is none of an architecture."""
    if name in known:
        return known[name]
    part, _, kind = name.partition(".")
    return f"{known[part]}.{kind}" if part in known and kind in ("weight", "bias") else None
