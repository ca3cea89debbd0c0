"""The table of families in the docs, from what the tests showed (`--family-table=FILE`)."""

import re
from collections.abc import Iterable
from pathlib import Path

# column -> the test that it stands for
COLUMNS = {
    "load, logits and gradients": "test_logits_and_gradients_equal_torch",
    "features noticed": "test_every_feature_is_noticed_when_it_is_off",
    "packed, cached": "test_packed_sequences_and_cached_reading_equal_plain_ones",
    "generate": "test_greedy_text_equals_uncached",
    "train, use": "test_a_run_trains_and_its_result_is_loaded",
    "export, torch loads": "test_what_is_written_is_what_torch_loads",
    "to PEFT": "test_ours_in_peft_and_back",
    "from PEFT": "test_from_peft_to_here_and_out_again",
}
# The kind of an adapter, behind a comma, is not another case.
_NODE = re.compile(
    r".*test_(?:families|peft_adapters)\.py::(?P<test>\w+)\[(?P<case>[^\],]*?)(?:, [^\]]*)?(?:-(?:scan|unrolled))?\]"
)


def markdown(passed: Iterable[str], failed: Iterable[str]) -> str:
    """A row a case, a column a test; a dash where the case was not part of it.

    Args:
        passed: ids of tests that passed.
        failed: ids of tests that did not.
    """
    cells: dict[str, dict[str, bool]] = {}
    for ids, good in ((passed, True), (failed, False)):
        for node in ids:
            if (found := _NODE.fullmatch(node)) and found["test"] in COLUMNS.values():
                row = cells.setdefault(found["case"], {})
                row[found["test"]] = row.get(found["test"], True) and good
    marks = {True: "yes", False: "NO", None: "-"}
    lines = ["| | " + " | ".join(COLUMNS) + " |", "|---|" + "---|" * len(COLUMNS)]
    for case in sorted(cells):
        lines.append(f"| {case} | " + " | ".join(marks[cells[case].get(test)] for test in COLUMNS.values()) + " |")
    return "\n".join(lines) + "\n"


def write(path: str, passed: Iterable[str], failed: Iterable[str]) -> None:
    """Replaces the table in a Markdown file, or makes a file of the table alone."""
    file, table = Path(path), markdown(passed, failed)
    text = file.read_text() if file.exists() else ""
    replaced, count = re.subn(r"(?m)^\| \| load.*\n(?:\|.*\n)*", lambda _: table, text)
    file.write_text(replaced if count else text + table)
