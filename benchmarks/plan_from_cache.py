"""Times the start of a run from the cache: opening a store of a million examples, planning an epoch, finding copies.

    python -m benchmarks.plan_from_cache

A store of random examples of some 25 tokens is written first, which is not timed. One example in a hundred is a copy of
another; equal ones are found, and ten thousand texts are looked for among all.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags

from sft_jax.audit.checks.duplicates import EqualKeys
from sft_jax.audit.checks.overlap import first_asking
from sft_jax.data.packing import supervised_capacity
from sft_jax.data.plan import PackPlan
from sft_jax.data.tokenized import Counts, Tokenized, TokenizedExamples
from sft_jax.data.tokenized.columns import Labels
from sft_jax.data.tokenized.example_store import ExampleStoreWriter, open_examples
from sft_jax.data.tokenized.record_keys import KEYS, RecordKeys

_EXAMPLES = flags.DEFINE_integer("examples", 1_000_000, "Number of examples.")
_REPEAT = flags.DEFINE_integer("repeat", 3, "How often it is measured.")
_SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 1024, "Tokens in a sequence.")
_PART = 10_000  # examples written at a time


def _random_examples(rng: np.random.Generator, first: int) -> TokenizedExamples:
    offsets = np.concatenate([[0], np.cumsum(rng.integers(15, 36, _PART))]).astype(np.int64)
    weights = np.ones(offsets[-1], np.float32)
    weights[offsets[:-1]] = 0
    tokens = rng.integers(0, 49_152, offsets[-1]).astype(np.int32)
    ids = [f"train.jsonl:{number}" for number in range(first, first + _PART)]
    same = Labels(np.zeros(_PART, np.int32), ("",))
    return TokenizedExamples(tokens, weights, offsets, ids, same, same)


def _random_keys(rng: np.random.Generator) -> RecordKeys:
    """All different, but for one in a hundred."""
    hashes = rng.integers(1, 2**64, _PART, np.uint64)
    hashes[: _PART // 100] = hashes[_PART // 100 : 2 * (_PART // 100)]
    return RecordKeys(*[hashes] * len(KEYS))


def _write(directory: Path) -> None:
    rng = np.random.default_rng(0)
    with ExampleStoreWriter(directory) as writer:
        for first in range(0, _EXAMPLES.value, _PART):
            examples, counts = _random_examples(rng, first), Counts(_PART, _PART, 0, _PART)
            writer.append(Tokenized(examples, [], counts, keys=_random_keys(rng), first_examples=np.arange(_PART)))
        writer.finish({}, {})


def main(_: list[str]) -> None:
    """Measures and prints."""
    with tempfile.TemporaryDirectory() as directory:
        _write(Path(directory))
        for _ in range(_REPEAT.value):
            start = time.perf_counter()
            whole = open_examples(Path(directory))
            examples = whole.examples
            opened = time.perf_counter()
            size = _SEQUENCE_LENGTH.value
            targets = supervised_capacity(examples.lengths, examples.supervised, size, 0.95)
            bounded = time.perf_counter()
            PackPlan(examples, sequence_length=size, sequence_targets=targets, sequences_per_batch=8, seed=0)
            end = time.perf_counter()
            repeats = EqualKeys.of(whole.keys.contents), EqualKeys.of(whole.keys.prompts)
            assert all(len(found.members) == 2 * _EXAMPLES.value // 100 for found in repeats)
            first_asking(whole.keys, np.array(whole.keys.mains[-10_000:]))
            compared = time.perf_counter()
            print(
                f"{len(examples):,} examples: {end - start:.2f} s (opened and checked {opened - start:.2f}, target "
                f"slots {bounded - opened:.2f}, packed {end - bounded:.2f}); equal texts {compared - end:.2f} s"
            )


if __name__ == "__main__":
    app.run(main)
