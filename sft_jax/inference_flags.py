"""Flags shared by the commands that generate text, and the model and sampling that they ask for."""

from absl import flags

from sft_jax import commands

MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "Longest answer, in tokens.", lower_bound=1)
MAX_POSITIONS = flags.DEFINE_integer(
    "max_positions",
    0,
    "Limit of prompt and answer together, in tokens; 0: what the checkpoint's config says. Rotary models take another.",
    lower_bound=0,
)
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Prompts at a time; the answers do not depend on it.", lower_bound=1
)
MATMUL = flags.DEFINE_enum("matmul", "bfloat16", ["bfloat16", "float32"], "dtype of the inputs of matrix products.")
WEIGHTS = flags.DEFINE_enum(
    "weights", "trained", ["trained", "ema"], "Of a run: the result of training, or the average it kept (config.ema)."
)
MIX = flags.DEFINE_float(
    "mix", 1.0, "Of a run: base + mix x (result - base); 1: the result, 0: the base (WiSE-FT).", 0.0, 1.0
)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: the most likely token each time.", lower_bound=0.0)
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample from the k most likely tokens; 0: from all.", lower_bound=0)
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the most likely tokens up to this probability.", 0.0, 1.0)


def load(source: str, mesh, share: float = 1.0):
    """The model that `source` names, as the flags ask for it.

    Of a run, `share` of what --mix says: 0 is what that run started from.
    """
    from sft_jax.runs.restore import load_for_inference  # after the flags are checked

    weights, mix = (WEIGHTS.value, MIX.value * share) if share else ("trained", 0.0)
    return load_for_inference(source, mesh, MATMUL.value, weights, MAX_POSITIONS.value, mix)


def load_as_it_is(source: str, mesh):
    """The trained weights of a run, or a pretrained source, whatever --weights and --mix say of --model."""
    from sft_jax.runs.restore import load_for_inference  # after the flags are checked

    return load_for_inference(source, mesh, MATMUL.value, max_positions=MAX_POSITIONS.value)


def sampling():
    """The `Sampling` that the flags ask for."""
    from sft_jax.generation import Sampling  # after the flags are checked: importing jax takes seconds

    if not _TEMPERATURE.value:
        commands.refuse_unread(["top_k", "top_p"], "--temperature above 0")
    return Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
