"""Long texts that are split: every token but the first of a document is a target once an epoch, in its context."""

import collections
import itertools
import json

import numpy as np
import pytest
from tokenizers import processors

from sft_jax.data.batches import train_batches
from sft_jax.options import options_of
from sft_jax.preparation.run_data import load_data
from tests import tiny

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END, BEGINNING = 2, 1  # ids: the end of a text, and what a tokenizer may put before it


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model with a tokenizer of a token a byte, and another that puts a token before every text."""
    made = tmp_path_factory.mktemp("texts")
    for name in ("plain", "begun"):
        tiny.write_checkpoint(made / name, num_hidden_layers=1)
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = SPECIAL[BEGINNING]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[BEGINNING]} $A", special_tokens=[(SPECIAL[BEGINNING], BEGINNING)]
    )
    tokenizer.save_pretrained(made / "begun")
    return made


def texts(seed: int, length: int) -> list[str]:
    """Documents of all lengths around the edges of pieces, and of some others; no two of them begin alike."""
    rng = np.random.default_rng(seed)
    edges = [pieces * (length - 1) + beside for pieces in (1, 2, 3) for beside in (-2, -1, 0, 1, 2)]
    sizes = {size for size in (2, 3, *edges, *rng.integers(2, 6 * length, 12).tolist()) if size >= 2}
    return [
        chr(ord("A") + number) + "".join(map(chr, rng.integers(97, 123, size - 1)))
        for number, size in enumerate(sorted(sizes))
    ]


def pairs_of(batches) -> collections.Counter:
    """(id before, id, weight) of every target in all batches."""
    found = collections.Counter()
    for batch in batches:
        for row, (slots, targets, weights) in enumerate(
            zip(batch["target_slots"], batch["targets"], batch["weights"], strict=True)
        ):
            for slot, target, weight in zip(slots, targets, weights, strict=True):
                if weight:
                    assert batch["tokens"][row, slot + 1] == target
                    assert batch["segment_ids"][row, slot] == batch["segment_ids"][row, slot + 1]
                    found[int(batch["tokens"][row, slot]), int(target), float(weight)] += 1
    return found


@pytest.mark.parametrize("packing", ["best_fit", "first_fit", "sequential", "none"])
@pytest.mark.parametrize("length", [2, 3, 7, 16])
@pytest.mark.parametrize("end", ["none", "eos"])
@pytest.mark.parametrize("model", ["plain", "begun"])
def test_every_token_but_the_first_is_a_target_once(root, tmp_path, model, end, length, packing):
    documents = texts(length, length)
    rows = tmp_path / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    config = tiny.config(
        root,
        **{
            "model.source": str(root / model),
            "data.train": str(rows),
            "data.held_out": "",
            "data.reading.text_end": end,
            "data.masking.too_long": "split",
            "data.sequence_length": length,
            "data.packing": packing,
            "data.fail_on": "never",
            "batch.sequences": 1,
        },
    )
    data = load_data(options_of(config))
    found = pairs_of(train_batches(data.examples, data.plan, 0, len(data.plan.first_block), threads=0))
    expected = collections.Counter()
    for text in documents:
        ids = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
        ids = [BEGINNING] * (model == "begun") + ids + [END] * (end == "eos")
        expected.update((before, after, 1.0) for before, after in itertools.pairwise(ids))
    assert found == expected


def test_pieces_of_a_text_are_held_out_like_it(root, tmp_path):
    """Held-out texts are split too: their loss is over every token but the first of each."""
    rows = tmp_path / "texts.jsonl"
    rows.write_text(json.dumps({"text": "a" * 30}) + "\n")
    changes = {"model.source": str(root / "plain"), "data.train": str(rows), "data.held_out": str(rows)}
    changes |= {"data.sequence_length": 8, "data.masking.too_long": "split", "data.fail_on": "never"}
    changes |= {"data.reading.text_end": "eos"}
    data = load_data(options_of(tiny.config(root, **changes)))
    assert int(data.held_out.supervised.sum()) == 30
    assert set(data.held_out.lengths.tolist()) == {8, 3}
