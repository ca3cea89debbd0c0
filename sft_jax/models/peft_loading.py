"""Reads a PEFT adapter directory as our adapters. `peft_adapters` writes such directories.

Where a stored layer of the checkpoint is several weights here, its adapter in `peft` becomes an adapter of each of
them: all get the whole A, and each gets its own outputs of B. Where every column of B belongs to one of the weights
only, as `peft_adapters` writes them, a weight gets just its own columns, so that an exported adapter reads back
unchanged.

Ranks are kept. Our layers are stacked in one array: where their ranks differ, the smaller ones are padded with zeros in
A and in B, and a layer without an adapter gets zeros. Gradients of the padding are zero, so it stays without effect.
"""

import collections
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from sft_jax.models.config import DecoderConfig
from sft_jax.models.families.tables import TensorRule
from sft_jax.models.layouts import SCAN, resolved, to_layout, without_layers
from sft_jax.models.loading import place_of
from sft_jax.models.peft_adapters import AdapterSettings
from sft_jax.models.peft_modules import HEAD, PeftModule, older_modules, peft_modules
from sft_jax.sources.peft import PeftAdapter
from sft_jax.sources.tensors import TensorEntry
from sft_jax.sources.wrappers import Wrapper, renamed_module

Tree = Any
_TENSOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<array>[AB])\.weight|lora_embedding_(?P<looked_up>[AB])"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.weight)?)"
)
_COPY = re.compile(r"(?P<module>.+?)(?:\.base_layer)?\.weight")

# peft alone would merge such an adapter into the one weight, and change the head with the embedding.
_MERGED_BY_PEFT = """. Merge it with peft into a base whose head is a weight of its own, and give MERGED as the model:
    base = transformers.AutoModelForCausalLM.from_pretrained(BASE, dtype="float32")
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    peft.PeftModel.from_pretrained(base, ADAPTER).merge_and_unload().save_pretrained(MERGED)
    transformers.AutoTokenizer.from_pretrained(BASE).save_pretrained(MERGED)"""


@dataclasses.dataclass(frozen=True)
class LoadedAdapter:
    """An adapter as it is trained and applied here.

    Attributes:
        settings: method, alpha, scaling; the dropout that it was trained with.
        arrays: float32 NumPy arrays `a` [in, rank], `b` [rank, out], and `magnitude` [out] of DoRA, at the paths of
            their weights, layers stacked.
        copies: path -> entry of copies of the base model's weights that the directory holds.
    """

    settings: AdapterSettings
    arrays: Tree
    copies: Mapping[str, TensorEntry]

    def in_layout(self, layout: str) -> Tree:
        """The arrays in a layer layout."""
        return to_layout(self.arrays, layout)

    def ranks(self) -> dict[str, int]:
        """Name of the weight (`attention/query`, `embedding`) -> rank."""
        flat = flatten_dict(self.arrays, sep="/")
        return {without_layers(path)[:-2]: leaf.shape[-1] for path, leaf in flat.items() if path.endswith("/a")}

    def check_copies(self, params: Tree, location: str) -> None:
        """Checks that weights which the directory brings are those of the base model.

        Raises:
            ValueError: they are others, trained or of another size; names them.
        """
        for path, entry in self.copies.items():
            ours = np.asarray(jax.device_get(params[path])).astype(np.float32)
            theirs = entry.load().astype(np.float32)
            theirs = theirs.T if path == "head" else theirs
            if ours.shape != theirs.shape or not np.array_equal(ours.astype(entry.dtype).astype(np.float32), theirs):
                raise ValueError(
                    f"{location} brings its own {path} {list(theirs.shape)}, which is not the base model's "
                    f"{list(ours.shape)}: weights trained beside an adapter are not implemented. Merge it with peft "
                    "(`merge_and_unload`), and give the merged model."
                )


@dataclasses.dataclass(frozen=True)
class _Found:
    """The tensors of one module."""

    module: PeftModule
    a: TensorEntry
    b: TensorEntry
    magnitude: TensorEntry | None
    rank: int
    scale: float


@dataclasses.dataclass(frozen=True)
class _Piece:
    """An adapter of one weight, of one layer and expert."""

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None
    scale: float


def load_peft_adapter(
    adapter: PeftAdapter, hf_config: dict, config: DecoderConfig, wrapper: Wrapper | None = None
) -> LoadedAdapter:
    """Reads the tensors of an adapter directory.

    Args:
        adapter: what was opened.
        hf_config: of the base model; names the family.
        config: the decoder it adapts.
        wrapper: around the text model that it adapts, where that is no model of its own.

    Raises:
        ValueError: a tensor that is missing, has no place in this model, or has another shape than the config says; a
            tied embedding without its head; DoRA that leaves out layers. All such tensors are named at once.
    """
    settings = AdapterSettings("dora" if adapter.dora else "lora", adapter.alpha, adapter.rslora, adapter.dropout)
    found, copies, problems = _modules_of(adapter, hf_config, config, wrapper)
    problems += _tied_problems(adapter, found, config)
    _raise(adapter, problems)
    if config.tie_embeddings:
        found = [one for one in found if not one.module.is_head]
    pieces: dict[str, dict[tuple[int, ...], _Piece]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    layout = resolved(SCAN, config)
    for one in found:
        for rule, piece in _pieces(one):
            path, place = place_of(rule, layout, config.num_layers)
            pieces.setdefault(path.removesuffix("/kernel"), {})[tuple(number for number, _ in place)] = piece
            counts[path.removesuffix("/kernel")] = tuple(count for _, count in place)
    if adapter.dora:
        _raise(
            adapter,
            [
                f"{path} has DoRA in {len(there)} of {int(np.prod(counts[path]))} layers; expected all of them: the "
                "magnitudes of the others would be trained too"
                for path, there in pieces.items()
                if len(there) != np.prod(counts[path])
            ],
        )
    settings = dataclasses.replace(settings, alpha=_usual_alpha(pieces, settings))
    flat = {}
    for path, there in pieces.items():
        flat |= {f"{path}/{name}": array for name, array in _stacked(there, counts[path], settings).items()}
    return LoadedAdapter(settings, unflatten_dict(flat, sep="/"), copies)


def _raise(adapter: PeftAdapter, problems: list[str]) -> None:
    if problems:
        more = [f"… and {len(problems) - 20} more"] if len(problems) > 20 else []
        listed = "\n  ".join([*problems[:20], *more])
        raise ValueError(f"{adapter.location} does not fit the base model:\n  {listed}")


def _modules_of(
    adapter: PeftAdapter, hf_config: dict, config: DecoderConfig, wrapper: Wrapper | None
) -> tuple[list[_Found], dict[str, TensorEntry], list[str]]:
    """(modules with their tensors, copies of weights by our path, what is wrong)."""
    layout = {} if wrapper is None else wrapper.kind.layout_of(adapter.tensors)
    modules = peft_modules(hf_config, config, layout)
    adapted = {module.name for module in modules if module.parameter and adapter.targets_parameter(module.name)}
    by_prefix = {module.module: module for module in older_modules(hf_config, config, layout)}
    for module in modules:
        if not module.parameter or module.name in adapted:
            by_prefix[module.tensors(adapted)] = module
    if config.tie_embeddings:
        embedding = next(module for module in modules if module.embedding)
        head = renamed_module(HEAD, layout)
        by_prefix[head] = PeftModule(head, "", (), embedding.fan_out, embedding.fan_in)
    grouped: dict[str, dict[str, TensorEntry]] = collections.defaultdict(dict)
    copies, problems = {}, []
    for name, entry in adapter.tensors.items():
        match, copy = _TENSOR.fullmatch(name), _COPY.fullmatch(name)
        if match and match["module"] in by_prefix:
            module = by_prefix[match["module"]]
            if bool(match["looked_up"]) > module.embedding or (bool(match["array"]) and module.embedding):
                problems.append(f"{name}: expected tensors of {'an embedding' if module.embedding else 'a layer'}")
            grouped[match["module"]][match["array"] or match["looked_up"] or "M"] = entry
        elif copy and (module := by_prefix.get(copy["module"])) and (module.is_head or module.embedding):
            copies["embedding" if module.embedding or config.tie_embeddings else "head"] = entry
        elif wrapper is not None and (what := wrapper.kind.what_is_skipped(name)):
            problems += _of_another_part(name, entry, what)
        else:
            problems.append(f"{name} has no place in this model ({hf_config.get('model_type')})")
    found = []
    for prefix, entries in grouped.items():
        one, wrong = _found(adapter, by_prefix[prefix], prefix, entries)
        problems += wrong
        found += [one] if one else []
    return found, copies, problems


def _of_another_part(name: str, entry: TensorEntry, what: str) -> list[str]:
    """An adapter of a part that is not read must be as it began: text trains none there, whatever `peft` adapted."""
    begins = match["array"] or match["looked_up"] if (match := _TENSOR.fullmatch(name)) else None
    if begins == "A" or (begins == "B" and not entry.load().any()):
        return []
    return [f"{name} is trained and of {what}, which is not read; merge it with peft (`merge_and_unload`)"]


def _found(
    adapter: PeftAdapter, module: PeftModule, prefix: str, entries: dict[str, TensorEntry]
) -> tuple[_Found | None, list[str]]:
    rank = adapter.rank_of(module.name)
    inner = rank * max(1, module.num_experts)
    expected = {"A": (inner, module.fan_in), "B": (module.fan_out, inner)}
    if adapter.dora:
        expected["M"] = (module.fan_out,)
    words = {"A": "lora_A", "B": "lora_B", "M": "lora_magnitude_vector"}
    problems = [f"{prefix}.{words[name]} is missing" for name in expected if name not in entries]
    for name, entry in entries.items():
        if name not in expected:
            problems.append(f"{prefix}.{words[name]} is there, and adapter_config.json has use_dora=false")
        elif tuple(entry.shape) != expected[name]:
            problems.append(
                f"{prefix}.{words[name]} has shape {tuple(entry.shape)}; expected {expected[name]} (rank {rank})"
            )
        elif entry.dtype.kind in "iub":
            problems.append(f"{prefix}.{words[name]} holds {entry.dtype}; expected floating-point numbers")
    if problems:
        return None, problems
    return _Found(module, entries["A"], entries["B"], entries.get("M"), rank, adapter.scale_of(module.name)), []


def _tied_problems(adapter: PeftAdapter, found: list[_Found], config: DecoderConfig) -> list[str]:
    """Where embedding and head are one weight, so must their adapters be."""
    there = {
        "embedding" if one.module.embedding else HEAD if one.module.is_head else one.module.module: one for one in found
    }
    if not config.tie_embeddings or not {"embedding", HEAD} & there.keys():
        return []
    if there.keys() >= {"embedding", HEAD}:
        embedding, head = there["embedding"], there[HEAD]
        same = (
            embedding.scale == head.scale
            and np.array_equal(embedding.a.load(), head.b.load().T)
            and np.array_equal(embedding.b.load(), head.a.load().T)
        )
        if same and not adapter.dora:
            return []
        return [
            f"embedding and head are one weight in the base model, and have different adapters here{_MERGED_BY_PEFT}"
        ]
    if "embedding" in there and adapter.ties and not adapter.dora:
        return []  # peft makes the head's of it
    alone = "embedding" if "embedding" in there else "head"
    return [
        f"embedding and head are one weight in the base model, and the {alone} alone has an adapter{_MERGED_BY_PEFT}"
    ]


def _pieces(one: _Found) -> list[tuple[TensorRule, _Piece]]:
    """The adapter of each of our weights."""
    module, experts = one.module, max(1, one.module.num_experts)
    a = one.a.load().astype(np.float32).reshape(experts, one.rank, module.fan_in)
    b = one.b.load().astype(np.float32).reshape(module.fan_out, one.rank, experts)
    magnitude = None if one.magnitude is None else one.magnitude.load().astype(np.float32)
    found = []
    for expert in range(experts):
        rules = [rule for rule in module.rules if not module.num_experts or rule.part[0] == expert]
        parts = {rule: np.ascontiguousarray(module.part_of(rule, b[:, :, expert])) for rule in rules}
        for rule, columns in _own_columns(parts, bare=magnitude is None).items():
            if not columns.any():
                continue
            norms = None if magnitude is None else module.part_of(rule, magnitude[:, None])[0].copy()
            piece = _Piece(a[expert][columns].T, parts[rule][columns], norms, one.scale)
            found.append((rule, piece))
    return found


def _own_columns(parts: dict[TensorRule, np.ndarray], bare: bool) -> dict[TensorRule, np.ndarray]:
    """Which of the ranks each weight has: its own, where each rank belongs to one weight; else all of them.

    A weight may be left with none only where it is `bare` of magnitudes, which count without an update too.
    """
    used = {rule: (part != 0).any(-1) for rule, part in parts.items()}
    owners = np.sum(list(used.values()), axis=0)
    if len(parts) > 1 and (owners == 1).all() and (bare or all(mask.any() for mask in used.values())):
        return used
    return {rule: np.ones_like(mask) for rule, mask in used.items()}


def _usual_alpha(pieces: Mapping[str, Mapping[tuple[int, ...], _Piece]], settings: AdapterSettings) -> float:
    """The alpha with which most weights have the scale that they have there; the config's where it is one of those.

    With it the run's one alpha serves them, and their B is kept as it is.
    """
    alphas = collections.Counter({settings.alpha: 0})
    for there in pieces.values():
        rank = max(piece.a.shape[-1] for piece in there.values())
        alphas.update(float(f"{piece.scale * rank**settings.power:.12g}") for piece in there.values())
    return alphas.most_common(1)[0][0]


def _stacked(
    pieces: dict[tuple[int, ...], _Piece], counts: tuple[int, ...], settings: AdapterSettings
) -> dict[str, np.ndarray]:
    """All layers and experts of a weight as one array each; zeros where there is no adapter."""
    rank = max(piece.a.shape[-1] for piece in pieces.values())
    some = next(iter(pieces.values()))
    a = np.zeros((*counts, some.a.shape[0], rank), np.float32)
    b = np.zeros((*counts, rank, some.b.shape[1]), np.float32)
    scale = settings.alpha / rank**settings.power
    for index, piece in pieces.items():
        own = piece.a.shape[-1]
        a[index][:, :own] = piece.a
        factor = piece.scale / scale
        close = abs(factor - 1) < 1e-9  # of rounding alone
        b[index][:own] = piece.b if close else piece.b * np.float32(factor)
    if some.magnitude is None:
        return {"a": a, "b": b}
    magnitude = np.zeros((*counts, some.b.shape[1]), np.float32)
    for index, piece in pieces.items():
        magnitude[index] = piece.magnitude
    return {"a": a, "b": b, "magnitude": magnitude}
