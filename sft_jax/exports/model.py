"""Exports a whole model as a Hugging Face directory, with adapters merged into its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float32

from sft_jax.exports import hf_files
from sft_jax.exports.classifier import classifier_config, with_padding
from sft_jax.exports.directory import GOLDEN, ExportError, files_in, filled
from sft_jax.exports.golden import Golden, golden_logits, golden_of
from sft_jax.exports.model_card import mix_note, model_card
from sft_jax.exports.proof import Drift, check_drift, check_files, check_rest, check_weights, drift
from sft_jax.exports.source import ExportSource, merged_weights, source_directory
from sft_jax.models.config import Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.storing import WeightMaker, pending_tensors, put_back
from sft_jax.runs.base import open_base
from sft_jax.sources.huggingface import INDEX
from sft_jax.sources.safetensors_writer import PendingTensor, index_of, split_into_shards, write_safetensors
from sft_jax.sources.wrappers import Wrapper

Tree = Any
ProgressFor = Callable[[str, int], Callable[[int, int], None]]  # (title, in all) -> callback(done, in all)
Logits = Float32[np.ndarray, "tokens V"]

# Largest drift along the golden text that is taken for rounding, in standard deviations of the logits.
TOLERANCES = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written and shown.

    Attributes:
        files: name -> bytes.
        parameters: how many were written.
        dtype: of the weights.
        drift: of the logits along the golden text, from what was trained to what was read back.
        golden: the golden conversation.
    """

    files: dict[str, int]
    parameters: int
    dtype: str
    drift: Drift
    golden: Golden


def export_model(
    source: ExportSource,
    out: epath.Path,
    mesh: Mesh,
    dtype: str,
    progress: ProgressFor,
    max_shard_bytes: int = 5_000_000_000,
    max_drift: float | None = None,
    force: bool = False,
) -> Exported:
    """Writes and proves a Hugging Face directory; nothing is there under its name before it is proven.

    The host holds one tensor at a time; parameters are on the devices, where adapters are merged in float32 one weight
    after the other.

    Args:
        source: what to export.
        out: the directory.
        mesh: where the parameters are meanwhile.
        dtype: of the weights: float32, bfloat16 or float16; `source` for that of the base checkpoint's config.
        progress: shows how far it is.
        max_shard_bytes: of weights in a file.
        max_drift: tolerance of the logits in standard deviations; by default that of the dtype in TOLERANCES.
        force: replace an earlier export.

    Raises:
        ExportError: the directory is taken, or the proof fails.
    """
    dtype = source_dtype(source.base.hf_config) if dtype == "source" else dtype
    golden = golden_of(source.tokenizer, source.decoder.max_positions)
    if scores := source.decoder.scores:
        source = dataclasses.replace(source, tokenizer=with_padding(source.tokenizer, golden))
    with filled(out, force) as staging:
        variables = source.variables(mesh)
        before = _logits(source, variables, golden)
        weights = merged_weights(variables, source.adapter)
        wrapper, parts = source.base.wrapper, (source.decoder, golden.stop_ids, source.tokenizer, dtype)
        hf_config = hf_files.model_config(source.base.hf_config, *parts, wrapped=wrapper is not None)
        hf_config = classifier_config(hf_config) if scores else hf_config
        tensors = pending_tensors(weights, hf_config, source.decoder, dtype)
        if wrapper is not None:
            tensors = put_back(tensors, wrapper, hf_config, source.decoder)
        _write_weights(staging, tensors, max_shard_bytes, progress)
        _write_files(staging, source, hf_config, golden)
        _check_weights(staging, weights, hf_config, source, tensors, progress)
        del variables, weights
        after = reread_logits(staging, mesh, golden)
        measured = drift(before, after)
        merged = "" if source.adapter is None else "merging what was trained beside the weights and "
        largest = TOLERANCES[dtype] if max_drift is None else max_drift
        check_drift(measured, largest, f"{merged}storing the weights in {dtype}", dtype)
        hf_files.write_json(staging / GOLDEN, golden.as_dict(after, scores=scores))
        (staging / "README.md").write_text(model_card(source, golden, "model", _notes(source, dtype, measured)))
        configs = (hf_files.CONFIG,) if scores else (hf_files.CONFIG, hf_files.GENERATION_CONFIG)
        check_files(staging, golden, source.tokenizer, configs)
        files = {name: file.stat().length for name, file in files_in(staging).items()}
    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    return Exported(files, parameters, dtype, measured, golden)


def source_dtype(hf_config: dict) -> str:
    """The dtype that a config names; float32 where it names none.

    Raises:
        ExportError: it names one that weights are not exported in.
    """
    named = hf_config.get("dtype", hf_config.get("torch_dtype")) or "float32"
    if named not in TOLERANCES:
        raise ExportError(f"the base's config.json has dtype {named!r}; give --dtype={'|'.join(TOLERANCES)}")
    return named


def reread_logits(directory: epath.Path, mesh: Mesh, golden: Golden) -> Logits:
    """What the model in a Hugging Face directory predicts along the golden text."""
    base = open_base(str(directory))
    model = Decoder(base.decoder, Execution(matmul_dtype="float32", layer_layout="unrolled"))
    return golden_logits(model, {"params": base.params("unrolled", "float32", mesh)}, golden)


def _logits(source: ExportSource, variables: Tree, golden: Golden) -> Logits:
    model = Decoder(source.decoder, Execution(matmul_dtype="float32", layer_layout="unrolled"), source.adapter)
    return golden_logits(model, variables, golden)


def _write_weights(
    staging: epath.Path, tensors: dict[str, PendingTensor], max_shard_bytes: int, progress: ProgressFor
) -> None:
    shards = split_into_shards(tensors, max_shard_bytes)
    written = _Counter(progress, "writing, MB", sum(tensor.num_bytes for tensor in tensors.values()))
    for name, shard in shards.items():
        write_safetensors(staging / name, shard, written)
    if len(shards) > 1:
        hf_files.write_json(staging / INDEX, index_of(shards))


def _write_files(staging: epath.Path, source: ExportSource, hf_config: dict, golden: Golden) -> None:
    directory, wrapper = source_directory(source), source.base.wrapper
    hf_files.write_json(staging / hf_files.CONFIG, hf_config if wrapper is None else wrapper.config_with(hf_config))
    if not source.decoder.scores:
        generation = hf_files.generation_config(directory, golden.stop_ids, source.tokenizer)
        hf_files.write_json(staging / hf_files.GENERATION_CONFIG, generation)
    hf_files.write_tokenizer(staging, source.tokenizer, directory)
    if wrapper is not None:
        hf_files.copy_processor(staging, epath.Path(wrapper.directory))


def _check_weights(
    staging: epath.Path,
    weights: dict[str, WeightMaker],
    hf_config: dict,
    source: ExportSource,
    tensors: dict[str, PendingTensor],
    progress: ProgressFor,
) -> None:
    compared = _Counter(progress, "comparing, MB", sum(tensor.num_bytes for tensor in tensors.values()))
    check_weights(staging, weights, hf_config, source.decoder, compared)
    if source.base.wrapper is not None:
        check_rest(staging, source.base.wrapper, compared)


class _Counter:
    """Adds up bytes and reports them as megabytes."""

    def __init__(self, progress: ProgressFor, title: str, total: int):
        self._total, self._done = _megabytes(total), 0
        self._report = progress(title, self._total)

    def __call__(self, num_bytes: int) -> None:
        self._done += num_bytes
        self._report(_megabytes(self._done), self._total)


def _megabytes(num_bytes: int) -> int:
    return -(-num_bytes // 1_000_000)


def _notes(source: ExportSource, dtype: str, measured: Drift) -> list[str]:
    merged = [] if source.adapter is None else [f"Merged in float32: {source.adapter}."]
    mixed = [mix_note(source.mix)] if source.mix != 1 else []
    wrapper = source.base.wrapper
    return [
        *mixed,
        *merged,
        f"Weights in {dtype}.",
        *([] if wrapper is None else [_untouched(wrapper)]),
        _drift_note(measured, scores=source.decoder.scores),
    ]


def _drift_note(measured: Drift, *, scores: bool) -> str:
    """What the numbers along the golden conversation show, in a line."""
    what = "Scores" if scores else "Logits"
    same = "" if scores else f"; same likeliest token at {measured.same_choice:.1%} of positions"
    return (
        f"{what} along the golden conversation, before and after: at most {measured.logits:.3g} apart "
        f"({measured.relative:.3g} of their standard deviation){same}."
    )


def _untouched(wrapper: Wrapper) -> str:
    parts = " and ".join(f"{count} tensors of {what}" for what, count in wrapper.skipped().items())
    return (
        f"Text alone was trained on: {parts or 'no tensors'} are those of the base, bit for bit, in the dtype they had."
    )
