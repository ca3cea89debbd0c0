"""Rows that say nearly the same: found by MinHash, proven by their exact similarity."""

from collections.abc import Sequence

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed, places
from sft_jax.data.labels import labels_of
from sft_jax.data.similarity.groups import similar_groups, texts_compared


def near_duplicates(data: CheckedData) -> list[Observation]:
    """Rows (prompt and last answer; prompt alone, where answers are labels) that are nearly another, without copies."""
    views, groups = data.views, data.once(_groups)
    copies = sum(len(group) - 1 for group in groups)
    if not copies:
        return []
    return [
        Observation(
            f"{counted(copies, 'row is', 'rows are')} nearly the same as another row",
            copies,
            copies / len(views),
            places((views[first].id, _side_by_side(data, (first, second))) for first, second, *_ in groups),
            "Keep one of each group if they add nothing; a group split over training and held-out rows flatters the "
            "score.",
            {"copies": copies, "groups": len(groups), "largest_group": max(map(len, groups))},
        ),
    ]


def near_contradictions(data: CheckedData) -> list[Observation]:
    """Where answers are labels: groups of nearly the same prompts with more than one label."""
    labels = labels_of(data.views)
    if labels is None:
        return []
    asked = [data.prompt(view) for view in data.views]  # the same prompt is a contradiction, and not near one
    groups = [
        [first, *(i for i in others if labels[i] != labels[first] and asked[i] != asked[first])]
        for first, *others in data.once(_groups)
    ]
    differ = [group for group in groups if len(group) > 1]
    return observed(
        f"{counted(len(differ), 'group', 'groups')} of nearly the same prompts with different labels",
        differ,
        len(labels),
        lambda group: (data.views[group[0]].id, _side_by_side(data, group[:2])),
        "Look at them: a label is wrong, or the labels are hard to tell apart.",
    )


def _groups(data: CheckedData) -> list[list[int]]:
    views = data.views
    firsts = {(data.prompt(view), view.answer.strip()): number for number, view in reversed([*enumerate(views)])}
    distinct = sorted(firsts.values())
    texts = texts_compared(data.views, data.template)
    groups = similar_groups([texts[i] for i in distinct])
    return [[distinct[i] for i in group] for group in groups]


def _side_by_side(data: CheckedData, pair: Sequence[int]) -> str:
    one, other = (data.views[number] for number in pair)
    return f"{data.line(one)[:90]} | {other.id}: {data.line(other)[:90]}"
