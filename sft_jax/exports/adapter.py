"""Exports the adapter of a run as a PEFT directory, which `peft` loads beside the base model."""

import shlex
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from sft_jax.exports import hf_files
from sft_jax.exports.directory import GOLDEN, ExportError, files_in, filled
from sft_jax.exports.golden import Golden, golden_logits, golden_of
from sft_jax.exports.model import TOLERANCES, Exported, Logits, ProgressFor
from sft_jax.exports.model_card import mix_note, model_card
from sft_jax.exports.proof import Drift, check_drift, check_files, check_finite, drift
from sft_jax.exports.source import ExportSource, check_format, source_directory
from sft_jax.models import adapters
from sft_jax.models.config import AdapterSpec, Execution
from sft_jax.models.decoder import Decoder
from sft_jax.models.peft_adapters import peft_adapter, settings_of
from sft_jax.models.peft_loading import load_peft_adapter
from sft_jax.models.variables import scaled_adapters
from sft_jax.runs.base import open_run
from sft_jax.runs.mix import mixed_options
from sft_jax.sources.locate import SHORT_NAMES
from sft_jax.sources.peft import CONFIG, PREFIX, WEIGHTS, is_peft_directory, open_peft_adapter
from sft_jax.sources.safetensors_writer import PendingTensor, write_safetensors

Tree = Any
_OF_THE_RUN = ("scale", "dropout")


def export_adapter(
    source: ExportSource,
    out: epath.Path,
    mesh: Mesh,
    dtype: str,
    progress: ProgressFor,
    max_drift: float | None = None,
    force: bool = False,
) -> Exported:
    """Writes and proves a PEFT directory; nothing is there under its name before it is proven.

    Args:
        source: a run that trained an adapter.
        out: the directory.
        mesh: where the parameters are meanwhile.
        dtype: of the adapter: float32, bfloat16 or float16; `source` is float32.
        progress: shows how far it is.
        max_drift: tolerance of the logits in standard deviations; by default that of the dtype in TOLERANCES.
        force: replace an earlier export.

    Raises:
        ExportError: there is no adapter, `peft` has no words for it, the directory is taken, or the proof fails.
    """
    check_format(source, "peft")
    dtype = "float32" if dtype == "source" else dtype
    golden = golden_of(source.tokenizer, source.decoder.max_positions)
    settings = settings_of(mixed_options(source.run.options.adapter, source.mix))
    name, revision = _base(source)
    with filled(out, force) as staging:
        variables = source.variables(mesh)
        before = _logits(source, variables, source.adapter, golden)
        try:
            fields, tensors = peft_adapter(
                _arrays(variables),
                settings,
                source.base.hf_config,
                source.decoder,
                name,
                revision,
                dtype,
                source.base.wrapper,
            )
        except ValueError as error:
            raise ExportError(f"{source.name}: {error}") from error
        hf_files.write_json(staging / CONFIG, fields)
        _write(staging / WEIGHTS, tensors, progress)
        hf_files.write_tokenizer(staging, source.tokenizer, source_directory(source))
        _check_tensors(staging, tensors)
        after = _logits(source, *_reread(staging, source, variables["params"]), golden)
        measured = drift(before, after)
        largest = TOLERANCES[dtype] if max_drift is None else max_drift
        check_drift(measured, largest, f"storing the adapter in {dtype}", dtype)
        hf_files.write_json(staging / GOLDEN, golden.as_dict(after))
        (staging / "README.md").write_text(model_card(source, golden, "adapter", _notes(source, dtype, measured)))
        check_files(staging, golden, source.tokenizer, configs=())
        files = {name: file.stat().length for name, file in files_in(staging).items()}
    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors.values())
    return Exported(files, parameters, dtype, measured, golden)


def _base(source: ExportSource) -> tuple[str, str | None]:
    """(name, revision) of the base model as `peft` asks for it."""
    name = source.base.name
    if name in SHORT_NAMES:
        return SHORT_NAMES[name].repository, None
    return name, source.base.revision


def _arrays(variables: Tree) -> Tree:
    """The adapters without their scale and dropout."""
    flat = flatten_dict(variables[adapters.COLLECTION])
    return unflatten_dict({path: leaf for path, leaf in flat.items() if path[-1] not in _OF_THE_RUN})


def _write(path: epath.Path, tensors: dict[str, PendingTensor], progress: ProgressFor) -> None:
    total, done = sum(tensor.num_bytes for tensor in tensors.values()), 0
    report = progress("writing, kB", -(-total // 1000))

    def written(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        report(-(-done // 1000), -(-total // 1000))

    write_safetensors(path, tensors, written)


def _check_tensors(directory: epath.Path, tensors: dict[str, PendingTensor]) -> None:
    """Reads the directory back, and compares each tensor with what was to be written, bit for bit."""
    found = open_peft_adapter(directory).tensors
    if {PREFIX + name for name in found} != tensors.keys():
        raise ExportError(f"{directory}: the tensors that are read back are not those that were written")
    for name, entry in found.items():
        expected = tensors[PREFIX + name].make()
        if not np.array_equal(entry.load(), expected, equal_nan=True):
            raise ExportError(f"{directory}: {name} reads back as other numbers than were written")
        check_finite(name, expected)


def _reread(directory: epath.Path, source: ExportSource, params: Tree) -> tuple[Tree, AdapterSpec]:
    """(variables, adapter) of the directory beside the base's parameters."""
    loaded = load_peft_adapter(open_peft_adapter(directory), source.base.hf_config, source.decoder, source.base.wrapper)
    hyper = {name: jnp.float32(value) for name, value in loaded.settings.hyper().items()}
    arrays = jax.tree.map(jnp.asarray, loaded.in_layout("unrolled"))
    return {"params": params, adapters.COLLECTION: scaled_adapters(arrays, hyper)}, AdapterSpec(loaded.settings.method)


def _logits(source: ExportSource, variables: Tree, adapter: AdapterSpec, golden: Golden) -> Logits:
    model = Decoder(source.decoder, Execution(matmul_dtype="float32", layer_layout="unrolled"), adapter)
    return golden_logits(model, variables, golden)


def base_note(source: ExportSource) -> str:
    """How `peft` gets the base model, where it cannot load what the adapter names; empty where it can."""
    base = source.base
    run = open_run(base.name)
    if run is None and epath.Path(base.location).is_dir() and not is_peft_directory(base.name):
        return ""
    whole = "hf" if run is None or run.adapter is None else "merged"
    return (
        f"Its base, {base.name}, is nothing that peft loads. Make a directory of it, and give peft the model that "
        f"transformers loads from there: python -m sft_jax.export --checkpoint={shlex.quote(base.name)} --out=BASE "
        f"--format={whole}"
    )


def _notes(source: ExportSource, dtype: str, measured: Drift) -> list[str]:
    notes = [f"A {source.adapter.method} adapter in {dtype}, in the form of the peft library."]
    if source.adapter.method == "pissa":
        notes.append("PiSSA is written as a LoRA of twice the rank beside the unchanged base model.")
    if source.run.options.precision.quantized != "none":
        notes.append(f"It was trained beside weights in few bits ({source.run.options.precision.quantized}).")
    if source.mix != 1:
        notes.append(f"{mix_note(source.mix)} Its alpha is that factor times the run's.")
    known = source.run.options.model.max_positions
    if known:
        notes.append(
            f"It was trained with a limit of {known} positions, which it does not carry: the base's is its own."
        )
    return [
        *notes,
        *filter(None, [base_note(source)]),
        f"Logits along the golden conversation, before and after: at most {measured.logits:.3g} apart "
        f"({measured.relative:.3g} of their standard deviation); same likeliest token at {measured.same_choice:.1%} of "
        "positions.",
    ]
