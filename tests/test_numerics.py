"""Log-sum-exp and its family: value, derivatives, what is kept for the backward pass. Sums that a loop adds up."""

import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
import quick
from jax.sharding import AxisType, PartitionSpec

import jaxloss
from jaxloss import _numerics

FUNCTIONS = {
    "logsumexp": (jaxloss.logsumexp, oracles.logsumexp),
    "log_softmax": (jaxloss.log_softmax, oracles.log_softmax),
}
each = pytest.mark.parametrize("name", FUNCTIONS)


@each
@pytest.mark.parametrize(("shape", "axis"), [((5,), 0), ((3, 4), -1), ((3, 4), 0), ((2, 3, 4), 1), ((2, 1), 1)])
def test_value_and_derivatives(name, shape, axis):
    function, oracle = FUNCTIONS[name]
    x = np.random.default_rng(0).normal(size=shape) * 4
    np.testing.assert_allclose(function(x, axis), oracle(x, axis), rtol=1e-12, atol=1e-14)
    quick.check_two_derivatives(partial(function, axis=axis), x, rtol=1e-6, atol=1e-6)
    reference = getattr(jax.nn, name)

    def hessian(f):
        return quick.jit(jax.hessian(lambda x: jnp.sum(f(x, axis) ** 2)))(x)

    chex.assert_trees_all_close(hessian(function), hessian(reference), atol=1e-10)


@each
def test_vmap_over_any_axis(name):
    function, _ = FUNCTIONS[name]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)))
    looped = jnp.stack([function(x[:, i], 0) for i in range(4)])
    chex.assert_trees_all_close(jax.vmap(partial(function, axis=0), in_axes=1)(x), looped, rtol=1e-13)


def kept(function, *args):
    """Shapes of what the backward pass keeps."""
    _, backward = jax.eval_shape(partial(jax.vjp, function), *args)
    return sorted(leaf.shape for leaf in jax.tree.leaves(backward))


@each
def test_keeps_its_input_and_two_numbers_per_row(name):
    function, _ = FUNCTIONS[name]
    assert kept(function, jax.ShapeDtypeStruct((4, 1000), jnp.float32)) == [(4,), (4,), (4, 1000)]
    _, backward = jax.vjp(function, jnp.ones((4, 1000), jnp.bfloat16))
    wide = [leaf for leaf in jax.tree.leaves(backward) if leaf.shape == (4, 1000)]
    assert [leaf.dtype for leaf in wide] == [jnp.bfloat16]


@pytest.mark.parametrize("weight", [None, np.ones(1000, np.float32)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_cross_entropy_keeps_the_logits_and_numbers_per_row(weight, dtype):
    def loss(x, where):
        y = jnp.zeros(x.shape[0], jnp.int32)
        return jaxloss.cross_entropy(x, y, weight=weight, label_smoothing=0.1, where=where, reduction="none")

    logits, where = jax.ShapeDtypeStruct((4, 1000), dtype), jax.ShapeDtypeStruct((4,), bool)
    _, backward = jax.eval_shape(partial(jax.vjp, loss), logits, where)
    wide = [leaf for leaf in jax.tree.leaves(backward) if leaf.size >= 4000]
    assert [(leaf.shape, leaf.dtype) for leaf in wide] == [((4, 1000), dtype)]


def test_the_compiled_gradient_needs_no_second_array_of_logits():
    x, y = jax.ShapeDtypeStruct((512, 4096), jnp.float32), jax.ShapeDtypeStruct((512,), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(jaxloss.cross_entropy)).lower(x, y).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < x.size * 4 / 50


def test_softmax_gradient_sums_to_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50)) * 30)
    np.testing.assert_allclose(jnp.sum(jax.grad(lambda x: jnp.sum(jaxloss.logsumexp(x)))(x), 1), 1, rtol=1e-12)


def test_infinities():
    x = jnp.array([-jnp.inf, 0.0, 1.0])
    np.testing.assert_allclose(jax.grad(jaxloss.logsumexp)(x), [0, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-12)
    assert jaxloss.logsumexp(jnp.array([jnp.inf, 0.0])) == jnp.inf
    assert jaxloss.logsumexp(jnp.zeros((2, 0))).tolist() == [-jnp.inf, -jnp.inf]
    with jax.debug_nans(True):
        assert jax.grad(jaxloss.logsumexp)(jnp.full(3, -jnp.inf)).tolist() == [0, 0, 0]


def test_implementations_agree_under_random_cotangents():
    rng = np.random.default_rng(3)
    x, y = jnp.asarray(rng.normal(size=(6, 9)) * 5), jnp.asarray(rng.integers(0, 9, 6))
    q = jax.nn.softmax(jnp.asarray(rng.normal(size=(6, 9))))
    weight, g = jnp.asarray(rng.uniform(0.1, 2, 9)), jnp.asarray(rng.normal(size=6))

    def gradients(implementation, target, moving):
        def loss(x, weight, smoothing, *target):
            rows = jaxloss.cross_entropy(
                x, *target, weight=weight, label_smoothing=smoothing, implementation=implementation, reduction="none"
            )
            return jnp.sum(g * rows)

        return quick.jit(jax.value_and_grad(loss, moving))(x, weight, 0.3, target)

    for target, moving in ((y, (0, 1, 2)), (q, (0, 1, 2, 3))):
        chex.assert_trees_all_close(
            gradients("xla", target, moving), gradients("autodiff", target, moving), rtol=1e-12, atol=1e-13
        )


@pytest.mark.without_x64
@pytest.mark.parametrize("shape", [(2**16,), (2**10, 40), (2, 3, 2**13), (2**15 + 1,), (5, 2**14 + 1)])
def test_entries_that_are_added_up_in_a_loop(shape):
    x, t, dx = (np.random.default_rng(i).normal(size=shape).astype(np.float32) for i in range(3))

    def one(x, t):
        return jaxloss.huber_loss(x, t, reduction="sum")

    def of_all(x, t, dx):
        gradient, along = jax.jvp(jax.grad(one), (x, t), (dx, dx * 0))
        value, change = jax.jvp(one, (x, t), (dx, dx * 0))
        batch = jax.vmap(jax.value_and_grad(one), (0, None))(jnp.stack([x, 2 * x]), t)
        return value, change, gradient, along, jax.tree.map(lambda a: a[0], batch)

    value, change, gradient, along, (first, slope) = jax.jit(of_all)(x, t, dx)
    d = (x - t).astype(np.float64)
    near, clipped = np.abs(d) < 1, np.clip(d, -1, 1)
    np.testing.assert_allclose([value, first], np.where(near, d * d / 2, np.abs(d) - 0.5).sum(), rtol=1e-5)
    np.testing.assert_allclose(change, (clipped * dx).sum(), rtol=1e-3)
    np.testing.assert_allclose(gradient, clipped, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(gradient, slope)
    np.testing.assert_allclose(along, near * dx)


@pytest.mark.without_x64
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_entries_in_a_loop_on_a_mesh(kind):
    x, t = (np.random.default_rng(i).normal(size=(2**10, 40)).astype(np.float32) for i in range(2))
    mesh, rows = jax.make_mesh((1,), ("data",), (kind,)), PartitionSpec("data")
    expected = jax.value_and_grad(jaxloss.l1_loss)(x, t)
    with jax.set_mesh(mesh):
        layout = jax.NamedSharding(mesh, rows)
        arrays = jax.device_put((x, t), (layout, layout))
        chex.assert_trees_all_close(jax.jit(jax.value_and_grad(jaxloss.l1_loss))(*arrays), expected, rtol=1e-6)
        on_each = jax.shard_map(
            lambda x, t: jaxloss.spmd.mean(jaxloss.l1_loss(x, t, reduction="sum_and_weight"), "data"),
            in_specs=rows,
            out_specs=PartitionSpec(),
        )
        chex.assert_trees_all_close(jax.jit(jax.value_and_grad(on_each))(*arrays), expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softplus_and_sigmoids_are_as_exact_as_their_numbers(dtype):
    x = np.concatenate([np.linspace(-80, 80, 4001), np.linspace(-2, 2, 4001)]).astype(dtype)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(jax.jit(_numerics.softplus)(x), np.logaddexp(0, x.astype(np.float64)), rtol=tolerance)
    yes, no = jax.jit(_numerics.sigmoids)(x)
    np.testing.assert_allclose(yes, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=tolerance)
    np.testing.assert_array_equal(no, jax.jit(_numerics.sigmoids)(-x)[0])
    assert jax.jacfwd(_numerics.sigmoids)(dtype(0)) == (0.25, -0.25)


@pytest.mark.without_x64
def test_tiny_logarithmic_errors_have_a_gradient():
    x = np.float32([1e-30, 1e-9, 3e-4, 0.3, -0.3, 2e4])
    value, grad = jax.jit(jax.vmap(jax.value_and_grad(jaxloss.mean_squared_logarithmic_error)))(x, 2 * x)
    d = np.log1p(x.astype(np.float64)) - np.log1p(2 * x.astype(np.float64))
    np.testing.assert_allclose(value, d * d, rtol=1e-5, atol=1e-38)
    np.testing.assert_allclose(grad, 2 * d / (1 + x), rtol=1e-5)


def test_a_cpu_rounds_to_bfloat16_as_astype_does():
    some = np.random.default_rng(0).integers(0, 2**32, 4096, np.uint32)
    edges = [0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x3F808000, 0x3F818000]
    x = jnp.asarray(np.concatenate([some, np.array(edges, np.uint32)]).view(np.float32))
    got, expected = quick.jit(lambda x: (_numerics.narrow(x, jnp.bfloat16), x.astype(jnp.bfloat16)))(x)
    np.testing.assert_array_equal(got.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.without_x64
@pytest.mark.parametrize("loss", [jaxloss.cross_entropy, jaxloss.softmax_focal_loss, jaxloss.nll_loss])
def test_bfloat16_has_a_second_derivative(loss):
    x, y = jnp.sin(jnp.arange(12.0)).reshape(3, 4), jnp.array([1, 0, 3])

    def curvature(x):
        change = jax.jvp(jax.grad(lambda x: loss(x, y)), (x,), (jnp.ones_like(x).at[:, 0].set(3),))[1]
        return change.astype(jnp.float32)

    narrow = x.astype(jnp.bfloat16)
    np.testing.assert_allclose(curvature(narrow), curvature(narrow.astype(jnp.float32)), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.float16, jnp.bfloat16, jnp.float8_e4m3fn])
def test_what_is_disguised_stays_as_it_is(dtype):
    x = jnp.array([0.0, -0.0, 1.0, -3.5, np.nan, np.inf, -np.inf, 1e-40], dtype)
    same, number = quick.jit(lambda x: _numerics.disguised(1, x, 2.0))(x)
    assert number == 2
    assert np.asarray(same).tobytes() == np.asarray(x).tobytes()
    cube = jax.grad(jax.grad(lambda x: jnp.sum(_numerics.disguised(4, jnp.reshape(x, 1))[0] ** 3)))
    assert cube(jnp.asarray(2.0, dtype)) == 12


def test_numbers_of_python_may_stand_beside_arrays_on_a_gpu(as_on_a_gpu):
    as_on_a_gpu()
    x, y = jnp.array([0.5]), jnp.array([-1.0])
    assert jax.grad(lambda x: jaxloss.hinge_embedding_loss(x, y, margin=1.0))(x) == -1
    assert jax.grad(lambda x: jaxloss.huber_loss(x, y, delta=0.5))(x) == 0.5


SCORES, SHARES = np.sin(np.arange(12.0)).reshape(3, 4), np.full((3, 4), 0.25)
WITH_A_MASK = {
    "js_div": (SCORES - 3, SHARES),
    "distillation_loss": (SCORES, 2 * SCORES, np.array([1, 0, 3])),
    "multilabel_margin_loss": (SCORES, np.array([[1, -1, 0, 0], [2, 0, -1, 0], [3, 2, 1, 0]])),
    "multi_margin_loss": (SCORES, np.array([1, 0, 3])),
    "cross_entropy": (SCORES, np.array([1, 0, 3])),
    "sigmoid_focal_loss": (SCORES, SHARES),
    "mean_squared_logarithmic_error": (1 + SCORES, SHARES),
    "dice_loss": (SCORES, np.array([1, 0, 3])),
    "box_iou_loss": (np.cumsum(np.abs(SCORES), 1), np.cumsum(SHARES, 1)),
}


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.bfloat16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", WITH_A_MASK)
def test_the_edges_on_a_gpu(name, dtype, as_on_a_gpu):
    """A masked NaN, one sample, nothing left to average, and a second derivative."""
    x, *others = (jnp.asarray(a, dtype if a.dtype == float else None) for a in WITH_A_MASK[name])
    options = {"mode": "multiclass"} if name == "dice_loss" else {}
    kept = jnp.arange(3) != 1
    by_number = name in ("sigmoid_focal_loss", "mean_squared_logarithmic_error")
    kept = jnp.broadcast_to(kept[:, None], x.shape) if by_number else kept

    def found():
        def loss(x, where):
            return getattr(jaxloss, name)(x, *others, where=where, **options).astype(float)

        def all_of(x, where):
            return jax.value_and_grad(loss)(x, where), jax.jvp(lambda x: jax.grad(loss)(x, where), (x,), (x,))[1]

        alone = jnp.zeros_like(kept).at[0].set(True)
        dirty = jnp.where(kept.reshape(3, -1)[:, :1], x, jnp.nan)
        return [jax.jit(all_of)(dirty, where) for where in (kept, alone & kept, jnp.zeros_like(kept))]

    expected = found()
    as_on_a_gpu()
    exactness = {"rtol": 1e-12, "atol": 1e-14} if dtype == jnp.float64 else {"rtol": 2e-2, "atol": 1e-2}
    chex.assert_trees_all_close(found(), expected, **exactness)
    for (_, slope), curvature in expected:
        assert np.isfinite(slope.astype(float)).all()
        assert np.isfinite(curvature.astype(float)).all()
        assert (slope[1] == 0).all()


@pytest.mark.parametrize("classes", [4, 40])
def test_a_soft_cap_on_a_gpu(classes, as_on_a_gpu):
    rng = np.random.default_rng(0)
    x, w, y = rng.normal(size=(3, classes)) * 9, rng.random(classes) + 0.5, np.array([1, 0, 3])
    x[0, 2], x[1, 1], x[1, 2] = -np.inf, np.inf, 1e300
    dirty, kept = np.where(np.arange(3)[:, None] == 2, np.nan, x), np.array([True, True, False])

    def found():
        def loss(x, cap, target, **options):
            return jaxloss.cross_entropy(x, target, where=kept, logit_softcap=cap, weight=w, **options)

        def all_of(target, **options):
            value = partial(loss, target=target, **options)
            return (
                value(dirty, 3.0),
                jax.value_and_grad(value, (0, 1))(dirty, 3.0),
                jax.jvp(lambda cap: jax.grad(value)(dirty, cap), (3.0,), (1.0,))[1],
            )

        rows = np.full((3, classes), 1 / classes)
        return [
            jax.jit(partial(all_of, label_smoothing=s, z_loss=z))(t)
            for t, s, z in ((y, 0.0, 0.0), (y, 0.1, 0.1), (rows, 0.0, 0.1))
        ]

    expected = found()
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(expected))
    as_on_a_gpu()
    chex.assert_trees_all_close(found(), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_points_of_any_size_on_a_gpu(width, as_on_a_gpu):
    rng = np.random.default_rng(0)
    size = np.array([1e-200, 1e-20, 1.0, 1e20, 1e200])[:, None]
    x, y = size * rng.normal(size=(5, width)), size * rng.normal(size=(5, width))

    def found():
        distances = partial(jaxloss.pairwise_distance, eps=0.0)
        return jax.jit(lambda x, y: (distances(x, y), jax.grad(lambda x: jnp.sum(distances(x, y)))(x)))(x, y)

    expected = found()
    np.testing.assert_allclose(expected[0], [math.hypot(*row) for row in x - y], rtol=1e-14)
    as_on_a_gpu()
    chex.assert_trees_all_close(found(), expected, rtol=1e-12)


@pytest.mark.parametrize("rows", [40_000, 39_999, 40_002, 40_004, 40_010, 40_009])  # 4, 3, 3, 2, 5 parts, and one
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_a_sum_of_many_entries_counts_each_of_them_once(rows, dtype):
    x = jnp.arange(rows, dtype=dtype) % 7
    value, slope = quick.jit(jax.value_and_grad(lambda x: jaxloss.l1_loss(x, 0 * x, where=x >= 0, reduction="sum")))(x)
    assert value == (np.arange(rows) % 7).sum()
    np.testing.assert_array_equal(slope, np.sign(x))
    pair = jnp.stack([x, x], 1)
    assert jaxloss.l1_loss(pair, 0 * pair, where=pair >= 0, reduction="sum") == 2 * value
    assert jaxloss.l1_loss(pair, 0 * pair, weight=jnp.full_like(pair, 0.5), reduction="sum") == value
    column = x[:, None]
    assert jaxloss.l1_loss(column, 0 * column, reduction="sum") == value
    masked = jaxloss.l1_loss(column, 0 * column, where=column >= 4, reduction="sum_and_weight")
    assert masked == ((np.arange(rows) % 7)[np.arange(rows) % 7 >= 4].sum(), (np.arange(rows) % 7 >= 4).sum())


def left_to_a_library(f, *arrays):
    """The operations of a CPU's program for `f` that XLA has a library compute, one after the other."""
    program = jax.jit(f).lower(*arrays).compile().as_text()
    computations = dict(re.findall(r"^(%\S+) \([^\n]*\{\n(.*?)^\}", program, re.DOTALL | re.MULTILINE))
    called = re.findall(r"kind=kCustom, calls=(%[^\s,]+)", program)
    return {operation for name in called for operation in re.findall(r" ([a-z-]+)\(", computations[name])}


def test_a_library_gets_no_arithmetic_that_a_loop_is_faster_at():
    x = jax.ShapeDtypeStruct((2048, 16), jnp.float32)
    column = jax.ShapeDtypeStruct((2**15, 1), jnp.float32)
    mask = jax.ShapeDtypeStruct((2**15, 1), bool)
    assert "exponential" in left_to_a_library(lambda x: jnp.sum(jnp.exp(x)), x), "none of this tests anything"
    logits = partial(jaxloss.binary_cross_entropy_with_logits, reduction="none")
    for found in (
        left_to_a_library(lambda x, t: logits(x, t).sum(), x, x),
        left_to_a_library(lambda x, t: logits(x, t).sum(), column, column),
        left_to_a_library(lambda x, t, w: (w * jaxloss.log_cosh_loss(x, t, reduction="none")).sum(), x, x, x),
        left_to_a_library(jaxloss.l1_loss, column, column),
        left_to_a_library(jaxloss.mean_squared_logarithmic_error, column, column),
        left_to_a_library(lambda x, t, m: jaxloss.mse_loss(x, t, where=m), column, column, mask),
    ):
        assert not found - {"parameter", "constant", "reduce", "add", "multiply", "bitcast", "broadcast"}


@pytest.mark.parametrize("classes", [1, 2, 5, 10, 12, 16, 24, 25, 31])  # written out or not, each kind of arithmetic
def test_rows_of_few_classes_are_what_the_formula_says(classes):
    x, z, w = np.random.default_rng(classes).normal(size=(3, 7, classes)) * 4
    t = np.random.default_rng(1).integers(0, classes, 7)

    def ours(x, z, w):
        q = jax.nn.softmax(z)
        return (
            jaxloss.logsumexp(x),
            jnp.sum(jaxloss.log_softmax(x) * w, -1),
            jaxloss.cross_entropy(x, q, reduction="none"),
            jaxloss.distillation_loss(x, z, temperature=2.0, reduction="none"),
            jaxloss.js_div(jax.nn.log_softmax(x), q, reduction="none"),
            jaxloss.generalized_kl_div(x, q, reduction="none"),
            jaxloss.pairwise_distance(x, z, eps=0),
            jaxloss.cosine_similarity(x, z, axis=-1),
            jaxloss.poly_cross_entropy(x, t, epsilon=1.0, reduction="none"),
            jaxloss.multiclass_hinge_loss(x, t, reduction="none"),
        )

    def plain(x, z, w):
        log_p, log_q = jax.nn.log_softmax(x), jax.nn.log_softmax(z)
        p, q, half_p, half_q = *map(jnp.exp, (log_p, log_q)), jax.nn.log_softmax(x / 2), jax.nn.log_softmax(z / 2)
        middle = jnp.log((p + q) / 2)
        own = log_p[jnp.arange(7), t]
        others = jnp.where(jnp.arange(classes) == t[:, None], -jnp.inf, x).max(-1)
        return (
            jax.nn.logsumexp(x, -1),
            jnp.sum(log_p * w, -1),
            -jnp.sum(q * log_p, -1),
            4 * jnp.sum(jnp.exp(half_q) * (half_q - half_p), -1),
            jnp.sum(p * (log_p - middle) + q * (log_q - middle), -1) / 2,
            jnp.sum(q * (log_q - x) - q + jnp.exp(x), -1),
            jnp.linalg.norm(x - z, axis=-1),
            jnp.sum(x * z, -1) / jnp.linalg.norm(x, axis=-1) / jnp.linalg.norm(z, axis=-1),
            -own + 1 - jnp.exp(own),
            jnp.maximum(0, 1 - x[jnp.arange(7), t] + others),
        )

    def with_slopes(f, x, z, w):
        value, back = jax.vjp(lambda x, z: f(x, z, w), x, z)
        return value, [back([one * (i == n) for n, one in enumerate(map(jnp.cos, value))]) for i in range(len(value))]

    def both(x, z, w):
        return [with_slopes(lambda *a, f=f: list(f(*a)), x, z, w) for f in (ours, plain)]

    def far(x, z):  # where an exponential of what is not shifted would overflow
        p = jaxloss.distillation_loss(x, z, reduction="none")
        q = -jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(x) - jax.nn.log_softmax(z)), -1)
        return [(jaxloss.logsumexp(x), jax.nn.logsumexp(x, -1)), (p, q)]

    found, expected = quick.jit(both)(*map(jnp.asarray, (x, z, w)))
    for got, same in quick.jit(far)(300 * jnp.asarray(x), 300 * jnp.asarray(z)):
        np.testing.assert_allclose(got, same, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-11)


def test_vmap_of_lengths_takes_one_branch():
    x = jax.ShapeDtypeStruct((4, 8, 64), jnp.float32)
    for loss in (jaxloss.pairwise_distance, jaxloss.cosine_similarity, jaxloss.triplet_margin_loss):
        arrays = [x] * (3 if loss is jaxloss.triplet_margin_loss else 2)
        assert "conditional(" in jax.jit(jax.vmap(loss)).lower(*arrays).compile().as_text()
