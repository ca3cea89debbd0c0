"""Two plans side by side."""

from collections import Counter
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sft_jax.planning.planned import Plan
from sft_jax.planning.report import bytes_text, facts, notes


def show(first: Plan, second: Plan, console: Console, price: float | None) -> None:
    """Prints two plans side by side; what differs is bold.

    Args:
        first: on the left.
        second: on the right.
        console: of the terminal.
        price: of a chip and hour; None where it is not known.
    """
    table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    table.add_column(overflow="fold", ratio=1)
    for name, left, right in rows(first, second, price):
        style = "bold" if left != right else ""
        table.add_row(name, Text(left, style), Text(right, style))
    console.print(table)
    for note in dict.fromkeys([*notes(first), *notes(second)]):
        console.print(Text(note), soft_wrap=True)


def rows(first: Plan, second: Plan, price: float | None) -> Iterator[tuple[str, str, str]]:
    """(what, of the first, of the second); empty where one of them has no such figure.

    Args:
        first: on the left.
        second: on the right.
        price: of a chip and hour.
    """
    for figures in ((dict(facts(plan, price)) for plan in (first, second)), (map(_by_kind, (first, second)))):
        left, right = figures
        for name in {**left, **right}:
            yield name, left.get(name, ""), right.get(name, "")


def _by_kind(plan: Plan) -> dict[str, str]:
    """GiB of results of the collectives, by kind and axes."""
    totals: Counter[str] = Counter()
    for each in plan.collectives:
        totals[f"{each.kind}, {' '.join(each.axes)}"] += each.total
    return {name: bytes_text(size) for name, size in totals.most_common()}
