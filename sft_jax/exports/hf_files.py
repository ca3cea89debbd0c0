"""The small files of a Hugging Face directory: config, generation config, tokenizer with its chat template."""

import json
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

from etils import epath

from sft_jax.models.config import DecoderConfig
from sft_jax.sources.hub import PROCESSOR_FILES
from sft_jax.sources.huggingface import read_json
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG = "config.json", "generation_config.json", "tokenizer_config.json"
_SENTENCEPIECE = "tokenizer.model"
_CLASS = "PreTrainedTokenizerFast"
_OF_ELSEWHERE = ("_name_or_path",)
# Layers of multi-token prediction, which are not written but among the rest of a wrapper.
_LEFT_ASIDE = ("mtp_num_hidden_layers", "num_mtp_layers", "num_nextn_predict_layers")


def model_config(
    hf_config: dict[str, Any],
    decoder: DecoderConfig,
    stop_ids: Sequence[int],
    tokenizer: Any,
    dtype: str,
    wrapped: bool = False,
) -> dict[str, Any]:
    """`config.json`: the source's, with what changed.

    Args:
        hf_config: as the source had it; synthesised where that was no Hugging Face directory.
        decoder: has the size of the vocabulary.
        stop_ids: ids that end an answer.
        tokenizer: has the ids of its special tokens.
        dtype: of the weights.
        wrapped: it is the text part of a wrapper, with all of which it is written.
    """
    config = {name: value for name, value in hf_config.items() if name not in _OF_ELSEWHERE}
    config["torch_dtype" if "torch_dtype" in config else "dtype"] = dtype
    if not wrapped:
        config |= {name: 0 for name in _LEFT_ASIDE if config.get(name)}
    return config | {"vocab_size": decoder.vocab_size} | _special_ids(stop_ids, tokenizer)


def generation_config(source: epath.Path | None, stop_ids: Sequence[int], tokenizer: Any) -> dict[str, Any]:
    """`generation_config.json`: the source's if it has one, with stop ids that contain the template's end of turn.

    Args:
        source: the Hugging Face directory that the model came from; None for other sources.
        stop_ids: ids that end an answer.
        tokenizer: has the ids of its special tokens.
    """
    path = None if source is None else source / GENERATION_CONFIG
    before = read_json(path) if path is not None and path.exists() else {}
    return before | _special_ids(stop_ids, tokenizer)


def _special_ids(stop_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    stops = {"eos_token_id": stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)} if stop_ids else {}
    return {name: value for name, value in ids.items() if value is not None} | stops


def write_json(path: epath.Path, content: dict[str, Any]) -> None:
    """Indented, as transformers writes it."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_tokenizer(directory: epath.Path, tokenizer: PreTrainedTokenizerBase, source: epath.Path | None) -> None:
    """The tokenizer as it was trained with, in a form that `AutoTokenizer` of any version takes as it is written.

    `tokenizer_config.json` names the plain class for `tokenizer.json`: named after a model, transformers rebuilds the
    splitting of text from what it knows of that model (version 5 loses SmolLM2's splitting of digits); and the name
    that version 5 writes is not known to version 4. Named chat templates stay in the form in which they came.

    Args:
        directory: where to.
        tokenizer: with its chat template.
        source: the Hugging Face directory it came from; its SentencePiece model, which converters to other formats
            want, is copied.
    """
    with tempfile.TemporaryDirectory() as local:
        tokenizer.save_pretrained(local, save_jinja_files=not _templates_in_config(tokenizer, source))
        for file in sorted(file for file in pathlib.Path(local).rglob("*") if file.is_file()):
            copy = directory / file.relative_to(local).as_posix()
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    path = directory / TOKENIZER_CONFIG
    write_json(path, json.loads(path.read_text()) | {"tokenizer_class": _CLASS})
    if source is not None and (source / _SENTENCEPIECE).exists():
        (directory / _SENTENCEPIECE).write_bytes((source / _SENTENCEPIECE).read_bytes())


def copy_processor(directory: epath.Path, source: epath.Path) -> None:
    """What turns images and sound into inputs, as the source has it."""
    for name in PROCESSOR_FILES:
        if (source / name).exists():
            (directory / name).write_bytes((source / name).read_bytes())


def _templates_in_config(tokenizer: PreTrainedTokenizerBase, source: epath.Path | None) -> bool:
    """Whether chat templates go into `tokenizer_config.json`: named ones that came there, and not as files.

    So do those that files do not hold, which are read with every end of a line as one character.
    """
    templates = tokenizer.chat_template
    if any("\r" in text for text in (templates.values() if isinstance(templates, dict) else [templates or ""])):
        return True
    if not isinstance(templates, dict) or source is None or not (source / TOKENIZER_CONFIG).exists():
        return False
    return isinstance(read_json(source / TOKENIZER_CONFIG).get("chat_template"), list)
