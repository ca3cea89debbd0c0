"""Which slots see which, as the splash kernel asks for it: block by block while a program is made.

JAX's own masks compare every query of a block with every key, which for 32,768 slots takes half a minute; here only
blocks through which an edge of what is seen goes are compared.
"""

import functools

import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask

from sft_jax.models.context import dealt_order


class SlotMask(splash_attention_mask.Mask):
    """A query sees the keys of its own and of earlier slots, and those of its window.

    Attributes:
        q_sequence: slot of each query, int32.
        mask_function: of slots of queries and of keys, what the kernel computes in blocks that are seen in part.
    """

    def __init__(self, slots: np.ndarray, keys: int, window: int, reach: int):
        """Describes who sees whom.

        Args:
            slots: of the queries, int32.
            keys: their number; they stand from first to last.
            window: slots that a query sees, itself included; 0 is all. It is what the kernel computes.
            reach: blocks further back than so many slots are not read; 0 is all.
        """
        self.q_sequence, self._keys, self._window, self._reach = slots, keys, window, reach
        self.mask_function = functools.partial(_sees, window)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q_sequence), self._keys

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        """True where the query (first axis) sees the key, for all that is known while a program is made."""
        of_queries, of_keys = block
        slots = self.q_sequence[of_queries]
        first, last, first_key, last_key = slots.min(), slots.max(), of_keys.start, of_keys.stop - 1
        nearest = _sees(self._reach, first, last_key), _sees(self._reach, last, first_key)
        if all(nearest):  # then all between them too
            return _uniform((len(slots), last_key - first_key + 1), True)
        if last < first_key or (self._reach and first - last_key >= self._reach):
            return _uniform((len(slots), last_key - first_key + 1), False)
        return _sees(self._reach, slots[:, None], np.arange(first_key, last_key + 1, dtype=np.int32)[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMask) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[bytes, int, int, int]:
        return self.q_sequence.tobytes(), self._keys, self._window, self._reach


@functools.lru_cache(maxsize=64)
def slot_mask(length: int, rows: int, keys: int, dealt: int, parts: int, window: int, reach: int) -> SlotMask:
    """The mask of a sequence whose queries are split.

    Args:
        length: slots of the sequence.
        rows: queries of a part, with those of padding behind them, which see what the last key does.
        keys: slots, with those of padding behind them.
        dealt: see `Visibility`.
        parts: in how many parts the queries are split.
        window: slots that a query sees, itself included; 0 is all.
        reach: as of `SlotMask`; the window, where queries know it by their slots.
    """
    slots = np.full((parts, rows), keys - 1, np.int32)
    slots[:, : length // parts] = dealt_order(length, dealt).reshape(parts, -1)
    return SlotMask(slots.ravel(), keys, window, reach)


def _sees(window, slots, keys):
    seen = slots >= keys
    return seen & (slots - keys < window) if window else seen


@functools.lru_cache(maxsize=16)
def _uniform(shape: tuple[int, int], seen: bool) -> np.ndarray:
    return np.full(shape, seen)
