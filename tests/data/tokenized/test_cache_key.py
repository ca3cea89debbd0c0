"""The key of tokenized examples: everything they depend on changes it, nothing else does."""

import datetime
import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.rendering.special_tokens import count_in_contents
from sft_jax.data.tokenized import cache_key
from sft_jax.data.tokenized.cache_key import LATER, code_digest, examples_key, file_digests

ROOT = Path(__file__).parents[3]
OPTIONS = {"sequence_length": 100, "cleaning": ("strip_whitespace",)}


@pytest.fixture
def make(byte_tokenizer, chatml, tmp_path):
    """A key from parts, of which some are others than usual."""

    def key(
        content="{}",
        name="a.jsonl",
        special=("<|im_start|>", "<|im_end|>"),
        template=chatml,
        options=OPTIONS,
        now=None,
        in_contents=(),
    ):
        (tmp_path / "data").write_text(content)
        tokenizer = byte_tokenizer(*special, eos="<|im_end|>")
        count_in_contents(tokenizer, in_contents)
        renderer = ConversationRenderer(tokenizer, template, now=now)
        return examples_key(file_digests([(name, tmp_path / "data")]), renderer, options)

    return key


CHANGES = {
    "a byte of a file": {"content": "[]"},
    "the name that examples bear": {"name": "b.jsonl"},
    "a token of the tokenizer": {"special": ("<|im_start|>", "<|im_end|>", "<x>")},
    "the template": {"template": "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"},
    "a template by name": {"template": {"default": "{{ messages }}<|im_end|>"}},
    "a token that counts in contents": {"in_contents": ("<|im_end|>",)},
    "an option": {"options": OPTIONS | {"sequence_length": 101}},
    "a cleaning step": {"options": OPTIONS | {"cleaning": ()}},
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_examples_depend_on_changes_the_key(make, change):
    assert make() == make()
    assert make(**CHANGES[change]) != make()


def test_versions_and_code_change_the_key(make, monkeypatch):
    before = make()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda name: "0" if name == "tokenizers" else "1")
        assert make() != before
    with monkeypatch.context() as patch:
        patch.setattr(cache_key, "code_digest", lambda: "0")
        assert make() != before


def test_times_of_files_do_not_matter(make, tmp_path):
    before = make()
    (tmp_path / "data").touch()
    assert make() == before


def test_the_time_counts_where_the_template_writes_it(make):
    dated = "{% for m in messages %}{{ strftime_now('%d') + m.content }}<|im_end|>{% endfor %}"
    first, second = (datetime.datetime(2026, 1, day) for day in (1, 2))
    assert make(template=dated, now=first) == make(template=dated, now=first) != make(template=dated, now=second)
    assert make(now=first) == make(now=second)


def test_code_counts_but_for_what_stands_behind_the_store(tmp_path):
    package = Path(shutil.copytree(ROOT / "sft_jax" / "data", tmp_path / "data"))
    before = code_digest(root=package)
    assert before == code_digest()
    for name in ("batches.py", "plan/order.py"):
        (package / name).write_text((package / name).read_text() + "\n")
    assert code_digest(root=package) == before
    assert code_digest(without=(), root=package) != code_digest(without=())
    for name in ("records.py", "rendering/masking.py", "formats/alpaca.py", "cleaning/text.py"):
        (package / name).write_text((package / name).read_text() + "\n")
        after = code_digest(root=package)
        assert after != before
        before = after


def test_what_makes_examples_imports_nothing_of_what_the_key_leaves_out():
    """Else a change there could change examples whose key stays."""
    code = (
        "import sys, sft_jax.data.tokenizing.worker, sft_jax.data.records, sft_jax.data.cleaning; print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    ours = [name.split(".") for name in done.stdout.split() if name.startswith("sft_jax.data.")]
    loaded = {parts[2] for parts in ours}
    assert "formats" in loaded
    left_out = {name.removesuffix(".py") for name in LATER}
    assert loaded & left_out == set()
    assert {name for name in LATER if not (ROOT / "sft_jax" / "data" / name).exists()} == set()


@pytest.mark.parametrize(("long", "told"), [(60, [0.5, 0.75, 1.0]), (61, [])])
def test_who_waits_for_many_bytes_is_told_how_far_it_is(tmp_path, monkeypatch, long, told):
    monkeypatch.setattr(cache_key, "_LONG", long)
    monkeypatch.setattr(cache_key, "_PIECE", 30)
    files = [(name, tmp_path / name) for name in "ab"]
    for (_, path), size in zip(files, (45, 15), strict=True):
        path.write_bytes(b"x" * size)
    shares = []
    assert file_digests(files, shares.append) == file_digests(files)
    assert shares == told
