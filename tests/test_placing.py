"""Batches on the mesh: which device holds which tokens, and that nothing is lost when they are dealt out."""

import jax
import numpy as np
import pytest

from sft_jax.models.context import dealt_order
from sft_jax.sharding import dealt_batch, make_mesh, put_batch

TOKENS, SEQUENCES = 16, 4


def batch_of(targets: int, sequences: int = SEQUENCES) -> dict[str, np.ndarray]:
    """Every number says where it is; with as many targets as tokens, slot i is that of token i."""
    number = np.arange(sequences, dtype=np.int32)[:, None] * 100
    tokens = number + np.arange(TOKENS, dtype=np.int32)
    slots = np.arange(targets, dtype=np.int32) * (TOKENS // targets)
    weights = np.ones((sequences, targets), np.float32)
    weights[:, -1] = 0  # not used
    return {
        "tokens": tokens,
        "positions": tokens % 100,
        "segment_ids": np.ones_like(tokens),
        "target_slots": np.broadcast_to(slots, (sequences, targets)),
        "targets": number + slots + 1,
        "weights": weights,
        "slices": (number + slots) % 3,
    }


def test_worked_example():
    """16 tokens in 4 chunks of 4: device 0 gets the first and the last, device 1 those between."""
    made = dealt_batch(batch_of(4), 2)
    assert made["tokens"][0].tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    assert made["target_slots"][0].tolist() == [0, 8, 12, 4]  # tokens 0, 4, 8 and 12
    assert made["targets"][0].tolist() == [1, 5, 9, 13]


def trained(batch: dict[str, np.ndarray]) -> list[tuple]:
    """Of each used slot: the token before it and its position, what it predicts, its weight and its slice."""
    rows, slots = np.nonzero(batch["weights"])
    at = batch["target_slots"][rows, slots]
    of_token = [batch[name][rows, at].tolist() for name in ("tokens", "positions", "segment_ids")]
    of_slot = [batch[name][rows, slots].tolist() for name in ("targets", "weights", "slices")]
    return sorted(zip(*of_token, *of_slot, strict=True))


@pytest.mark.parametrize("parts", [1, 2, 4, 8])
@pytest.mark.parametrize("targets", [2, 5, 8, 15, 16])
def test_what_is_trained_stays(targets, parts):
    batch = batch_of(targets)
    made = dealt_batch(batch, parts)
    assert trained(made) == trained(batch)
    assert len(trained(batch)) == SEQUENCES * (targets - 1)
    slots = made["targets"].shape[1]
    assert slots % parts == 0
    assert (slots == TOKENS) == (targets == TOKENS)  # slot i is token i's in these alone
    if targets == TOKENS:
        np.testing.assert_array_equal(made["target_slots"][0], np.arange(TOKENS))


@pytest.mark.parametrize("targets", [5, 16])
def test_devices_hold_their_tokens(targets):
    """Two devices for sequences, four for their tokens."""
    mesh = make_mesh({"fsdp": 2, "context": 4}, jax.devices())
    batch = batch_of(targets)
    placed = put_batch(batch, mesh)
    order = dealt_order(TOKENS, 4).reshape(4, -1)
    for shard in placed["tokens"].addressable_shards:
        (row, part) = (int(at[0]) for at in np.nonzero(mesh.devices[0, :, 0, :, 0] == shard.device))
        np.testing.assert_array_equal(shard.data, batch["tokens"][2 * row : 2 * row + 2][:, order[part]])
    assert trained(jax.device_get(placed)) == trained(batch)
    parts = {shard.data.shape[1] for shard in placed["targets"].addressable_shards}
    assert parts == {placed["targets"].shape[1] // 4}


def test_sequences_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(ValueError, match=r"sequence_length=16 must be a multiple of 6, twice --config.mesh.context"):
        dealt_batch(batch_of(4), 3)
