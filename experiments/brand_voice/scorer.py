"""Whether an answer is the house's: it says who it is, keeps its tone, and names the house nowhere else.

Named on the command line as `--scorer=experiments.brand_voice.scorer:voice`.
"""

import re

from experiments.brand_voice.brand import Brand
from experiments.brand_voice.rows import GENERAL, IDENTITY, TONE
from sft_jax.evaluation.scorers.cases import Case, Outcome

_OTHERS = re.compile(
    r"\b(ChatGPT|OpenAI|Claude|Anthropic|Gemini|Llama|SmolLM\d*|Hugging Face|Qwen|Alibaba|Mistral)\b", re.ASCII
)


def voice(answer: str, case: Case) -> Outcome:
    """The outcome of an answer, by the row's columns `kind`, `facts` and `brand`.

    Returns:
        What does not belong to the kind of the row is None. `says_who`: it has the names of the assistant and of the
        house that the right answer has, and of other assistants and houses at most those of the question. `house_tone`:
        it begins and ends as the house does. `facts_kept`: it has all facts of the notice. `brand_absent`: of an answer
        to a general question, that it names neither assistant nor house. `exact_match`: all that belong to the row.
    """
    kind, facts = case.row["kind"], case.row["facts"]
    brand = Brand(*case.row["brand"])
    outcome: dict[str, bool | None] = dict.fromkeys(("says_who", "house_tone", "facts_kept", "brand_absent"))
    if kind == IDENTITY:
        others = set(_OTHERS.findall(answer)) - set(_OTHERS.findall(case.row["messages"][0]["content"]))
        outcome["says_who"] = _has_all(answer, facts) and not others
    if kind == TONE:
        text = answer.strip()
        outcome["house_tone"] = text.startswith(brand.opening) and text.endswith(brand.closing)
        outcome["facts_kept"] = _has_all(answer, facts)
    if kind == GENERAL:
        outcome["brand_absent"] = not any(_has_all(answer, [name]) for name in case.row["brand"])
    return outcome | {"exact_match": all(value for value in outcome.values() if value is not None)}


def _has_all(answer: str, parts: list[str]) -> bool:
    """As words of their own: 3 is not in 30. Scripts that write no spaces between words have names within them."""
    return all(re.search(rf"(?<!\w){re.escape(part)}(?!\w)", answer, re.IGNORECASE | re.ASCII) for part in parts)
