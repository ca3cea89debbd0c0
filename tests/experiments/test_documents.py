"""The quickstart's documents: deterministic, varied, answerable, and held-out ones never seen in training."""

import collections
import hashlib
import itertools
import json
import os
import subprocess
import sys

import pytest
from faker import Faker

from experiments.quickstart import documents
from experiments.quickstart.documents import make_document, make_documents, write_dataset
from experiments.quickstart.layouts import FAMILIES, LABELS, STATES, StateForm, print_title
from experiments.quickstart.prompts import INSTRUCTION, answer, question
from experiments.quickstart.titles import FIELDS, Title, invent_title, with_check_digit
from sft_jax.evaluation.scorers import Case, make_scorer
from sft_jax.evaluation.scoring import score_examples

PINNED = (
    "40.54.0",
    "5c7c831aa10e10f0257973a7f67c0db325573dfb4a447e6e4657c7f79dae27d6",
)  # Faker release, sha256 of the document


@pytest.fixture(scope="module")
def split() -> tuple[list[documents.Document], list[documents.Document]]:
    return make_documents(train_rows=300, held_out_rows=100, seed=0)


@pytest.mark.parametrize(
    ("vin", "valid"),
    [
        ("1M8GDM9A_KP042788", "1M8GDM9AXKP042788"),  # the usual worked example of 49 CFR 565
        ("11111111_11111111", "11111111111111111"),
        ("1HGCM826_3A004352", "1HGCM82633A004352"),
    ],
)
def test_check_digit(vin, valid):
    assert with_check_digit(vin.replace("_", "0")) == valid


def test_every_vin_is_well_formed(split):
    for document in (*split[0], *split[1]):
        vin, year = document.facts.vin, document.facts.year
        assert len(vin) == 17
        assert not set(vin) & set("IOQ")
        assert with_check_digit(vin) == vin
        assert "ABCDEFGHJKLMNPRSTVWXY123456789"[(year - 1980) % 30] == vin[9]


def test_train_and_held_out_share_nothing_that_identifies_a_document(split):
    train, held_out = split
    everything = (*train, *held_out)
    for identify in (
        lambda d: d.text,
        lambda d: d.facts.vin,
        lambda d: d.facts.owner.casefold(),
        lambda d: d.facts.title_number,
    ):
        assert len({identify(document) for document in everything}) == len(everything) == 400


def test_the_answer_is_what_the_document_says(split):
    """Each stated value stands in the text as it is; each that is missing does not stand there at all."""
    for document in (*split[0], *split[1]):
        text = document.text
        for name in FIELDS:
            stated, fact = getattr(document.stated, name), getattr(document.facts, name)
            if stated is not None:
                assert str(stated) in text
                assert str(stated).casefold() == str(fact).casefold()
            elif name in ("vin", "title_number", "owner"):
                assert str(fact).casefold() not in text.casefold()


def test_documents_vary(split):
    train, _ = split
    assert {document.text.split("\n")[0] for document in train} == {form.heading.split("\n")[0] for form in STATES}
    assert {family for form in STATES for family in form.families} == set(FAMILIES)
    texts = "\n".join(document.text for document in train)
    for wordings in LABELS.values():
        assert all(wording in texts or wording.upper() in texts for wording in wordings)
    for noise in ("Lien holder: ", "Seller: ", "Odometer: ", "Plate: ", "Issued ", "Color: ", "Address: "):
        assert 20 <= texts.count(noise) <= 150
    missing = collections.Counter(list(vars(document.stated).values()).count(None) for document in train)
    assert set(missing) == {0, 1, 2}
    assert all(count >= 25 for count in missing.values())
    for name in FIELDS:
        assert any(getattr(document.stated, name) is None for document in train)
    capitals = sum((document.stated.owner or "").isupper() for document in train)
    assert 90 <= capitals <= 190


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_layout_states_every_field(family):
    form = StateForm("TITLE", "########", (family,))
    complete = 0
    for seed in range(60):
        fake = Faker("en_US")
        fake.seed_instance(seed)
        text, stated = print_title(fake, invent_title(fake, form.title_pattern), form)
        complete += None not in vars(stated).values()
        assert all(str(value) in text for value in vars(stated).values() if value is not None)
    assert complete > 10


def test_noise_never_stands_between_a_label_and_its_value():
    form = StateForm("TITLE", "########", ("boxes",))
    for seed in range(60):
        fake = Faker("en_US")
        fake.seed_instance(seed)
        text, stated = print_title(fake, invent_title(fake, form.title_pattern), form)
        lines = text.split("\n")
        labels = [before for before, line in itertools.pairwise(lines) if line.startswith("  ")]
        values = [line.strip() for line in lines if line.startswith("  ")]
        assert len(labels) == len(values)
        assert not any(":" in label or label.startswith(("Issued", "*", "[", "<")) for label in labels)
        assert {str(value) for value in vars(stated).values() if value is not None} <= set(values)


def test_the_answer_has_fixed_keys_and_compact_json():
    title = Title("A1", None, 2012, "Honda", None, "José Peña")
    text = '{"title_number":"A1","vin":null,"year":2012,"make":"Honda","model":null,"owner":"José Peña"}'
    assert answer(title) == text
    assert question("DOC") == f"{INSTRUCTION}\n\nDOC"
    assert all(name in INSTRUCTION for name in FIELDS)


def test_references_score_as_right_and_are_what_the_scorer_reads(split):
    references = [answer(document.stated) for document in split[1]]
    cases = [Case(reference, reference) for reference in references]
    outcomes = score_examples(make_scorer("json_extraction"), references, cases)
    assert all(outcome["exact_match"] and outcome["predicted"] == outcome["expected"] for outcome in outcomes)


def test_held_out_documents_do_not_depend_on_the_number_of_training_rows(split):
    _, held_out = make_documents(train_rows=5, held_out_rows=100, seed=0)
    assert held_out == split[1]
    assert make_documents(train_rows=5, held_out_rows=5, seed=1)[1] != held_out[:5]


def test_documents_depend_on_nothing_but_the_seed(tmp_path):
    """The same files from other processes with other hash seeds, and whatever the global random state is."""
    written = []
    for hash_seed in ("1", "2"):
        out = tmp_path / hash_seed
        code = f"from experiments.quickstart.documents import write_dataset; write_dataset({str(out)!r}, 20, 10, 3)"
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            cwd=os.path.dirname(os.path.dirname(os.path.dirname(__file__))),
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
        )
        written.append([(out / name).read_bytes() for name in ("train.jsonl", "held_out.jsonl", "documents.json")])
    assert written[0] == written[1]
    Faker.seed(5)
    write_dataset(tmp_path / "here", 20, 10, 3)
    assert (tmp_path / "here" / "train.jsonl").read_bytes() == written[0][0]


def test_document_zero_is_the_one_it_was():
    """Pins the generator for the Faker release it was written with: a change of documents is then on purpose."""
    if PINNED[0] != documents.faker.VERSION:
        pytest.skip(f"pinned for Faker {PINNED[0]}, {documents.faker.VERSION} is installed")
    assert hashlib.sha256(make_document("pin").text.encode()).hexdigest() == PINNED[1]


def test_rows_are_conversations(tmp_path):
    assert write_dataset(tmp_path, train_rows=4, held_out_rows=2, seed=0) is True
    for name, count in (("train.jsonl", 4), ("held_out.jsonl", 2)):
        rows = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        assert len(rows) == count
        for row in rows:
            assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
            assert tuple(json.loads(row["messages"][1]["content"])) == FIELDS


def test_files_are_reused_only_where_they_are_the_ones_asked_for(tmp_path, monkeypatch):
    parameters = {"train_rows": 4, "held_out_rows": 2, "seed": 0}
    assert write_dataset(tmp_path, **parameters) is True
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.iterdir()}
    assert set(before) == {
        "train.jsonl",
        "validation.jsonl",
        "held_out.jsonl",
        "documents.json",
    }  # no temporary file is left
    assert write_dataset(tmp_path, **parameters) is False
    assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.iterdir()} == before
    assert write_dataset(tmp_path, **{**parameters, "seed": 1}) is True
    assert write_dataset(tmp_path, **parameters) is True
    (tmp_path / "train.jsonl").write_text("{}")
    assert write_dataset(tmp_path, **parameters) is True
    (tmp_path / "held_out.jsonl").unlink()
    assert write_dataset(tmp_path, **parameters) is True
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {name: data for name, (_, data) in before.items()}
    monkeypatch.setattr(documents, "_generator_digest", lambda: "edited")
    assert write_dataset(tmp_path, **parameters) is True


def test_an_interrupted_write_is_made_good(tmp_path, monkeypatch):
    """Stopped after the first file: no meta file, so the next call writes all."""

    def stop_at_held_out(path, text):
        if path.name == "held_out.jsonl":
            raise KeyboardInterrupt
        write_whole(path, text)

    write_whole = documents._write_whole
    monkeypatch.setattr(documents, "_write_whole", stop_at_held_out)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, 4, 2, 0)
    monkeypatch.setattr(documents, "_write_whole", write_whole)
    assert write_dataset(tmp_path, 4, 2, 0) is True
    assert write_dataset(tmp_path, 4, 2, 0) is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1, 2, 0), "must be >= 0, got train_rows=-1"), ((2, -1, 0), "must be >= 0")],
)
def test_wrong_numbers_of_rows(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_documents(*arguments)


def test_no_fresh_document_is_an_error(monkeypatch):
    only = make_document("one")
    monkeypatch.setattr(documents, "make_document", lambda seed, forms: only)
    with pytest.raises(ValueError, match="no document unlike the others found for 0/held_out/1 in 100 tries"):
        make_documents(0, 2, 0)
