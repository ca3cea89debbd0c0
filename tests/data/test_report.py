"""The report before training: numbers, the dropped rows, the trained part."""

import io
import json

import rich.console

from sft_jax.data.packing import packing_report
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.report import data_report, highlight, plain_highlight
from sft_jax.data.tokenized import DroppedRow, TokenizedRows


def make_report(example=None, dropped=()):
    rows = TokenizedRows.from_rows([(range(4), [0, 0, 1, 1]), (range(6), [0, 0, 0, 0, 1, 1])], ["a", "b"])
    return data_report(rows, list(dropped), packing_report(rows, row_tokens=10, row_targets=8), example)


def test_numbers():
    dropped = [DroppedRow(f"d:{i}", "longer than 10 tokens", f"{i} tokens") for i in range(11, 20)]
    numbers = make_report(dropped=[*dropped, DroppedRow("d:1", "nothing to train on")]).numbers
    assert numbers["rows"] == 2
    assert numbers["tokens"] == 10
    assert numbers["supervised_share"] == 0.4
    assert numbers["length_quantiles"] == {"0%": 4, "25%": 6, "50%": 6, "75%": 6, "95%": 6, "100%": 6}
    assert numbers["packing"]["efficiency"] == 1.0
    assert numbers["packing"]["target_efficiency"] == 0.5
    assert numbers["dropped_rows"] == 10
    assert numbers["dropped"]["longer than 10 tokens"] == {
        "rows": 9,
        "first": [f"d:{i} ({i} tokens)" for i in range(11, 16)],
    }
    assert numbers["dropped"]["nothing to train on"] == {"rows": 1, "first": ["d:1"]}
    assert json.loads(json.dumps(numbers)) == numbers


def test_terminal_and_markdown(chatml_tokenizer, chat):
    row = ConversationRenderer(chatml_tokenizer).render(chat("user: [red]a|b[/red]", "assistant: Hello!"))
    report = make_report(row, [DroppedRow("d:1", "nothing | to train on")])
    console = rich.console.Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(report)
    shown = console.file.getvalue()
    assert "4 (40.0%)" in shown
    assert "1 x nothing | to train on" in shown
    assert "[red]a|b[/red]" in shown  # what is in the data is no markup
    markdown = report.markdown()
    assert "| supervised tokens | 4 (40.0%) |" in markdown
    assert r"| 1 x nothing \| to train on | d:1 |" in markdown
    assert "    ⟦Hello!<|im_end|>⟧" in markdown
    assert highlight(row).plain == row.text
    assert plain_highlight(row).replace("⟦", "").replace("⟧", "") == row.text
