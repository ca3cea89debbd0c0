"""The whole report as Markdown, in the form that GitHub shows: all metrics, comparisons, details and notes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sft_jax.evaluation.report.drawing import Plot
from sft_jax.evaluation.report.tables import Section, TextTable, report_sections, visible

# What Markdown or GitHub would read as more than text; some of it is that at some places only.
_SPECIAL = re.compile(
    r"[\\`*|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|!(?=\[)|<(?=[A-Za-z/!?])|&(?=[#\w])|^[>#+-](?!\d)"
)


def markdown_report(results: Mapping[str, Any], plots: Sequence[Plot] = (), plots_at: str = "plots") -> str:
    """The report as one Markdown text.

    Args:
        results: of the package's form.
        plots: those that lie beside it.
        plots_at: directory of theirs, relative to where the text lies.
    """
    heading, words = f"Evaluation, {results['created']}", f"Seed {results['seed']}."
    return markdown_sections(heading, words, report_sections(results), plots, plots_at)


def markdown_sections(
    heading: str, words: str, sections: Sequence[Section], plots: Sequence[Plot], plots_at: str = "plots"
) -> str:
    """Sections with their plots below a heading and some words."""
    lines = [f"# {escaped(heading)}", "", escaped(words), ""]
    for section in sections:
        lines += [f"## {escaped(section.title)}", "", *section_lines(section)]
        for plot in plots:
            if plot.section == section.name:
                lines += [image_line(plot, plots_at), ""]
    return "\n".join(lines)


def section_lines(section: Section) -> Iterator[str]:
    """The lines of a section below its heading."""
    if section.facts:
        yield from (escaped("; ".join(section.facts)) + ".", "")
    for sentence in section.verdicts:
        yield f"- **{escaped(sentence)}**"
    if section.verdicts:
        yield ""
    for table in section.tables:
        if table.title:
            yield from (f"### {escaped(table.title)}", "")
        yield from (*table_lines(table), "")
    for note in section.notes:
        yield f"- {escaped(note)}"
    if section.notes:
        yield ""


def table_lines(table: TextTable) -> Iterator[str]:
    """The lines of a table: header, alignment, rows."""
    aligned = ["---:" if table.is_numeric(column) else "---" for column in range(len(table.columns))]
    for cells in (tuple(map(escaped, table.columns)), aligned, *(tuple(map(escaped, row)) for row in table.rows)):
        yield "| " + " | ".join(cells) + " |"


def image_line(plot: Plot, plots_at: str) -> str:
    """A plot, which lies in a directory beside the text, with its caption.

    Brackets would end that, or would have to be in pairs.
    """
    caption = re.sub(r"(?<!\\)[\[\]]", r"\\\g<0>", escaped(plot.caption))
    return f"![{caption}]({plots_at}/{plot.name}.png)"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in one line; what cannot be seen is written as code points."""
    return _SPECIAL.sub(lambda found: f"\\{found.group()}", visible(" ".join(text.split())))
