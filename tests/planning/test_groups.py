"""Groups of devices, in all ways in which compilers write them, and the mesh axes they run along."""

import numpy as np
import pytest

from sft_jax.planning.groups import axes_of, groups_of

MESH = {"replica": 2, "fsdp": 4, "tensor": 1}  # devices 0..3 are replica 0
ROWS, COLUMNS = [[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 4], [1, 5], [2, 6], [3, 7]]
PAIRS = [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize(
    ("written", "expected", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}, dimensions={0}", ROWS, ("fsdp",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", COLUMNS, ("replica",)),
        ("replica_groups={}, to_apply=%add", [list(range(8))], ("replica", "fsdp")),
        ("channel_id=1", [list(range(8))], ("replica", "fsdp")),
        ("replica_groups=[2,4]<=[8], dimensions={0}", ROWS, ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true", COLUMNS, ("replica",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}", ROWS, ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", COLUMNS, ("replica",)),
        ("replica_groups=mesh['a'=2,'b'=4,'c'=1] {'a','b'}", [list(range(8))], ("replica", "fsdp")),
        ("replica_groups=mesh['a'=8] {'a':(1)2}", COLUMNS, ("replica",)),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", PAIRS, ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([4,2]<=[2,4]T(1,0)) {'b'}", COLUMNS, ("replica",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", COLUMNS, ("replica",)),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([2,4]) {'b'}", ROWS, ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=(0,4,1,5,2,6,3,7) {'b'}", COLUMNS, ("replica",)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}", ROWS, ("fsdp",)),
        ("source_target_pairs={{0,4},{4,0},{1,5},{5,1},{2,6},{6,2},{3,7},{7,3}}", COLUMNS, ("replica",)),
        ("source_target_pairs={{0,1},{1,2},{2,3}}", ROWS[:1], ("fsdp",)),  # a shift, without a way back
    ],
)
def test_groups_and_axes(written, expected, axes):
    groups = groups_of(written, 8)
    assert sorted(groups.tolist()) == expected
    assert axes_of(groups, MESH) == axes


def test_groups_of_one_device_have_no_axis():
    assert axes_of(np.arange(8)[:, None], MESH) == ()


def test_unknown_way_of_writing_groups():
    with pytest.raises(ValueError, match="groups that are not understood"):
        groups_of("replica_groups=spiral(3)", 8)
