"""Plans a run for hardware that is not there: memory, collectives, time and cost of its train step, as compiled for it.

    python -m sft_jax.plan --config=configs/sft.py:full --topology=v5e:4x4
    python -m sft_jax.plan --config=… --topology=h100:8 --price_per_chip_hour=2.5 --json=plan.json
    python -m sft_jax.plan --config=… --topology=v5p:2x2x4 --search        # meshes, remat, micro-batches, head chunks
    python -m sft_jax.plan --config=… --topology=v5e:4x4 --compare=configs/other.py

No weights are read, and no data without --data. TPUs are v4, v5e, v5p, v6e and tpu7x with a shape in chips, GPUs a100,
h100, h200 and b200 with a number, and cpu:8 are eight emulated devices. requirements-plan.txt has the compilers.

Exit status: 0 if the step fits into the devices' memory, or if that is not known (cpu:8); 1 for a mistake in flags; 3
if it does not fit.
"""

import os
import re
import sys

from absl import flags

from sft_jax import commands, config_flag

_CONFIG = config_flag.define()
_TOPOLOGY = flags.DEFINE_string("topology", None, "Hardware to plan for: v5e:4x4, v5p:2x2x4, h100:8, cpu:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "TPU slices of that shape, joined by the network.", lower_bound=1)
_SHARE = flags.DEFINE_float(
    "supervised_share", 0.25, "Without --data: share of a sequence's tokens that are targets.", 0.0, 1.0
)
_DATA = flags.DEFINE_bool("data", False, "Read the config's data, and take sizes and duration of what they are.")
_TOKENS = flags.DEFINE_float("tokens", None, "Tokens of the whole run, for a duration in epochs or examples.", 1.0)
_PRICE = flags.DEFINE_float("price_per_chip_hour", None, "For the cost of the run, in any currency.", 0.0)
_QUICK = flags.DEFINE_bool("quick", False, "Compile with fewer optimizations (O0): faster, memory less exact.")
_SEARCH = flags.DEFINE_bool("search", False, "Try meshes, remat, micro-batches and head chunks; show what is best.")
_COMPARE = flags.DEFINE_string("compare", None, "A second config file, for example configs/sft.py:lora.")
_JSON = flags.DEFINE_string("json", None, "File for the figures as JSON; - is standard output, without the report.")
_CSV = flags.DEFINE_string("csv", None, "With --search: file for all that was tried.")
_ADVICE = flags.DEFINE_bool("advice", True, "Where it does not fit, look for what would; compiles more.")

_STATUS_DOES_NOT_FIT = 3


def main(_: list[str]) -> None:
    """Runs what the flags ask for."""
    from sft_jax.planning import plugin_notes, topologies

    commands.refuse_several_processes()
    if not _SEARCH.value:
        commands.refuse_unread(["csv"], "--search")
    elif _COMPARE.value:
        raise ValueError("--search and --compare: give one of them")
    else:  # which compiles quickly in any case, and times steps alone
        commands.refuse_unread(["price_per_chip_hour", "tokens", "quick", "advice"], "a plan without --search")
    if _DATA.value:
        for flag in ("supervised_share", "tokens"):
            commands.refuse_unread([flag], "a plan without --data")
    topology = topologies.parse(_TOPOLOGY.value, _SLICES.value)
    if topology.hardware is None:
        commands.refuse_unread(["price_per_chip_hour"], "--topology of a TPU or GPU, whose times are known")
    topologies.prepare(os.environ)

    from rich.console import Console

    with plugin_notes.left_out():
        from sft_jax.planning.asked import Asked, answer

    console = Console(stderr=_JSON.value == "-")
    asked = Asked(
        name=_named("config"),
        config=_CONFIG.value,
        topology=topology,
        share=_SHARE.value,
        reads_data=_DATA.value,
        tokens=_TOKENS.value,
        price=_PRICE.value,
        quick=_QUICK.value,
        search=_SEARCH.value,
        other=(_COMPARE.value, config_flag.load(_COMPARE.value)) if _COMPARE.value else None,
        advice=_ADVICE.value,
    )
    if not answer(asked, console, _JSON.value, _CSV.value):
        sys.exit(_STATUS_DOES_NOT_FIT)


def _named(flag: str) -> str:
    """A config as it was given on the command line, with its overrides."""
    arguments = []
    for argument in sys.argv[1:]:
        separate = arguments and re.fullmatch(rf"--{flag}(\.[\w.]+)?", arguments[-1])  # `--config FILE`
        arguments[-1:] = [f"{arguments[-1]}={argument}"] if separate else [*arguments[-1:], argument]
    return " ".join(
        argument.removeprefix(f"--{flag}=")
        for argument in arguments
        if argument.startswith((f"--{flag}=", f"--{flag}."))
    )


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    commands.run(main)
