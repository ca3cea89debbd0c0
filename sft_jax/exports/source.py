"""What is exported: the result of a run, or a pretrained checkpoint in another format."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh
from jaxtyping import Array

from sft_jax.exports.directory import ExportError
from sft_jax.models import adapters
from sft_jax.models.adapters import new_tokens
from sft_jax.models.config import AdapterSpec, DecoderConfig
from sft_jax.models.quantization import dequantized_tree
from sft_jax.models.storing import WeightMaker
from sft_jax.models.variables import merge_adapters
from sft_jax.runs.adapting import has_adapters
from sft_jax.runs.base import Base, FinishedRun, load_base_tokenizer, open_base, open_run
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase

Tree = Any


@dataclasses.dataclass(frozen=True)
class ExportSource:
    """A model to be exported.

    Attributes:
        name: what was asked for, with the step that was found.
        base: what the run started from; of a pretrained checkpoint, itself.
        run: the checkpoint of a run; None for a pretrained checkpoint.
        tokenizer: with the chat template that the model was trained with.
        weights: `trained`, or `ema`.
    """

    name: str
    base: Base
    run: FinishedRun | None
    tokenizer: PreTrainedTokenizerBase
    weights: str

    @property
    def decoder(self) -> DecoderConfig:
        """What the weights are parameters of."""
        return self.base.decoder

    @property
    def adapter(self) -> AdapterSpec | None:
        """The adapter beside the weights; None where there is none."""
        return None if self.run is None else self.run.adapter

    @property
    def mix(self) -> float:
        """1 for the result of the run; less for weights between it and its base."""
        return 1.0 if self.run is None else self.run.mix

    def variables(self, mesh: Mesh) -> Tree:
        """Parameters, with adapters beside them, in the unrolled layout."""
        if self.run is not None:
            return self.run.variables("unrolled", mesh, self.weights)
        return {"params": self.base.params("unrolled", "float32", mesh)}


def open_source(source: str, weights: str = "trained", mix: float = 1.0) -> ExportSource:
    """What `source` names; no array is read yet.

    Args:
        source: a run directory, with `:best`, `:latest` (the default) or `:<step>`, or a pretrained source.
        weights: of a run: `trained`, or `ema` for the average that it kept.
        mix: of a run: 1 for its result, 0 for its base, or what lies between them.

    Raises:
        ValueError: there is no such run, checkpoint or source, or a pretrained source is asked for an average or a mix;
            or a mix that is not between 0 and 1.
    """
    run = open_run(source, mix)
    tokenizer = load_base_tokenizer(source)
    if run is not None:
        return ExportSource(run.name, run.base, run, tokenizer, weights)
    if weights != "trained":
        raise ValueError(f"--weights={weights} is for runs, and {source} is a pretrained checkpoint")
    if mix != 1:
        raise ValueError(f"--mix={mix} is for runs, and {source} is a pretrained checkpoint")
    return ExportSource(source, open_base(source), None, tokenizer, weights)


def check_format(source: ExportSource, kind: str) -> None:
    """Checks that a format fits what was trained.

    Args:
        source: what is exported.
        kind: `hf`, `merged` or `peft`.

    Raises:
        ExportError: it does not; says which do.
    """
    adapted = source.run is not None and has_adapters(source.run.options.adapter)
    if adapted and kind == "hf":
        alone = "" if source.base.new_token_ids or source.decoder.scores else "--format=peft for the adapter alone, or "
        raise ExportError(
            f"{source.name} is trained beside frozen weights ({source.adapter or source.run.options.adapter.method}): "
            f"give {alone}--format=merged for the whole model"
        )
    if not adapted and kind != "hf":
        raise ExportError(f"{source.name} has no adapter, so there is nothing for --format={kind}; give --format=hf")
    if kind == "peft" and source.decoder.scores:
        raise ExportError(
            f"{source.name} has a score head that is trained whole, which --format=peft does not hold; give "
            "--format=merged"
        )
    if kind == "peft" and source.mix == 0:
        raise ExportError(f"{source.name} is its base, without an adapter for --format=peft; give --format=merged")
    if kind == "peft" and source.adapter is None:
        method = source.run.options.adapter.method
        raise ExportError(
            f"{source.name}: a part of the update of a {method} adapter is no {method} adapter, as --format=peft would "
            "write one; give --format=merged"
        )
    if kind == "peft" and source.base.new_token_ids:
        raise ExportError(
            f"{source.name} has embeddings of new tokens, which --format=peft does not hold; give --format=merged"
        )


def source_directory(source: ExportSource) -> epath.Path | None:
    """The Hugging Face directory that the model first came from; None where it came from a file of another format."""
    base = source.base
    while (earlier := open_run(base.name)) is not None:
        base = earlier.base
    location = epath.Path(base.location)
    return location if location.is_dir() else None


def merged_weights(variables: Tree, adapter: AdapterSpec | None) -> dict[str, WeightMaker]:
    """The parameters, adapters merged into them in float32, each made when it is asked for.

    Args:
        variables: of `ExportSource.variables`.
        adapter: what lies beside the parameters.
    """
    beside = flatten_dict(variables.get(adapters.COLLECTION, {}), sep="/")
    pieces: dict[str, dict[str, Array]] = {}
    for path, leaf in flatten_dict(variables["params"], sep="/").items():
        stem, kernel, few_bits = path.partition("/kernel")
        pieces.setdefault(stem + kernel, {})[few_bits] = leaf
    weights: dict[str, WeightMaker] = {}
    for path, arrays in pieces.items():
        stem = path.removesuffix("/kernel") + "/"
        near = {name.removeprefix(stem): leaf for name, leaf in beside.items() if name.startswith(stem)}
        own = beside.get(f"{new_tokens.NAME}/{path}")
        if not near and own is None and "" in arrays:
            weights[path] = arrays[""].__getitem__
        else:
            weights[path] = functools.partial(_merged, path.rpartition("/")[2], arrays, near, own, adapter)
    return weights


def _merged(
    name: str,
    arrays: dict[str, Array],
    near: dict[str, Array],
    own: Array | None,
    adapter: AdapterSpec | None,
    place: tuple[int, ...],
) -> Array:
    """One weight, merged with its adapter (`near`) and with what it has for new tokens (`own`).

    The tree it is merged in has no number of a layer, so that one compiled function serves all.
    """
    arrays = {key.removeprefix("/"): leaf[place] for key, leaf in arrays.items()}
    weight = arrays.get("", arrays)
    near = {key: leaf[place] if leaf.ndim else leaf for key, leaf in near.items()}  # the scale is all experts'
    if name == "kernel":
        tree = {"params": {"layer": {name: weight}}, adapters.COLLECTION: {"layer": near} if near else {}}
    else:
        beside = ({name: near} if near else {}) | ({} if own is None else {new_tokens.NAME: {name: own}})
        tree = {"params": {name: weight}, adapters.COLLECTION: beside}
    return _merge(tree, adapter)


@functools.partial(jax.jit, static_argnums=1)
def _merge(tree: Tree, adapter: AdapterSpec | None) -> Array:
    wide = lambda leaf: leaf.astype(jnp.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    tree = tree | {"params": jax.tree.map(wide, tree["params"])}
    if tree[adapters.COLLECTION]:
        merged = merge_adapters(tree, adapter.method, adapter.first_new_token)
    else:
        merged = dequantized_tree(tree["params"])
    (leaf,) = jax.tree.leaves(merged)
    return leaf
