"""Shows what a config would train on, before anything is trained: examples, tokens, masks, findings and a verdict.

    python -m sft_jax.preview --config=configs/sft.py --config.data.train=train.jsonl --config.data.held_out=test.jsonl
    python -m sft_jax.preview --config=… --out=runs/preview        # index.html to look at, report.json for machines
    python -m sft_jax.preview --config=… --write=data/clean        # the cleaned rows, and why others are not there

Exit status: 0; 1 for a mistake in flags or data that cannot be read; 3 for findings of the severity --fail_on or above.
"""

import sys

from absl import flags

from sft_jax import commands, config_flag

_CONFIG = config_flag.define()
_OUT = flags.DEFINE_string("out", None, "Directory for index.html and report.json; by default the terminal only.")
_WRITE = flags.DEFINE_string("write", None, "Directory to make, of the cleaned rows and of those dropped and changed.")
_FORCE = flags.DEFINE_bool("force", False, "Replace what an earlier --write made.")
_FAIL_ON = flags.DEFINE_enum("fail_on", "error", ["error", "warning", "never"], "Findings that give exit status 3.")
_EARLIER_RUNS = flags.DEFINE_multi_string(
    "earlier_run", [], "Directory of a run on part of the data, for the verdict: repeat the flag for each."
)
_ROWS = flags.DEFINE_integer("rows", 2000, "Most rows of the training data on the page.", lower_bound=1)

_STATUS_OF_FINDINGS = 3


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    import json

    from etils import epath
    from rich.console import Console

    from sft_jax.audit.findings import severe_enough
    from sft_jax.exports.data_set import REPORT, check_free, data_files, reading_flags, write_data_set
    from sft_jax.options import options_of
    from sft_jax.preparation.inspection import inspect_data, preview_page
    from sft_jax.preparation.mixing import ignored_columns
    from sft_jax.progress import ProgressBars
    from sft_jax.runs.workdir import write_whole
    from sft_jax.training.checks import check_config
    from sft_jax.training.run_findings import run_findings

    commands.refuse_several_processes()
    if not _OUT.value:
        commands.refuse_unread(["rows"], "--out, the page")
    if not _WRITE.value:
        commands.refuse_unread(["force"], "--write")
    config, console = _CONFIG.value, Console()
    check_config(config)
    options = options_of(config)
    if _WRITE.value:
        check_free(epath.Path(_WRITE.value), _FORCE.value)
    with ProgressBars(console) as progress:
        inspection = inspect_data(options, progress, _EARLIER_RUNS.value, run_findings)
        page = preview_page(inspection, options, _ROWS.value, progress) if _OUT.value else ""
    report = inspection.data.report
    if _WRITE.value:
        out = epath.Path(_WRITE.value)
        kept = inspection.kept
        rows = (kept, inspection.dropped, inspection.changed)
        write_data_set(out, *rows, report.numbers, _FORCE.value, ignored_columns(options.data))
    if _OUT.value:
        out = epath.Path(_OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "index.html", page)
        write_whole(out / REPORT, json.dumps(report.numbers, indent=2, ensure_ascii=False) + "\n")
    if _WRITE.value:
        for name, records in data_files(kept).items():
            console.print(f"Cleaned data: {_WRITE.value}/{name}, read with {reading_flags(records)}", soft_wrap=True)
    if _OUT.value:
        console.print(f"Page: {_OUT.value}/index.html\nNumbers: {_OUT.value}/{REPORT}", soft_wrap=True)
    console.print(inspection.data.held_out_note, report)
    if severe_enough(report.findings, _FAIL_ON.value):
        sys.exit(_STATUS_OF_FINDINGS)


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    commands.run(main)
