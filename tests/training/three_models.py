"""Tiny models with rows, for tests that try each kind: `full`, tied; `lora`, with a head of its own; `mixture`."""

from pathlib import Path

from tests import tiny
from tests.models import families


def write_three_models(root: Path) -> None:
    """Each in a folder of its name, with `model`, `train.jsonl` and `held_out.jsonl`."""
    for arg, tied in (("full", True), ("lora", False)):
        tiny.write_checkpoint(root / arg / "model", num_hidden_layers=2, tie_word_embeddings=tied)
    families.save(families.torch_model("mixtral"), root / "mixture" / "model")
    tiny.tokenizer().save_pretrained(root / "mixture" / "model")
    for name in ("full", "lora", "mixture"):
        tiny.write_rows(root / name / "train.jsonl", 24)
        tiny.write_rows(root / name / "held_out.jsonl", 12, seed=1)
