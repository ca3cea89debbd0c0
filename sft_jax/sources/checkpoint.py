"""A pretrained checkpoint, whatever its format: config, lazily loaded tensors, fingerprint.

The model layer (`sft_jax.models`) makes a decoder and its parameters of it. `huggingface` and `gguf` read the formats.
"""

import dataclasses
import os
from collections.abc import Mapping

from sft_jax.sources import gguf, huggingface, random_weights
from sft_jax.sources.fingerprint import fingerprint_files
from sft_jax.sources.locate import locate
from sft_jax.sources.tensors import TensorEntry
from sft_jax.sources.wrappers import Wrapper, unwrapped


@dataclasses.dataclass(frozen=True)
class PretrainedCheckpoint:
    """Somebody else's model, described but not loaded.

    Attributes:
      name: what the user gave.
      location: the file or directory it was resolved to.
      config: in the form of a Hugging Face `config.json` ("model_type", "hidden_size", …); rope is spelled as in the
        source (`rope_theta` and `rope_scaling`, or `rope_parameters`). Of a multimodal wrapper, that of its text model.
      tensors: Hugging Face tensor name -> entry; `entry.load()` reads one tensor.
      fingerprint: sha256 (hex) of sizes and samples of the files, see `fingerprint_files`.
      revision: the commit hash for a checkpoint from the hub, else None.
      random_seed: seed of weights that are to be made at random; then there are no tensors.
      wrapper: what is around the text model, where the files are of a multimodal wrapper; else None.
    """

    name: str
    location: str
    config: dict
    tensors: Mapping[str, TensorEntry]
    fingerprint: str
    revision: str | None = None
    random_seed: int | None = None
    wrapper: Wrapper | None = None

    def stored_name(self, tensor: str) -> str:
        """The name of a tensor in the files."""
        return tensor if self.wrapper is None else self.wrapper.stored_name(tensor)


def open_checkpoint(source: str | os.PathLike, revision: str | None = None) -> PretrainedCheckpoint:
    """Opens a checkpoint; reads the config and the headers of the weight files, but no tensor.

    Args:
      source: a Hugging Face directory (one or many safetensors files), a .gguf file, a hub name "org/name", a
        short name (`smollm2-135m-instruct`), or `random:` and any of these (see `random_weights`).
      revision: branch, tag or commit, for sources from the hub.

    Raises:
      SourceError: if the source does not exist, is damaged, or is of a kind that is not supported.
    """
    asked = random_weights.parse(os.fspath(source))
    if asked is not None:
        return _without_weights(os.fspath(source), asked, revision)
    location = locate(source, revision)
    read = {"gguf": gguf.read_checkpoint, "huggingface": huggingface.read_checkpoint}[location.kind]
    config, tensors, files = read(location.path)
    config, tensors, wrapper = unwrapped(config, tensors, os.fspath(location.path))
    return PretrainedCheckpoint(
        name=location.name,
        location=os.fspath(location.path),
        config=config,
        tensors=tensors,
        fingerprint=fingerprint_files(files),
        revision=location.revision,
        wrapper=wrapper,
    )


def _without_weights(name: str, asked: random_weights.RandomSource, revision: str | None) -> PretrainedCheckpoint:
    location = locate(asked.source, revision, with_weights=False)
    read = gguf.read_checkpoint(location.path)[0] if location.kind == "gguf" else huggingface.read_config(location.path)
    text, _, _ = unwrapped(read, {}, os.fspath(location.path))
    config = random_weights.overridden(text, asked.overrides)
    return PretrainedCheckpoint(
        name=name,
        location=os.fspath(location.path),
        config=config,
        tensors={},
        fingerprint=random_weights.fingerprint(config, asked.seed),
        revision=location.revision,
        random_seed=asked.seed,
    )
