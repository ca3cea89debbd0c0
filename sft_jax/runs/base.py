"""What a run starts from, and what a result is applied to: a pretrained checkpoint, or the result of an earlier run.

`runs/x`, `runs/x:best` and `runs/x:<step>` name results of runs; a PEFT directory names its adapter, merged into its
base model; anything else is a pretrained checkpoint (`sft_jax.sources`).
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Float32

from sft_jax.models import adapters, positions
from sft_jax.models.config import AdapterSpec, DecoderConfig
from sft_jax.models.layouts import to_layout
from sft_jax.models.loading import DtypeOf, cast, decoder_config, load_params, placed_quantized
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.models.variables import (
    SCORE,
    is_buffer,
    is_score,
    merge,
    merge_adapters,
    scaled_adapters,
    split,
    variables,
)
from sft_jax.models.vocabulary import add_new_tokens, grown, resized, with_new_tokens
from sft_jax.options import ModelOptions, WeightOptions, weight_options
from sft_jax.runs.adapting import adapter_hyperparameters, adapter_spec, has_adapters
from sft_jax.runs.averages import for_use, parts_of
from sft_jax.runs.checkpoints import CONSTANTS, DIRECTORY, Checkpoints
from sft_jax.runs.freezing import saved_shapes, trained_predicate, trains_all_weights
from sft_jax.runs.mix import NOT_LINEAR, between, check_mix, mixed_adapters
from sft_jax.runs.saved_config import read_config
from sft_jax.runs.workdir import CONFIG, ENVIRONMENT, TEMPLATE, check_inputs
from sft_jax.sharding import abstract_like, placement, shardings_of
from sft_jax.sources import load_tokenizer, open_checkpoint
from sft_jax.sources.peft import is_peft_directory, open_peft_adapter
from sft_jax.sources.transformers_types import PreTrainedTokenizerBase
from sft_jax.sources.wrappers import Wrapper

Tree = Any
_MADE_OF = (
    "source",
    "revision",
    "max_positions",
    "new_tokens",
    "head",
)  # of the options of a model: what a base follows from
_RUN = re.compile(r"(?P<directory>.+?)(?::(?P<which>\d+|latest|best))?")


@dataclasses.dataclass(frozen=True)
class Base:
    """Weights to start from.

    Attributes:
        name: what was asked for, with the step that was found in a run.
        location: file or directory.
        decoder: what they are weights of.
        hf_config: the same as a Hugging Face config; of a multimodal wrapper, that of its text model.
        fingerprint: changes with the weights.
        revision: commit hash on the hub; None for other sources.
        params: (layer layout, dtype, mesh, quantized) -> the parameters, on their devices; `dtype` may be that of each
            (`DtypeOf`), and `quantized` is `none`, or how kernels are stored in few bits.
        new_token_ids: ids of the new tokens that a run adds (`base_of`); none of a source alone.
        made_for: the options that `base_of` made it of; None of a source alone.
        fresh_head: it scores by a head that begins at zero.
        wrapper: what is around the text model that they are weights of; None where it is a model of its own.
    """

    name: str
    location: str
    decoder: DecoderConfig
    hf_config: dict
    fingerprint: str
    revision: str | None
    params: Callable[..., Tree]
    new_token_ids: range = range(0)
    made_for: ModelOptions | None = None
    wrapper: Wrapper | None = None
    fresh_head: bool = False

    @property
    def origin(self) -> dict[str, str | None]:
        """Where the weights are from, for people."""
        return {"name": self.name, "location": self.location, "revision": self.revision}

    def differs_from(self, model: ModelOptions) -> list[str]:
        """Fields of a config's model by which its base is another."""
        return [name for name in _MADE_OF if getattr(self.made_for, name, None) != getattr(model, name)]

    def check_made_for(self, model: ModelOptions) -> None:
        """Checks that `base_of` made it of a config with the same model.

        Raises:
            ValueError: it did not; names what differs.
        """
        if differ := [f"--config.model.{name}={getattr(model, name)!r}" for name in self.differs_from(model)]:
            raise ValueError(
                f"the base that was given, {self.name}, is not that of {', '.join(differ)}: give base_of(options.model)"
            )


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A checkpoint of a run.

    Attributes:
        directory: the run directory.
        step: of the checkpoint.
        config: the run's experiment config.
        options: what of it says what the weights are.
        base: what the run started from, with the embeddings of its new tokens.
        adapter: the adapter that the decoder applies; None after full fine-tuning.
        mix: 1 for the result; less for weights between it and the base (`mix.py`).
    """

    directory: epath.Path
    step: int
    config: ml_collections.ConfigDict
    options: WeightOptions
    base: Base
    adapter: AdapterSpec | None
    mix: float = 1.0

    @property
    def name(self) -> str:
        """Names this checkpoint among all sources."""
        return f"{self.directory}:{self.step}" + ("" if self.mix == 1 else f" (mix {self.mix:g})")

    def template(self) -> str | None:
        """The chat template that the run brought itself; None where it took that of its base.

        Raises:
            ValueError: the run's copy is gone.
        """
        path = self.directory / TEMPLATE
        if path.exists():
            return path.read_text()
        if self.options.model.chat_template:
            raise ValueError(f"{path} is missing: the run was trained with a chat template of its own. Put it back.")
        return None

    def fingerprint(self) -> str:
        """Of what the weights follow from: base, data, config, step.

        The config is as at the run's first start: config.json changes where fields are added by hand for newer code, or
        where the run goes on with another mesh. Runs that recorded none are known by their config.json.
        """
        environment = json.loads((self.directory / ENVIRONMENT).read_text())
        made_of = [environment["fingerprints"], environment.get("config", self.config.to_dict())]
        return hashlib.sha256(json.dumps([*made_of, self.step], sort_keys=True, default=list).encode()).hexdigest()

    def trained(self, layout: str, mesh: Mesh, weights: str = "trained", dtype: str | DtypeOf = "float32") -> Tree:
        """{"params": …} or {"adapters": …}: what was trained.

        Args:
            layout: layer layout wanted; layers of which only the last were trained cannot be stacked.
            mesh: where the arrays go.
            weights: `trained`, the result of training, or `ema`, its average over the steps.
            dtype: of parameters, where it is narrower than the saved one: each shard is cast on the host, before it is
                placed. Adapters are as they were saved, and so is what an average has to be computed from.

        Raises:
            ValueError: the run kept no average.
        """
        in_float32 = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32)
        checkpoints = Checkpoints(self.directory, keep_last=1_000_000, read_only=True)
        try:
            shapes, constants = saved_shapes(self.options, self.base.decoder, checkpoints.position(self.step).layout)
            wanted = {}
            parts = parts_of(self.options.optimizer, self.options.ema, weights)
            for part in parts:
                like = jax.tree.map(in_float32, shapes) if part == "ema" else shapes
                like = _narrowed(like, dtype) if len(parts) == 1 else like
                wanted[part] = abstract_like(like, shardings_of(like, mesh))
            if constants:
                wanted[CONSTANTS] = abstract_like(constants, shardings_of(constants, mesh))
            parts = checkpoints.restore_parts(self.step, wanted)
            constants = parts.pop(CONSTANTS, {})
            chosen = merge(for_use(parts, self.options.optimizer.betas[0]), constants)
        finally:
            checkpoints.close()
        return {name: to_layout(tree, layout) for name, tree in chosen.items()}

    def variables(self, layout: str, mesh: Mesh, weights: str = "trained", dtype: str | DtypeOf = "float32") -> Tree:
        """What the decoder's `apply` takes, adapters beside their weights; `weights` and `dtype` as in `trained`.

        Between base and result, and where adapters are merged for that, `dtype` is not heeded: it takes float32.
        """
        # Where only the last layers were trained, they meet the frozen ones before all are stacked.
        options = self.options
        through: str = "unrolled" if options.trained.last_layers else layout
        dtype = dtype if self.mix == 1 else "float32"
        trained, frozen, precision = self.trained(through, mesh, weights, dtype), {}, options.precision
        predicate = trained_predicate(options.adapter, options.trained, self.base.decoder.num_layers)
        if not trains_all_weights(options.adapter, options.trained):
            params = {"params": self.base.params(through, precision.frozen, mesh, precision.quantized)}
            _, frozen = split(params, predicate)
        adapted = has_adapters(options.adapter)
        if self.mix != 1 and not adapted:
            kept = lambda path: predicate(path) or is_buffer(path)
            start, _ = split({"params": self.base.params(through, "float32", mesh)}, kept)
            trained = between(start, trained, self.mix)
        tree = variables(trained, frozen, adapter_hyperparameters(options.adapter))
        if self.mix != 1 and adapted:
            tree = mixed_adapters(tree, _spec_of(options, self.base), self.mix, mesh)
        return {name: to_layout(subtree, layout) for name, subtree in tree.items()}

    def params(
        self,
        layout: str,
        dtype: str | DtypeOf,
        mesh: Mesh,
        quantized: str = "none",
        weights: str = "trained",
    ) -> Tree:
        """The parameters, with adapters merged into them; `weights` as in `trained`."""
        if self.adapter is not None:
            return _merged(self.variables(layout, mesh, weights), self.adapter, dtype, mesh, quantized)
        tree = self.variables(layout, mesh, weights, dtype)
        return placed_quantized(cast(tree["params"], dtype), quantized, placement(mesh))


def _narrowed(shapes: Tree, dtype: str | DtypeOf) -> Tree:
    """Parameters among what was trained in another dtype, where that has fewer bits."""

    def narrowed(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        wanted = jnp.dtype(dtype if isinstance(dtype, str) else dtype(path, leaf.dtype))
        if is_score(path):
            return leaf
        return leaf.update(dtype=wanted) if wanted.itemsize < leaf.dtype.itemsize else leaf

    if "params" not in shapes:
        return shapes
    flat = flatten_dict(shapes["params"], sep="/")
    return shapes | {"params": unflatten_dict({path: narrowed(path, leaf) for path, leaf in flat.items()}, sep="/")}


def open_base(source: str, revision: str | None = None) -> Base:
    """What `config.model.source` names.

    Raises:
        ValueError: there is no such source, or no such checkpoint in a run; says what there is.
    """
    run = open_run(source)
    if run is not None:
        if revision:
            raise ValueError(f"--config.model.revision={revision} is for hub names, and {source} is a run directory")
        return Base(
            name=run.name,
            location=str(run.directory),
            decoder=run.base.decoder,
            hf_config=run.base.hf_config,
            fingerprint=run.fingerprint(),
            revision=None,
            params=run.params,
            wrapper=run.base.wrapper,
        )
    if is_peft_directory(source):
        return _merged_base(source, revision)
    checkpoint = open_checkpoint(source, revision)
    decoder = decoder_config(checkpoint)

    def params(layout: str, dtype: str | DtypeOf, mesh: Mesh, quantized: str = "none") -> Tree:
        return load_params(checkpoint, decoder, layout, dtype, placement(mesh), quantized)

    return Base(
        name=source,
        location=checkpoint.location,
        decoder=decoder,
        hf_config=checkpoint.config,
        fingerprint=checkpoint.fingerprint,
        revision=checkpoint.revision,
        params=params,
        wrapper=checkpoint.wrapper,
    )


def _merged_base(source: str, revision: str | None) -> Base:
    """A PEFT adapter, merged into the base model that it names."""
    adapter = open_peft_adapter(source)
    if revision or not adapter.base:
        wrong = f"a revision ({revision}) is for hub names" if revision else "it names no base_model_name_or_path"
        raise ValueError(f"{source} is a PEFT adapter, and {wrong}: see its adapter_config.json")
    base = open_base(adapter.base, adapter.revision)
    loaded = load_peft_adapter(adapter, base.hf_config, base.decoder, base.wrapper)

    def params(layout: str, dtype: str | DtypeOf, mesh: Mesh, quantized: str = "none") -> Tree:
        tree = {"params": base.params(layout, "float32", mesh)}
        loaded.check_copies(tree["params"], source)
        hyper = {name: jnp.float32(value) for name, value in loaded.settings.hyper().items()}
        tree[adapters.COLLECTION] = scaled_adapters(jax.tree.map(jnp.asarray, loaded.in_layout(layout)), hyper)
        return _merged(tree, AdapterSpec(loaded.settings.method), dtype, mesh, quantized)

    fingerprint = hashlib.sha256(f"{base.fingerprint} {adapter.fingerprint}".encode()).hexdigest()
    return dataclasses.replace(
        base, name=source, location=adapter.location, fingerprint=fingerprint, revision=None, params=params
    )


def _merged(tree: Tree, adapter: AdapterSpec, dtype: str | DtypeOf, mesh: Mesh, quantized: str) -> Tree:
    """Parameters with the adapters beside them merged into them."""
    merge = lambda tree: merge_adapters(tree, adapter.method, adapter.first_new_token)
    shardings = shardings_of({"params": jax.eval_shape(merge, tree)}, mesh)["params"]
    params = jax.jit(merge, out_shardings=shardings)(tree)
    return placed_quantized(cast(params, dtype), quantized, placement(mesh))


def base_of(model: ModelOptions) -> Base:
    """What a run starts from: the model's source with its positions, resized for its new tokens.

    Raises:
        ValueError: see `open_base`; a new token that is none (`add_new_tokens`), or positions that cannot be lifted.
    """
    source, revision = model.source, model.revision or None
    base = with_positions(open_base(source, revision), model.max_positions, "--config.model.max_positions")
    base = dataclasses.replace(with_head(base, model.head), made_for=model)
    if not model.new_tokens:
        return base
    new = add_new_tokens(load_base_tokenizer(source, revision), model.new_tokens)
    decoder = grown(base.decoder, new)

    def params(layout: str, dtype: str | DtypeOf, mesh: Mesh, quantized: str = "none") -> Tree:
        return resized(base.params(layout, dtype, mesh, quantized), decoder, new, placement(mesh))

    hf_config = base.hf_config | {"vocab_size": decoder.vocab_size}
    return dataclasses.replace(base, decoder=decoder, hf_config=hf_config, params=params, new_token_ids=new)


def with_head(base: Base, head: str) -> Base:
    """The same weights with a head that scores in the place of theirs, zeros at first, where that is asked for.

    Raises:
        ValueError: they have such a head, and the other one is asked for.
    """
    if base.decoder.scores == (head == SCORE):
        return base
    if base.decoder.scores:
        raise ValueError(
            f"--config.model.head={head}: {base.name} is a reward model, which has no vocabulary head; give "
            f"--config.model.head={SCORE} (configs/reward_model.py)"
        )
    decoder = dataclasses.replace(base.decoder, scores=True)

    def params(layout: str, dtype: str | DtypeOf, mesh: Mesh, quantized: str = "none") -> Tree:
        read = base.params(layout, dtype, mesh, quantized)
        kept = {name: tree for name, tree in read.items() if name != "head"}
        begins = fresh_score(decoder.model_dim)
        return kept | {SCORE: jax.device_put(begins, placement(mesh)(SCORE, begins.shape))}

    return dataclasses.replace(base, decoder=decoder, params=params, wrapper=None, fresh_head=True)


def fresh_score(model_dim: int) -> Float32[np.ndarray, "D 1"]:
    """The head that a reward model begins with, by which all scores are 0."""
    return np.zeros((model_dim, 1), np.float32)


def with_positions(base: Base, count: int, flag: str) -> Base:
    """The same weights with a limit of `count` positions; 0 leaves what they say themselves.

    Raises:
        ValueError: they have other positions that cannot be changed; names the flag.
    """
    try:
        decoder, hf_config = positions.with_positions(base.decoder, base.hf_config, count)
    except ValueError as error:
        raise ValueError(f"{flag}={count}: {base.name}: {error}") from error
    return dataclasses.replace(base, decoder=decoder, hf_config=hf_config)


def open_run(source: str, mix: float = 1.0) -> FinishedRun | None:
    """The checkpoint of a run that `source` names; None where it names no run directory.

    Args:
        source: run directory, with `:best`, `:latest` (the default) or `:<step>`.
        mix: 1 for the result of the run, 0 for its base, or what lies between them.

    Raises:
        ValueError: there is no such checkpoint (names those there are), or its base model is not the same any more; or
            `mix` lies elsewhere.
    """
    check_mix(mix)
    match = _RUN.fullmatch(source)
    if source.startswith("random:") or match is None:
        return None
    directory = epath.Path(match["directory"])
    config = run_config(directory)
    if config is None:
        return None
    checkpoints = Checkpoints(directory, keep_last=1_000_000, read_only=True)
    try:
        step = _step(directory, match["which"] or "latest", checkpoints)
    finally:
        checkpoints.close()
    options = weight_options(config)
    base = base_of(options.model)
    check_inputs(directory, {"model": base.fingerprint})
    adapter = _spec_of(options, base)
    if mix != 1 and adapter is not None and base.decoder.scores:
        raise ValueError(f"--mix={mix}: {source} has a score head beside its adapter, which is not mixed; give --mix=1")
    if mix != 1 and adapter is not None and adapter.method in NOT_LINEAR:
        adapter = None  # there are merged weights alone
    return FinishedRun(directory, step, config, options, base, adapter, mix)


def _spec_of(options: WeightOptions, base: Base) -> AdapterSpec | None:
    """The adapter that a run trained beside its weights."""
    return adapter_spec(options.adapter, base.new_token_ids, training=False)


def run_config(directory: epath.Path) -> ml_collections.ConfigDict | None:
    """The config of a run directory; None where `directory` is not one.

    Raises:
        ValueError: see `read_config`.
    """
    if not (directory / DIRECTORY).exists() or not (directory / CONFIG).exists():
        return None
    return read_config(directory)


def load_base_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to `source`, with the new tokens and the chat template of a run there."""
    run = open_run(source)
    if run is None and is_peft_directory(source) and not (epath.Path(source) / "tokenizer_config.json").exists():
        adapter = open_peft_adapter(source)
        return load_base_tokenizer(adapter.base, adapter.revision)
    if run is None:
        return load_tokenizer(source, revision)
    tokenizer = load_base_tokenizer(run.options.model.source, run.options.model.revision or None)
    tokenizer = with_new_tokens(tokenizer, run.options.model)
    tokenizer.chat_template = run.template() or tokenizer.chat_template
    return tokenizer


def _step(directory: epath.Path, which: str, checkpoints: Checkpoints) -> int:
    steps = checkpoints.steps()
    if not steps:
        raise ValueError(f"{directory} holds no finished checkpoint yet")
    found = {"latest": checkpoints.latest, "best": checkpoints.best}.get(which, lambda: int(which))()
    if found is None:
        raise ValueError(f"{directory}: no checkpoint has the metric that 'best' is chosen by; there are {steps}")
    if found not in steps:
        raise ValueError(f"{directory} has no checkpoint of step {found}; there are {steps}")
    return found
