"""Every option beside every other, part 2 of the combinations."""

import pytest

from tests.training.options.combinations import check_two_steps, part


@pytest.mark.slow
@pytest.mark.parametrize("row", part(2))
def test_two_steps(row, root, tmp_path):
    check_two_steps(row, root, tmp_path / "run")
