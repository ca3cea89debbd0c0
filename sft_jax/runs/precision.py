"""The dtypes that a config leaves to the platform: found when a run begins, and its own from then on."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from sft_jax.runs.workdir import AUTO, BY_PLATFORM


def dtype_on(platform: str) -> str:
    """In what activations, and weights that are not trained, are kept where the config says `auto`.

    Accelerators multiply in bfloat16 many times as fast as in float32, and memory is what they lack.

    Args:
        platform: `cpu`, `gpu` or `tpu`.
    """
    return "float32" if platform == "cpu" else "bfloat16"


def with_dtypes(
    config: ml_collections.ConfigDict, platform: str, there: Mapping[str, Any] | None = None
) -> ml_collections.ConfigDict:
    """The config with a dtype wherever it says `auto`; the run records it as its own.

    A run that goes on keeps the dtypes with which it began, whatever the platform is now: its numbers follow from them,
    and its result is put together with weights in them.

    Args:
        config: as it was asked for.
        platform: of the devices.
        there: the config of the run that goes on; None for a new one.
    """
    made = config.copy_and_resolve_references().unlock()
    recorded = (there or {}).get("precision", {})
    for name in (field.removeprefix("precision.") for field in BY_PLATFORM):
        if made.precision[name] != AUTO:
            continue
        found = recorded.get(name, AUTO)
        made.precision[name] = dtype_on(platform) if found == AUTO else found
        if name in made.defaults.precision:  # so that the recorded config does not look as if it had been asked for
            made.defaults.precision[name] = made.precision[name]
    return made.lock()
