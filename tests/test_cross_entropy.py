"""cross_entropy where a size, a platform or an option decides how it is computed: the kernel, sums, edges."""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from jax import export

import jaxloss
from jaxloss._numerics import MOST, SUM, added_in_loop, in_loop, sum_without


def with_every_oddity(classes, dtype=jnp.float32, count=7):
    """Logits and indices: -inf, a dead row with NaN, a row of -inf, an index out of range, a confident row."""
    rng = np.random.default_rng(classes)
    x = rng.normal(size=(count, classes)) * 5
    y = rng.integers(0, classes, count)
    x[0, (y[0] + 1) % classes] = -np.inf if classes > 1 else 0
    x[1], y[1] = np.nan, -100
    x[2] = -np.inf
    y[3] = classes + 2
    x[4, y[4]] = 90
    y[5] = classes - 1
    return jnp.asarray(x, dtype), jnp.asarray(y)


def results(x, y, **options):
    """Loss and statistics of each row, and gradients with random cotangents."""
    (loss, found), pull = jax.vjp(lambda x: jaxloss.cross_entropy(x, y, reduction="none", aux=True, **options), x)
    cotangent = np.random.default_rng(1).normal(size=loss.shape).astype(loss.dtype)
    return loss, found, pull((cotangent, jax.tree.map(jnp.zeros_like, found)))[0]


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [1, 1025, 2600, 5003])
def test_the_kernel_reads_rows_of_any_length(classes, dtype):
    x, y = with_every_oddity(classes, dtype)

    @quick.jit
    def both(x):
        return [results(x, y, implementation=i) for i in ("pallas", "autodiff")]

    (loss, found, dx), (expected, same, exact) = jax.device_get(both(x))
    np.testing.assert_allclose(loss, expected, rtol=2e-6, atol=1e-6)
    assert np.isnan(loss[[2, 3]]).all(), "nothing but -inf, and an index out of range"
    assert loss[1] == 0
    np.testing.assert_allclose(found.log_sum_exp, same.log_sum_exp, rtol=1e-6)
    dx, exact = (np.delete(a, 2, 0).astype(np.float32) for a in (dx, exact))
    np.testing.assert_allclose(dx, exact, rtol=1e-5 if dtype == jnp.float32 else 1e-2, atol=1e-6)
    assert np.isnan(dx[2]).all()
    assert np.isfinite(np.delete(dx, 2, 0)).all()


@pytest.mark.without_x64
def test_the_kernel_takes_probabilities_and_further_axes():
    rng = np.random.default_rng(0)
    x, q = (jnp.asarray(rng.normal(size=(2, 3, 300)), jnp.float32) for _ in range(2))
    q = jax.nn.softmax(q)
    where = jnp.array([[True, False, True], [True, True, False]])
    options = {"axis": -1, "label_smoothing": 0.1, "z_loss": 0.01, "where": where}

    @quick.jit
    def both(x):
        return [results(x, q, implementation=i, **options) for i in ("pallas", "autodiff")]

    chex.assert_trees_all_close(*both(x), rtol=1e-5, atol=1e-6)


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("classes", [1, 13, 45])
def test_a_gpu_reads_rows_once(as_on_a_gpu, classes, dtype):
    as_on_a_gpu()
    x, y = with_every_oddity(classes, dtype, count=12)
    x, y = (jnp.delete(a, 2, 0) for a in (x, y))
    weight = jnp.arange(1.0, classes + 1) / 7
    q = jax.nn.softmax(x[::-1].astype(jnp.float32)).at[:, classes // 2].set(0)
    every = {"label_smoothing": 0.1, "z_loss": 0.01, "weight": weight}

    def of(x, y, **options):
        return jaxloss.cross_entropy(x, y, reduction="none", **options), *results(x, y, **options)

    @quick.jit
    def both(x):
        ways = {}
        for i in ("auto", "autodiff"):
            ways[i] = [of(x, y, implementation=i, **options) for options in ({}, {"label_smoothing": 0.1}, every)]
            ways[i] += [of(x[3:], q[3:], implementation=i, **options) for options in ({}, every)]
            ways[i] += [of(x[4:], y[4:], implementation=i, logit_softcap=20.0, **every)]
            ways[i] += [of(x.T, y, implementation=i, axis=0)]
        return ways["auto"], ways["autodiff"]

    for (value, loss, found, dx), (expected, _, same, exact) in zip(*jax.device_get(both(x)), strict=True):
        for got in (value, loss):
            np.testing.assert_allclose(got, expected, rtol=5e-6, atol=1e-6)
        chex.assert_trees_all_close(found, same, rtol=1e-5, atol=1e-6)
        rows = ~np.isnan(np.asarray(exact, np.float32))
        exactness = {"rtol": 1e-5, "atol": 1e-6} if dtype == jnp.float32 else {"rtol": 2e-2, "atol": 1e-2}
        np.testing.assert_allclose(dx[rows].astype(np.float32), exact[rows], **exactness)


@pytest.mark.parametrize("classes", [7, 167])
def test_the_sum_over_the_other_classes_leaves_the_right_one_out_whatever_its_index(classes):
    x = jnp.log(jnp.linspace(0.1, 1, 5 * classes).reshape(5, classes))
    y = jnp.array([[-1], [0], [3], [classes - 1], [classes]])  # the first and the last are no classes
    got, change = quick.jit(lambda x: jax.jvp(lambda x: sum_without(x, y, 1), (x,), (jnp.ones_like(x),)))(x)
    others = np.where(np.arange(classes) == np.asarray(y), 0, np.exp(x)).sum(1, keepdims=True)
    np.testing.assert_allclose(got, others, rtol=1e-13)
    np.testing.assert_allclose(change, others, rtol=1e-13)


@pytest.mark.parametrize(
    ("shape", "axis"), [((3, 7), 1), ((3, 1000), 1), ((3, 1003), 1), ((3, 5039), 1), ((1000, 3), 0), ((2, 9, 5), 1)]
)
def test_rows_added_up_in_a_loop_whole_and_in_parts(shape, axis):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))

    def added(x):
        return added_in_loop(lambda first, x, by: x * (1 + by), axis, x, jnp.sum(0 * x, axis, keepdims=True))

    def places(x):
        def each(first, x):
            place = first + jax.lax.broadcasted_iota(jnp.int32, x.shape, axis)
            return [jnp.where(place == shape[axis] - 1, 9.0, x), place * x]

        return in_loop(axis, [MOST, SUM], each, x)

    got, change, each, (most, total) = quick.jit(
        lambda x: (*jax.jvp(added, (x,), (2 * x,)), jax.vmap(added)(jnp.stack([x, 3 * x])), places(x))
    )(x)
    x = np.asarray(x)
    expected = x.sum(axis, keepdims=True)
    for found, times in ((got, 1), (change, 2), (each[0], 1), (each[1], 3)):
        np.testing.assert_allclose(found, times * expected, rtol=1e-12)
    assert (most == 9).all()
    number = np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    np.testing.assert_allclose(total, (number * x).sum(axis, keepdims=True), rtol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("far", [0, 25, 40])
def test_a_long_row_read_from_some_of_its_logits_is_the_row_read_from_its_maximum(dtype, far):
    classes = 2003
    x = np.random.default_rng(far).normal(size=(9, classes)) * 3
    x[:, 700] += far
    x[3, 2002] = 20  # the last entry, which is in no part
    if far == 40:
        x[4, :200], x[5], x[6, 1500], x[7, 3], x[8, 2001] = -np.inf, -np.inf, np.inf, np.nan, np.nan
    x = jnp.asarray(x).astype(dtype)
    target = jax.nn.softmax(jnp.asarray(np.random.default_rng(1).normal(size=(9, classes))))

    def both(x):
        smoothing = 0.0 if far == 40 else 0.1  # it would give an infinite logit a cost
        loss = partial(jaxloss.cross_entropy, reduction="sum", where=jnp.arange(9) < 5, label_smoothing=smoothing)
        soft = (jax.value_and_grad(loss)(x, target.astype(dtype), implementation=i) for i in ("auto", "autodiff"))
        every = [jaxloss.logsumexp, jaxloss.log_softmax, lambda x: jax.grad(lambda x: jaxloss.logsumexp(x).sum())(x)]
        peers = [lambda x: jax.nn.logsumexp(x, -1), jax.nn.log_softmax, jax.nn.softmax]
        rows = [(f(x), g(x.astype(jnp.float64))) for f, g in zip(every, peers, strict=True)]
        return *rows, tuple(soft)

    (lse, log_p, p, soft), several = quick.jit(lambda x: (both(x), jax.vmap(both)(jnp.stack([x, x / 2]))))(x)
    exact = {jnp.float64: 1e-13, jnp.float32: 2e-6, jnp.bfloat16: 2e-6}[dtype]
    known = np.arange(5)  # what follows from a row of infinities or NaN is held in test_edges
    for (got, expected), at in zip(
        (lse, several[0], log_p, several[1]), (..., ..., known, np.s_[:, known]), strict=True
    ):
        np.testing.assert_allclose(got[at], expected[at], rtol=exact, atol=exact)
    rough = 5e-3 if dtype == jnp.bfloat16 else exact
    for got, expected in ([a[known] for a in p], [a[:, known] for a in several[2]]):
        np.testing.assert_allclose(got.astype(float), expected, rtol=rough, atol=rough)
    for (value, slope), (expected, other) in (soft, several[3]):
        np.testing.assert_allclose(value, expected, rtol=1e-5 if dtype != jnp.float64 else exact)
        np.testing.assert_allclose(slope.astype(float), other.astype(float), rtol=rough, atol=rough)


def test_one_long_sample_has_second_derivatives():
    x, v = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2003)))
    p, target = jax.nn.softmax(x), jax.nn.softmax(v)
    for loss in (jaxloss.logsumexp, lambda x: jaxloss.cross_entropy(x, target)):
        change = quick.jit(lambda x, v, loss=loss: jax.jvp(jax.grad(loss), (x,), (v,))[1])(x, v)
        np.testing.assert_allclose(change, p * (v - p @ v), rtol=1e-9, atol=1e-17)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
def test_a_row_read_once_is_the_row_read_from_its_maximum(dtype):
    x, y = with_every_oddity(2048, jnp.float64, count=12)
    x = x.at[jnp.arange(7, 12), y[7:]].set(jnp.array([-60.0, -1e4, -jnp.inf, 1e30, jnp.inf])).astype(dtype)
    options = {"label_smoothing": 0.1, "z_loss": 0.01}

    def both(x, **options):
        def loss(implementation, x):
            return jaxloss.cross_entropy(x, y, reduction="none", implementation=implementation, **options)

        return [(loss(i, x), jax.grad(lambda x, i=i: loss(i, x)[5:].sum())(x)) for i in ("auto", "autodiff")]

    exact = 1e-14 if dtype == jnp.float64 else 3e-6
    several = quick.jit(lambda x: [both(x), both(x, **options), jax.vmap(both)(jnp.stack([x, x / 2]))])(x)
    for (got, slope), (expected, other) in several:
        np.testing.assert_allclose(got, expected, rtol=exact)
        slope, other = (a.astype(float)[..., 3:, :] for a in (slope, other))  # without the row of -inf
        np.testing.assert_allclose(slope, other, rtol=1e-2 if dtype == jnp.bfloat16 else exact, atol=exact)


@pytest.mark.parametrize("name", ["cross_entropy", "poly_cross_entropy", "generalized_cross_entropy"])
def test_a_confident_row_keeps_the_digits_of_its_slope(name):
    slope = jax.grad(lambda x: getattr(jaxloss, name)(x, jnp.array([0])))
    x = jnp.array([[20.0, 0, 1]])
    np.testing.assert_allclose(slope(x.astype(jnp.float32)), slope(x), rtol=1e-6)


@pytest.mark.without_x64
def test_a_cpu_reads_a_row_once():
    for options in ({}, {"axis": 0}, {"classes": 10}):
        assert "while" in lowered("cpu", "auto", **options)
    for platform, implementation in (("cpu", "autodiff"), ("tpu", "auto")):
        assert "while" not in lowered(platform, implementation)


@pytest.mark.without_x64
def test_plain_second_derivatives_of_many_classes():
    x, y = with_every_oddity(1003)
    x, y = x[4:], y[4:]

    def product(implementation, x):
        gradient = jax.grad(partial(jaxloss.cross_entropy, target=y, implementation=implementation))
        return jax.jvp(gradient, (x,), (jnp.cos(x),))[1], jax.vmap(gradient)(jnp.stack([x, x / 2]))

    several = quick.jit(lambda x: [product(i, x) for i in ("auto", "pallas", "autodiff")])(x)
    for got in several[:2]:
        chex.assert_trees_all_close(got, several[2], rtol=1e-4, atol=1e-6)


@pytest.mark.without_x64
def test_plain_mixed_derivatives_by_the_smoothing_too():
    x, y = with_every_oddity(1003)
    x, y = x[4:], y[4:]

    def gradients(implementation, x):
        def loss(smoothing, x):
            return jaxloss.cross_entropy(x, y, label_smoothing=smoothing, implementation=implementation)

        by_smoothing = jax.value_and_grad(loss)
        return by_smoothing(0.1, x), jax.grad(
            lambda x: by_smoothing(0.1, x)[1] + jnp.vdot(jax.grad(loss, 1)(0.1, x), x)
        )(x)

    got, expected = quick.jit(lambda x: [gradients(i, x) for i in ("auto", "autodiff")])(x)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)


def lowered(platform, implementation, classes=1000, dtype=jnp.float32, axis=-1, linear=False):
    """The program for a gradient, as text."""
    x, y = jax.ShapeDtypeStruct((4, classes), dtype), np.zeros(4, int)
    if axis == 0:
        x = jax.ShapeDtypeStruct((classes, 4), dtype)
    loss = partial(jaxloss.cross_entropy, axis=axis, implementation=implementation)
    if linear:
        w = jnp.zeros((classes, 3), dtype)
        x = jax.ShapeDtypeStruct((4, 3), dtype)

        def loss(x, y):
            return jaxloss.linear_cross_entropy(x, w, y, implementation=implementation)

    kernel = export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
    f = jax.jit(jax.grad(loss))
    return export.export(f, platforms=(platform,), disabled_checks=(kernel,))(x, y).mlir_module()


def test_auto_is_the_kernel_on_cuda_where_it_was_measured_and_xla_elsewhere():
    assert "xla.gpu.triton" in lowered("cuda", "auto", dtype=jnp.bfloat16)
    for options in ({}, {"linear": True}):
        assert "xla.gpu.triton" in lowered("cuda", "auto", **options)
        for platform, implementation in (("cuda", "xla"), ("cuda", "autodiff"), ("cpu", "auto"), ("tpu", "auto")):
            assert "triton" not in lowered(platform, implementation, **options)
    for options in ({"classes": 999}, {"dtype": jnp.float64}, {"axis": 0}):
        assert "triton" not in lowered("cuda", "auto", **options)
    assert "xla.gpu.triton" in lowered("cuda", "pallas", classes=10)
    with pytest.raises(NotImplementedError, match="tpu"):
        lowered("tpu", "pallas")


@pytest.mark.parametrize("implementation", ["auto", "pallas", "autodiff"])
def test_statistics_at_the_edges(implementation):
    inf, nan = jnp.inf, jnp.nan
    logits = jnp.array([[0.0, 0, -inf], [-inf, -inf, -inf], [inf, 0, 0], [nan, inf, 0], [3, 3, 1], [700, 0, 0]])
    y = jnp.array([1, 0, 0, -100, 1, 2])
    options = {"z_loss": 0.1, "aux": True, "reduction": "none", "implementation": implementation}
    loss, found = jax.jit(partial(jaxloss.cross_entropy, **options))(logits, y)
    lse = np.array([math.log(2), -inf, nan, 0, 3 + math.log(2 + math.exp(-2)), 700])
    np.testing.assert_allclose(found.log_sum_exp[jnp.array([0, 1, 3, 4, 5])], lse[[0, 1, 3, 4, 5]], rtol=1e-14)
    assert found.correct.tolist()[3:] == [False, False, False], "ignored; of equals the first is the largest"
    assert not found.correct[0]
    np.testing.assert_allclose(found.z_loss[jnp.array([0, 3, 4, 5])], 0.1 * lse[[0, 3, 4, 5]] ** 2, rtol=1e-13)
    np.testing.assert_allclose(found.entropy[jnp.array([0, 3, 5])], [math.log(2), 0, 0], atol=1e-300)
    np.testing.assert_allclose(
        loss[jnp.array([0, 3, 5])], [math.log(2) + 0.1 * lse[0] ** 2, 0, 700 + 49000], rtol=1e-14
    )


@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
def test_a_soft_cap_at_the_edges(implementation):
    cap, huge = 2.0, jnp.array([[jnp.inf, 0.0, -jnp.inf, 1e300]])

    def loss(x, cap):
        return jaxloss.cross_entropy(x, jnp.array([1]), logit_softcap=cap, implementation=implementation)

    value, (dx, dcap) = jax.jit(jax.value_and_grad(loss, (0, 1)))(huge, cap)
    total = 2 * math.exp(2) + 1 + math.exp(-2)
    np.testing.assert_allclose(value, math.log(total), rtol=1e-14)
    np.testing.assert_allclose(dx, [[0, 1 / total - 1, 0, 0]], rtol=1e-13)
    np.testing.assert_allclose(dcap, (2 * math.exp(2) - math.exp(-2)) / total, rtol=1e-13)
    # A cap that holds nothing back is no cap.
    x = jnp.array([[1.0, -2.0, 0.5]])
    np.testing.assert_allclose(loss(x, 1e9), loss(x, None), rtol=1e-12)


def test_probabilities_can_be_differentiated_backwards_twice():
    # A CPU looks for 0 times infinity in a loop, which has no reverse mode of its own.
    x, q = jnp.sin(jnp.arange(12.0)).reshape(3, 4), jax.nn.softmax(jnp.cos(jnp.arange(12.0)).reshape(3, 4))
    loss = partial(jaxloss.cross_entropy, reduction="sum")

    def slope(x):
        return jnp.sum(jax.grad(loss)(x, q) ** 2)

    expected = 2 * jnp.einsum("ncmd,md->nc", jax.hessian(loss)(x, q), jax.grad(loss)(x, q))
    chex.assert_trees_all_close(quick.jit(jax.grad(slope))(x), expected, rtol=1e-10)
