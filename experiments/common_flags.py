"""Flags of every experiment that has commands of its own."""

from absl import flags

from experiments.scores import MARKS
from sft_jax.sweeps.report.embedding import MarksError, check_marks

MATMUL = flags.DEFINE_enum(
    "matmul",
    "bfloat16",
    ["bfloat16", "float32"],
    "dtype of the inputs of matrix products, in training and measuring; CPUs that have none of bfloat16 are faster in "
    "float32.",
)
INTO = flags.DEFINE_string(
    "into", "", "A Markdown file, in which the tables replace what stands between two marks; the plot is put beside it."
)


@flags.validator("into")
def _has_place(path: str) -> bool:
    """Said before anything is trained."""
    if path:
        try:
            check_marks(path, MARKS)
        except MarksError as error:
            raise flags.ValidationError(str(error).removeprefix(f"--into={path}: ")) from error
    return True
