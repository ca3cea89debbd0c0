"""Rows that occur more than once, and prompts with several answers: both exact, apart from surrounding white space."""

import collections
from collections.abc import Hashable, Iterable

from sft_jax.data.checks.findings import Observation, counted, places
from sft_jax.data.checks.subject import Subject, shared_beginning


def exact_duplicates(subject: Subject) -> list[Observation]:
    """Rows whose prompt and answers another row has had before them."""
    views = subject.views
    groups = repeated((subject.prompt(view), *(answer.strip() for answer in view.answers)) for view in views)
    copies = sum(len(group) - 1 for group in groups)
    if not copies:
        return []
    examples = (
        (views[group[0]].id, f"also {', '.join(views[i].id for i in group[1:4])}: {subject.line(views[group[0]])}")
        for group in groups
    )
    return [
        Observation(
            f"{counted(copies, 'row is an exact copy', 'rows are exact copies')} of another row",
            copies,
            copies / len(views),
            places(examples),
            "Remove them: a row that stands there twice weighs double.",
            {"copies": copies, "groups": len(groups), "largest_group": max(map(len, groups))},
        )
    ]


def contradictions(subject: Subject) -> list[Observation]:
    """Rows whose prompt another row answers otherwise."""
    views = subject.views
    answers = collections.defaultdict(lambda: collections.defaultdict(list))
    for number, view in enumerate(views):
        if view.asked.strip():
            answers[subject.prompt(view)][view.answer.strip()].append(number)
    groups = [found for found in answers.values() if len(found) > 1]
    if not groups:
        return []
    count = sum(len(rows) for found in groups for rows in found.values())
    examples = []
    for found in groups:
        one, other = (views[rows[0]] for rows in list(found.values())[:2])
        at = max(0, len(shared_beginning([one.answer.strip(), other.answer.strip()])) - 20)
        says = " | ".join(f"{view.id}: {view.answer.strip()[at : at + 60]!r}" for view in (one, other))
        examples.append((one.id, f"{says}, asked: {subject.template.own(one.question)}"))
    return [
        Observation(
            f"{counted(len(groups), 'prompt has', 'prompts have')} different answers ({count:,} rows)",
            count,
            count / len(views),
            places(examples),
            "Decide for one answer where one is right; where several are, this is what you want.",
            {"prompts": len(groups), "rows": count},
        )
    ]


def repeated(keys: Iterable[Hashable]) -> list[list[int]]:
    """Indices of equal keys, for keys that occur more than once, in order of their first."""
    found = collections.defaultdict(list)
    for number, key in enumerate(keys):
        found[key].append(number)
    return [group for group in found.values() if len(group) > 1]
