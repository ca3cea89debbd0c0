"""MXFP4 (Open Compute Project, Microscaling Formats 1.0, 2023), in which gpt-oss is published: decoded when it is read.

A weight [experts, out, in] is stored as `*_blocks` uint8 [experts, out, in / 32, 16], two values of four bits (e2m1) a
byte, the lower bits first, and `*_scales` uint8 [experts, out, in / 32], the exponent of each block of 32 values plus
127. Their products are numbers of bfloat16: nothing is rounded.
"""

import ml_dtypes
import numpy as np

from sft_jax.sources.tensors import SourceError, TensorEntry

METHOD, MODEL_TYPES = "mxfp4", ("gpt_oss",)
VALUES_OF_BLOCK = 32
BIAS, LARGEST = 127, 252  # six times 2 ** 125 is a number of bfloat16, six times 2 ** 126 is none
_E2M1 = np.asarray([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], np.float32)
VALUES = np.concatenate([_E2M1, -_E2M1])  # of each code of four bits
_BLOCKS, _SCALES = "_blocks", "_scales"
_PAIRS = np.stack([VALUES[np.arange(256) & 15], VALUES[np.arange(256) >> 4]], axis=1)  # of a byte


def is_read(config: dict) -> bool:
    """Whether this is the config.json of a checkpoint whose weights in few bits are decoded here."""
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return method == METHOD and config.get("model_type") in MODEL_TYPES


def decoded(tensors: dict[str, TensorEntry], location: str) -> dict[str, TensorEntry]:
    """The tensors with one [experts, in, out] of bfloat16 for each pair of blocks and scales, decoded as it is read.

    Args:
        tensors: of a checkpoint, by name.
        location: of the checkpoint, for errors.

    Raises:
        SourceError: blocks without scales, scales without blocks, or shapes or dtypes that do not fit; names them.
    """
    stems = {name.removesuffix(end) for name in tensors for end in (_BLOCKS, _SCALES) if name.endswith(end)}
    plain = {name: entry for name, entry in tensors.items() if not name.endswith((_BLOCKS, _SCALES))}
    return plain | {stem: _entry(stem, tensors, location) for stem in sorted(stems)}


def _entry(stem: str, tensors: dict[str, TensorEntry], location: str) -> TensorEntry:
    if stem in tensors:
        raise SourceError(
            f"{location}: {stem} is there as it is and in MXFP4; expected one of the two. Copy or download it again."
        )
    missing = [stem + end for end in (_BLOCKS, _SCALES) if stem + end not in tensors]
    if missing:
        raise SourceError(
            f"{location}: {missing[0]} is missing, without which {stem} cannot be decoded. Copy or download it again."
        )
    blocks, scales = tensors[stem + _BLOCKS], tensors[stem + _SCALES]
    for name, entry in ((stem + _BLOCKS, blocks), (stem + _SCALES, scales)):
        if entry.dtype != np.uint8:
            raise SourceError(f"{location}: {name} holds {entry.dtype}; expected uint8, as MXFP4 is stored.")
    if len(scales.shape) != 3 or blocks.shape != (*scales.shape, VALUES_OF_BLOCK // 2):
        raise SourceError(
            f"{location}: {stem + _BLOCKS} has shape {blocks.shape} and {stem + _SCALES} {scales.shape}; expected "
            "[experts, out, in / 32, 16] and [experts, out, in / 32]."
        )
    experts, outputs, groups = scales.shape

    def read(start: int, stop: int) -> np.ndarray:
        return _decode(f"{location}: {stem}", blocks.read(start, stop), scales.read(start, stop))

    return TensorEntry((experts, groups * VALUES_OF_BLOCK, outputs), np.dtype(ml_dtypes.bfloat16), read)


def _decode(what: str, blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """[experts, in, out]."""
    if (largest := int(scales.max(initial=0))) > LARGEST:
        raise SourceError(
            f"{what}{_SCALES} holds {largest}; expected at most {LARGEST}, above which values are no numbers of "
            "bfloat16. Copy or download it again."
        )
    values = _PAIRS[blocks].reshape(*scales.shape, VALUES_OF_BLOCK)
    values = np.ldexp(values, scales.astype(np.int32)[..., None] - BIAS).astype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(values.reshape(*scales.shape[:2], -1).swapaxes(1, 2))
