"""Loads the tokenizer of a source with its chat template, without torch.

`sft_jax.data` renders conversations with it; it comes from the same place as the weights (`locate`).
"""

import contextlib
import os
import pathlib
import reprlib
import tempfile
from collections.abc import Iterator

import tokenizers
from etils import epath

from sft_jax.sources import gguf_tokenizer, hub, random_weights
from sft_jax.sources.huggingface import read_json
from sft_jax.sources.locate import locate
from sft_jax.sources.tensors import SourceError
from sft_jax.sources.transformers_types import PreTrainedTokenizerFast

_JSON_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_OF_PROCESSORS = "chat_template.json"  # {"chat_template": …}, as processors of multimodal models were saved
_VOCABULARY_FILES = ("tokenizer.json", "vocab.json", "tokenizer.model")


def load_tokenizer(source: str | os.PathLike, revision: str | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer of a Hugging Face directory, a .gguf file, a hub name or a short name.

    A tokenizer without a chat template has `chat_template` None, one with several has them by name. Truncation and
    padding that a tokenizer.json may have switched on are switched off: they would silently cut training examples.

    Args:
      source: as for `open_checkpoint`; of a hub repository only config and tokenizer files are downloaded.
      revision: branch, tag or commit, for sources from the hub.

    Raises:
      SourceError: no such source, no tokenizer in it, or one that cannot be read.
    """
    asked = random_weights.parse(os.fspath(source))
    location = locate(source if asked is None else asked.source, revision, with_weights=False)
    if location.kind == "gguf":
        return gguf_tokenizer.read_tokenizer(location.path)
    return _read_directory(location.path)


def _read_directory(directory: epath.Path) -> PreTrainedTokenizerFast:
    import transformers  # slow to import

    present = [name for name in _VOCABULARY_FILES if (directory / name).exists()]
    if not present:
        raise SourceError(
            f"{directory} has no tokenizer: expected {' or '.join(_VOCABULARY_FILES)}. Copy the tokenizer files of the "
            "base model into it."
        )
    for name in _JSON_FILES:
        if (directory / name).exists():
            read_json(directory / name)  # a damaged file gets its own error here
    if "tokenizer.json" in present:
        _check_vocabulary(directory / "tokenizer.json")
    # tokenizer.json says everything, and is taken as it is written. AutoTokenizer would rebuild the splitting of text
    # from the class named in tokenizer_config.json (transformers 5 then loses the digit splitting of SmolLM2, whose
    # class is GPT2Tokenizer), and imports torch where it is installed.
    loader = transformers.PreTrainedTokenizerFast if "tokenizer.json" in present else transformers.AutoTokenizer
    with _on_disk(directory) as folder:
        try:
            tokenizer = loader.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise SourceError(
                f"{directory}: transformers cannot build its tokenizer ({type(error).__name__}: {error}). A field of "
                f"{' or '.join(_JSON_FILES)} is damaged: copy or download them again."
            ) from error
    if not isinstance(tokenizer, transformers.PreTrainedTokenizerFast):
        raise SourceError(
            f"{directory}: transformers reads its tokenizer as {type(tokenizer).__name__}, which is written in Python "
            "and cannot tell where in the text a token lies. Save one with a tokenizer.json (`save_pretrained`)."
        )
    if tokenizer.chat_template is None and (directory / _OF_PROCESSORS).exists():
        tokenizer.chat_template = read_json(directory / _OF_PROCESSORS).get("chat_template")
    _check_templates(tokenizer.chat_template, directory)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _check_templates(found: object, directory: epath.Path) -> None:
    """Raises SourceError unless it is a chat template, several by name, or None."""
    texts = [*found.keys(), *found.values()] if isinstance(found, dict) else [] if found is None else [found]
    if not all(isinstance(text, str) for text in texts):
        raise SourceError(f"{directory}: its chat_template is {reprlib.repr(found)}; expected text, or texts by name.")


def _check_vocabulary(path: epath.Path) -> None:
    """Raises SourceError if the `tokenizers` library cannot read the file."""
    try:
        tokenizers.Tokenizer.from_buffer(path.read_bytes())
    except Exception as error:  # the only class that this library raises
        raise SourceError(f"{path}: is not a tokenizer ({error}). Copy or download it again.") from error


@contextlib.contextmanager
def _on_disk(directory: epath.Path) -> Iterator[str]:
    """The directory itself, or for one in a bucket a temporary copy of its tokenizer files."""
    if pathlib.Path(directory).is_dir():
        yield os.fspath(directory)
        return
    with tempfile.TemporaryDirectory() as copy:
        for name in (*hub.CONFIG_FILES, *hub.TOKENIZER_FILES):
            if (directory / name).exists():
                pathlib.Path(copy, name).write_bytes((directory / name).read_bytes())
        if (directory / hub.TEMPLATE_FOLDER).exists():
            pathlib.Path(copy, hub.TEMPLATE_FOLDER).mkdir()
            for file in (directory / hub.TEMPLATE_FOLDER).glob("*.jinja"):
                pathlib.Path(copy, hub.TEMPLATE_FOLDER, file.name).write_bytes(file.read_bytes())
        yield copy
