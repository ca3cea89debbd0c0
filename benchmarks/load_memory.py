"""Host memory that loading a checkpoint onto eight devices takes beyond the parameters themselves.

    python -m benchmarks.load_memory [--gib=2]

Makes a random Llama checkpoint of bfloat16 tensors in a temporary directory, loads it in both layer layouts, and prints
the peak of anonymous memory (mapped files do not count), less what was held before and what the parameters need.
"""

import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from absl import app, flags

_GIB = flags.DEFINE_float("gib", 2.0, "Size of the checkpoint.", lower_bound=0.01)
_LAYOUT = flags.DEFINE_enum("layout", "", ["", "scan", "unrolled"], "Measure one layout, in this process.")
_DIRECTORY = flags.DEFINE_string("directory", "", "The checkpoint to measure with.")
DEVICES, MODEL_DIM, FFN_DIM, VOCAB = 8, 2048, 5632, 32768


def main(_: list[str]) -> None:
    """Measures and prints."""
    if _LAYOUT.value:
        _measure(Path(_DIRECTORY.value), _LAYOUT.value)
        return
    with tempfile.TemporaryDirectory() as directory:
        largest = _write(Path(directory), _GIB.value)
        print(f"largest tensor: {largest / 2**20:.0f} MiB in the file", flush=True)
        for layout in ("scan", "unrolled"):
            command = [sys.executable, "-m", "benchmarks.load_memory", f"--layout={layout}", f"--directory={directory}"]
            subprocess.run(command, check=True)


def _write(directory: Path, gib: float) -> int:
    """Writes the checkpoint; bytes of its largest tensor."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from sft_jax.models.families import llama

    fields = {
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": MODEL_DIM,
        "intermediate_size": FFN_DIM,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": False,
    }
    a_layer = 2 * (4 * MODEL_DIM**2 + 3 * MODEL_DIM * FFN_DIM)
    layers = max(1, round((gib * 2**30 - 4 * VOCAB * MODEL_DIM) / a_layer))
    fields["num_hidden_layers"] = layers
    (directory / "config.json").write_text(json.dumps(fields))
    rules = [rule for rule in llama.tensor_table(llama.decoder_config(fields)) if rule.path]
    weight_map, largest = {}, 0
    for start in range(0, len(rules), 40):
        name = f"model-{start:05}.safetensors"
        shard = {r.source: np.ones(r.shape, ml_dtypes.bfloat16) for r in rules[start : start + 40]}
        largest = max(largest, *(array.nbytes for array in shard.values()))
        save_file(shard, directory / name)
        weight_map |= dict.fromkeys(shard, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return largest


def _anonymous() -> int:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def _measure(directory: Path, layout: str) -> None:
    import jax

    jax.config.update("jax_num_cpu_devices", DEVICES)
    from sft_jax.models.loading import decoder_config, load_params
    from sft_jax.sharding import make_mesh, placement
    from sft_jax.sources import open_checkpoint

    mesh = make_mesh({"replica": 1, "fsdp": 4, "expert": 1, "tensor": 2}, jax.devices())
    checkpoint = open_checkpoint(directory)
    peak, stop = 0, threading.Event()
    before = _anonymous()

    def watch() -> None:
        nonlocal peak
        while not stop.wait(0.002):
            peak = max(peak, _anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = load_params(checkpoint, decoder_config(checkpoint), layout, "bfloat16", placement(mesh))
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    stop.set()
    watcher.join()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(
        f"{layout}: parameters {held / 2**20:.0f} MiB, peak beyond them {(peak - before - held) / 2**20:.0f} MiB, "
        f"{seconds:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    app.run(main)
