"""Texts that are scored as wholes: of each answer its last token alone is a target, and what is read is its state."""

import dataclasses

import numpy as np

from sft_jax.data.tokenized import TokenizedExamples


def with_scored_ends(examples: TokenizedExamples) -> TokenizedExamples:
    """Examples whose targets are the last tokens of their branches, with the weight of their example.

    Worked example: trunk [5, 6], branches [7, 8] and [9], weights 0 0 2 2 2: the weights become 0 0 0 2 2.

    Args:
        examples: all have branches, whose targets are of one weight.
    """
    ends = np.flatnonzero(np.append(np.diff(examples.branches) != 0, True))  # of runs of one branch, or of a trunk
    ends = np.union1d(ends, examples.offsets[1:] - 1)
    ends = ends[examples.branches[ends] > 0]
    of_examples = np.maximum.reduceat(np.asarray(examples.weights, np.float32), examples.offsets[:-1])
    weights = np.zeros(len(examples.tokens), np.float32)
    weights[ends] = of_examples[np.searchsorted(examples.offsets, ends, side="right") - 1]
    return dataclasses.replace(examples, weights=weights, scored=True, stored_supervised=None, stored_fingerprint="")
