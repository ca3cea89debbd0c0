"""The summary of an export, as a table for the terminal."""

from rich.table import Table

from sft_jax.exports.model import Exported


def summary_table(name: str, exported: Exported) -> Table:
    """A row for each thing that was proven."""
    table = Table(title=f"{name}, exported", show_header=False)
    size = sum(exported.files.values())
    table.add_row("files", f"{len(exported.files)}, {size / 1e6:,.1f} MB: {', '.join(exported.files)}")
    table.add_row("weights", f"{exported.parameters:,} in {exported.dtype}, read back and equal")
    table.add_row(
        "logits before and after",
        f"at most {exported.drift.logits:.3g} apart ({exported.drift.relative:.3g} of their standard deviation), same "
        f"choice at {exported.drift.same_choice:.1%} of {len(exported.golden.ids)} positions",
    )
    table.add_row("token ids", "of the golden conversation: equal")
    stops = ", ".join(map(str, exported.golden.stop_ids)) or "none is known"
    table.add_row("answers end with", stops)
    return table
