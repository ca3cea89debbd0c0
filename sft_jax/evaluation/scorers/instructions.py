"""Instructions that a program can check ("no commas", "three paragraphs"): the kinds of IFEval (Zhou et al. 2023).

`if-verifiable` does the checking; it is an optional install, because it brings NLTK and others.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sft_jax.evaluation.scorers.cases import Case, Outcome, Scorer

INSTALL = "pip install -r requirements-instructions.txt"
# They split sentences or words by NLTK's model, which NLTK downloads.
NEED_PUNKT = ("length_constraints:number_sentences", "change_case:capital_word_frequency")


def instructions(*, kinds_column: str = "instruction_id_list", arguments_column: str = "kwargs") -> Scorer:
    """Whether an answer follows the instructions that its row names.

    `prompt_strict`, `prompt_loose`: all instructions of the row are followed. `instruction_strict`,
    `instruction_loose`: {kind: [followed, given]}, the share of instructions and a table of kinds. Loose: one of eight
    variants of the answer follows, without its first or last line or asterisks.

    The row's columns are those of IFEval's data: a list of kinds (`punctuation:no_comma`) and a list of their
    arguments, a dict each (nulls are ignored). The reference is not looked at. Everything before a `</think>` in the
    answer is left out. Languages are recognised by langdetect with the seed 0, for the whole process.

    Raises:
        ValueError: `if-verifiable` is not installed; when scoring, a row that lacks a column, a kind that is not known
            or cannot be checked without a download, or arguments that are missing or wrong: the checkers would draw
            them at random.
    """
    try:
        import langdetect
        from if_verifiable.common import evaluate_instructions
        from if_verifiable.ifeval import INSTRUCTION_DICT
    except ImportError as error:
        raise ValueError(f"scorer 'instructions' needs the package if-verifiable: {INSTALL}") from error
    langdetect.DetectorFactory.seed = 0
    has_punkt = _has_punkt()

    def score(prediction: str, case: Case) -> Outcome:
        kinds, arguments = _instructions_of(case.row, kinds_column, arguments_column)
        for kind, given in zip(kinds, arguments, strict=True):
            _check_instruction(kind, given, INSTRUCTION_DICT, has_punkt)
        results, _ = evaluate_instructions(prediction, kinds, arguments, "", INSTRUCTION_DICT)
        followed = {"strict": [False] * len(kinds), "loose": [False] * len(kinds)}  # so where there is no answer
        if results:
            followed = {"strict": [r.strict_pass for r in results], "loose": [r.loose_pass for r in results]}
        outcome: dict[str, Any] = {f"prompt_{way}": all(followed[way]) for way in followed}
        return outcome | {f"instruction_{way}": _by_kind(kinds, followed[way]) for way in followed}

    return score


def _has_punkt() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab/english")
    except LookupError:
        return False
    return True


def _instructions_of(
    row: Mapping[str, Any], kinds_column: str, arguments_column: str
) -> tuple[list[str], list[dict[str, Any]]]:
    for column in (kinds_column, arguments_column):
        if column not in row:
            raise ValueError(f"instructions: no column {column!r} in the row, which has {', '.join(row) or 'none'}")
    kinds, arguments = row[kinds_column], row[arguments_column]
    is_list = [isinstance(column, Sequence) and not isinstance(column, str) for column in (kinds, arguments)]
    if not all(is_list) or not kinds or len(kinds) != len(arguments):
        raise ValueError(
            f"instructions: expected a list of kinds in {kinds_column!r} and as many dicts of arguments in "
            f"{arguments_column!r}, got {kinds!r} and {arguments!r}"
        )
    return list(kinds), [
        {name: value for name, value in (each or {}).items() if value is not None} for each in arguments
    ]


def _check_instruction(kind: str, given: Mapping[str, Any], checkers: Mapping[str, Any], has_punkt: bool) -> None:
    if kind not in checkers:
        raise ValueError(f"instructions: no kind {kind!r}; there are {', '.join(checkers)}")
    if kind in NEED_PUNKT and not has_punkt:
        raise ValueError(
            f"instructions: {kind!r} needs NLTK's punkt_tab, which is not on this machine: "
            "python -m nltk.downloader punkt_tab, or leave such rows out"
        )
    checker = checkers[kind](kind)
    needed = checker.get_instruction_args_keys()
    if set(needed) != set(given):
        raise ValueError(f"instructions: {kind!r} takes the arguments {needed}, got {sorted(given)}")
    try:
        checker.build_description(**given)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"instructions: {kind!r} with {dict(given)}: {error}") from error


def _by_kind(kinds: Sequence[str], followed: Sequence[bool]) -> dict[str, list[int]]:
    counts = {kind: [0, 0] for kind in kinds}
    for kind, is_followed in zip(kinds, followed, strict=True):
        counts[kind][0] += int(is_followed)
        counts[kind][1] += 1
    return counts
