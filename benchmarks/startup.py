"""Times from the command to the first step, with a cold and with a warm compilation cache; and of loading the model.

python -m benchmarks.startup
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from absl import app

from benchmarks.steps import MODEL


def main(_: list[str]) -> None:
    """Measures and prints."""
    start = time.perf_counter()
    from sft_jax.models import load_pretrained

    imported = time.perf_counter()
    load_pretrained(MODEL)
    print(
        f"imports {imported - start:.1f} s, load_pretrained({MODEL!r}) {time.perf_counter() - imported:.1f} s",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        rows = [{"prompt": f"Say {n} in words and then backwards.", "completion": f"{n} {-n}"} for n in range(64)]
        (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for cache in ("cold", "warm"):
            for arg in ("full", "lora"):
                seconds = _first_step(root, arg, root / f"{cache}_{arg}")
                print(f"{arg}, {cache} compilation cache: {seconds:.1f} s to the end of the first step", flush=True)


def _first_step(root: Path, arg: str, workdir: Path) -> float:
    """Seconds from the command until the metrics of its first step, of 4 sequences of 256 tokens, are read."""
    command = [sys.executable, "-m", "sft_jax.train", f"--config=configs/sft.py:{arg}", f"--workdir={workdir}"]
    command += [f"--config.data.train={root / 'train.jsonl'}", "--config.duration=1 steps"]
    command += ["--config.batch.sequences=4", "--config.data.sequence_length=256"]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(root / "cache"), "PYTHONUNBUFFERED": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    seconds = None
    for line in process.stdout:
        if line.startswith("training 1/1 loss"):
            seconds = time.perf_counter() - start
    if process.wait() or seconds is None:
        raise RuntimeError(f"the command failed: {command}")
    return seconds


if __name__ == "__main__":
    app.run(main)
