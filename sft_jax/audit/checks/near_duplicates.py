"""Rows that say nearly the same: found by MinHash, proven by their exact similarity."""

from collections.abc import Sequence

from sft_jax.audit.checked_data import Subject
from sft_jax.audit.findings import Observation, counted, observed, places
from sft_jax.data.labels import labels_of
from sft_jax.data.similarity.groups import similar_groups, texts_compared


def near_duplicates(subject: Subject) -> list[Observation]:
    """Rows (prompt and last answer; prompt alone, where answers are labels) that are nearly another, without copies."""
    views, groups = subject.views, subject.once(_groups)
    copies = sum(len(group) - 1 for group in groups)
    if not copies:
        return []
    return [
        Observation(
            f"{counted(copies, 'row is', 'rows are')} nearly the same as another row",
            copies,
            copies / len(views),
            places((views[first].id, _side_by_side(subject, (first, second))) for first, second, *_ in groups),
            "Keep one of each group if they add nothing; a group split over training and held-out rows flatters the "
            "score.",
            {"copies": copies, "groups": len(groups), "largest_group": max(map(len, groups))},
        ),
    ]


def near_contradictions(subject: Subject) -> list[Observation]:
    """Where answers are labels: groups of nearly the same prompts with more than one label."""
    labels = labels_of(subject.views)
    if labels is None:
        return []
    asked = [subject.prompt(view) for view in subject.views]  # the same prompt is a contradiction, and not near one
    groups = [
        [first, *(i for i in others if labels[i] != labels[first] and asked[i] != asked[first])]
        for first, *others in subject.once(_groups)
    ]
    differ = [group for group in groups if len(group) > 1]
    return observed(
        f"{counted(len(differ), 'group', 'groups')} of nearly the same prompts with different labels",
        differ,
        len(labels),
        lambda group: (subject.views[group[0]].id, _side_by_side(subject, group[:2])),
        "Look at them: a label is wrong, or the labels are hard to tell apart.",
    )


def _groups(subject: Subject) -> list[list[int]]:
    views = subject.views
    firsts = {(subject.prompt(view), view.answer.strip()): number for number, view in reversed([*enumerate(views)])}
    distinct = sorted(firsts.values())
    texts = texts_compared(subject.views, subject.template)
    groups = similar_groups([texts[i] for i in distinct])
    return [[distinct[i] for i in group] for group in groups]


def _side_by_side(subject: Subject, pair: Sequence[int]) -> str:
    one, other = (subject.views[number] for number in pair)
    return f"{subject.line(one)[:90]} | {other.id}: {subject.line(other)[:90]}"
