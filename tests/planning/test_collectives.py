"""What is read of compiled programs: collectives, how often they run, and over what."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from sft_jax.planning.collectives import Collective, collectives_of
from sft_jax.planning.hlo import arrays_of, elements_of, read

MESH = {"replica": 2, "fsdp": 4}

# ruff: noqa: E501 (lines as compilers write them)
# As the TPU compiler writes loops: it does not say how often they run, constants are copied and fused.
TPU_LOOP = """HloModule jit_train_step, is_scheduled=true

%compared (a: s32[], b: s32[]) -> pred[] {
  %a = s32[]{:T(128)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %lt.1 = pred[]{:T(512)} compare(%a, %b), direction=LT
}

%inner_condition (given.0: (u32[], f32[8,128])) -> pred[] {
  %given.0 = (u32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %eight = u32[]{:T(128)} constant(9)
  %counter.0 = u32[]{:T(128)} get-tuple-element(%given.0), index=0
  ROOT %compare.1 = pred[]{:T(512)} compare(%counter.0, %eight), direction=LT
}

%inner_body (given.1: (u32[], f32[8,128])) -> (u32[], f32[8,128]) {
  %given.1 = (u32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %two = u32[]{:T(128)} constant(2)
  %counter.1 = u32[]{:T(128)} get-tuple-element(%given.1), index=0
  %piece = f32[8,128]{1,0:T(8,128)} get-tuple-element(%given.1), index=1
  %sent = (f32[8,128]{1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%piece), channel_id=3, source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,6},{6,7},{7,4}}, metadata={op_name="jit(train_step)/jvp(Decoder.hidden)/while/body/layers/ffn/ffn/up/dot_general"}
  %got = f32[8,128]{1,0:T(8,128)} collective-permute-done(%sent)
  %counter.2 = u32[]{:T(128)} add(%counter.1, %two)
  ROOT %tuple.1 = (u32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%counter.2, %got)
}

%outer_condition (given.2: (s32[], f32[8,128])) -> pred[] {
  %given.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %three = s32[]{:T(128)} constant(3)
  %counter.3 = s32[]{:T(128)} get-tuple-element(%given.2), index=0
  ROOT %fused.1 = pred[]{:T(512)} fusion(%counter.3, %three), kind=kLoop, calls=%compared
}

%outer_body (given.3: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %given.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %none = u32[]{:T(128)} constant(0)
  %none.1 = u32[]{:T(128)} copy(%none)
  %counter.4 = s32[]{:T(128)} get-tuple-element(%given.3), index=0
  %array = f32[8,128]{1,0:T(8,128)} get-tuple-element(%given.3), index=1
  %tuple.2 = (u32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%none.1, /*index=1*/%array)
  %while.1 = (u32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.2), condition=%inner_condition, body=%inner_body
  %moved = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
  %counter.5 = s32[]{:T(128)} add(%counter.4, %one)
  ROOT %tuple.3 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%counter.5, %moved)
}

%add.1 (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.2 = f32[] add(%x, %y)
}

%all-reduce-scatter (param_0: f32[8,128], param_1: s32[]) -> f32[2,128] {
  %param_0 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %param_1 = s32[] parameter(1)
  %all-reduce.1 = f32[8,128]{1,0:T(8,128)} all-reduce(%param_0), channel_id=5, replica_groups=[2,4]<=[8], use_global_device_ids=true, to_apply=%add.1, metadata={op_name="jit(train_step)/transpose(jvp(head_and_loss))/dot_general"}
  ROOT %dynamic-slice.1 = f32[2,128]{1,0:T(8,128)} dynamic-slice(%all-reduce.1, %param_1), dynamic_slice_sizes={2,128}
}

ENTRY %main (param: f32[8,128]) -> f32[2,128] {
  %param = f32[8,128]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.4 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%zero, %param)
  %while.2 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%tuple.4), condition=%outer_condition, body=%outer_body
  %result = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.2), index=1
  ROOT %fusion.1 = f32[2,128]{1,0:T(8,128)} fusion(%result, %zero), kind=kCustom, calls=%all-reduce-scatter
}
"""

# As the GPU compiler writes them: several arrays in one, without a name of their own.
GPU_TUPLE = """HloModule jit_train_step

ENTRY %main (param: f32[1024,64]) -> f32[128,64] {
  %param = f32[1024,64]{1,0} parameter(0)
  %dot.1 = f32[1024,64]{1,0} custom-call(%param), custom_call_target="__cublas$gemm", metadata={op_name="jit(train_step)/transpose(jvp(Decoder.hidden))/layers/ffn/ffn/up/dot_general"}
  %bitcast.1 = f32[1024,64]{1,0} bitcast(%dot.1)
  %start = ((f32[1024,64]{1,0}, f32[1024,64]{1,0}), (f32[128,64]{1,0}, f32[128,64]{1,0})) reduce-scatter-start(%bitcast.1, %bitcast.1), channel_id=95, replica_groups=mesh['axis_0'=8] {'axis_0'}, dimensions={0}
  %done = (f32[128,64]{1,0}, f32[128,64]{1,0}) reduce-scatter-done(%start)
  %alone = f32[128,64]{1,0} all-reduce(%param), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}
  ROOT %first = f32[128,64]{1,0} get-tuple-element(%done), index=0
}
"""


def test_loops_that_do_not_say_how_often_they_run():
    """3 rounds of a counter from 0 by 1 below 3, in each ceil(9 / 2) of one from 0 by 2 below 9."""
    scattered, sent = sorted(collectives_of(read(TPU_LOOP), MESH), key=lambda found: found.count)
    assert sent == Collective("collective-permute", ("fsdp",), "f32", 4096, 4, 3 * 5, "layers/ffn", True)
    # The sum of which a device keeps a slice counts as what it is sent as, and as large as what is kept.
    assert scattered == Collective("reduce-scatter", ("fsdp",), "f32", 1024, 4, 1, "head_and_loss", False)
    assert sent.total == 15 * 4096


@pytest.mark.parametrize(("named", "meant"), [("rs", "reduce-scatter"), ("ag", "all-gather")])
def test_permutes_in_the_loop_of_a_product_say_what_they_stand_for(named, meant):
    """The last piece is sent after the loop, by the same operation."""
    text = TPU_LOOP.replace("%inner_body", f"%wide.windowed_dot_general_body_{named}.3.sunk")
    (last,) = (line for line in TPU_LOOP.splitlines() if "%sent = " in line)
    after = last.replace("%sent", "%last").replace("channel_id=3", "channel_id=4").replace("%piece", "%array")
    text = text.replace("  %counter.5", f"{after}\n  %counter.5")
    found = {each.stands_for: each.count for each in collectives_of(read(text), MESH)}
    assert found == {meant: 3 * 5 + 3, "": 1}


def test_several_results_in_one_and_the_name_of_what_they_come_from():
    assert collectives_of(read(GPU_TUPLE), MESH) == [
        Collective("reduce-scatter", ("replica", "fsdp"), "f32", 2 * 128 * 64 * 4, 8, 1, "layers/ffn", False)
    ]


# As the TPU compiler writes a gather that goes on beside products: each fusion has a piece of it.
TPU_PIECES = """HloModule jit_train_step

%begin (param_0: bf16[1,256]) -> (bf16[1,256], bf16[4,256]) {
  %param_0 = bf16[1,256]{1,0} parameter(0)
  %all-gather.1 = bf16[4,256]{1,0} all-gather(%param_0), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %both.1 = (bf16[1,256]{1,0}, bf16[4,256]{1,0}) tuple(%param_0, %all-gather.1)
}

%go_on (param_1: bf16[1,256]) -> (bf16[1,256], bf16[4,256]) {
  %param_1 = bf16[1,256]{1,0} parameter(0)
  %all-gather.2 = bf16[4,256]{1,0} all-gather(%param_1), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %both.2 = (bf16[1,256]{1,0}, bf16[4,256]{1,0}) tuple(%param_1, %all-gather.2)
}

ENTRY %main (param: bf16[1,256]) -> bf16[4,256] {
  %param = bf16[1,256]{1,0} parameter(0)
  %start = (bf16[1,256]{1,0}, bf16[4,256]{1,0}) fusion(%param), kind=kCustom, calls=%begin
  %kept = bf16[1,256]{1,0} get-tuple-element(%start), index=0
  %beside = (bf16[1,256]{1,0}, bf16[4,256]{1,0}) fusion(%kept), kind=kCustom, calls=%go_on
  ROOT %whole = bf16[4,256]{1,0} get-tuple-element(%beside), index=1
}
"""


def test_a_collective_in_pieces_is_one():
    assert collectives_of(read(TPU_PIECES), MESH) == [
        Collective("all-gather", ("fsdp",), "bf16", 4 * 256 * 2, 4, 1, "", False)
    ]


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    """Of the outer loop nothing is known any more; the inner one runs 5 times in each of its rounds."""
    assert read(TPU_LOOP).unknown_loops() == []
    unknown = TPU_LOOP.replace("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} partition-id()")
    assert read(unknown).unknown_loops() == ["while.2"]
    assert sorted(found.count for found in collectives_of(read(unknown), MESH)) == [1, 5]


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        read("module @jit_f attributes {}")


@pytest.mark.parametrize(
    ("kind", "arrays"),
    [
        ("f32[]", [("f32", (), 4)]),
        ("bf16[2,3]{1,0:T(8,128)(2,1)}", [("bf16", (2, 3), 12)]),
        (
            "(s4[8]{0}, /*index=1*/pred[5]{0}, f8e4m3fn[4]{0})",
            [("s4", (8,), 4), ("pred", (5,), 5), ("f8e4m3fn", (4,), 4)],
        ),
        ("(f32[<=4,2], token[])", [("f32", (4, 2), 32), ("token", (), 0)]),
    ],
)
def test_bytes_of_types(kind, arrays):
    assert arrays_of(kind) == arrays


def test_elements_of_a_tuple():
    kind = "((f32[2]{0:T(8,128)}, f32[3]{0}), /*index=1*/f32[4]{0}, ())"
    assert elements_of(kind) == ["(f32[2]{0:T(8,128)}, f32[3]{0})", "f32[4]{0}", "()"]
    assert elements_of("f32[2,3]{1,0}") == ["f32[2,3]{1,0}"]


# ---- Programs whose collectives are known by construction -----------------------------------------------------------


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("replica", "fsdp"), axis_types=(AxisType.Auto,) * 2)


def compiled(function, mesh, spec, shape, out=None):
    """What is found in the compiled program of a function of one float32 array."""
    out = spec if out is None else out
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=out, check_vma=False)
    given = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    return collectives_of(read(jax.jit(mapped).lower(given).compile().as_text()), dict(mesh.shape))


def told(found):
    return [(each.kind, each.axes, each.bytes, each.group, each.count, each.in_loop) for each in found]


def test_sum_in_nested_loops(mesh):
    """5 x 3 sums of a [2, 16] float32 part over 4 devices, and behind the loops one of its sum over all."""

    def inner(x, _):
        return jnp.sin(jax.lax.psum(x, "fsdp")), None

    def outer(x, _):
        return jax.lax.scan(inner, x, length=3)[0] * 2, None

    def program(x):
        return jax.lax.psum(jnp.cos(jax.lax.scan(outer, x, length=5)[0]), ("replica", "fsdp"))

    found = compiled(program, mesh, P(("replica", "fsdp")), (16, 16), P())
    assert told(found) == [
        ("all-reduce", ("fsdp",), 2 * 16 * 4, 4, 15, True),
        ("all-reduce", ("replica", "fsdp"), 2 * 16 * 4, 8, 1, False),
    ]


@pytest.mark.parametrize(
    ("function", "out", "expected"),
    [
        (
            functools.partial(jax.lax.all_gather, axis_name="fsdp", tiled=True),
            P("replica"),
            ("all-gather", ("fsdp",), 8 * 16 * 4, 4, 1, False),
        ),
        (
            functools.partial(jax.lax.ppermute, axis_name="replica", perm=[(0, 1), (1, 0)]),
            P(("replica", "fsdp")),
            ("collective-permute", ("replica",), 2 * 16 * 4, 2, 1, False),
        ),
        (
            functools.partial(jax.lax.all_to_all, axis_name="fsdp", split_axis=1, concat_axis=0, tiled=True),
            P(("replica", "fsdp")),
            ("all-to-all", ("fsdp",), 2 * 16 * 4, 4, 1, False),
        ),
        (
            functools.partial(jax.lax.psum_scatter, axis_name="fsdp", scatter_dimension=1, tiled=True),
            P("replica", "fsdp"),
            ("reduce-scatter", ("fsdp",), 2 * 4 * 4, 4, 1, False),
        ),
    ],
)
def test_each_kind(mesh, function, out, expected):
    assert told(compiled(lambda x: jnp.sin(function(jnp.cos(x))), mesh, P(("replica", "fsdp")), (16, 16), out)) == [
        expected
    ]
