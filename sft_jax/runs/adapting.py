"""Which weights get an adapter, of which rank, and the adapters at step 0."""

import dataclasses
import re
import zlib
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, UInt32

from sft_jax.models import adapters
from sft_jax.models.adapters import new_tokens
from sft_jax.models.config import AdapterSpec
from sft_jax.models.layouts import to_layout, without_layers
from sft_jax.models.variables import adapter_scale
from sft_jax.options import AdapterOptions

Tree = Any
Seed = int | UInt32[Array, ""]
OUTSIDE = ("embedding", "head")  # weights that are no projection of a layer


def weight_names(paths: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What an adapter can be beside, by the name that patterns are about: `attention/query`, `embedding`, `head`.

    Args:
        paths: paths of parameters in the stacked layout.

    Returns:
        name -> paths of the weight (`layers/attention/query/kernel`), one for each stack of layers that has it.
    """
    names: dict[str, tuple[str, ...]] = {}
    for path in paths:
        if path in OUTSIDE or path.endswith("/kernel"):
            name = without_layers(path).removesuffix("/kernel")
            names[name] = (*names.get(name, ()), path)
    return names


def adapter_ranks(names: Iterable[str], adapter: AdapterOptions) -> dict[str, int]:
    """The rank of each weight that gets an adapter.

    Args:
        names: as `weight_names` has them.
        adapter: `targets` are regular expressions that a name matches as a whole; `ranks` are `pattern=rank`, of which
            the first that matches counts, before `rank`.

    Raises:
        ValueError: a pattern that matches nothing (lists what there is), or an entry of `ranks` of another form.
    """
    names = sorted(names)
    targets = [name for name in names if any(re.fullmatch(pattern, name) for pattern in adapter.targets)]
    unmatched = [pattern for pattern in adapter.targets if not any(re.fullmatch(pattern, name) for name in names)]
    if unmatched or not targets:
        raise ValueError(f"--config.adapter.targets={unmatched or '()'} match nothing; there are: {', '.join(names)}")
    by_pattern = dict(_rank_entry(entry) for entry in adapter.ranks)
    for pattern in by_pattern:
        if not any(re.fullmatch(pattern, name) for name in targets):
            raise ValueError(f"--config.adapter.ranks: {pattern!r} matches no target; there are: {', '.join(targets)}")
    return {
        name: next((rank for pattern, rank in by_pattern.items() if re.fullmatch(pattern, name)), adapter.rank)
        for name in targets
    }


def _rank_entry(entry: str) -> tuple[str, int]:
    pattern, _, rank = entry.rpartition("=")
    if not pattern or not rank.isdigit() or int(rank) < 1:
        raise ValueError(
            f"--config.adapter.ranks: {entry!r} is not of the form pattern=rank, with a rank of at least 1"
        )
    return pattern, int(rank)


def has_adapters(adapter: AdapterOptions) -> bool:
    """True where something is trained beside the weights, all of which are frozen then."""
    return adapter.method != "none" or adapter.train_new_tokens


def adapter_spec(adapter: AdapterOptions, new_token_ids: range, *, training: bool) -> AdapterSpec | None:
    """What the decoder applies beside its weights; None where there is nothing.

    Args:
        adapter: what the run trains beside its weights.
        new_token_ids: of the tokens that the run adds, ascending.
        training: whether dropout is drawn.

    Raises:
        ValueError: no method has that name.
    """
    if not has_adapters(adapter):
        return None
    if adapter.method != "none":
        adapters.get_method(adapter.method)
    dropout = training and adapter.method != "none" and adapter.dropout > 0
    return AdapterSpec(adapter.method, dropout, new_token_ids.start if adapter.train_new_tokens else None)


def adapter_hyperparameters(adapter: AdapterOptions) -> dict[str, Array]:
    """Scale and dropout of adapters as float32 scalars."""
    values = {
        "adapter_alpha": adapter.alpha,
        "adapter_rank_power": {"rank": 1.0, "sqrt_rank": 0.5}[adapter.scaling],
        "adapter_dropout": adapter.dropout,
    }
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def arrays_of(adapter: AdapterOptions) -> AdapterOptions:
    """The options with all left out that says nothing of which arrays there are: equal for runs whose adapters are
    made by the same program. Alpha, scaling and dropout are hyperparameters."""
    return dataclasses.replace(adapter, initial="", alpha=0.0, scaling="", dropout=0.0)


def init_beside(
    params: Tree, adapter: AdapterOptions, seed: Seed, hyper: dict[str, Array], layout: str, new_token_ids: range
) -> Tree:
    """Everything that is trained beside `params` at step 0: adapters, and embeddings of new tokens.

    Args:
        params: parameters in the stacked layout, resized for the new tokens.
        adapter: what to train.
        seed: of the initial values.
        hyper: the run's hyperparameters.
        layout: layer layout of the result.
        new_token_ids: of the tokens that the run adds, ascending.

    Raises:
        ValueError: see `init_adapters`.
    """
    made = {}
    if adapter.method != "none":
        made = init_adapters(params, adapter, hyper, seed, layout)
    return made | ({new_tokens.NAME: new_tokens.init(params, new_token_ids)} if adapter.train_new_tokens else {})


def init_adapters(params: Tree, adapter: AdapterOptions, hyper: dict[str, Array], seed: Seed, layout: str) -> Tree:
    """Fresh adapters beside `params`, float32, the same numbers in either layout.

    Args:
        params: parameters in the stacked layout.
        adapter: method, targets and ranks.
        hyper: the run's hyperparameters, for the scale.
        seed: of the initial values; each weight draws from its own stream.
        layout: layer layout of the result.

    Raises:
        ValueError: bad patterns, or a method that cannot adapt what is asked for.
    """
    method = adapters.get_method(adapter.method)
    flat = flatten_dict(params, sep="/")
    names = weight_names(flat)
    made, key = {}, jax.random.key(seed)
    for name, rank in adapter_ranks(names, adapter).items():
        _check_method(adapter.method, name, tied="head" not in flat)
        init = method.init_embedding if name == "embedding" else method.init
        for path in names[name]:
            weight_path = path.removesuffix("/kernel")
            path_key = jax.random.fold_in(key, zlib.crc32(weight_path.encode()))
            made[weight_path] = init(path_key, flat[path], rank, adapter_scale(hyper, rank))
    return to_layout(unflatten_dict(made, sep="/"), layout)


def _check_method(name: str, weight: str, tied: bool) -> None:
    method = adapters.get_method(name)
    if weight.startswith("experts/") and weight != "experts/router" and not method.ON_EXPERTS:
        raise ValueError(
            f"--config.adapter.method={name} is not implemented for experts, and {weight} is a target: leave experts "
            "out of --config.adapter.targets, or give --config.adapter.method=lora"
        )
    if weight == "embedding" and tied and not method.ON_TIED_EMBEDDING:
        raise ValueError(
            f"--config.adapter.method={name} is not implemented for an embedding that is the head too: leave "
            "`embedding` out of --config.adapter.targets"
        )
