"""The one matrix product: gradients equal plain autodiff, and low precision is really low precision."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import sft_jax.models
from sft_jax.models.matmul import Weight, einsum, grouped_matmul
from tests.models import programs

SHAPES = {
    "bsi,io->bso": ((2, 5, 4), (4, 3)),  # projections
    "ebci,eio->ebco": ((3, 2, 5, 4), (3, 4, 2)),  # experts with places
    "bksn,bktn->bkst": ((2, 3, 5, 4), (2, 3, 6, 4)),  # attention scores
    "bkst,bktn->bksn": ((2, 3, 5, 6), (2, 3, 6, 4)),  # attention values
    "bkgst,bkgsn->bktn": ((2, 3, 2, 5, 6), (2, 3, 2, 5, 4)),  # gradients of keys and values
    "bshn,bshn->bhs": ((2, 3, 4, 5), (2, 3, 4, 5)),  # what a query gets times its gradient
    "io,ir->ro": ((4, 3), (4, 2)),  # norms of DoRA
    "ir,iq->rq": ((4, 2), (4, 2)),
    "rq,qo->ro": ((2, 2), (2, 3)),
    "bsd,vd->bsv": ((2, 5, 4), (7, 4)),  # tied head
    "bsi,oi->bso": ((2, 5, 4), (3, 4)),  # projections of inference, whose kernels are transposed
    "bsd,dv->bsv": ((2, 5, 4), (4, 7)),  # head
    # Of the delta rule, in chunks and token by token.
    "bhn,bhnp->bhp": ((2, 3, 3), (2, 3, 3, 2)),
    "zhj,zij->zhi": ((2, 3, 5), (2, 4, 5)),
    "zij,zjp->zip": ((2, 4, 5), (2, 5, 2)),
    "zij,zjw->ziw": ((2, 4, 5), (2, 5, 6)),
    "zin,zjn->zij": ((2, 4, 3), (2, 5, 3)),
    "ziw,zjw->zij": ((2, 4, 6), (2, 5, 6)),
    "ziw,zwp->zip": ((2, 4, 6), (2, 6, 2)),
    "zji,zjw->ziw": ((2, 5, 4), (2, 5, 6)),
    "zjn,zjp->znp": ((2, 5, 3), (2, 5, 2)),
    "zjw,zjp->zwp": ((2, 5, 6), (2, 5, 2)),
    "zvu,zux->zvx": ((2, 3, 4), (2, 4, 5)),
}


def operands(spec):
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(jax.random.normal(key, shape) for key, shape in zip(keys, SHAPES[spec], strict=True))


def weighed(result):
    """A scalar whose gradient differs at every element."""
    return jnp.sum(jnp.sin(result.astype(jnp.float32)))


def plain(spec, x, y):
    return jnp.einsum(spec, x, y, precision=jax.lax.Precision.HIGHEST)


@pytest.mark.parametrize("spec", SHAPES)
def test_value_and_gradients_equal_plain_autodiff(spec):
    x, y = operands(spec)
    ours = jax.value_and_grad(lambda x, y: weighed(einsum(spec, x, y, "float32", "float32")), (0, 1))(x, y)
    theirs = jax.value_and_grad(lambda x, y: weighed(plain(spec, x, y)), (0, 1))(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("spec", SHAPES)
def test_vmap_of_gradients_is_a_loop(spec):
    x, y = operands(spec)
    many = jnp.stack([y, 2 * y, -y])
    gradient = jax.grad(lambda x, y: weighed(einsum(spec, x, y, "float32", "float32")), (0, 1))
    mapped = jax.vmap(gradient, in_axes=(None, 0))(x, many)
    for index in range(3):
        one = gradient(x, many[index])
        jax.tree.map(lambda a, b, i=index: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), mapped, one)


@pytest.mark.parametrize("spec", SHAPES)
def test_all_three_products_take_bfloat16_and_give_float32(spec):
    x, y = operands(spec)
    gradient = jax.grad(lambda x, y: weighed(einsum(spec, x, y, "bfloat16", "float32")), (0, 1))
    assert programs.dot_dtypes(gradient, x, y) == [("bfloat16", "bfloat16", "float32")] * 3


@pytest.mark.parametrize(("x_dtype", "y_dtype"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_gradients_come_back_in_the_dtypes_of_the_operands(x_dtype, y_dtype):
    x, y = operands("bsi,io->bso")
    x, y = x.astype(x_dtype), y.astype(y_dtype)
    result = einsum("bsi,io->bso", x, y, "bfloat16", "bfloat16")
    dx, dy = jax.grad(lambda x, y: weighed(einsum("bsi,io->bso", x, y, "bfloat16", "bfloat16")), (0, 1))(x, y)
    assert (result.dtype, dx.dtype, dy.dtype) == ("bfloat16", x_dtype, y_dtype)


@pytest.mark.parametrize("product", ["einsum", "grouped_matmul"])
def test_a_probe_takes_the_gradient_in_its_own_dtype(product):
    """That of the weight, rounded once; the weight has none then, and the inputs have theirs."""
    x, y = operands("bsi,io->bso") if product == "einsum" else (jnp.ones((5, 4)), jnp.ones((2, 4, 3)))
    weight = Weight(P(), "bfloat16")

    def loss(x, y, probe=None):
        if product == "einsum":
            return weighed(einsum("bsi,io->bso", x, y, "bfloat16", "float32", weight, probe))
        return weighed(grouped_matmul(x, y, jnp.array([2, 3]), "bfloat16", "float32", weight, probe))

    dx, dy = jax.grad(loss, (0, 1))(x, y)
    same_dx, none, of_probe = jax.grad(loss, (0, 1, 2))(x, y, jnp.zeros(y.shape, jnp.bfloat16))
    assert (dy.dtype, of_probe.dtype) == ("float32", "bfloat16")
    np.testing.assert_array_equal(np.asarray(of_probe, np.float32), dy)
    np.testing.assert_array_equal(same_dx, dx)
    assert not none.any()


def test_every_spec_of_the_code_is_in_the_table():
    sources = Path(sft_jax.models.__file__).parent.rglob("*.py")
    used = {spec for path in sources for spec in re.findall(r'"(\w+,\w+->\w+)"', path.read_text())}
    assert used == SHAPES.keys()
