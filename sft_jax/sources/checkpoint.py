"""A pretrained checkpoint, whatever its format: config, lazily loaded tensors, fingerprint.

What the model layer turns into a decoder and its parameters. The formats are read by `huggingface` and `gguf`.
"""

import dataclasses
import os
from collections.abc import Mapping

from sft_jax.sources import gguf, huggingface
from sft_jax.sources.fingerprint import fingerprint_files
from sft_jax.sources.locate import locate
from sft_jax.sources.tensors import TensorEntry


@dataclasses.dataclass(frozen=True)
class PretrainedCheckpoint:
    """Somebody else's model, described but not loaded.

    Attributes:
      name: what the user gave.
      location: the file or directory it was resolved to.
      config: in the form of a Hugging Face `config.json` ("model_type", "hidden_size", …); rope is spelled as in the
        source (`rope_theta` and `rope_scaling`, or `rope_parameters`).
      tensors: Hugging Face tensor name -> entry; `entry.load()` reads one tensor.
      fingerprint: sha256 (hex) of sizes and samples of the files, see `fingerprint_files`.
      revision: the commit hash for a checkpoint from the hub, else None.
    """

    name: str
    location: str
    config: dict
    tensors: Mapping[str, TensorEntry]
    fingerprint: str
    revision: str | None = None


def open_checkpoint(source: str | os.PathLike, revision: str | None = None) -> PretrainedCheckpoint:
    """Opens a checkpoint; reads the config and the headers of the weight files, but no tensor.

    Args:
      source: a Hugging Face directory (one or many safetensors files), a .gguf file, a hub name "org/name", or a
        short name (`smollm2-135m-instruct`).
      revision: branch, tag or commit, for sources from the hub.

    Raises:
      SourceError: if the source does not exist, is damaged, or is of a kind that is not supported.
    """
    location = locate(source, revision)
    read = {"gguf": gguf.read_checkpoint, "huggingface": huggingface.read_checkpoint}[location.kind]
    config, tensors, files = read(location.path)
    return PretrainedCheckpoint(
        name=location.name,
        location=os.fspath(location.path),
        config=config,
        tensors=tensors,
        fingerprint=fingerprint_files(files),
        revision=location.revision,
    )
