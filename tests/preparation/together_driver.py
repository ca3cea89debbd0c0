"""One of several processes that prepare the same data, for `tests.children`."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np

from sft_jax.data.tokenized import cache_key
from sft_jax.data.tokenizing import workers
from sft_jax.options import options_of
from sft_jax.preparation.run_data import Data, load_data
from tests import tiny


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def described(data: Data) -> dict:
    """All that a run takes from its data."""
    examples, numbers = data.examples, data.report.numbers
    numbers = {name: value for name, value in numbers.items() if name not in ("read", "tokenizing")}
    batches = [np.concatenate([np.asarray(b, np.int64) for b in data.plan.batch_bins(step)]) for step in range(3)]
    return {
        "arrays": {n: digest(getattr(examples, n)) for n in ("tokens", "weights", "offsets", "lengths", "supervised")},
        "ids": digest(np.array(list(examples.ids))),
        "sources": [list(examples.sources), list(examples.groups)],
        "fingerprints": data.fingerprints(),
        "batches": [digest(batch) for batch in batches],
        "report": numbers,
    }


def prepared(spec: dict) -> dict:
    """What is said of one run."""
    tokenized, hashed = [], []
    tokenize, hash_file = workers.tokenize_chunk, cache_key._file_digest
    workers.tokenize_chunk = lambda chunk, *rest: (tokenized.append(len(chunk)), tokenize(chunk, *rest))[1]
    cache_key._file_digest = lambda path, count: (hashed.append(path.stat().length), hash_file(path, count))[1]
    config = tiny.config(Path(spec["root"]), **{"loader.tokenize_workers": 0} | spec["overrides"])
    try:
        found = {"data": described(load_data(options_of(config)))}
    except (ValueError, RuntimeError) as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    workers.tokenize_chunk, cache_key._file_digest = tokenize, hash_file
    return json.loads(json.dumps(found | {"tokenized": sum(tokenized), "hashed": sum(hashed)}, default=list))


def prepare(spec: dict) -> list[dict]:
    """For each run what the data are (or the error), how many records were tokenized here and how many bytes hashed."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(spec["coordinator"], spec["processes"], spec["process"])
    found = [prepared({"root": spec["root"]} | run) for run in spec["runs"]]
    jax.distributed.shutdown()
    return found
