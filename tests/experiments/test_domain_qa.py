"""Questions of a domain: rows and their documents, and the experiment from its first command to its table."""

import json
from pathlib import Path

import pytest

from experiments.domain_qa.rows import CORPUS, NEW, TRAINED, shortened, write_data
from experiments.rows import HELD_OUT, train_file
from sft_jax.data.reading import Reading
from sft_jax.data.records import read_records
from tests.experiments import smoke
from tests.experiments.smoke import rows_of

THINGS = ("gout", "measles", "asthma", "croup", "lupus", "mumps", "scurvy", "anemia", "rickets", "colic", "shingles")


def write_questions(path: Path) -> Path:
    rows = [{"question": f"What is {thing}?", "answer": f"It is {thing}. " + "More of it. " * 9} for thing in THINGS]
    rows.append({"question": "What is gout?", "answer": "Something else."})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def records(tmp_path):
    reading = Reading(prompt_template="{question}", answer_template="{answer}")
    return read_records(write_questions(tmp_path / "qa.jsonl"), reading)


def test_rows_name_the_documents_of_their_answers(records, tmp_path):
    write_data(tmp_path, records, train_rows=7, held_out=6, words=5, seed=0)
    corpus, trained, measured = (rows_of(tmp_path / name) for name in (CORPUS, train_file(7), HELD_OUT))
    assert len(corpus) == len(THINGS)
    assert "Something else" not in json.dumps(corpus)
    for row in (*trained, *measured):
        question, answer = (turn["content"] for turn in row["messages"])
        name, number = row["document"].split(":")
        text = corpus[int(number) - 1]["text"]
        assert name == CORPUS
        assert text.startswith(question)
        assert answer in text
        assert len(answer.split()) <= 5 < len(text.split())
    asked = {turn["content"] for row in trained for turn in row["messages"]}
    assert [row["asked"] for row in measured] == [TRAINED] * 3 + [NEW] * 3
    assert all((row["messages"][0]["content"] in asked) == (row["asked"] == TRAINED) for row in measured)


def test_too_few_questions(records, tmp_path):
    with pytest.raises(ValueError, match="11 different questions, expected 9 to train on and 3 more to measure"):
        write_data(tmp_path, records, train_rows=9, held_out=6, words=5, seed=0)
    with pytest.raises(ValueError, match="of the former 3 are measured too"):
        write_data(tmp_path, records, train_rows=2, held_out=6, words=5, seed=0)


@pytest.mark.parametrize(
    ("text", "words", "short"),
    [
        ("One two. Three four! Five?", 4, "One two. Three four!"),
        ("One two. Three four! Five?", 3, "One two."),
        ("One two three four five six.", 5, "One two three four five"),
        ("One  two.\nThree", 4, "One two. Three"),
        ("", 4, ""),
    ],
)
def test_answers_are_cut_behind_a_sentence(text, words, short):
    assert shortened(text, words) == short


@pytest.mark.slow
def test_from_the_first_command_to_the_table(tmp_path):
    data = write_questions(tmp_path / "qa.jsonl")
    small = ("--train_rows=6", "--held_out=6", "--steps=2", "--answer_tokens=8", "--words=8")
    smoke.called(tmp_path, "domain_qa", f"--data={data}", *small)
    header, *lines = smoke.table_of(tmp_path)
    assert header[1:] == ["ROUGE-L", "ROUGE-L, new questions", "ROUGE-L, trained questions"]
    assert [line[0] for line in lines] == ["base", "retrieval", "SFT", "SFT, retrieval"]
    search = (tmp_path / "out" / "table.md").read_text().split("| BM25 |")[1]
    assert search.strip().startswith("1.000 [")  # each question has its word in one document alone
