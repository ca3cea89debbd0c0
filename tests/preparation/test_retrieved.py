"""Passages in the prompts of training and held-out rows: which, where, and what their examples depend on."""

import json

import numpy as np
import pytest

from configs import sft
from sft_jax.data.conversations import Message
from sft_jax.data.records import RecordError
from sft_jax.exports.data_set import row_fields
from sft_jax.options import options_of
from sft_jax.preparation.inspection import inspect_data, preview_page
from sft_jax.preparation.retrieved import Retriever
from sft_jax.preparation.run_data import load_data
from sft_jax.progress import silent
from sft_jax.retrieval import PASSAGE_TEMPLATE, TEMPLATE
from sft_jax.retrieval.corpus import ROW_TEMPLATE
from tests import tiny

DOCUMENTS = {
    "library.md": "# Library\n\nThe library opens at nine and lends books.",
    "pool.md": "# Pool\n\nThe pool is closed on Mondays.",
    "bus.txt": "Buses to the station leave every ten minutes.",
}
ROWS = [
    ("When does the library open?", "At nine."),
    ("May I swim in the pool on Mondays?", "No."),
    ("How often do buses leave?", "Every ten minutes."),
    ("Gibt es Eis?", "Nein."),  # shares no word with the corpus
]
FIRST = "Passages:\n\n[1] # Library\n\nThe library opens at nine and lends books."


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"prompt": prompt, "completion": answer}) + "\n" for prompt, answer in rows))
    return str(path)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "corpus").mkdir()
    for name, text in DOCUMENTS.items():
        (tmp_path / "corpus" / name).write_text(text)
    write_rows(tmp_path / "rows.jsonl", ROWS)
    write_rows(tmp_path / "measured.jsonl", ROWS[:1])
    return tmp_path


def config(root, **overrides):
    fields = {
        "data.train": str(root / "rows.jsonl"),
        "data.held_out": str(root / "measured.jsonl"),
        "data.retrieval.corpus": str(root / "corpus"),
        "data.retrieval.passages": 1,
        "data.cache": str(root / "cache"),
        "data.sequence_length": 256,
        "data.fail_on": "never",
        "batch.sequences": 1,
    }
    return tiny.config(root, **fields | overrides)


def load(root, **overrides):
    return load_data(options_of(config(root, **overrides)))


def texts(data):
    """The examples as text, with what is trained of each."""
    pairs = (data.examples.example(number) for number in range(len(data.examples)))
    decode = data.renderer.tokenizer.decode
    return [(decode(tokens), decode(tokens[np.flatnonzero(weights)])) for tokens, weights in pairs]


def test_each_row_has_the_passage_of_the_right_document(root):
    data = load(root)
    (first, trained), (second, _), (third, _), (fourth, _) = texts(data)
    assert f"<|im_start|>user\n{FIRST}\n\nQuestion: When does the library open?<|im_end|>" in first
    assert trained == "At nine.<|im_end|>"  # the answer alone
    assert "[1] # Pool" in second
    assert "[1] Buses to the station" in third
    assert "<|im_start|>user\nGibt es Eis?<|im_end|>" in fourth
    (note,) = (line for line in data.report.numbers["read"] if line.startswith("passages by"))
    assert note == (
        f"passages by bm25, at most 1 a row, from {root}/corpus (3 documents; 3 chunks): in 3 of 4 rows, none is found "
        "for 1"
    )


def test_held_out_rows_have_passages_too(root):
    data = load(root)
    decoded = data.renderer.tokenizer.decode(data.held_out.example(0)[0])
    assert f"{FIRST}\n\nQuestion: When does the library open?" in decoded
    assert FIRST in data.held_out_records[0].conversation[0].content  # sample answers are of the same prompt
    assert "in 1 of 1 rows" in data.held_out_note


def test_a_changed_document_makes_other_tokens_and_another_entry(root):
    entries = lambda: {path.name for path in (root / "cache").glob("*.json")}
    first, kept = load(root), entries()
    again = load(root)
    assert again.fingerprints() == first.fingerprints()
    assert "from the cache" in again.report.numbers["read"][-1]
    assert entries() == kept
    (root / "corpus" / "library.md").write_text("# Library\n\nThe library opens at ten.")
    changed = load(root)
    assert "from the cache" not in changed.report.numbers["read"][-1]
    assert changed.fingerprints()["train"] != first.fingerprints()["train"]
    assert changed.fingerprints()["held_out"] != first.fingerprints()["held_out"]
    assert "opens at ten" in texts(changed)[0][0]
    assert texts(changed)[1:] == texts(first)[1:]


CHANGES = {
    "data.retrieval.passages": 2,
    "data.retrieval.chunk_words": 6,
    "data.retrieval.template": "{question}\n{passages}",
    "data.retrieval.passage_template": "{document}: {text}",
    "data.retrieval.method": "hybrid",
    "data.retrieval.corpus": "",
}


@pytest.mark.parametrize("name", CHANGES)
def test_options_that_prompts_depend_on_make_other_entries(name, root):
    if CHANGES[name] == "hybrid":
        pytest.importorskip("wordllama")
    load(root)
    more = {"data.retrieval.overlap_words": 0} if name.endswith("chunk_words") else {}
    more |= {"data.retrieval.passages": 3} if not CHANGES[name] else {}
    assert "from the cache" not in load(root, **{name: CHANGES[name]}, **more).report.numbers["read"][-1]
    assert "from the cache" in load(root).report.numbers["read"][-1]


def test_a_corpus_that_moves_keeps_its_examples(root):
    load(root)
    (root / "corpus").rename(root / "moved")
    moved = load(root, **{"data.retrieval.corpus": str(root / "moved")})
    assert "from the cache" in moved.report.numbers["read"][-1]


def test_workers_and_the_cache_change_nothing(root):
    plain = load(root, **{"data.cache": ""})
    assert load(root, **{"loader.tokenize_workers": 2}).fingerprints() == plain.fingerprints()


def test_mixtures(root):
    sources = {name: sft.source(str(root / f"{name}.jsonl"), epochs=1) for name in ("rows", "measured")}
    made = config(root, **{"data.train": ""}).copy_and_resolve_references().unlock()
    made.data.mixture = sources
    data = load_data(options_of(made))
    of_ids = dict(zip(data.examples.ids, texts(data), strict=True))
    assert FIRST in of_ids["rows/rows.jsonl:1"][0]
    assert FIRST in of_ids["measured/measured.jsonl:1"][0]


def test_cleaning_sees_rows_without_passages(root):
    """And so do checks: rows that share a passage are not alike, and one that is measured is found in spite of it."""
    write_rows(root / "rows.jsonl", [*ROWS, ROWS[0]])
    cleaned = load(root, **{"data.cleaning": ("drop_exact_duplicates", "drop_held_out_overlap")})
    assert len(cleaned.examples) == 3
    checked = load(root)
    found = {finding.check: finding for finding in checked.report.findings}
    assert found["exact_duplicates"].numbers["copies"] == 1
    assert found["exact_overlap"].numbers["found"] == 1


def test_the_preview_shows_passages_and_writes_rows_without_them(root):
    options = options_of(config(root))
    inspection = inspect_data(options, silent)
    pieces = preview_page(inspection, options, 10, silent).replace('","', "")  # a character is a token
    assert "The library opens at nine and lends books." in pieces
    rows = [row_fields(record, False, False) for record in inspection.kept]
    assert [row["messages"][0]["content"] for row in rows] == [prompt for prompt, _ in ROWS]


REFUSED = {
    "a text": '{"text": "The library."}',
    "tokens": '{"input_ids": [3, 4, 5], "labels": [3, 4, 5]}',
    "a pair of answers": '{"prompt": "When?", "chosen": "At nine.", "rejected": "Never."}',
    "no message of the user": '{"messages": [{"role": "assistant", "content": "Hi"}]}',
}


@pytest.mark.parametrize("kind", REFUSED)
def test_rows_that_ask_nothing_are_refused_by_name(kind, root):
    (root / "rows.jsonl").write_text(f"{REFUSED[kind]}\n")
    message = rf"rows\.jsonl:1: --config\.data\.retrieval\.corpus puts passages .*, and this row (is|has) {kind}"
    with pytest.raises(RecordError, match=message) as error:
        load(root)
    assert "Leave such rows out, or leave the corpus empty" in str(error.value)
    write_rows(root / "rows.jsonl", ROWS)
    assert len(load(root).examples) == 4
    (root / "rows.jsonl").write_text(f"{REFUSED['a text']}\n")
    without = {"data.retrieval.corpus": "", "data.retrieval.passages": 3}
    assert len(load(root, **without, **{"data.held_out": ""}).examples) == 1


def test_a_corpus_in_which_nothing_is_found_is_refused(root):
    write_rows(root / "measured.jsonl", ROWS[3:])
    with pytest.raises(ValueError, match="no passage was found for any of 1 held-out rows"):
        load(root)
    write_rows(root / "rows.jsonl", ROWS[3:])
    with pytest.raises(ValueError, match=r"no passage was found for any of 1 rows, .* Give the corpus that") as error:
        load(root, **{"data.held_out": ""})
    assert "or leave it empty" in str(error.value)
    (root / "corpus" / "eis.md").write_text("Eis gibt es im Sommer.")
    assert "[1] Eis gibt es" in texts(load(root, **{"data.held_out": ""}))[0][0]
    without = {"data.retrieval.corpus": "", "data.retrieval.passages": 3}
    assert len(load(root, **without, **{"data.held_out": ""}).examples) == 1


def test_options_of_rows_where_there_are_none_are_left_out_as_advised(root):
    for option, value in (("row_template", "{question}"), ("id_column", "id")):
        with pytest.raises(RecordError, match=rf"has no rows, so --config\.data\.retrieval\.{option}=.* leave it out"):
            load(root, **{f"data.retrieval.{option}": value})
    assert len(load(root).examples) == 4


def test_the_index_is_kept_beside_the_examples(root, monkeypatch):
    options = options_of(config(root)).data.retrieval
    first = Retriever(options, root / "cache")
    assert (root / "cache" / "indexes" / first.index.name).is_dir()
    assert first.index.name == first.name
    monkeypatch.setattr("sft_jax.retrieval.saved.build_index", lambda *_: pytest.fail("made again"))
    again = Retriever(options, root / "cache")
    ((passage,),) = again.passages([(Message("user", "When does the library open?"),)])
    assert passage.document_id == "library.md"


def test_the_defaults_of_functions_are_those_of_the_config():
    section = sft.get_config().data.retrieval
    assert (section.template, section.passage_template, section.row_template) == (
        TEMPLATE,
        PASSAGE_TEMPLATE,
        ROW_TEMPLATE,
    )
