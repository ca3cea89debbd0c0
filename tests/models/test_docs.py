"""The family that docs/extending.md shows is the one in the code."""

from pathlib import Path

from sft_jax.models.families import olmo2

DOCS = Path(__file__).parents[2] / "docs" / "extending.md"


def test_the_family_shown_is_the_family_there_is():
    assert Path(olmo2.__file__).read_text() in DOCS.read_text()
