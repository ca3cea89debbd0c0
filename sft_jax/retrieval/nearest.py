"""The solved examples whose questions are nearest to a question, by the words that they share (BM25)."""

from collections.abc import Sequence

import numpy as np

from sft_jax.data.conversations import Conversation
from sft_jax.retrieval.bm25 import WordIndex
from sft_jax.retrieval.prompts import query_of


class Nearest:
    """Finds solved examples by their last questions."""

    def __init__(self, solved: Sequence[Conversation]):
        """Makes the index.

        Args:
            solved: conversations that end with an answer.
        """
        self._solved = list(solved)
        self._index = WordIndex.of([query_of(conversation) for conversation in solved])

    def __call__(self, question: Conversation, count: int) -> list[Conversation]:
        """The nearest ones, the nearest last, next to the question; of equally near ones those that come first.

        Args:
            question: whose last message of the user is looked for.
            count: how many.
        """
        scores = self._index.scores(query_of(question))
        order = np.argsort(-scores, kind="stable")[:count]
        return [self._solved[number] for number in order[::-1]]
