"""An embedder of three numbers a text, worked out by hand, which notes what it was asked for."""

import numpy as np


class Counts:
    """A text's counts of the words red, blue and green, as a vector of length 1."""

    def __init__(self, name="counts"):
        self.name = name
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        counts = np.array([[text.split().count(word) for word in ("red", "blue", "green")] for text in texts])
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)
