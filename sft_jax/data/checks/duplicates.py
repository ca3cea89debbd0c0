"""Rows that occur more than once, and prompts with several answers: both exact, apart from surrounding white space."""

import collections
from collections.abc import Hashable, Iterable

from sft_jax.data.checks.findings import Observation, places
from sft_jax.data.checks.subject import Subject


def exact_duplicates(subject: Subject) -> list[Observation]:
    """Rows whose prompt and answers another row has had before them."""
    views = subject.views
    groups = repeated((view.prompt.strip(), *(answer.strip() for answer in view.answers)) for view in views)
    copies = sum(len(group) - 1 for group in groups)
    if not copies:
        return []
    examples = (
        (views[group[0]].id, f"also {', '.join(views[i].id for i in group[1:4])}: {views[group[0]].text}")
        for group in groups
    )
    return [
        Observation(
            f"{copies:,} rows are exact copies of another row",
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
        if view.prompt.strip():
            answers[view.prompt.strip()][view.answer.strip()].append(number)
    groups = [found for found in answers.values() if len(found) > 1]
    if not groups:
        return []
    count = sum(len(rows) for found in groups for rows in found.values())
    examples = []
    for found in groups:
        firsts = [rows[0] for rows in found.values()]
        answered = " | ".join(f"{views[i].id}: {views[i].answer.strip()[:40]!r}" for i in firsts[:3])
        examples.append((views[firsts[0]].id, f"{answered}, asked: {views[firsts[0]].question.strip()}"))
    return [
        Observation(
            f"{len(groups):,} prompts have different answers ({count:,} rows)",
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
