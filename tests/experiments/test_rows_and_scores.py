"""What experiments share: rows that are read and written, sizes of training sets, tables and plots of scores."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.rows import chat_row, question_and_answer, sizes_of, write_rows
from experiments.scores import (
    MARKS,
    group_scores,
    method_name,
    metric_plot,
    read_answers,
    score_lines,
    score_table,
    show,
)
from sft_jax.data.records import RecordError, read_records
from sft_jax.sweeps.report.embedding import check_marks

ROOT = Path(__file__).parents[2]
HALF = {"value": 0.5, "low": 0.25, "high": 0.75}
TASK = {
    "scores": {"base": {"exact_match": HALF}, "few_shot+rag": {"exact_match": HALF, "rouge_l": {"value": 1.0}}},
    "details": {
        "base": {
            "by group": {
                "columns": [],
                "rows": [
                    ["exact_match", "short", 3, 0.5, 0.25, 0.75, "worst"],
                    ["rouge_l", "short", 3, 0.1, 0.0, 0.2, "worst"],
                    ["exact_match", "gap (p = 0.03)", 2, 0.5, 0.25, 0.75, ""],
                ],
            }
        },
        "few_shot+rag": {},
    },
}


def test_rows_are_read_as_they_were_written(tmp_path):
    write_rows(tmp_path / "data", {"a.jsonl": [chat_row("Où?", "Là.", id="1", facts=["x"])], "b.jsonl": []})
    (record,) = read_records(tmp_path / "data" / "a.jsonl")
    assert question_and_answer(record) == ("Où?", "Là.")
    assert record.fields["facts"] == ["x"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"messages": chat_row("a", "b")["messages"] * 2}) + "\n")
    with pytest.raises(RecordError, match=r"c\.jsonl:1: expected one question and its answer"):
        question_and_answer(*read_records(tmp_path / "c.jsonl"))


def test_sizes():
    assert sizes_of(["32", "2", "8", "2"]) == [2, 8, 32]
    for texts in ([], ["0"], ["2", "x"], ["-1"], ["1.5"]):
        with pytest.raises(ValueError, match=f"--sizes={','.join(texts)}: expected numbers of at least 1"):
            sizes_of(texts)


def test_names_of_methods():
    assert method_name("prompted+few_shot+rag") == "prompted, few-shot, retrieval"
    assert method_name("sft") == "SFT"


def test_tables_have_a_column_for_what_any_method_has():
    lines = score_lines(TASK, ["exact_match", "rouge_l", "missing"])
    table = score_table(lines)
    assert table.columns == ("method", "exact match", "ROUGE-L")
    assert table.rows == (
        ("base", "0.500 [0.250, 0.750]", "-"),
        ("few-shot, retrieval", "0.500 [0.250, 0.750]", "1.000"),
    )
    assert group_scores(TASK, "base", "exact_match") == {"short": HALF, "gap": HALF}
    assert group_scores(TASK, "few_shot+rag", "exact_match") == {}


def test_what_is_shown_is_written(tmp_path):
    lines = score_lines(TASK, ["exact_match"])
    tables = [score_table(lines), score_table(lines, "Again", "what")]
    text = tmp_path / "README.md"
    text.write_text("\n".join(["before", MARKS[0], "Not measured.", MARKS[1], "after"]))
    plot = metric_plot(lines, ["exact_match", "rouge_l"], "Both", "share")
    show(tmp_path, tables, plot, Console(quiet=True), str(text))
    written = (tmp_path / "table.md").read_text()
    image = "![scores of the methods](plots/methods.png)"
    assert text.read_text() == "\n".join(
        ["before", MARKS[0], "", written.rstrip("\n"), "", image, "", MARKS[1], "after"]
    )
    assert (tmp_path / "plots" / "methods.png").read_bytes() == plot
    first, title, second = (tmp_path / "table.md").read_text().split("\n\n")
    assert title == "**Again**"
    assert first.replace("method", "what") == second.rstrip("\n")
    assert (tmp_path / "methods.png").read_bytes().startswith(b"\x89PNG")


def test_lines_of_answers_end_at_line_feeds_alone(tmp_path):
    (tmp_path / "predictions" / "task").mkdir(parents=True)
    rows = [{"answer": "a\u2028b"}, {"answer": "c"}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "predictions" / "task" / "sft.jsonl").write_text(text, encoding="utf-8")
    assert read_answers(tmp_path, "sft") == rows


USE_CASES = sorted(path.parent.name for path in ROOT.glob("experiments/*/run.py") if path.parent.name != "quickstart")


@pytest.mark.parametrize(
    "name", [name if name == "order_support" else pytest.param(name, marks=pytest.mark.slow) for name in USE_CASES]
)
def test_a_typo_in_a_flag_lists_the_common_ones_too(name):
    command = [sys.executable, "-m", f"experiments.{name}.run", "--matmull=float32"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "Did you mean: matmul" in ended.stderr
    assert re.search(r"There are: .*--into, --matmul", ended.stderr)


@pytest.mark.parametrize("name", USE_CASES)
def test_a_readme_has_a_place_for_what_its_command_finds(name):
    folder = ROOT / "experiments" / name
    check_marks(str(folder / "README.md"), MARKS)
    text = (folder / "README.md").read_text()
    assert f"--into=experiments/{name}/README.md" in text
    results = text.partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert ("Not measured." in results) != ("| --- |" in results or "|---|" in results)
    index = (ROOT / "experiments" / "README.md").read_text()
    (line,) = [line for line in index.splitlines() if f"({name}/README.md)" in line]
    assert ("Not measured." in line) == ("Not measured." in results)


def test_the_guide_has_no_figure_that_is_in_no_table():
    """Each score of docs/choosing.md stands, with its interval, in a text that the same paragraph or line links."""
    for part in re.split(r"\n\n|\n(?=\|)", (ROOT / "docs" / "choosing.md").read_text()):
        figures = re.findall(r"[-+]?\d\.\d{3} \[[^\]]*\]", part)
        linked = re.findall(r"\]\((\.\./[^)#]*\.md)", part)
        texts = "".join((ROOT / "docs" / name).resolve().read_text() for name in linked)
        assert all(figure in texts for figure in figures), [figure for figure in figures if figure not in texts]
