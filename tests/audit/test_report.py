"""The report before training: numbers, the dropped rows, the trained part."""

import io
import json

import rich.console

from sft_jax.audit.checks import CHECKS, Finding, Place, Reason, Verdict
from sft_jax.audit.report import data_report, highlight, pieces, plain_highlight, report_lines
from sft_jax.data.cleaning import CleaningLog, cleaning_values
from sft_jax.data.conversations import Chat
from sft_jax.data.packing import packing_report
from sft_jax.data.records import Record
from sft_jax.data.rendering import ConversationRenderer
from sft_jax.data.tokenized import DroppedRow, TokenizedExamples

FINDINGS = (
    Finding(
        "exact_overlap", "error", "3 held-out | rows", 3, (Place("h:1", "[b]also[/b] t:2\nx"), Place("h:2", "y")), "Go."
    ),
    Finding("lengths", "info", "all short", 0, numbers={"n": 1}),
)
VERDICT = Verdict("clean_first", (Reason("3 held-out | rows", "clean_first"), Reason("9 rows", "ready")))


def make_report(example=(), dropped=(), **more):
    examples = TokenizedExamples.from_examples([(range(4), [0, 0, 1, 1]), (range(6), [0, 0, 0, 0, 1, 1])], ["a", "b"])
    return data_report(
        examples, list(dropped), packing_report(examples, sequence_length=10, sequence_targets=8), example, **more
    )


def shown(report):
    console = rich.console.Console(file=io.StringIO(), width=120, force_terminal=False)
    console.print(report)
    return console.file.getvalue()


def test_numbers():
    dropped = [DroppedRow(f"d:{i}", "longer than 10 tokens", f"{i} tokens") for i in range(11, 20)]
    numbers = make_report(dropped=[*dropped, DroppedRow("d:1", "nothing to train on")]).numbers
    assert numbers["examples"] == 2
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
    example = ConversationRenderer(chatml_tokenizer).render(chat("user: [red]a|b[/red]", "assistant: Hello!"))
    report = make_report(pieces(example), [DroppedRow("d:1", "nothing | to train on")])
    text = shown(report)
    assert "4 (40.0%)" in text
    assert "1 x nothing | to train on" in text
    assert "[red]a|b[/red]" in text  # what is in the data is no markup
    markdown = report.markdown()
    assert "| supervised tokens | 4 (40.0%) |" in markdown
    assert r"| 1 x nothing \| to train on | d:1 |" in markdown
    assert "    ⟦Hello!<|im_end|>⟧" in markdown
    assert highlight(example).plain == example.text
    assert plain_highlight(example).replace("⟦", "").replace("⟧", "") == example.text


def test_what_the_chat_template_does(chatml_tokenizer):
    """A line for each property, in the preview; a run does not ask."""
    found = ConversationRenderer(chatml_tokenizer).template_properties()
    report = make_report(templates=found)
    assert report.numbers["chat_templates"]["default"]["end of turn"] == "<|im_end|>"
    assert ("chat template, end of turn", "<|im_end|>") in report_lines(report.numbers)
    assert "a turn of its own" in shown(report)
    assert "| chat template, tools | not shown |" in report.markdown()
    assert not any(name.startswith("chat template") for name, _ in report_lines(make_report().numbers))


def test_what_tokenizing_took():
    numbers = make_report(tokenizing={"records": 900, "tokens": 90_000, "seconds": 3.0, "workers": 2}).numbers
    assert numbers["tokenizing"]["tokens_per_second"] == 30_000
    assert ("tokenized", "900 records in 3.0 s with 2 workers: 300 records/s, 30,000 tokens/s") in report_lines(numbers)
    alone = make_report(tokenizing={"records": 9, "tokens": 90, "seconds": 3.0, "workers": 0}).numbers
    assert ("tokenized", "9 records in 3.0 s with no workers: 3 records/s, 30 tokens/s") in report_lines(alone)
    assert "tokenized" not in dict(report_lines(make_report().numbers))


def test_which_checks_looked_at_how_many_records():
    few = make_report(checked={"exact_duplicates": 1000, "end_of_turn": 20, "empty_answers": 20}).numbers
    assert [line for name, line in report_lines(few) if name == "checked"] == [
        "all 1,000 records: exact_duplicates",
        "the first 20 records: end_of_turn, empty_answers; python -m sft_jax.preview makes every check on all",
    ]
    every = make_report(checked=dict.fromkeys(CHECKS, 1000)).numbers
    assert ("checked", "all 1,000 records: every check") in report_lines(every)


def test_findings_in_short():
    """What is wrong, with one row and what to do; what is only for information is counted."""
    text = shown(make_report(findings=FINDINGS))
    assert " ERROR    3 held-out | rows" in text
    assert "h:1  [b]also[/b] t:2" in text
    assert "h:2" not in text
    assert "→ Go." in text
    assert "all short" not in text
    assert "and 1 for information" in text
    assert "nothing that is wrong" in shown(make_report())


def test_findings_at_length_and_the_verdict_last():
    text = shown(make_report(findings=FINDINGS, verdict=VERDICT, in_short=False))
    assert "h:2  y" in text
    assert "INFO     all short" in text
    assert text.index("all short") < text.index("Verdict") < text.index("Clean it first.") < text.index("9 rows")


def test_findings_as_markdown_and_numbers():
    report = make_report(findings=FINDINGS, verdict=VERDICT)
    markdown = report.markdown()
    assert r"| error | 3 held-out \| rows | 3 | h:1, h:2 | Go. |" in markdown
    assert markdown.endswith("**Verdict: Clean it first.**\n\n- 3 held-out \\| rows\n- 9 rows")
    assert report.numbers["findings"][0]["examples"][1] == {"row": "h:2", "text": "y"}
    assert report.numbers["verdict"]["reasons"][1] == {"text": "9 rows", "favours": "ready"}
    assert json.loads(json.dumps(report.numbers)) == report.numbers


def test_what_cleaning_changed(chat):
    log = CleaningLog()
    for n in range(7):
        record = Record(f"t:{n}", Chat(chat("user: a", "assistant: b")), {})
        log.note_change(record, "strip", "shorter")
    report = make_report(cleaning=cleaning_values(log))
    (entry,) = report.numbers["cleaning"]["changed"]
    assert entry == {"step": "strip", "reason": "shorter", "records": 7, "first": [f"t:{n}" for n in range(5)]}
    assert "7 x shorter" in shown(report)
    assert "| 7 x shorter | strip |" in report.markdown()
