"""The table of options is whole; what is left out of its combinations is what the config refuses by name."""

import re

import pytest

from sft_jax.training import loop
from tests.training.options import table
from tests.training.options.combinations import PARTS, part, rows, start, usual_with
from tests.training.options.covering import pairs_in, pairs_of

REFUSED = list(table.refused())


def test_every_field_is_tried_or_exempt():
    tried = {
        *table.FIELDS,
        *(name for labels in table.TOGETHER.values() for fields in labels.values() for name in fields),
    }
    fields = table.fields_of_the_config()
    missing, unknown = fields - tried - table.EXEMPT.keys(), (tried | table.EXEMPT.keys()) - fields
    assert not missing, (
        f"configs/sft.py has {', '.join(sorted(missing))}: give each a line in FIELDS of {table.__file__}, with the "
        "values to try beside all others, or a reason in EXEMPT"
    )
    assert not unknown, f"{table.__file__} names {', '.join(sorted(unknown))}, which configs/sft.py does not have"
    assert not tried & table.EXEMPT.keys()
    assert all(table.EXEMPT.values())


def test_every_pair_of_values_is_tried_or_refused():
    covered = {pair for row in rows() for pair in pairs_in(row)}
    refused = {tuple(sorted(combination.items())) for combination, _ in REFUSED if len(combination) == 2}
    assert set(pairs_of(table.options())) - covered == refused


def test_the_parts_are_all_combinations():
    parts = [parameter.values[0] for number in range(1, PARTS + 1) for parameter in part(number)]
    assert sorted(map(str, parts)) == sorted(map(str, rows()))


@pytest.mark.parametrize(("combination", "message"), REFUSED, ids=[str(combination) for combination, _ in REFUSED])
def test_what_is_refused_is_refused_before_anything_is_computed(combination, message, root, tmp_path, monkeypatch):
    def compute(*_):
        raise AssertionError("parameters were read")

    monkeypatch.setattr(loop, "init_state", compute)
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is compared below
        start(usual_with(combination), root, tmp_path / "run")
    assert re.search(message, str(error.value)), error.value
    assert not (tmp_path / "run").exists()
