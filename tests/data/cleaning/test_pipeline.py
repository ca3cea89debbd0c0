"""The steps in order: what is noted, and what a bad config is told."""

import pytest

from sft_jax.data.cleaning import STEPS, Changed, Cleaner, CleaningLog, problems_of
from sft_jax.data.tokenized import DroppedRow


def test_in_order_and_noted(record, clean):
    records = [
        record(" yes ", name="t:1"),
        record("  ", name="t:2"),
        record("no", name="t:3"),
        record("yes", name="t:4"),
    ]
    seen = []
    log = CleaningLog(sink=lambda before, noted: seen.append((before, noted)))
    kept, log = clean(records, "strip_whitespace", "drop_empty_answers", "drop_exact_duplicates", log=log)
    assert [(one.id, one.conversation[-1].content) for one in kept] == [("t:1", "yes"), ("t:3", "no")]
    assert (log.records, log.kept) == (4, 2)
    assert log.dropped == [
        DroppedRow("t:2", "drop_empty_answers: an answer is empty", "message 1"),
        DroppedRow("t:4", "drop_exact_duplicates: the same as a row before it", "t:1"),
    ]
    reason = "whitespace at the ends removed"
    assert log.changes == {("strip_whitespace", reason): 2}
    assert log.first_changed == [Changed("t:1", "strip_whitespace", reason), Changed("t:2", "strip_whitespace", reason)]
    assert [(noted.id, type(noted)) for _, noted in seen] == [
        ("t:1", Changed),
        ("t:2", Changed),
        ("t:2", DroppedRow),
        ("t:4", DroppedRow),
    ]
    assert seen[0][0] is records[0]  # as it came to the step


def test_records_are_streamed(record):
    taken = []

    def read():
        for n in range(1000):
            taken.append(n)
            yield record(str(n), name=f"t:{n}")

    stream = Cleaner(("strip_whitespace", "drop_exact_duplicates"))(read, CleaningLog())
    assert next(stream).id == "t:0"
    assert taken == [0]


def test_many_changes_are_counted_and_few_are_kept(record, clean):
    _, log = clean([record(" a", name=f"t:{n}") for n in range(100)], "strip_whitespace")
    assert sum(log.changes.values()) == 100
    assert len(log.first_changed) == 5


def test_no_steps(record, clean):
    records = [record()]
    assert clean(records)[0] == records


BAD = [
    ("strip_whitspace", "--config.data.cleaning: 'strip_whitspace' is not a step; did you mean 'strip_whitespace'?"),
    ("nonsense", "'nonsense' is not a step; there are: strip_whitespace, "),
    ("", "'' is not a step"),
    ("strip_whitespace=1", "strip_whitespace takes no argument, got 'strip_whitespace=1'"),
    ("drop_answers_shorter_than", "drop_answers_shorter_than needs a whole number of at least 1"),
    ("drop_answers_shorter_than=0", "expected a whole number of at least 1, got '0'"),
    ("drop_answers_shorter_than=2.5", "expected a whole number of at least 1, got '2.5'"),
    ("drop_near_duplicates=0.5", "expected a number between 0.7 and 1, got '0.5'"),
    ("balance_labels=nan", "expected a number of at least 1, got 'nan'"),
    ("drop_contradictions=most", "expected one of none, majority, got 'most'"),
    ("redact_emails=", "expected a text, got ''"),
]


@pytest.mark.parametrize(("step", "message"), BAD)
def test_bad_steps(step, message):
    (problem,) = problems_of(("strip_whitespace", step))
    assert message in problem
    assert problem.startswith("--config.data.cleaning: ")
    with pytest.raises(ValueError, match=r"--config\.data\.cleaning"):
        Cleaner((step,))


def test_no_name():
    assert problems_of((3,)) == ["--config.data.cleaning: expected names of steps, got 3"]


def test_every_step_has_words_for_what_it_does():
    assert all(kind.argument is None or kind.argument.expected for kind in STEPS.values())


def test_records_are_counted(record):
    """The records that come in are those kept and dropped: an account that does not add up is an error."""
    log = CleaningLog()
    log.records = 1
    with pytest.raises(RuntimeError, match="2 records came to cleaning, 1 were kept and 0 dropped"):
        list(Cleaner(())(lambda: [record()], log))
