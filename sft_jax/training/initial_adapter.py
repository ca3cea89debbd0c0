"""Starts a run from a PEFT adapter: what the config takes from it, and its arrays at step 0."""

import dataclasses
from typing import Any

import jax
import ml_collections
from jax.sharding import Mesh

from sft_jax.models import adapters
from sft_jax.models.peft_loading import LoadedAdapter, load_peft_adapter
from sft_jax.options import AdapterOptions
from sft_jax.runs.base import Base
from sft_jax.sharding import shardings_of
from sft_jax.sources.peft import open_peft_adapter

Tree = Any


@dataclasses.dataclass(frozen=True)
class InitialAdapter:
    """An adapter to begin with.

    Attributes:
        location: its directory.
        fingerprint: changes with its files.
        loaded: its arrays.
    """

    location: str
    fingerprint: str
    loaded: LoadedAdapter

    def in_config(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """The config with method, ranks, targets and scale of this adapter; the run records them as its own.

        A flag may repeat what the adapter has. Its dropout is not part of what it computes and stays the config's.

        Raises:
            ValueError: flags that ask for something else; names them all.
        """
        taken, asked, defaults = self._fields(), config.adapter, config.defaults.adapter
        problems = [
            f"--config.adapter.{name}={asked[name]!r}: the adapter in {self.location} has {taken[name]!r}; leave it at "
            f"{defaults[name]!r}, or give that"
            for name in taken
            if not _same(asked[name], defaults[name]) and not _same(asked[name], taken[name])
        ]
        if problems:
            raise ValueError("\n".join(problems))
        made = config.copy_and_resolve_references()
        with made.unlocked():
            made.adapter.update(taken)
        return made

    def _fields(self) -> dict[str, Any]:
        """What the adapter says of itself, by its name in `config.adapter`."""
        settings, ranks = self.loaded.settings, self.loaded.ranks()
        rank = max(ranks.values(), key=list(ranks.values()).count)
        return {
            "method": settings.method,
            "rank": rank,
            "ranks": tuple(f"{name}={other}" for name, other in sorted(ranks.items()) if other != rank),
            "alpha": settings.alpha,
            "scaling": "sqrt_rank" if settings.rslora else "rank",
            "targets": tuple(sorted(ranks)),
        }

    def placed(self, params: Tree, layout: str, mesh: Mesh) -> Tree:
        """The adapters on their devices, float32, in a layer layout.

        Args:
            params: of the base model, which copies of its weights in the directory are compared with.
            layout: layer layout of the result.
            mesh: where the arrays go.

        Raises:
            ValueError: the directory brings weights of its own.
        """
        self.loaded.check_copies(params, self.location)
        return place_adapters(self.loaded, layout, mesh)


def place_adapters(loaded: LoadedAdapter, layout: str, mesh: Mesh) -> Tree:
    """The arrays of an adapter on their devices."""
    arrays = loaded.in_layout(layout)
    shardings = shardings_of({adapters.COLLECTION: arrays}, mesh)[adapters.COLLECTION]
    put = lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return jax.tree.map(put, arrays, shardings)


def open_initial_adapter(options: AdapterOptions, base: Base) -> InitialAdapter | None:
    """The adapter that `config.adapter.initial` names; None where it is empty.

    Raises:
        ValueError: there is none, it is not understood, or it does not fit the base model.
    """
    if not options.initial:
        return None
    if options.method == "none":
        raise ValueError(
            f"--config.adapter.initial={options.initial} is for adapters, and --config.adapter.method=none; "
            "give --config=configs/sft.py:lora"
        )
    adapter = open_peft_adapter(options.initial)
    loaded = load_peft_adapter(adapter, base.hf_config, base.decoder, base.wrapper)
    return InitialAdapter(adapter.location, adapter.fingerprint, loaded)


def _same(one: Any, other: Any) -> bool:
    as_list = lambda value: sorted(value) if isinstance(value, tuple | list) else value
    return as_list(one) == as_list(other)
