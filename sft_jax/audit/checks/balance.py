"""How rows spread over labels and groups. Answers count as labels where they are few, short and repeated."""

import collections
from collections.abc import Mapping

import numpy as np

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import Observation, counted, observed, places
from sft_jax.data.labels import labels_of
from sft_jax.data.similarity.shingles import words

FEW_ROWS = 10  # of a label: fewer are learnt by chance; SetFit (Tunstall et al. 2022) compares methods at 8 and 64


def label_balance(data: CheckedData) -> list[Observation]:
    """Rows by label; labels with few rows; one label that outweighs all others; labels that are measured only."""
    labels = labels_of(data.views)
    if labels is None:
        return []
    counts = collections.Counter(labels)
    found = [_spread("label", counts), *_rare(data, labels, counts), *_heavy(data, labels, counts)]
    return [*found, *_spellings(data, counts), *_untrained(data, counts)]


def group_balance(data: CheckedData) -> list[Observation]:
    """Rows by group, where records have one."""
    counts = collections.Counter(view.group for view in data.views if view.group)
    if not counts:
        return []
    without = [view for view in data.views if not view.group]
    found = [_spread("group", counts)]
    title = f"{counted(len(without), 'row has', 'rows have')} no group"
    show = lambda view: (view.id, data.line(view))
    return found + observed(title, without, len(data.views), show, "Give them one.")


def _spread(what: str, counts: Mapping[str, int]) -> Observation:
    sizes = np.array(sorted(counts.values()))
    shares = sizes / sizes.sum()
    evenness = float(-(shares * np.log(shares)).sum() / np.log(len(sizes))) if len(sizes) > 1 else 1.0
    number = counted(len(sizes), what, f"{what}s")
    return Observation(
        f"{number} of {sizes[0]:,} to {sizes[-1]:,} rows, {int(np.median(sizes)):,} in the middle",
        0,
        0.0,
        numbers={
            "rows": dict(sorted(counts.items(), key=lambda pair: -pair[1])),
            "evenness": evenness,  # entropy of the shares over that of equal ones (Pielou 1966)
            "fewest": int(sizes[0]),
            "most": int(sizes[-1]),
        },
    )


def _rare(data: CheckedData, labels: list[str], counts: Mapping[str, int]) -> list[Observation]:
    rare = {label for label, count in counts.items() if count < FEW_ROWS}
    if not rare:
        return []
    rows = [view for view, label in zip(data.views, labels, strict=True) if label in rare]
    firsts = {view.answer.strip(): view.id for view in reversed(rows)}
    names = sorted(rare, key=lambda label: counts[label])
    return [
        Observation(
            f"{counted(len(rare), 'label has', 'labels have')} (of {len(counts):,}) fewer than {FEW_ROWS} rows",
            len(rows),
            len(rare) / len(counts),
            places((firsts[label], f"{label}: {counts[label]}") for label in names),
            "Label more of them, join them with others, or leave them to a prompt with examples.",
            {"labels": {label: counts[label] for label in names}},
        )
    ]


def _heavy(data: CheckedData, labels: list[str], counts: Mapping[str, int]) -> list[Observation]:
    label, most = max(counts.items(), key=lambda pair: pair[1])
    if len(counts) < 2 or most <= len(labels) / 2:
        return []
    first = next(view for view, found in zip(data.views, labels, strict=True) if found == label)
    others = len(labels) - most
    thinned = f" Take the cleaning step 'cap_labels={others}', which leaves it as many rows as all others have."
    return [
        Observation(
            f"{most / len(labels):.0%} of the rows have the label {label!r}",
            most,
            most / len(labels),
            places([(first.id, data.line(first))]),
            "Accuracy looks good for that label alone: measure F1 by label." + data.by_step("cap_labels", thinned, ""),
        )
    ]


def _spellings(data: CheckedData, counts: Mapping[str, int]) -> list[Observation]:
    """Labels that differ in case, punctuation or white space only."""
    forms = collections.defaultdict(list)
    for label in counts:
        forms["".join(words(label)).replace("_", "") or label].append(label)
    twins = [sorted(group, key=lambda label: -counts[label]) for group in forms.values() if len(group) > 1]
    if not twins:
        return []
    minor = {label for group in twins for label in group[1:]}
    rows = [view for view in data.views if view.answer.strip() in minor]
    return [
        Observation(
            f"{counted(len(twins), 'label is', 'labels are')} spelt in more than one way",
            len(rows),
            len(rows) / len(data.views),
            places((view.id, data.line(view)) for view in rows),
            "Choose one spelling: " + "; ".join(" / ".join(map(repr, group)) for group in twins[:5]),
        )
    ]


def _untrained(data: CheckedData, counts: Mapping[str, int]) -> list[Observation]:
    held_out = data.held_out_views
    rows = [view for view in held_out if view.answer.strip() and view.answer.strip() not in counts]
    return observed(
        f"{counted(len(rows), 'held-out row has', 'held-out rows have')} a label that no training row has",
        rows,
        len(held_out),
        lambda view: (view.id, data.line(view)),
        "They cannot be answered rightly: add such rows, or check the spelling.",
    )
