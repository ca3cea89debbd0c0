"""Training rows that are also measured on: what a score on such rows shows is memory."""

from collections.abc import Sequence

from sft_jax.data.checks.findings import Observation, places
from sft_jax.data.checks.subject import Subject, View


def exact_overlap(subject: Subject) -> list[Observation]:
    """Held-out rows and benchmark prompts that are also in the training data, apart from surrounding white space."""
    found = [_exact(subject.views, subject.held_out_views, "held-out rows")]
    found += [_exact(subject.views, views, f"prompts of {name}") for name, views in subject.benchmark_views.items()]
    return [observation for observation in found if observation is not None]


def _exact(train: Sequence[View], measured: Sequence[View], what: str) -> Observation | None:
    first_with: dict[str, str] = {}
    for view in train:
        for text in {view.prompt.strip() or view.answer.strip(), view.question.strip()} - {""}:
            first_with.setdefault(text, view.id)
    pairs = []
    for view in measured:
        text = view.prompt.strip() or view.answer.strip()
        seen_at = first_with.get(text)
        if seen_at is not None:
            pairs.append((view.id, f"also {seen_at}: {text}"))
    if not pairs:
        return None
    return Observation(
        f"{len(pairs):,} {what} are also in the training data",
        len(pairs),
        len(pairs) / len(measured),
        places(pairs),
        "Remove them from the training data, or say how much of the score is theirs.",
        {"measured": len(measured), "found": len(pairs)},
    )
