"""From a config to everything a run needs: data and its plan, model, mesh, state. No side effects but reading."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from sft_jax.data.cache import cache_directory
from sft_jax.data.checks import CHECKS, LearningCurve, Subject, run_checks, verdict
from sft_jax.data.cleaning import Context, Sink
from sft_jax.data.mixture import Mixture
from sft_jax.data.packing import packing_report, supervised_capacity
from sft_jax.data.plan import PackPlan, mixture_capacity
from sft_jax.data.reading import reading_of
from sft_jax.data.records import Record, RecordReader
from sft_jax.data.rendering import ConversationRenderer, Masking
from sft_jax.data.report import DataReport, data_report, token_pieces
from sft_jax.data.tokenized import Tokenized, TokenizedRows, group_dropped
from sft_jax.data.tokenizing import tokenize_records
from sft_jax.models import adapters
from sft_jax.models.config import DecoderConfig, Execution, LayerLayout
from sft_jax.models.decoder import Decoder
from sft_jax.models.layouts import to_layout
from sft_jax.models.quantization import dequantized_tree
from sft_jax.objectives import Settings, get_objective
from sft_jax.training.adapting import adapter_spec, has_adapters, init_beside
from sft_jax.training.base import Base, load_base_tokenizer
from sft_jax.training.freezing import trained_predicate, trains_all_weights
from sft_jax.training.initial_adapter import InitialAdapter
from sft_jax.training.judging import read_benchmarks, subject_of
from sft_jax.training.mixing import mixture_of
from sft_jax.training.optimizer import OptimizerSettings, make_optimizer, optimizer_settings
from sft_jax.training.sharding import data_shards, shardings_of
from sft_jax.training.state import TrainState, canonical_path, split
from sft_jax.training.step import StepSettings
from sft_jax.training.train_rows import (
    CHECKED_RECORDS,
    ProgressFor,
    TrainingRecords,
    rows_key_of,
    training_findings,
    training_rows,
)
from sft_jax.training.vocabulary import add_new_tokens

Tree = Any
_SCAN_TOKENS = 1024  # of a micro-batch, see `resolve_execution`


@dataclasses.dataclass(frozen=True)
class Data:
    """The data of a run.

    Attributes:
        renderer: chat template and tokenizer.
        rows: tokenized training rows.
        plan: their order over the whole run.
        report: what is shown before training.
        subject: what the checks looked at; None where not all of them did.
        held_out_records: conversations kept for measuring; empty where the config names none.
        held_out: their tokens; None where there are none.
        held_out_targets: target slots of a held-out row.
        held_out_note: how many rows there are, and which are left out; empty where there are none.
    """

    renderer: ConversationRenderer
    rows: TokenizedRows
    plan: PackPlan
    report: DataReport
    subject: Subject | None
    held_out_records: list[Record]
    held_out: TokenizedRows | None
    held_out_targets: int
    held_out_note: str

    def fingerprints(self) -> dict[str, str]:
        """What the numbers depend on, of the data."""
        prints = {"train": self.rows.fingerprint()}
        return prints if self.held_out is None else prints | {"held_out": self.held_out.fingerprint()}


def make_renderer(config: ml_collections.ConfigDict) -> ConversationRenderer:
    """Tokenizer and chat template of `config.model`, with its new tokens, and what `config.data.masking` trains.

    Raises:
        ValueError: no template, neither in the checkpoint nor in the config; or a new token that is none.
    """
    tokenizer = load_base_tokenizer(config.model.source, config.model.revision or None)
    add_new_tokens(tokenizer, config.model.new_tokens)
    template = None
    if config.model.chat_template:
        path = epath.Path(config.model.chat_template)
        if not path.exists():
            raise ValueError(f"--config.model.chat_template={path} is not a file; expected a Jinja template")
        template = path.read_text()
    return ConversationRenderer(tokenizer, template, Masking(**config.data.masking))


def load_data(
    config: ml_collections.ConfigDict,
    progress: ProgressFor | None = None,
    *,
    thorough: bool = False,
    on_change: Sink | None = None,
    curve: LearningCurve | None = None,
) -> Data:
    """Reads, cleans, renders, tokenizes, checks and plans.

    Args:
        config: the experiment config.
        progress: given a title and how many there are (0: nobody knows), returns a callback (done, in all).
        thorough: all checks on all records and a verdict; else the quick checks on the first records, whose findings
            are kept in the cache like the rows.
        on_change: given every record that cleaning drops or changes, as it was.
        curve: what earlier runs say of more data, for the verdict.
    """
    if not (config.data.train or config.data.mixture):
        raise ValueError("--config.data.train is empty; give a file, a pattern, a saved data set or a name of the hub")
    show = progress or (lambda title, count: lambda done, in_all: None)
    renderer = make_renderer(config)
    held_out_reader, benchmarks = _held_out_reader(config), read_benchmarks(config)
    held_out_read = [] if held_out_reader is None else list(held_out_reader)
    context = Context(held_out_read, [record for records in benchmarks.values() for record in records])
    records = TrainingRecords(config, context, None if thorough else CHECKED_RECORDS, on_change)
    compared_with = [(path, epath.Path(path)) for path in config.data.benchmarks]
    compared_with += held_out_reader.files if held_out_reader else []
    key = rows_key_of(config, records, renderer, compared_with)
    cache = cache_directory(config.data.cache) if records.reader.files and not thorough else None
    tokenized, origin = training_rows(config, records, renderer, show, cache, key)
    rows = tokenized.rows
    mixture = mixture_of(config)
    targets = _row_targets(rows, config, mixture)
    plan = PackPlan(
        rows,
        row_tokens=config.data.row_tokens,
        row_targets=targets,
        rows_per_batch=config.batch.rows,
        seed=config.seed,
        packing=config.data.packing,
        max_segments=config.data.max_segments_per_row,
        mixture=mixture,
    )
    held_out = _held_out(config, renderer, held_out_reader, held_out_read)
    subject = _subject(config, renderer, records, tokenized, held_out["held_out_records"], benchmarks, thorough)
    checks = sum(check.quick or thorough for check in CHECKS.values())
    look = lambda: run_checks(subject(), show("checking", checks), quick=not thorough)
    findings = look() if thorough else training_findings(cache, key, compared_with, look)
    packing = packing_report(
        rows,
        row_tokens=config.data.row_tokens,
        row_targets=targets,
        seed=config.seed,
        packing=config.data.packing,
        max_segments=config.data.max_segments_per_row,
        bins=plan.first_block,
        is_epoch=plan.has_epochs,
    )
    report = data_report(
        rows,
        tokenized.dropped,
        packing,
        token_pieces(*rows.row(0), renderer.tokenizer),
        read=[*tokenized.notes["read"], origin, *_what_is_checked(tokenized.counts.records, thorough)],
        cleaning=tokenized.notes["cleaning"],
        counts=tokenized.counts,
        changed=tokenized.changed,
        findings=findings,
        verdict=verdict(subject(), findings, curve) if thorough else None,
        in_short=not thorough,
    )
    return Data(renderer, rows, plan, report, subject() if thorough else None, **held_out)


def _subject(
    config: ml_collections.ConfigDict,
    renderer: ConversationRenderer,
    records: TrainingRecords,
    tokenized: Tokenized,
    held_out: list[Record],
    benchmarks: dict[str, list[Record]],
    thorough: bool,
) -> Callable[[], Subject]:
    """What checks look at, made when they do: all records, or the first of them with their rows."""

    @functools.cache
    def make() -> Subject:
        first = records.read_first()
        rows, cleaned = tokenized.rows.of_first(first), set(records.log.dropped)
        dropped = [row for row in tokenized.dropped if row not in cleaned] if thorough else ()
        return subject_of(config, renderer, first, rows, dropped, held_out, benchmarks)

    return make


def _what_is_checked(records: int, thorough: bool) -> list[str]:
    if thorough or records <= CHECKED_RECORDS:
        return []
    return [f"checked: the first {CHECKED_RECORDS:,} records; python -m sft_jax.preview looks at all"]


def _held_out_reader(config: ml_collections.ConfigDict) -> RecordReader | None:
    if not config.data.held_out:
        return None
    reading = reading_of(config.data.reading, split=config.data.reading.held_out_split)
    return RecordReader(config.data.held_out, reading)


def _held_out(
    config: ml_collections.ConfigDict,
    renderer: ConversationRenderer,
    reader: RecordReader | None,
    records: list[Record],
) -> dict[str, Any]:
    """The fields of `Data` that are about held-out rows."""
    if reader is None:
        return {"held_out_records": [], "held_out": None, "held_out_targets": 0, "held_out_note": ""}
    rows, dropped = tokenize_records(records, renderer, config.data.row_tokens)
    dropped = [*reader.dropped, *dropped]
    kept = set(rows.ids)
    note = f"Held out: {len(rows)} rows, {int(rows.supervised.sum()):,} supervised tokens ({'; '.join(reader.notes)})."
    for reason, group in group_dropped(dropped).items():
        note += f"\n  {len(group)} more dropped, {reason}: {', '.join(row.id for row in group[:5])}"
        note += ", …" if len(group) > 5 else ""
    return {
        "held_out_records": [record for record in records if record.id in kept],
        "held_out": rows,
        "held_out_targets": _row_targets(rows, config),
        "held_out_note": note,
    }


def _row_targets(rows: TokenizedRows, config: ml_collections.ConfigDict, mixture: Mixture | None = None) -> int:
    if config.objective.positions == "all":
        return config.data.row_tokens
    sizes = (config.data.row_tokens, config.data.supervised_quantile)
    how = {"packing": config.data.packing, "max_segments": config.data.max_segments_per_row}
    if mixture is None:
        return supervised_capacity(rows.lengths, rows.supervised, *sizes, **how)
    return mixture_capacity(rows, mixture, *sizes, **how)


def check_sizes(decoder: DecoderConfig, *data: TokenizedRows | None) -> None:
    """Checks that the model has a place for every token of the data.

    Raises:
        ValueError: a row is longer than the positions the model knows, or has a token that its embedding lacks.
    """
    for rows in data:
        if rows is None:
            continue
        longest = int(rows.lengths.argmax())
        if rows.lengths[longest] > decoder.max_positions:
            raise ValueError(
                f"{rows.ids[longest]} has {rows.lengths[longest]} tokens; the model knows {decoder.max_positions} "
                f"positions. --config.data.row_tokens={decoder.max_positions} leaves such rows out."
            )
        if rows.tokens.max() >= decoder.vocab_size:
            row = int(rows.offsets.searchsorted(rows.tokens.argmax(), side="right")) - 1
            raise ValueError(
                f"{rows.ids[row]} has token {rows.tokens.max()}; the model's embedding has {decoder.vocab_size} rows. "
                "Tokenizer and weights do not belong together."
            )


def resolve_execution(config: ml_collections.ConfigDict, platform: str) -> Execution:
    """How the decoder runs; `auto` takes what was measured faster (see benchmarks/).

    On accelerators: scanned layers (compile time) and full remat (memory). On CPU: unrolled without remat for full
    fine-tuning and for small batches under adapters; above `_SCAN_TOKENS`, adapters are no slower with scan and full
    remat, in much less memory. Where only the last layers are trained they are never scanned: stacked layers are one
    array, trained or not.
    """
    layout, remat = config.execution.layer_layout, config.execution.remat
    tokens = config.batch.rows * config.data.row_tokens // config.batch.micro_batches
    in_little_memory = platform != "cpu" or (has_adapters(config) and tokens > _SCAN_TOKENS)
    scanned = in_little_memory and not config.trained.last_layers
    return Execution(
        product_dtype=config.precision.products,
        activation_dtype=config.precision.activations,
        layer_layout=("scan" if scanned else "unrolled") if layout == "auto" else layout,
        remat=("full" if in_little_memory else "none") if remat == "auto" else remat,
        attention_backend=config.execution.attention,
    )


def make_model(config: ml_collections.ConfigDict, decoder: DecoderConfig, new_rows: range = range(0)) -> Decoder:
    """The decoder with its adapters, as the config asks.

    Args:
        config: the experiment config.
        decoder: of the base.
        new_rows: ids of the new tokens.

    Raises:
        ValueError: a bound on experts for a model that has none.
    """
    if config.experts.capacity:
        if not decoder.num_experts:
            raise ValueError(f"--config.experts.capacity={config.experts.capacity}: this model has no experts")
        decoder = dataclasses.replace(decoder, expert_capacity=config.experts.capacity)
    spec = adapter_spec(config, new_rows, training=True)
    return Decoder(decoder, resolve_execution(config, jax.default_backend()), spec)


def step_settings(config: ml_collections.ConfigDict, mesh: Mesh) -> StepSettings:
    """What is static in the compiled step.

    Raises:
        ValueError: rows, micro-batches and mesh do not divide; names the flags.
    """
    rows, parts, shards = config.batch.rows, config.batch.micro_batches, data_shards(mesh)
    if shards % jax.process_count():
        raise ValueError(
            f"--config.mesh: replica x fsdp x expert = {shards} must be a multiple of the {jax.process_count()} "
            "processes: each loads rows of its own, so the tensor axis must not span processes"
        )
    if rows % (parts * shards):
        raise ValueError(
            f"--config.batch.rows={rows} must be a multiple of --config.batch.micro_batches={parts} x {shards} "
            "(the mesh axes replica x fsdp x expert, over which rows are split)"
        )
    chunk_tokens = config.objective.head_chunk_tokens
    rows_at_once = rows // (parts * shards)
    return StepSettings(
        objective=get_objective(config.objective.name),
        objective_settings=Settings(config.objective.label_smoothing, config.objective.z_loss),
        optimizer=optimizer_settings(config),
        schedule=config.optimizer.schedule,
        micro_batches=parts,
        head_chunk=max(1, chunk_tokens // rows_at_once) if chunk_tokens else 0,
        noise=config.objective.neftune_alpha > 0,
        balance=config.experts.balance_loss > 0,
        seed=config.seed,
    )


def init_state(
    config: ml_collections.ConfigDict,
    base: Base,
    model: Decoder,
    mesh: Mesh,
    hyper: dict[str, jax.Array],
    initial: InitialAdapter | None = None,
) -> TrainState:
    """The state at step 0, every array on its devices.

    Pretrained weights are read on the host, then placed, and so is an adapter to begin with; fresh adapters and moments
    are made where they live.
    """
    layout = model.execution.layer_layout
    adapted = has_adapters(config)
    # Weights of which some are trained are read in the dtype of trained ones.
    dtype = config.precision.frozen if adapted else config.precision.params
    tree = {"params": base.params(layout, dtype, mesh, config.precision.quantized)}
    if adapted:
        tree[adapters.COLLECTION] = _fresh_adapters(config, base, tree["params"], mesh, hyper, layout)
    if initial is not None:
        tree[adapters.COLLECTION] |= initial.placed(tree["params"], layout, mesh)
    trained, frozen = split(tree, trained_predicate(config, base.decoder.num_layers))
    if not adapted and not trains_all_weights(config):
        frozen = jax.tree.map(lambda leaf: leaf.astype(config.precision.frozen), frozen)
    return fresh_state(trained, frozen, hyper, optimizer_settings(config), mesh, ema=config.ema.decay > 0)


def _fresh_adapters(
    config: ml_collections.ConfigDict,
    base: Base,
    params: Tree,
    mesh: Mesh,
    hyper: dict[str, jax.Array],
    layout: LayerLayout,
) -> Tree:
    """What is trained beside the weights at step 0, one weight (of all layers) after the other.

    So no more than one kernel is dequantized, or taken apart by PiSSA, at a time. All in one program would also set
    several decompositions and collectives side by side, in which emulated CPU devices were seen to wait for each other
    for ever.
    """

    def make(params: Tree) -> dict[str, jax.Array]:
        kernels = to_layout(dequantized_tree(params), "scan")
        return flatten_dict(init_beside(kernels, config, hyper, layout, base.new_rows), sep="/")

    shapes = {adapters.COLLECTION: unflatten_dict(jax.eval_shape(make, params), sep="/")}
    shardings = flatten_dict(shardings_of(shapes, mesh)[adapters.COLLECTION], sep="/")
    by_weight: dict[str, list[str]] = {}
    for path in shardings:
        by_weight.setdefault(canonical_path(path).rpartition("/")[0], []).append(path)
    made: dict[str, jax.Array] = {}
    for paths in by_weight.values():
        pick = lambda params, paths=paths: _only(make(params), paths)
        made |= jax.block_until_ready(jax.jit(pick, out_shardings={path: shardings[path] for path in paths})(params))
    return unflatten_dict(made, sep="/")


def _only(arrays: dict[str, jax.Array], paths: list[str]) -> dict[str, jax.Array]:
    return {path: arrays[path] for path in paths}


def fresh_state(
    trained: Tree,
    frozen: Tree,
    hyper: dict[str, jax.Array],
    optimizer: OptimizerSettings,
    mesh: Mesh,
    *,
    ema: bool = False,
) -> TrainState:
    """A state at step 0 around parameters that are in place: moments are laid out like what they are of.

    With `ema`, their average starts where they do.
    """

    def rest(trained: Tree) -> dict[str, Tree]:
        zero = jnp.zeros((), jnp.int32)
        return {
            "step": zero,
            "opt_state": make_optimizer(optimizer, hyper, hyper["learning_rate"]).init(trained),
            "skipped": zero,
            "skipped_in_a_row": zero,
            "ema": jax.tree.map(lambda leaf: leaf.astype(jnp.float32), trained) if ema else {},
        }

    made = jax.jit(rest, out_shardings=shardings_of(jax.eval_shape(rest, trained), mesh))(trained)
    hyper = jax.device_put(hyper, shardings_of(hyper, mesh))
    return TrainState(trained=trained, frozen=frozen, hyper=hyper, **made)
