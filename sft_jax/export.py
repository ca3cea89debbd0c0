"""Exports the result of a run as a directory that Hugging Face libraries load, and checks it.

    python -m sft_jax.export --checkpoint=runs/x:best --out=exported                    # after full fine-tuning
    python -m sft_jax.export --checkpoint=runs/x --out=exported --format=merged         # adapters merged into the base
    python -m sft_jax.export --checkpoint=runs/x --out=exported --format=peft           # the adapter alone

A pretrained checkpoint (a .gguf file, say) can be exported too. The directory --out appears only after everything in it
was read back and compared.
"""

from absl import flags

from sft_jax import commands

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Run directory (with :best, :latest, :<step>) or pretrained source.", required=True
)
_OUT = flags.DEFINE_string("out", None, "Directory to make.", required=True)
_FORMAT = flags.DEFINE_enum(
    "format", "hf", ["hf", "merged", "peft"], "Whole model; the same with adapters merged into it; the adapter alone."
)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    "source",
    ["source", "float32", "bfloat16", "float16"],
    "Of the weights; source: as the base checkpoint's config says. An adapter is float32 by default.",
)
_WEIGHTS = flags.DEFINE_enum("weights", "trained", ["trained", "ema"], "Result of training, or the average it kept.")
_MIX = flags.DEFINE_float(
    "mix", 1.0, "Of a run: base + mix x (result - base); 1: the result, 0: the base (WiSE-FT).", 0.0, 1.0
)
_SHARD = flags.DEFINE_float("max_shard_gb", 5.0, "Largest file of weights, in 1e9 bytes.", lower_bound=1e-6)
_MAX_DRIFT = flags.DEFINE_float(
    "max_drift",
    None,
    "Largest difference of logits before and after, in their standard deviations; by default 0.001 (float32), 0.02 "
    "(float16), 0.1 (bfloat16).",
    lower_bound=0.0,
)
_FORCE = flags.DEFINE_bool("force", False, "Replace an earlier export.")


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import jax
    from etils import epath
    from rich.console import Console

    from sft_jax.exports.adapter import base_note, export_adapter
    from sft_jax.exports.directory import check_free
    from sft_jax.exports.model import export_model
    from sft_jax.exports.source import check_format, open_source
    from sft_jax.exports.summary import summary_table
    from sft_jax.progress import ProgressBars
    from sft_jax.sharding import inference_mesh

    if _FORMAT.value == "peft":
        commands.refuse_unread(["max_shard_gb"], "--format=hf and --format=merged")
    commands.start_jax()
    out, console = epath.Path(_OUT.value), Console()
    check_free(out, _FORCE.value)
    source = open_source(_CHECKPOINT.value, _WEIGHTS.value, _MIX.value)
    check_format(source, _FORMAT.value)
    mesh = inference_mesh(jax.devices())
    with jax.set_mesh(mesh), ProgressBars(console) as progress:
        arguments = (source, out, mesh, _DTYPE.value, progress)
        settings = {"max_drift": _MAX_DRIFT.value, "force": _FORCE.value}
        if _FORMAT.value == "peft":
            exported = export_adapter(*arguments, **settings)
        else:
            exported = export_model(*arguments, max_shard_bytes=int(_SHARD.value * 1e9), **settings)
    console.print(summary_table(source.name, exported))
    if _FORMAT.value == "peft" and (note := base_note(source)):
        console.print(note, soft_wrap=True)
    console.print(f"Exported: {out}")


if __name__ == "__main__":
    commands.run(main)
