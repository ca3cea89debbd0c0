"""Downloads files of a model repository on the Hugging Face hub to the local cache.

`locate` uses it when a source is neither a file nor a directory. Only the files that are read are downloaded: no
second copy of the weights in another format or layout, no images. A branch or tag is resolved to a commit once, and
everything comes from that commit.
"""

import glob

import huggingface_hub
from etils import epath
from huggingface_hub import errors

from sft_jax.sources import huggingface
from sft_jax.sources.tensors import SourceError

CONFIG_FILES = ("config.json", "generation_config.json")
WEIGHT_FILES = (huggingface.WEIGHTS, huggingface.INDEX)  # and the shards that the index names, whatever their names
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
TEMPLATE_FOLDER = "additional_chat_templates"  # of chat templates that have names

_OFFLINE_ADVICE = (
    "Without a connection to the hub, give a local directory (config.json, model.safetensors, tokenizer.json; for "
    "example one made elsewhere with `hf download {repository} --local-dir DIR`) or a .gguf file instead."
)


def download(repository: str, revision: str | None, with_weights: bool) -> epath.Path:
    """The local snapshot directory of a repository; its name is the commit hash.

    Args:
      repository: "org/name".
      revision: branch, tag or commit; None is the main branch.
      with_weights: also bring the safetensors files.

    Raises:
      SourceError: no connection and not in the cache, no such repository or revision, access not granted, or an
        index of shards that is damaged.
    """
    patterns = [*CONFIG_FILES, *TOKENIZER_FILES, *PROCESSOR_FILES, f"{TEMPLATE_FOLDER}/*.jinja"]
    patterns += WEIGHT_FILES if with_weights else ()
    directory = _snapshot(repository, revision, patterns)
    if not with_weights or (directory / huggingface.WEIGHTS).exists():
        return directory
    if (directory / huggingface.INDEX).exists():
        shards = [glob.escape(name) for name in huggingface.shard_names(directory)]
        return _snapshot(repository, directory.name, shards)
    raise SourceError(
        f"{repository!r}: neither {huggingface.WEIGHTS} nor {huggingface.INDEX} in the snapshot {directory}. Either it "
        "has no weights in that format (convert them: load model and tokenizer with transformers, and "
        "`save_pretrained` both to a directory), or the cache is incomplete and the hub out of reach. "
        + _OFFLINE_ADVICE.format(repository=repository)
    )


def _snapshot(repository: str, revision: str | None, patterns: list[str]) -> epath.Path:
    at = f"{repository!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return epath.Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except errors.HFValidationError as error:
        raise SourceError(f"{at} is neither a local file or directory nor a name on the hub: {error}.") from error
    except errors.GatedRepoError as error:
        raise SourceError(f"{at} is gated: ask for access on its hub page, then `hf auth login`.") from error
    except errors.RepositoryNotFoundError as error:
        raise SourceError(
            f"{at} is neither a local file or directory nor a repository on the hub that you may read. "
            "Check the spelling; for a private one `hf auth login` first."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise SourceError(f"The hub has {repository!r}, but not the revision {revision!r}.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise SourceError(
            f"{at} is not a local file or directory, and could not be fetched from the hub: {error}. "
            + _OFFLINE_ADVICE.format(repository=repository)
        ) from error
