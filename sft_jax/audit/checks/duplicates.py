"""Rows that occur more than once, and prompts with several answers: both exact, apart from surrounding white space.

They are found by sorting hashes, which is fast enough to look at all rows whenever a run starts.
"""

import dataclasses

import numpy as np
from jaxtyping import Int64

from sft_jax.audit.checked_data import CheckedData
from sft_jax.audit.findings import EXAMPLES_SHOWN, Observation, counted, places
from sft_jax.data.tokenized.record_keys import NOTHING, Hashes
from sft_jax.data.views import shared_beginning

_COPIES_NAMED = 3  # of an example, beside the first


@dataclasses.dataclass(frozen=True)
class EqualKeys:
    """Records of equal keys, for keys that occur more than once; `NOTHING` is no key.

    Attributes:
        members: numbers of records, those of a group one after the other and in their order.
        starts: where each group begins in `members`, and the end of the last one.
    """

    members: Int64[np.ndarray, "members"]
    starts: Int64[np.ndarray, "groups_and_one"]

    @classmethod
    def of(cls, keys: Hashes) -> "EqualKeys":
        """Groups the records of these keys."""
        records = np.argsort(keys, kind="stable")
        records = records[keys[records] != NOTHING]
        ordered = keys[records]
        equal = ordered[1:] == ordered[:-1]
        as_before, as_after = np.append(False, equal)[: len(records)], np.append(equal, False)[: len(records)]
        chosen = np.flatnonzero(as_before | as_after)
        return cls(records[chosen], np.append(np.flatnonzero(~as_before[chosen]), len(chosen)))

    @property
    def sizes(self) -> Int64[np.ndarray, "groups"]:
        """Records in each group."""
        return np.diff(self.starts)

    def where(self, chosen: np.ndarray) -> "EqualKeys":
        """Some of the groups."""
        sizes = self.sizes[chosen]
        return EqualKeys(self.members[np.repeat(chosen, self.sizes)], np.concatenate([[0], np.cumsum(sizes)]))

    def first(self, count: int) -> list[list[int]]:
        """The records of so many groups: those that begin first."""
        begins = self.members[self.starts[:-1]]
        chosen = np.argsort(begins, kind="stable")[:count]
        return [self.members[self.starts[group] : self.starts[group + 1]].tolist() for group in chosen]


def exact_duplicates(data: CheckedData) -> list[Observation]:
    """Rows whose prompt and answers another row has had before them."""
    found = EqualKeys.of(data.keys.contents)
    groups = len(found.sizes)
    copies = len(found.members) - groups
    if not copies:
        return []
    return [
        Observation(
            f"{counted(copies, 'row is an exact copy', 'rows are exact copies')} of another row",
            copies,
            copies / len(data.keys),
            places(_copy(data, group) for group in found.first(EXAMPLES_SHOWN)),
            data.by_step(
                "drop_exact_duplicates",
                "Remove them (drop_exact_duplicates): a row that stands there twice weighs double.",
                "Remove them: a row that stands there twice weighs double.",
            ),
            {"copies": copies, "groups": groups, "largest_group": int(found.sizes.max())},
        )
    ]


def _copy(data: CheckedData, group: list[int]) -> tuple[str, str]:
    view = data.view(group[0])
    others = ", ".join(data.view(number).id for number in group[1 : 1 + _COPIES_NAMED])
    return view.id, f"also {others}: {data.line(view)}"


def contradictions(data: CheckedData) -> list[Observation]:
    """Rows whose prompt another row answers otherwise."""
    found = _contradicting(data.keys.prompts, data.keys.answers)
    prompts, count = len(found.sizes), len(found.members)
    if not prompts:
        return []
    return [
        Observation(
            f"{counted(prompts, 'prompt has', 'prompts have')} different answers ({count:,} rows)",
            count,
            count / len(data.keys),
            places(_contradiction(data, group) for group in found.first(EXAMPLES_SHOWN)),
            "Decide for one answer where one is right; where several are, this is what you want.",
            {"prompts": prompts, "rows": count},
        )
    ]


def _contradicting(prompts: Hashes, answers: Hashes) -> EqualKeys:
    """The records of prompts with more than one answer."""
    found = EqualKeys.of(prompts)
    if not len(found.members):
        return found
    said = answers[found.members]
    differ = said != np.repeat(said[found.starts[:-1]], found.sizes)  # from the first answer to the same prompt
    return found.where(np.logical_or.reduceat(differ, found.starts[:-1]))


def _contradiction(data: CheckedData, group: list[int]) -> tuple[str, str]:
    answers = data.keys.answers
    other = next(number for number in group if answers[number] != answers[group[0]])
    pair = data.view(group[0]), data.view(other)
    at = max(0, len(shared_beginning([view.answer.strip() for view in pair])) - 20)
    says = " | ".join(f"{view.id}: {view.answer.strip()[at : at + 60]!r}" for view in pair)
    return pair[0].id, f"{says}, asked: {data.template.own(pair[0].question)}"
