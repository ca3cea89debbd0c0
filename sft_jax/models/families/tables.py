"""What a family's tensor table is made of, and the reading of one key of a Hugging Face config."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


def keep(array: np.ndarray) -> np.ndarray:
    """The tensor as it is stored."""
    return array


def transpose(array: np.ndarray) -> np.ndarray:
    """torch stores a linear layer as [out, in]; kernels here are [in, out]."""
    return array.T


@dataclasses.dataclass(frozen=True)
class TensorRule:
    """One Hugging Face tensor: where it goes here, or why it is ignored.

    Attributes:
        source: its Hugging Face name.
        path: our parameter path in the unrolled layout (`layers_3/ffn/up/kernel`); None if it is ignored.
        shape: shape it must have in the file.
        transform: from the stored array to ours.
        ignored: reason for ignoring it.
        equal_to: an ignored duplicate must equal this other tensor.
        required: False for a tensor that a checkpoint may leave out.
    """

    source: str
    path: str | None
    shape: tuple[int, ...]
    transform: Callable[[np.ndarray], np.ndarray] = keep
    ignored: str = ""
    equal_to: str = ""
    required: bool = True


def require(hf_config: dict, key: str) -> Any:
    """`hf_config[key]`.

    Raises:
        ValueError: the key is missing; names it.
    """
    if hf_config.get(key) is None:
        raise ValueError(f"config.json has no {key!r}, which model_type={hf_config.get('model_type')!r} needs")
    return hf_config[key]
