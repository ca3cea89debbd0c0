"""The check that docs/extending.md shows runs as it stands there; docs/data.md lists all checks as they are."""

import re
from pathlib import Path
from unittest import mock

from sft_jax.audit import checks
from sft_jax.audit.findings import ANY, NEVER

DOCS = Path(__file__).parents[2] / "docs"


def test_the_check_that_is_shown(checked):
    section = (DOCS / "extending.md").read_text().partition("\n## A check\n")[2]
    code = re.search(r"```python\n(.*?)```", section, re.S)[1]
    with mock.patch.dict(checks.CHECKS):
        exec(compile(code, "extending.md", "exec"), {})
        findings = checks.run_checks(checked(("q", "Fine, thank you very much."), ("r", "FINE, THANK YOU VERY MUCH.")))
    (found,) = [finding for finding in findings if finding.check == "capitals"]
    assert (found.severity, found.title) == ("warning", "1 answer is in capitals")
    assert found.examples == (("a:2", "r -> FINE, THANK YOU VERY MUCH."),)


def test_the_table_of_checks():
    def share(value):
        return "any" if value == ANY else "–" if value == NEVER else f"{value:.0%}".replace("%", " %")

    def at_start(check):
        return "" if not check.quick else "all" if check.by_keys else "first"

    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \| (.*) \|(.*)\|$", (DOCS / "data.md").read_text(), re.M)
    shown = {name: (warning, error, start.strip()) for name, warning, error, start in rows if name in checks.CHECKS}
    expected = {
        name: (share(check.thresholds.warning), share(check.thresholds.error), at_start(check))
        for name, check in checks.CHECKS.items()
    }
    assert shown == expected
    assert list(shown) == list(expected)
