"""linear_cross_entropy against the loss of logits that exist: every option, derivatives, memory, edges."""

import itertools
import math
import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from traces import LARGE, cost, equations, large

import jaxloss
from jaxloss import _linear_cross_entropy

N, H, C = 11, 6, 9


def layer(dtype=jnp.float64, scale=1.0, seed=0):
    """Features, weight, bias, class indices with one ignored, and class probabilities."""
    rng = np.random.default_rng(seed)
    x, w, b = (jnp.asarray(rng.normal(size=s) * scale, dtype) for s in ((N, H), (C, H), (C,)))
    y = jnp.asarray(rng.integers(0, C, N)).at[3].set(-100)
    return x, w, b, y, jax.nn.softmax(jnp.asarray(rng.normal(size=(N, C)), jnp.float32), -1)


def dense(x, w, target, *, linear_bias=None, feature_axis=-1, **options):
    """The same with logits that exist."""
    if feature_axis == 0:
        w = w.T
    logits = x @ w.T if linear_bias is None else x @ w.T + linear_bias
    return jaxloss.cross_entropy(logits, target, implementation="autodiff", **options)


GRID = [
    # soft, weight, smoothing, z_loss, cap, bias, kernel, reduction, scale
    (False, True, 0.0, 0.0, 2.0, False, False, "mean", 1.0),
    (True, False, 0.2, 0.1, None, True, False, "sum_and_weight", 0.02),
    (False, True, 0.2, 0.0, None, True, True, "sum", 5.0),
    (True, False, 0.0, 0.1, 2.0, False, True, "none", 5.0),
    (False, False, 0.2, 0.0, None, False, True, "sum_and_weight", 1.0),
    (True, True, 0.0, 0.1, None, True, False, "mean", 5.0),
    (False, True, 0.2, 0.0, 2.0, False, False, "none", 0.02),
    (True, False, 0.0, 0.1, 2.0, True, False, "sum", 1.0),
    (False, False, 0.2, 0.1, None, True, False, "none", 1.0),
    (True, False, 0.2, 0.0, 2.0, True, True, "mean", 0.02),
    (False, True, 0.0, 0.1, 2.0, False, False, "sum_and_weight", 5.0),
    (False, True, 0.0, 0.0, None, False, False, "sum", 0.02),
]


def test_the_grid_holds_every_pair_of_settings():
    settings = [dict.fromkeys(column) for column in zip(*GRID, strict=True)]
    assert [len(column) for column in settings] == [2, 2, 2, 2, 2, 2, 2, 4, 3]
    for i, j in itertools.combinations(range(len(settings)), 2):
        assert {(row[i], row[j]) for row in GRID} == set(itertools.product(settings[i], settings[j]))


def setting(row, dtype=jnp.float64):
    """Arrays and numbers that move, and a function of them for each way of computing."""
    soft, weighted, smoothing, z_loss, cap, bias, kernel, reduction, scale = row
    x, w, b, y, q = layer(dtype, scale)
    moving = {"x": x, "w": w.T if kernel else w}
    if bias:
        moving["linear_bias"] = b
    if soft:
        moving["target"] = q.astype(dtype)
    if dtype == jnp.float64:  # the coefficients of others are in float32 on both sides
        numbers = {"label_smoothing": smoothing, "z_loss": z_loss, "logit_softcap": cap}
        moving |= {name: value for name, value in numbers.items() if value}
    else:
        numbers = {}
    weight = jnp.linspace(0.2, 2.0, C, dtype=dtype) if weighted else None
    where = jnp.arange(N) != 5

    def total(loss, moving, **options):
        arguments = {"target": y, **moving, "weight": weight, "where": where, "reduction": reduction, **options}
        if kernel:
            arguments["feature_axis"] = 0
        result = loss(arguments.pop("x"), arguments.pop("w"), arguments.pop("target"), **arguments)
        rng = np.random.default_rng(2)
        return sum(jnp.sum(a * rng.normal(size=a.shape).astype(a.dtype)) for a in jax.tree.leaves(result))

    return moving, total


@pytest.mark.parametrize("row", GRID, ids=str)
def test_every_way_of_computing_agrees(row):
    moving, total = setting(row)

    @quick.jit
    def of_all(moving):
        gradients = {"dense": jax.value_and_grad(partial(total, dense))(moving)}
        for implementation in ("auto", "pallas", "autodiff"):
            loss = partial(jaxloss.linear_cross_entropy, chunk_size=4, implementation=implementation)
            gradients[implementation] = jax.value_and_grad(partial(total, loss))(moving)
        return gradients

    gradients = of_all(moving)
    expected = gradients.pop("dense")
    for name, got in gradients.items():
        chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-12, custom_message=name)


@pytest.mark.parametrize(
    ("row", "dtype"), [(GRID[2], jnp.bfloat16), (GRID[8], jnp.bfloat16), (GRID[2], jnp.float32)], ids=str
)
def test_low_precision_is_no_worse_than_that_of_logits_that_exist(row, dtype):
    moving, total = setting(row, dtype)
    exactly = jax.tree.map(lambda a: a.astype(jnp.float64), moving)
    chunked = partial(jaxloss.linear_cross_entropy, chunk_size=4)

    def rounded(x, w, target, *, linear_bias=None, feature_axis=-1, **options):
        w = w if feature_axis == 0 else w.T
        logits = jnp.dot(x, w, preferred_element_type=jnp.float32)
        return jaxloss.cross_entropy(logits if linear_bias is None else logits + linear_bias, target, **options)

    @jax.jit
    def of_all(moving, exactly):
        gradients = [jax.value_and_grad(partial(total, loss))(moving) for loss in (chunked, rounded)]
        return *gradients, jax.value_and_grad(partial(total, dense))(exactly)

    (value, got), (_, reference), (exact, truth) = of_all(moving, exactly)
    np.testing.assert_allclose(value, exact, rtol=2e-6)
    for name in moving:
        size = np.abs(np.asarray(truth[name])).max()
        ours, theirs = (np.abs(np.asarray(g[name], np.float64) - truth[name]).max() for g in (got, reference))
        assert got[name].dtype == dtype
        assert ours <= theirs + float(jnp.finfo(dtype).eps) * size


def test_second_derivatives_in_every_direction():
    x, w, b, y, _ = layer()
    direction = (jnp.cos(x), jnp.sin(w), b)

    def products(loss, reduction):
        def total(x, w, b):
            rows = loss(x, w, y, linear_bias=b, label_smoothing=0.1, z_loss=0.1, reduction=reduction)
            return jnp.sum(rows * jnp.arange(1.0, 1 + rows.size).reshape(rows.shape))

        def along(*arrays):
            return sum(jnp.vdot(g, d) for g, d in zip(jax.grad(total, (0, 1, 2))(*arrays), direction, strict=True))

        gradient = jax.grad(total, (0, 1, 2))
        return jax.jvp(gradient, (x, w, b), direction)[1], jax.grad(along, (0, 1, 2))(x, w, b)

    chunked = partial(jaxloss.linear_cross_entropy, chunk_size=4)
    for reduction in ("mean", "none"):
        got, expected = quick.jit(lambda r=reduction: (products(chunked, r), products(dense, r)))()
        chex.assert_trees_all_close(got, (expected[0], expected[0]), rtol=1e-10, atol=1e-12)
        chex.assert_trees_all_close(expected[1], expected[0], rtol=1e-10, atol=1e-12)


def test_forward_mode_leads_to_the_implementation_that_has_it():
    x, w, _, y, _ = layer()
    for reduction in ("mean", "none"):
        loss = partial(jaxloss.linear_cross_entropy, linear_weight=w, target=y, reduction=reduction, chunk_size=4)
        with pytest.raises(TypeError, match="custom_vjp") as refusal:
            jax.jvp(loss, (x,), (x,))
        assert "implementation='autodiff'" in refusal.value.__notes__[0]
    forward = quick.jit(lambda of: jax.jvp(of, (x,), (x,))[1], static_argnums=0)
    expected = forward(lambda x: dense(x, w, y, reduction="none"))
    np.testing.assert_allclose(forward(partial(loss, implementation="autodiff")), expected, atol=1e-12)


@pytest.mark.parametrize(("size", "rows"), [(1, 7), (2, 7), (3, 7), (7, 7), (100, 7), (4, 8), (None, 8)])
def test_any_chunk_size_and_any_number_of_rows(size, rows):
    x, w, _, y, _ = layer()
    got, expected = quick.jit(
        lambda x, w: (
            jax.value_and_grad(partial(jaxloss.linear_cross_entropy, chunk_size=size), (0, 1))(x, w, y[:rows]),
            jax.value_and_grad(dense, (0, 1))(x, w, y[:rows]),
        )
    )(x[:rows], w)
    chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-14)


# Memory and arithmetic, read from the trace.


@pytest.mark.without_x64
@pytest.mark.parametrize(("reduction", "matmuls"), [("mean", 3), ("none", 4)])
def test_memory_and_arithmetic_at_the_size_of_a_language_model(reduction, matmuls):
    n, h, v = LARGE

    def total(loss, x, w, y):
        return jnp.sum(loss(x, w, y, label_smoothing=0.1, z_loss=1e-4, reduction=reduction))

    ours = partial(total, jaxloss.linear_cross_entropy)
    autodiff = partial(total, partial(jaxloss.linear_cross_entropy, implementation="autodiff"))
    gradient = jax.value_and_grad(ours, (0, 1))
    largest, multiplications = cost(gradient, *large(), aside={(v, h)})
    assert largest <= n * v // 8
    assert multiplications == matmuls * n * h * v
    assert cost(ours, *large()) == (n * v // 8, n * h * v)
    assert cost(jax.value_and_grad(partial(total, dense), (0, 1)), *large(), aside={(v, h)})[0] == n * v
    assert cost(jax.grad(autodiff, (0, 1)), *large(), aside={(v, h)})[0] <= n * v // 8
    # Second derivatives, too, are computed a chunk at a time.
    twice = jax.grad(lambda *a: jnp.sum(gradient(*a)[1][0].astype(jnp.float32)), (0, 1))
    assert cost(twice, *large(), aside={(v, h), (h, v)})[0] <= n * v // 8


@pytest.mark.without_x64
def test_what_is_not_differentiated_is_not_computed():
    n, h, v = LARGE
    x, w, y = large()
    assert cost(jax.grad(jaxloss.linear_cross_entropy), x, w, y)[1] == 2 * n * h * v  # a frozen layer
    assert cost(jax.grad(jaxloss.linear_cross_entropy, 1), x, w, y)[1] == 2 * n * h * v
    soft = jax.ShapeDtypeStruct((n, v), jnp.bfloat16)
    largest, _ = cost(jax.grad(jaxloss.linear_cross_entropy, (0, 1)), x, w, soft, aside={(v, h)})
    assert largest == n * v  # the target itself, cut into chunks
    shapes = [
        v.aval.shape
        for e in equations(jax.make_jaxpr(jax.grad(jaxloss.linear_cross_entropy))(x, w, soft).jaxpr)
        for v in e.outvars
    ]
    assert [s for s in shapes if math.prod(s) == n * v] == [(8, n // 8, v)]


@pytest.mark.without_x64
def test_the_accumulator_is_float32_unless_asked():
    def carried(**options):
        gradient = jax.grad(partial(jaxloss.linear_cross_entropy, **options), 1)
        scans = [e for e in equations(jax.make_jaxpr(gradient)(*large()).jaxpr) if e.primitive.name == "scan"]
        return {v.aval.dtype.name for e in scans for v in e.outvars if v.aval.shape == LARGE[:0:-1]}

    assert carried() == {"float32"}
    assert carried(accumulator_dtype="bfloat16") == {"bfloat16"}
    x, w, _, y, _ = layer(jnp.bfloat16)
    exact = jax.jit(jax.grad(dense, 1))(x.astype(jnp.float32), w.astype(jnp.float32), y)
    for dtype in (jnp.bfloat16, jnp.float32):
        loss = partial(jaxloss.linear_cross_entropy, chunk_size=2, accumulator_dtype=dtype)
        got = jax.jit(jax.grad(loss, 1))(x, w, y)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), exact, atol=0.03 * np.abs(exact).max())


@pytest.mark.without_x64
def test_a_matmul_takes_the_dtype_of_the_input_and_adds_up_in_float32():
    program = jax.make_jaxpr(jax.grad(jaxloss.linear_cross_entropy, (0, 1)))(*large())
    products = [e for e in equations(program.jaxpr) if e.primitive.name == "dot_general"]
    assert {v.aval.dtype.name for e in products for v in e.invars} == {"bfloat16"}
    assert {v.aval.dtype.name for e in products for v in e.outvars} == {"float32"}


@pytest.mark.without_x64
@pytest.mark.parametrize("kernel", [False, True])
def test_no_transposed_copy_of_the_weight(kernel):
    n, h, v = 64, 40, 5000
    shape = (h, v) if kernel else (v, h)
    arrays = [jax.ShapeDtypeStruct(s, d) for s, d in (((n, h), "float32"), (shape, "float32"), ((n,), "int32"))]
    loss = partial(jaxloss.linear_cross_entropy, feature_axis=0 if kernel else -1, chunk_size=16)
    program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile().as_text()
    sized = r"f32\[(?:40,5000|5000,40)\]\S* (transpose|copy)\("
    assert re.findall(r"f32\[(?:40,5000|5000,40)\]", program)
    assert not re.findall(sized, program)


# Edges.


@pytest.mark.without_x64
@pytest.mark.parametrize("classes", [2049, 50257, 151936])
def test_vocabularies_that_no_block_divides(classes):
    # tokamax pads them wrongly when the weights are small, and adds up in bfloat16.
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(5, 16)).astype(np.float32), (rng.normal(size=(classes, 16)) * 0.02).astype(np.float32)
    y = np.array([0, classes - 1, classes // 2, classes - 2, 17])
    logits = x.astype(np.float64) @ w.T.astype(np.float64)
    p = np.exp(logits)
    p /= p.sum(1, keepdims=True)
    value, (dx, dw) = jax.jit(jax.value_and_grad(partial(jaxloss.linear_cross_entropy, chunk_size=2), (0, 1)))(x, w, y)
    np.testing.assert_allclose(value, -np.log(p[np.arange(5), y]).mean(), rtol=3e-7)
    p[np.arange(5), y] -= 1
    # Within the rounding of a float32 sum of so many terms.
    for got, exact in ((dx, p @ w / 5), (dw, p.T @ x / 5)):
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
def test_rows_that_do_not_count_may_hold_anything(implementation):
    x, w, _, y, _ = layer()
    y = y.at[6].set(77)
    where = jnp.arange(N) != 6
    loss = partial(jaxloss.linear_cross_entropy, implementation=implementation, chunk_size=4, where=where)
    both = jax.jit(lambda x: (jax.value_and_grad(loss, (0, 1))(x, w, y), loss(x, w, y, reduction="none")))
    clean, (value, (dx, dw)) = both(x), both(x.at[3].set(jnp.nan).at[6].set(jnp.inf))[0]
    chex.assert_trees_all_equal((value, (dx, dw)), clean[0])
    assert (dx[3] == 0).all()
    assert (dx[6] == 0).all()
    keep = np.array([i not in (3, 6) for i in range(N)])
    np.testing.assert_allclose(value, dense(x[keep], w, y[keep]), rtol=1e-12)
    np.testing.assert_allclose(clean[1][~keep], 0)


def test_a_mean_over_weights_that_sum_to_0_has_no_gradient():
    x, w, b, _, _ = layer()
    options = {"linear_bias": b, "weight": jnp.ones(C).at[0].set(0), "label_smoothing": 0.1, "chunk_size": 4}
    loss = partial(jaxloss.linear_cross_entropy, target=jnp.zeros(N, int), **options)
    value, gradient = quick.jit(jax.value_and_grad(loss, (0, 1)))(x, w)
    assert np.isnan(value)
    assert not any(np.any(g) for g in gradient)


def test_an_index_out_of_range_spoils_its_row_and_the_weight():
    x, w, _, y, _ = layer()
    y = y.at[6].set(C)
    loss = partial(jaxloss.linear_cross_entropy, chunk_size=4)
    rows = loss(x, w, y, reduction="none")
    dx, dw = jax.jit(jax.grad(loss, (0, 1)))(x, w, y)
    bad = np.arange(N) == 6
    assert np.isnan(rows[6])
    assert np.isnan(dx[6]).all()
    assert np.isfinite(rows[~bad]).all()
    assert np.isfinite(dx[~bad]).all()
    assert np.isnan(dw).all()  # as the row's gradient enters it, whatever the class


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_confident_row_keeps_its_digits(dtype):
    gradient = jax.jit(jax.value_and_grad(partial(jaxloss.linear_cross_entropy, chunk_size=1), (0, 1)))
    x, y = jnp.array([[1.0], [1.0]], dtype), jnp.array([301, 301])
    for gap in (15.0, 20.0, 60.0):
        value, (dx, dw) = gradient(x, jnp.zeros((700, 1), dtype).at[301].set(gap), y)
        rest = 699 * math.exp(-gap)
        np.testing.assert_allclose(value, math.log1p(rest), rtol=1e-6)
        missing = rest / (1 + rest)
        tolerance = 4 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(np.asarray(dw, np.float64)[301], -missing, rtol=tolerance)
        np.testing.assert_allclose(np.asarray(dx, np.float64), -gap * missing / 2, rtol=tolerance)


@pytest.mark.without_x64
def test_a_common_offset_changes_nothing():
    x, w = jnp.array([[1e6, 1.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0], [1.0, -1.0]])
    for y in (0, 1):
        near = jaxloss.cross_entropy(jnp.array([[1.0, 0.0, -1.0]]), jnp.array([y]))
        np.testing.assert_allclose(jaxloss.linear_cross_entropy(x, w, jnp.array([y])), near, rtol=1e-6)


@pytest.mark.without_x64
def test_the_gradient_of_a_float16_mean_does_not_overflow_on_the_way():
    x, w = jnp.full((512, 2), 800.0, jnp.float16), jnp.zeros((3, 2), jnp.float16)
    dw = jax.jit(jax.grad(partial(jaxloss.linear_cross_entropy, chunk_size=100), 1))(x, w, jnp.zeros(512, int))
    np.testing.assert_allclose(np.asarray(dw, np.float64)[:, 0], [-1600 / 3, 800 / 3, 800 / 3], rtol=1e-3)


@pytest.mark.without_x64
def test_the_gradient_of_a_float16_mean_does_not_vanish_on_the_way():
    x, w = jnp.ones((4096, 1), jnp.float16), jnp.zeros((700, 1), jnp.float16)
    dw = jax.jit(jax.grad(jaxloss.linear_cross_entropy, 1))(x, w, jnp.zeros(4096, int))  # 1 / (700 · 4096) is 6 · 2⁻²⁴
    np.testing.assert_allclose(np.asarray(dw, np.float64)[1:], 1 / 700, rtol=1e-3)


def test_dtypes_that_differ_meet_in_the_wider():
    x, w, b, y, _ = layer(jnp.float32)
    got = jax.grad(partial(jaxloss.linear_cross_entropy, target=y), (0, 1))(x.astype(jnp.bfloat16), w)
    assert [g.dtype for g in got] == [jnp.bfloat16, jnp.float32]
    assert jaxloss.linear_cross_entropy(x, w, y, linear_bias=b.astype(jnp.float64)).dtype == jnp.float64
    assert jaxloss.linear_cross_entropy(x.astype(jnp.float16), w.astype(jnp.float16), y).dtype == jnp.float32


def test_k_dimensions_with_a_mask_and_a_kernel():
    rng = np.random.default_rng(0)
    x, w, b = (jnp.asarray(rng.normal(size=s)) for s in ((4, 3), (5, 2, 3), (5, 2)))
    y = jnp.asarray(rng.integers(0, 5, (4, 2)))
    where = jnp.array([[True, False], [True, True], [False, False], [True, True]])
    x_bad = x.at[2].set(jnp.nan)

    def ours(x, w, b, **options):
        return jaxloss.linear_cross_entropy(x, w, y, linear_bias=b, where=where, chunk_size=2, **options)

    def logits(x, w, b):
        return jaxloss.cross_entropy(jnp.einsum("nh,cdh->ncd", x, w) + b, y, where=where)

    @quick.jit
    def everything(x, x_bad, w, b):
        of = partial(jax.value_and_grad, argnums=(0, 1, 2))
        value, (dx, dw, db) = of(partial(ours, feature_axis=0))(x_bad, jnp.moveaxis(w, -1, 0), b)
        turned = value, (dx, jnp.moveaxis(dw, 0, -1), db)
        return of(logits)(x, w, b), of(ours)(x_bad, w, b), turned, ours(x_bad, w, b, reduction="none")

    expected, straight, turned, rows = everything(x, x_bad, w, b)
    chex.assert_trees_all_close(straight, expected, atol=1e-12)
    chex.assert_trees_all_close(turned, expected, atol=1e-12)
    assert rows.shape == (4, 2)
    assert (rows[~np.asarray(where)] == 0).all()


# What stands beside the loss.


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_statistics_of_rows(soft, reduction):
    x, w, b, y, q = layer()
    target = q.astype(jnp.float64) if soft else y
    where = jnp.arange(N) != 5
    z = np.asarray(3 * jnp.tanh((x @ w.T + b) / 3))
    lse = np.log(np.exp(z).sum(1))
    p = np.exp(z - lse[:, None])
    keep = np.asarray(where & (True if soft else y != -100))
    right = z.argmax(1) == (np.asarray(q).argmax(1) if soft else np.asarray(y))
    squares = keep * 0.1 * lse**2
    expected = (
        keep * lse,
        squares.sum() / keep.sum() if reduction == "mean" else squares,
        keep & right,
        keep * -(p * np.log(p)).sum(1),
    )
    options = {"z_loss": 0.1, "logit_softcap": 3.0, "where": where, "reduction": reduction}
    losses = (
        lambda **o: jaxloss.linear_cross_entropy(x, w, target, linear_bias=b, chunk_size=4, **o),
        lambda **o: jaxloss.linear_cross_entropy(x, w, target, linear_bias=b, implementation="autodiff", **o),
        lambda **o: jaxloss.cross_entropy(x @ w.T + b, target, **o),
    )
    several = quick.jit(
        lambda: [(loss(**options, aux=True), loss(**options), loss(**{**options, "z_loss": 0.0})) for loss in losses]
    )()
    for (value, found), alone, without in several:
        chex.assert_trees_all_close(tuple(found), expected, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(value, alone, rtol=1e-13)
        np.testing.assert_allclose(value - found.z_loss, without, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("implementation", ["auto", "autodiff"])
@pytest.mark.parametrize("logits_exist", [False, True])
def test_statistics_carry_no_gradient_and_change_none(implementation, logits_exist):
    x, w, _, y, _ = layer()

    def loss(x, **options):
        options |= {"z_loss": 0.1, "implementation": implementation}
        if logits_exist:
            return jaxloss.cross_entropy(x @ w.T, y, **options)
        return jaxloss.linear_cross_entropy(x, w, y, chunk_size=4, **options)

    @quick.jit
    def everything(x):
        of_statistics = jax.grad(lambda x: sum(jnp.sum(a) for a in loss(x, aux=True)[1]))(x)
        return jax.value_and_grad(partial(loss, aux=True), has_aux=True)(x), jax.value_and_grad(loss)(x), of_statistics

    ((value, _), grad), alone, of_statistics = everything(x)
    chex.assert_trees_all_close((value, grad), alone, rtol=1e-12, atol=1e-14)
    assert (of_statistics == 0).all()


def test_the_pair_of_a_mean_and_its_statistics():
    x, w, _, y, _ = layer()
    (total, weight), found = jaxloss.linear_cross_entropy(x, w, y, z_loss=0.1, aux=True, reduction="sum_and_weight")
    value, mean = jaxloss.linear_cross_entropy(x, w, y, z_loss=0.1, aux=True)
    np.testing.assert_allclose(total / weight, value, rtol=1e-13)
    np.testing.assert_allclose(found.z_loss[0] / found.z_loss[1], mean.z_loss, rtol=1e-13)
    assert int(found.correct.sum()) == int((jnp.argmax(x @ w.T, 1) == y).sum())


def test_an_option_that_is_traced_may_be_nothing():
    x, w, b, y, _ = layer()

    @quick.jit
    def with_numbers(smoothing, z_loss):
        options = {"label_smoothing": smoothing, "z_loss": z_loss, "linear_bias": b}
        gradient = jax.value_and_grad(jaxloss.linear_cross_entropy, (0, 1))
        return gradient(x, w, y, chunk_size=4, **options)

    expected = quick.jit(jax.value_and_grad(lambda x, w: dense(x, w, y, linear_bias=b), (0, 1)))(x, w)
    chex.assert_trees_all_close(with_numbers(0.0, 0.0), expected, rtol=1e-12, atol=1e-14)


# More than one way to the same numbers, which a size or a platform decides.


def test_the_gradient_of_a_large_weight_is_added_up_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    monkeypatch.setattr(_linear_cross_entropy, "BLOCK", 30)
    for size, features in (((13, 2, 7), -1), ((7, 13, 2), 0)):  # three classes to a block, and one for the last
        x, w = jnp.asarray(rng.normal(size=(10, 7))), jnp.asarray(rng.normal(size=size))
        y, b = jnp.asarray(rng.integers(0, 13, (10, 2))), jnp.asarray(rng.normal(size=(13, 2)))

        def ours(x, w, b, y=y, features=features):
            return jaxloss.linear_cross_entropy(x, w, y, linear_bias=b, chunk_size=4, feature_axis=features)

        def logits(x, w, b, y=y, features=features):
            return jaxloss.cross_entropy(jnp.tensordot(x, w, (1, features)) + b, y, implementation="autodiff")

        def everything(loss, x, w, b):
            gradient = jax.grad(loss, (0, 1, 2))
            return gradient(x, w, b), jax.jvp(gradient, (x, w, b), (x, w, b))[1]

        got, expected = quick.jit(lambda *a, f=everything, p=(ours, logits): [f(loss, *a) for loss in p])(x, w, b)
        chex.assert_trees_all_close(got, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.without_x64
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere chunks are larger")
def test_on_a_cpu_it_needs_an_eighth_of_the_memory_of_the_logits():
    shapes = (2048, 512), (32000, 512), (2048,)
    arrays = [jax.ShapeDtypeStruct(s, d) for s, d in zip(shapes, ("float32", "float32", "int32"), strict=True)]

    def memory(loss):
        program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(lambda x, w, y: jaxloss.cross_entropy(x @ w.T, y)) >= 4 * 2048 * 32000
    assert memory(jaxloss.linear_cross_entropy) <= 4 * 2048 * 32000 * 2 // 8  # logits and their gradient


def test_vmap_over_every_argument():
    x, w, b, y, _ = layer()
    several = [jnp.stack([a, 2 * a, a[::-1]]) for a in (x, w, b)]
    targets = jnp.stack([y, y[::-1], (y + 1) % C])

    def everything(loss, x, w, b, y):
        return jax.value_and_grad(lambda x, w, b: loss(x, w, y, linear_bias=b, z_loss=0.1), (0, 1, 2))(x, w, b)

    got, expected = quick.jit(
        lambda *a: (
            jax.vmap(partial(everything, partial(jaxloss.linear_cross_entropy, chunk_size=4)))(*a),
            [everything(dense, *one) for one in zip(*a, strict=True)],
        )
    )(*several, targets)
    chex.assert_trees_all_close(got, jax.tree.map(lambda *a: jnp.stack(a), *expected), rtol=1e-11, atol=1e-13)
