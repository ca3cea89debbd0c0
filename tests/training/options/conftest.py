"""Models and data of the combinations, written once."""

import pytest

from tests.training.options.combinations import write_inputs


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("options"))
