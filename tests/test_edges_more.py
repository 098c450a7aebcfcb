"""Edges of the losses that torch lacks: kinks, infinities, limits of options, and what they refuse."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_more as oracles
import pytest
from jax.experimental import checkify
from test_edges import value_and_grad as op_by_op

import jaxloss

INF = jnp.inf
X = np.random.default_rng(0).normal(size=(4, 3))
Y = np.array([2, 0, 1, 2])


def value_and_grad(loss, *args, argnums=0, **options):
    """One program; where `jax_debug_nans` shall look at each operation it is `op_by_op`."""
    return jax.jit(lambda *a: op_by_op(loss, *a, argnums=argnums, **options))(*args)


def run(loss, *args, **options):
    """One program too: most of the time of these tests would go to compiling operations one by one."""
    return jax.jit(lambda *a: loss(*a, **options))(*args)


# Errors


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (jaxloss.mean_absolute_percentage_error, {}),
        (jaxloss.quantile_loss, {"quantile": 0.9}),
        (jaxloss.log_cosh_loss, {}),
    ],
)
def test_no_slope_where_there_is_no_error(loss, options):
    value, grad = value_and_grad(loss, jnp.array([1.0, 2.0]), jnp.array([1.0, 2.0]), **options)
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.without_x64
def test_log_cosh_near_and_far():
    d = jnp.array([1e-4, 1e-2, 1.0, 1.4, -3.0, 90.0, 1e30, -1e30, INF])
    value, grad = jax.vmap(jax.value_and_grad(lambda x: jaxloss.log_cosh_loss(x, 0.0)))(d)
    exact = [math.log1p(2 * math.sinh(v / 2) ** 2) for v in (1e-4, 1e-2, 1.0, 1.4, 3.0, 90.0)]
    np.testing.assert_allclose(value, [*exact, 1e30, 1e30, np.inf], rtol=2e-6)
    np.testing.assert_allclose(grad, np.tanh(np.asarray(d)), rtol=1e-6)


def test_percentage_of_a_target_of_zero():
    value, grad = value_and_grad(jaxloss.mean_absolute_percentage_error, jnp.array([0.5]), jnp.array([0.0]), eps=0.1)
    np.testing.assert_allclose([value, grad[0]], [500, 1000], rtol=1e-12)


def test_logarithmic_error_below_its_range_is_nan():
    value, grad = value_and_grad(jaxloss.mean_squared_logarithmic_error, jnp.array([-0.5, -1.5]), jnp.array([0.0, 0.0]))
    assert np.isnan(value)
    assert np.isfinite(grad[0])
    assert np.isnan(grad[1])


@pytest.mark.parametrize(("loss", "name"), [(jaxloss.quantile_loss, "quantile"), (jaxloss.expectile_loss, "expectile")])
def test_several_levels_at_once(loss, name):
    t = np.broadcast_to(X[:, :1], X.shape)
    levels = np.array([0.1, 0.5, 0.9])
    got = jax.jit(lambda levels: loss(X, t, **{name: levels}, reduction="none"))(levels)
    expected, _ = getattr(oracles, f"{name}_loss")(X, t, **{name: levels})
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    with pytest.raises(ValueError, match=f"`{name}` must be at least 0 and at most 1, got 2"):
        loss(X, t, **{name: 2})
    with pytest.raises(ValueError, match=f"`{name}`"):
        loss(X, t, **{name: np.ones(4)})


def test_the_quantile_of_a_sample_minimises_its_loss():
    sample = np.random.default_rng(0).normal(size=1000)
    grid = np.linspace(-2, 2, 401)
    losses = [oracles.quantile_loss(np.full(1000, g), sample, quantile=0.8)[0].sum() for g in grid[::20]]
    best = grid[::20][int(np.argmin(losses))]
    x = jnp.asarray(grid)[:, None] * jnp.ones(1000)
    rows = jnp.mean(jaxloss.quantile_loss(x, jnp.broadcast_to(sample, x.shape), quantile=0.8, reduction="none"), 1)
    np.testing.assert_allclose(grid[int(jnp.argmin(rows))], np.quantile(sample, 0.8), atol=0.02)
    assert abs(best - np.quantile(sample, 0.8)) < 0.2


# Hinges


@pytest.mark.parametrize(
    ("loss", "score", "gradient"),
    [(jaxloss.hinge_loss, 1.0, -1), (jaxloss.perceptron_loss, 0.0, -1), (jaxloss.squared_hinge_loss, 1.0, 0)],
)
def test_where_the_margin_is_met(loss, score, gradient):
    assert value_and_grad(loss, jnp.asarray(score), 1) == (0, gradient)


def test_multiclass_hinges_where_scores_tie():
    value, grad = value_and_grad(jaxloss.multiclass_perceptron_loss, jnp.zeros(3), 0)
    assert value == 0
    assert grad.tolist() == [-1, 0.5, 0.5]
    value, grad = value_and_grad(jaxloss.multiclass_hinge_loss, jnp.array([1.0, 0.0, -1.0]), 0)
    assert value == 0
    assert grad.tolist() == [-1, 1, 0]


@pytest.mark.parametrize("loss", [jaxloss.multiclass_hinge_loss, jaxloss.multiclass_perceptron_loss])
def test_multiclass_hinge_of_one_class_and_of_infinities(loss):
    assert value_and_grad(loss, jnp.ones((2, 1)), jnp.zeros(2, int)) == (0, pytest.approx(np.zeros((2, 1))))
    value, grad = value_and_grad(loss, jnp.array([1.0, -INF, 0.5]), 2)
    assert np.isfinite(value)
    assert grad.tolist() == [1, 0, -1]
    value, grad = value_and_grad(loss, jnp.array([0.0, -INF, -INF]), 0)
    assert value == 0
    assert grad.tolist() == [0, 0, 0]
    assert value_and_grad(jaxloss.multiclass_perceptron_loss, jnp.array([-INF, -INF]), 0)[1].tolist() == [-1, 0]


@pytest.mark.parametrize("loss", [jaxloss.multiclass_hinge_loss, jaxloss.multiclass_perceptron_loss])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_multiclass_hinges_of_many_classes_that_tie(loss, dtype):
    """A batch that a CPU compares in parts, against its rows one by one."""
    rng = np.random.default_rng(0)
    x = np.round(rng.standard_normal((64, 1024))).astype(np.float32)
    x[0], x[1, 7], x[2, 900], x[3, ::200], x[4, 1], x[5, 1000] = -INF, INF, -INF, INF, np.nan, np.nan
    x, y = jnp.asarray(x, dtype), jnp.asarray(rng.integers(0, 1024, 64)).at[5].set(3)

    def total(x, y):
        return loss(x, y, reduction="sum")

    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(total)))(x, y)
    whole = run(loss, x, y, reduction="none")
    np.testing.assert_array_equal(np.isnan(whole), np.isin(np.arange(64), [4, 5]))
    np.testing.assert_array_equal(whole, values)
    np.testing.assert_array_equal(jax.jit(jax.grad(total))(x, y).astype(np.float32), slopes.astype(np.float32))


# Losses over classes

CLASSES = [
    jaxloss.multiclass_hinge_loss,
    jaxloss.multiclass_perceptron_loss,
    jaxloss.poly_cross_entropy,
    jaxloss.generalized_cross_entropy,
    jaxloss.sparsemax_loss,
    lambda x, y, **options: jaxloss.distillation_loss(x, X[::-1], y, **options),
]
SOFT = CLASSES[2:5]


@pytest.mark.parametrize("loss", CLASSES, ids=lambda f: f.__name__)
def test_an_index_out_of_range_spoils_its_row_and_no_other(loss):
    for bad in (-1, 3):
        y = jnp.array([2, bad, 1, 2])
        rows = run(loss, X, y, reduction="none")
        assert np.isnan(rows).tolist() == [False, True, False, False]
        grad = value_and_grad(loss, X, y, reduction="sum")[1]
        assert np.isnan(grad).all(1).tolist() == [False, True, False, False]
        assert np.isfinite(grad).all(1).tolist() == [True, False, True, True]


@pytest.mark.parametrize("loss", [*SOFT, CLASSES[-1]], ids=lambda f: f.__name__)
def test_ignored_rows_may_hold_anything(loss):
    x, y = np.array(X), np.array([2, -100, 1, -100])
    x[1], x[3] = np.nan, np.inf
    (value, grad), (clean, clean_grad) = (value_and_grad(loss, a, y) for a in (x, X))
    assert value == clean
    assert (grad == clean_grad).all()
    assert (grad[1::2] == 0).all()
    assert np.isfinite(value)
    assert run(loss, x, y, reduction="sum_and_weight")[1] == 2


@pytest.mark.parametrize("loss", SOFT, ids=lambda f: f.__name__)
def test_index_and_one_hot_targets_are_the_same(loss):
    for target in (np.eye(3)[Y], np.eye(3, dtype=np.float32)[Y]):
        chex.assert_trees_all_close(value_and_grad(loss, X, target), value_and_grad(loss, X, Y), rtol=1e-12)
    np.testing.assert_allclose(run(loss, X.T, Y, axis=0), run(loss, X, Y), rtol=1e-13)


@pytest.mark.parametrize(
    "loss",
    [*SOFT, jaxloss.cross_entropy, jaxloss.nll_loss, jaxloss.multi_margin_loss, jaxloss.multiclass_hinge_loss],
    ids=lambda f: f.__name__,
)
def test_a_masked_row_of_nan_is_not_seen_by_debug_nans(loss):
    x, y, where = jnp.asarray(X).at[1].set(jnp.nan), jnp.asarray(Y), jnp.arange(len(X)) != 1
    with jax.debug_nans(True):  # without jit, where each operation is looked at
        found = op_by_op(loss, x, y, where=where)
    chex.assert_trees_all_close(found, value_and_grad(loss, x.at[1].set(0), y, where=where), rtol=1e-12)


WEIGHTS = {"nll_loss": "weight", "cross_entropy": "weight", "softmax_focal_loss": "alpha", "sparsemax_loss": None}


@pytest.mark.parametrize("loss", WEIGHTS)
def test_an_ignored_row_is_no_index_out_of_bounds(loss):
    options = {WEIGHTS[loss]: jnp.ones(3)} if WEIGHTS[loss] else {}
    step = jax.jit(jax.value_and_grad(lambda x, y: getattr(jaxloss, loss)(x, y, **options)))
    error, _ = checkify.checkify(step, errors=checkify.index_checks)(jnp.asarray(X), jnp.asarray(Y).at[0].set(-100))
    assert error.get() is None


@pytest.mark.parametrize("loss", SOFT, ids=lambda f: f.__name__)
def test_minus_infinity_at_a_class_of_no_probability(loss):
    x = jnp.array([[1.0, -INF, 2.0]])
    near = x.at[0, 1].set(-1e5)
    for target in (jnp.array([0]), jnp.array([[0.25, 0.0, 0.75]])):
        with jax.debug_nans(True):
            value, grad = op_by_op(loss, x, target)
        expected, expected_grad = value_and_grad(loss, near, target)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(grad, expected_grad, rtol=1e-12, atol=1e-15)


@pytest.mark.without_x64
@pytest.mark.parametrize("loss", SOFT, ids=lambda f: f.__name__)
def test_a_common_offset_changes_nothing(loss):
    x = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, 0.5]])
    for target in (jnp.array([1, 2]), jnp.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])):
        far, near = (value_and_grad(loss, x + offset, target) for offset in (2.0**20, 0.0))
        chex.assert_trees_all_close(far, near, rtol=1e-6)


def test_poly_and_generalized_end_at_cross_entropy():
    expected = value_and_grad(jaxloss.cross_entropy, X, Y)
    chex.assert_trees_all_close(value_and_grad(jaxloss.poly_cross_entropy, X, Y, epsilon=0), expected, rtol=1e-12)
    for target in (Y, np.eye(3)[Y]):
        loss = jax.jit(lambda q, target=target: value_and_grad(jaxloss.generalized_cross_entropy, X, target, q=q))
        chex.assert_trees_all_close(loss(0.0), expected, rtol=1e-12)
        chex.assert_trees_all_close(loss(1e-9), expected, rtol=1e-7)
    slope = jax.jit(jax.grad(lambda q: jaxloss.generalized_cross_entropy(X, Y, q=q)))
    np.testing.assert_allclose(slope(0.0), slope(1e-6), rtol=1e-4)
    mae = 1 - jnp.take_along_axis(jax.nn.softmax(X), Y[:, None], 1)[:, 0]
    got = jaxloss.generalized_cross_entropy(X, Y, q=1, reduction="none")
    np.testing.assert_allclose(got, mae, rtol=1e-12)


def test_generalized_cross_entropy_is_bounded():
    value, grad = value_and_grad(jaxloss.generalized_cross_entropy, jnp.array([-INF, 1.0]), 0, q=0.5)
    assert value == 2
    assert (grad == 0).all()


@pytest.mark.parametrize(("q", "gap"), [(0.7, 25.0), (0.7, 31.0), (1.0, 17.0), (1.0, 31.0)])
def test_generalized_cross_entropy_of_a_wrong_row_has_the_slope_of_its_formula(q, gap):
    def loss(x):
        return jaxloss.generalized_cross_entropy(x, jnp.array([1]), q=q)

    p = 1 / (1 + np.exp(gap))
    slope = -(p**q) * (1 - p)
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([[gap, 0]], jnp.float32))[0], [-slope, slope], rtol=1e-5)


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0])
def test_second_derivatives_of_generalized_cross_entropy_where_nobody_can_be_right(q):
    x, y = jnp.array([[1.0, -INF, 0.3], [0.2, 0.1, -0.4]]), jnp.array([1, 2])

    def product(x, q):
        def loss(x):
            return jaxloss.generalized_cross_entropy(x, y, q=q, reduction="sum")

        return jnp.vdot(jax.grad(loss)(x), jnp.array([1.0, 2.0, 3.0]) + 0 * X[:2])

    by_x, by_q = jax.jit(jax.grad(product, (0, 1)))(x, q)
    assert (by_x[0] == 0).all()
    assert np.isfinite(by_x).all()
    assert np.isfinite(by_q)


def test_sparsemax_is_exactly_zero_beyond_its_margin():
    x = jnp.array([[3.0, 2.0, -1.0], [3.0, 2.5, -1.0]])
    rows = run(jaxloss.sparsemax_loss, x, jnp.array([0, 0]), reduction="none")
    np.testing.assert_allclose(rows, [0, 0.0625], atol=1e-15)
    grad = jax.grad(lambda x: run(jaxloss.sparsemax_loss, x, jnp.array([0, 0]), reduction="sum"))(x)
    np.testing.assert_allclose(grad, [[0, 0, 0], [-0.25, 0.25, 0]], atol=1e-15)
    tied = jax.grad(lambda x: run(jaxloss.sparsemax_loss, x, 0))(jnp.zeros(4))
    np.testing.assert_allclose(tied, [-0.75, 0.25, 0.25, 0.25])


def test_the_threshold_of_sparsemax_is_found_for_any_scale_and_with_ties():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 256)).astype(np.float32) * np.logspace(-3, 3, 12, dtype=np.float32)[:, None]
    x = np.concatenate([x, np.round(2 * x)])
    slope = jax.jit(jax.grad(lambda x: jaxloss.sparsemax_loss(x, np.zeros(24, int), reduction="sum")))(x)
    p = np.asarray(slope) + (np.arange(256) == 0)
    np.testing.assert_allclose(p.sum(1), 1, rtol=2e-5)
    down = -np.sort(-x.astype(float), 1)
    excess = np.cumsum(down, 1) - np.arange(1, 257) * down  # of all above a class over it: below 1 where it is in
    threshold = np.where(excess < 1, down, np.inf).min(1, keepdims=True)
    np.testing.assert_array_equal(p[x < threshold], 0)
    assert np.all(p[x > threshold + 1e-4 * np.abs(threshold)] > 0)


def test_two_classes_of_sparsemax_are_the_binary_loss():
    x = np.array([0.3, -0.7, 1.5, -2.0, 1.0])
    both = np.stack([x, np.zeros(5)], 1)
    np.testing.assert_allclose(
        run(jaxloss.binary_sparsemax_loss, x, np.ones(5), reduction="none"),
        run(jaxloss.sparsemax_loss, both, np.zeros(5, int), reduction="none"),
        atol=1e-15,
    )
    value, grad = value_and_grad(jaxloss.binary_sparsemax_loss, jnp.array([INF, -INF]), jnp.array([1.0, 0.0]))
    assert value == 0
    assert (grad == 0).all()


# Divergences


def test_divergences_of_classes_that_nobody_has():
    log_q, t = jnp.array([[math.log(0.5), math.log(0.5), -INF]]), jnp.array([[0.25, 0.75, 0.0]])
    small = jnp.array([[0.5, 0.5]]), t[:, :2]
    for loss in (jaxloss.js_div, jaxloss.generalized_kl_div):
        with jax.debug_nans(True):
            value, grads = op_by_op(loss, log_q, t, argnums=(0, 1))
        np.testing.assert_allclose(value, run(loss, jnp.log(small[0]), small[1]), rtol=1e-12)
        chex.assert_tree_all_finite(grads)
        assert grads[0][0, 2] == 0
    with jax.debug_nans(True):
        by_logarithm = op_by_op(jaxloss.js_div, log_q, jnp.log(t), argnums=(0, 1), log_target=True)
    np.testing.assert_allclose(by_logarithm[0], run(jaxloss.js_div, log_q, t), rtol=1e-12)
    chex.assert_tree_all_finite(by_logarithm[1])


def test_forward_slopes_by_one_distribution_do_not_see_the_infinite_one_of_the_other():
    log_q, t = jnp.array([[math.log(0.5), math.log(0.5), -INF]]), jnp.array([[0.25, 0.5, 0.25]])
    _, change = jax.jvp(lambda x: jaxloss.generalized_kl_div(x, t), (log_q,), (jnp.ones((1, 3)),))
    np.testing.assert_allclose(change, 0, atol=1e-15)


def test_jensen_shannon_is_symmetric_bounded_and_ends_at_both_divergences():
    p, q = jax.nn.softmax(jnp.asarray(X)), jax.nn.softmax(jnp.asarray(X[::-1]))
    np.testing.assert_allclose(run(jaxloss.js_div, jnp.log(p), q), run(jaxloss.js_div, jnp.log(q), p), rtol=1e-12)
    apart = jnp.array([[0.0, -INF]]), jnp.array([[0.0, 1.0]])
    np.testing.assert_allclose(run(jaxloss.js_div, *apart), math.log(2), rtol=1e-12)
    forward, reverse = (
        jnp.sum(run(jaxloss.kl_div, jnp.log(a), b, reduction="none"), -1).mean() for a, b in ((q, p), (p, q))
    )
    beta = 1e-6
    np.testing.assert_allclose(run(jaxloss.js_div, jnp.log(q), p, beta=beta) / beta, forward, rtol=1e-4)
    np.testing.assert_allclose(run(jaxloss.js_div, jnp.log(q), p, beta=1 - beta) / beta, reverse, rtol=1e-4)
    assert run(jaxloss.js_div, jnp.log(q), p, beta=0) == pytest.approx(0, abs=1e-15)


def test_distillation_from_its_parts():
    student, teacher = X * 3, X[::-1] * 2
    kl = jnp.sum(
        run(jaxloss.kl_div, jax.nn.log_softmax(student / 2), jax.nn.softmax(teacher / 2), reduction="none"), -1
    )
    np.testing.assert_allclose(
        run(jaxloss.distillation_loss, student, teacher, temperature=2.0, reduction="none"), 4 * kl, rtol=1e-12
    )
    hard = run(jaxloss.cross_entropy, student, Y, reduction="none")
    got = run(jaxloss.distillation_loss, student, teacher, Y, temperature=2.0, alpha=0.25, reduction="none")
    np.testing.assert_allclose(got, 0.25 * 4 * kl + 0.75 * hard, rtol=1e-12)
    ignored = run(jaxloss.distillation_loss, student, teacher, np.array([2, -100, 1, -100]), alpha=0.25)
    np.testing.assert_allclose(
        ignored, run(jaxloss.distillation_loss, student[::2], teacher[::2], Y[::2], alpha=0.25), rtol=1e-12
    )


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_distillation_of_equal_networks_and_of_classes_shut_off(divergence):
    x = jnp.asarray(X).at[:, 1].set(-INF)
    with jax.debug_nans(True):
        value, grads = op_by_op(jaxloss.distillation_loss, x, x, argnums=(0, 1), divergence=divergence, temperature=0.5)
    np.testing.assert_allclose(value, 0, atol=1e-15)
    np.testing.assert_allclose(grads, np.zeros((2, 4, 3)), atol=1e-15)


@pytest.mark.without_x64
def test_distillation_in_bfloat16_is_computed_in_float32():
    student, teacher = (jnp.asarray(np.random.default_rng(i).normal(size=(2, 300)), jnp.bfloat16) for i in (0, 1))
    value, grad = value_and_grad(jaxloss.distillation_loss, student, teacher)
    exact, _ = oracles.distillation_loss(np.asarray(student, np.float64), np.asarray(teacher, np.float64))
    np.testing.assert_allclose(value, exact.mean(), rtol=1e-5)
    assert value.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16


# Regions


def test_focal_tversky_is_a_root_of_tversky():
    t = (X > 0).astype(float)
    plain = run(jaxloss.tversky_loss, X, t, alpha=0.3, beta=0.7)
    np.testing.assert_allclose(run(jaxloss.focal_tversky_loss, X, t, gamma=2.0), plain**0.5, rtol=1e-12)
    np.testing.assert_allclose(run(jaxloss.focal_tversky_loss, X, t, gamma=1), plain, rtol=1e-12)
    value, grad = value_and_grad(jaxloss.focal_tversky_loss, jnp.full((2, 3), INF), np.ones((2, 3)))
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("weighting", ["square", "simple", "uniform"])
@pytest.mark.parametrize("mode", ["multiclass", "multilabel"])
def test_generalized_dice_with_a_class_that_is_not_there(weighting, mode):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 15))
    index = rng.integers(0, 3, size=(2, 15))  # never class 3, and of the others more than one pixel each
    target = index if mode == "multiclass" else np.moveaxis(np.eye(4)[index], -1, 1)
    keep = rng.uniform(size=(2, 15)) < 0.6
    where = keep if mode == "multiclass" else keep[:, None]
    options = {"weighting": weighting, "mode": mode}
    expected, _ = oracles.generalized_dice_loss(x, target, where=where, **options)
    dirty = np.where(keep[:, None], x, np.nan)
    value, grad = value_and_grad(jaxloss.generalized_dice_loss, jnp.asarray(dirty), target, where=where, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert (np.moveaxis(grad, 1, -1)[~keep] == 0).all()
    assert np.isfinite(grad).all()


def test_generalized_dice_of_nothing():
    x, t = jnp.full((2, 3, 4), -INF), jnp.zeros((2, 3, 4))
    with jax.debug_nans(True):
        assert jaxloss.generalized_dice_loss(x, t, mode="multilabel", smooth=0) == 0
    value, grad = value_and_grad(jaxloss.generalized_dice_loss, jnp.zeros((2, 3, 4)), t, mode="multilabel", where=False)
    assert np.isnan(value)
    assert (grad == 0).all()
    rows = run(
        jaxloss.generalized_dice_loss,
        jnp.zeros((2, 3, 4)),
        jnp.array([[0, 1, 2, 0], [0, 0, 9, 0]]),
        per_sample=True,
        reduction="none",
    )
    assert np.isnan(rows).tolist() == [False, True]


def test_generalized_dice_of_some_classes():
    x, index = np.random.default_rng(0).normal(size=(2, 3, 5)), np.array([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    p, t = jax.nn.softmax(x, 1)[:, 1:], np.moveaxis(np.eye(3)[index], -1, 1)[:, 1:]
    got = run(jaxloss.generalized_dice_loss, x, index, classes=(1, 2), weighting="uniform", smooth=0.0)
    np.testing.assert_allclose(got, 1 - 2 * (p * t).sum() / (p.sum() + t.sum()), rtol=1e-12)


# What they refuse

REFUSED = {
    "`quantile`": lambda: jaxloss.quantile_loss(X, X, quantile=-0.1),
    "`p` must be 1 or 2": lambda: jaxloss.multiclass_hinge_loss(X, Y, p=3),
    "`epsilon` must be at least -1": lambda: jaxloss.poly_cross_entropy(X, Y, epsilon=-2),
    "`q` must be at least 0 and at most 1": lambda: jaxloss.generalized_cross_entropy(X, Y, q=1.5),
    "`ignore_index` has no meaning": lambda: jaxloss.sparsemax_loss(X, X, ignore_index=1),
    "one class index for each row": lambda: jaxloss.sparsemax_loss(X, Y[:3]),
    "`beta` must be at least 0": lambda: jaxloss.js_div(X, X, beta=2),
    "`divergence` must be": lambda: jaxloss.distillation_loss(X, X, divergence="kl"),
    "`input` and `teacher`": lambda: jaxloss.distillation_loss(X, X[:, :2]),
    "`temperature` must be greater than 0": lambda: jaxloss.distillation_loss(X, X, temperature=0),
    "distillation_loss: `target` must have one class": lambda: jaxloss.distillation_loss(X, X, Y[:2]),
    "`gamma` must be greater than 0": lambda: jaxloss.focal_tversky_loss(X, X, gamma=0),
    "`mode` must be 'multiclass' or 'multilabel'": lambda: jaxloss.generalized_dice_loss(X, X, mode="binary"),
    "`weighting` must be": lambda: jaxloss.generalized_dice_loss(X, Y, weighting="linear"),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused(words):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()


def test_distillation_where_one_part_has_no_share_and_is_infinite():
    x, teacher = jnp.array([[0.0, 1.0, -jnp.inf]]), jnp.array([[0.0, 1.0, 2.0]])
    alone = jaxloss.cross_entropy(x, jnp.array([0]))
    np.testing.assert_allclose(jaxloss.distillation_loss(x, teacher, jnp.array([0]), alpha=0.0), alone, rtol=1e-12)
    teacher = jnp.array([[1.0, 0.0, -jnp.inf]])
    soft = jaxloss.distillation_loss(x, teacher)
    np.testing.assert_allclose(jaxloss.distillation_loss(x, teacher, jnp.array([2]), alpha=1.0), soft, rtol=1e-12)

    def slope(classes):
        return jax.grad(lambda t: jaxloss.distillation_loss(x[:, :classes], teacher[:, :classes], temperature=t))(2.0)

    np.testing.assert_allclose(slope(3), slope(2), rtol=1e-12)


@pytest.mark.without_x64
def test_distillation_of_logits_with_a_common_offset():
    x, teacher = np.array([[0.0, 1.0, 3.0]], np.float32), np.array([[2.0, 0.0, 1.0]], np.float32)
    plain, moved = (jaxloss.distillation_loss(x + o, teacher + o, temperature=3.0) for o in (0, np.float32(1e6)))
    np.testing.assert_allclose(moved, plain, rtol=1e-6)


@pytest.mark.parametrize("q", [1e-7, 1e-3, 0.04, 0.06, 0.7])
def test_generalized_cross_entropy_for_a_learned_q(q):
    def loss(q, x, target):
        return jaxloss.generalized_cross_entropy(x, target, q=q)

    n = np.log(1 + np.e)
    x = jnp.array([[1.0, 2.0]])
    # d/dq of (1 - e^-qn)/q in as many digits as its series has where it would cancel.
    series = sum((-n) ** k * (k - 1) / math.factorial(k) * q ** (k - 2) for k in range(2, 30))
    np.testing.assert_allclose(jax.grad(loss)(q, x, jnp.array([0])), -series, rtol=1e-9)
    x = jnp.array([[0.0, 1.0, -jnp.inf]])
    np.testing.assert_allclose(jax.grad(loss)(q, x, jnp.array([2])), -1 / q**2, rtol=1e-9)
    assert np.isfinite(jax.grad(loss)(q, x, jnp.array([[0.5, 0.5, 0.0]])))


def test_own_negatives_of_a_masked_query_may_hold_nan():
    rng = np.random.default_rng(0)
    q, k, n = (jnp.asarray(rng.normal(size=shape)) for shape in ((3, 4), (3, 4), (3, 2, 4)))
    keep = jnp.array([True, False, True])

    def loss(n, temperature):
        return jaxloss.info_nce_loss(q, k, n, temperature=temperature, where=keep)

    got = jax.grad(loss, (0, 1))(n.at[1].set(jnp.nan), 0.5)
    np.testing.assert_allclose(got[0], jax.grad(loss)(n, 0.5), atol=1e-14)
    assert np.isfinite(got[1])
    wide = jaxloss.info_nce_loss(q.astype(jnp.float32), k.astype(jnp.float32), n)
    assert wide.dtype == jnp.float64


@pytest.mark.without_x64
def test_a_confident_pair_of_one_class_keeps_its_digits():
    x, y = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]]), jnp.array([0, 0, 1, 1])
    losses = jax.value_and_grad(jaxloss.supervised_contrastive_loss), jax.value_and_grad(jaxloss.nt_xent_loss)
    (got, grad), (expected, expected_grad) = (loss(x, y) for loss in losses)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    np.testing.assert_allclose(grad, expected_grad, rtol=1e-4, atol=1e-14)


def test_second_derivatives_where_the_first_is_a_constant_or_at_an_end():
    x, y = jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]])
    twice = jax.jit(jax.jacrev(jax.jacrev(lambda x: jaxloss.multilabel_margin_loss(x, y))))(x)
    np.testing.assert_array_equal(twice, 0)

    z, t = jnp.array([0.0, 1.0, -800.0]), jnp.array([0.0, 1.0, 0.0])
    hessian = jax.hessian(lambda z: jaxloss.js_div(jax.nn.log_softmax(z), t, axis=-1))(z)
    assert np.isfinite(hessian).all()
    assert abs(hessian[0, 0]) > 0.01

    a = jnp.ones((1, 3))
    apart = jax.hessian(lambda a: jaxloss.pairwise_distance(a, jnp.ones((1, 3)), eps=0.0).sum())(a)
    np.testing.assert_array_equal(apart, 0)


def test_forward_mode_of_a_weight_of_0_at_an_infinite_error():
    def loss(x):
        return jaxloss.mse_loss(x, jnp.zeros(2), weight=jnp.array([0.0, 1.0]))

    with jax.debug_nans(False):
        value, change = jax.jvp(loss, (jnp.array([jnp.inf, 1.0]),), (jnp.ones(2),))
    assert (value, change) == (1, 2)


@pytest.mark.parametrize(
    "loss",
    [jaxloss.binary_cross_entropy_with_logits, lambda x, t: jaxloss.soft_margin_loss(x, 2 * t - 1)],
    ids=["binary_cross_entropy_with_logits", "soft_margin_loss"],
)
def test_second_derivative_of_a_confident_prediction_keeps_its_digits(loss):
    for x in (40.0, -40.0):
        for t in (0.0, 1.0):
            second = jax.grad(jax.grad(lambda x: loss(x, t)))(x)  # noqa: B023 - evaluated at once
            np.testing.assert_allclose(second, np.exp(-40.0), rtol=1e-12)


@pytest.mark.without_x64
def test_the_largest_number_is_a_logit_and_infinity_is_none():
    largest = jnp.finfo(jnp.float32).max
    value, grad = jax.value_and_grad(jaxloss.cross_entropy)(jnp.array([largest, 0.0]), jnp.array(0))
    assert value == 0
    np.testing.assert_array_equal(grad, 0)
    np.testing.assert_allclose(jaxloss.cross_entropy(jnp.array([largest, largest]), jnp.array(0)), np.log(2), rtol=1e-6)
    with jax.debug_nans(False):
        assert jaxloss.softmax_focal_loss(jnp.array([jnp.inf, 0.0]), jnp.array(1)) == jnp.inf


def test_target_of_a_prediction_that_is_sure_of_infinity_has_a_finite_gradient():
    def loss(t, x):
        return jaxloss.binary_cross_entropy_with_logits(x, t)

    for x, t in ((jnp.inf, 1.0), (-jnp.inf, 0.0)):
        assert jax.grad(loss)(t, x) == 0


def test_softmax_focal_loss_of_one_class_alone():
    for gamma in (0.0, 0.5, 2.0):
        for target in (jnp.array([0]), jnp.array([[1.0]])):
            value, grad = jax.value_and_grad(jaxloss.softmax_focal_loss)(jnp.array([[3.0]]), target, gamma=gamma)
            assert (value, grad[0, 0]) == (0, 0)


@pytest.mark.without_x64
def test_neighbours_among_more_classes_than_float32_can_count():
    last = 2**24  # the next number that float32 has is last + 2
    x, y = jnp.full(last + 4, -1e4).at[last].set(9).at[last + 1].set(8), jnp.array(last + 1)
    assert jaxloss.multiclass_perceptron_loss(x, y) == 1
    np.testing.assert_allclose(jaxloss.cross_entropy(x, y), np.log1p(np.e), rtol=1e-6)


def test_the_slope_of_an_absent_target_is_that_of_the_terms_that_have_one():
    x, t = jnp.array([[-1.0, -2.0, -jnp.inf]]), jnp.array([[0.0, 0.5, 0.0]])
    slope = jax.jit(jax.grad(jaxloss.generalized_kl_div, 1))(x, t)
    np.testing.assert_allclose(slope, [[0, math.log(0.5) + 2, -1]], rtol=1e-12)


@pytest.mark.parametrize("loss", [jaxloss.cross_entropy, jaxloss.nll_loss, jaxloss.sparsemax_loss])
def test_an_ignored_class_that_only_unsigned_integers_reach(loss):
    minus_100, x = 2**32 - 100, jnp.array([[0.5, -1.0], [2.0, 0.0]])
    got = loss(x, jnp.array([0, minus_100], jnp.uint32), ignore_index=minus_100)
    np.testing.assert_array_equal(got, loss(x[:1], jnp.array([0])))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("name", "loss", "shapes"),
    [
        ("weight", lambda w, x, t: jaxloss.binary_cross_entropy_with_logits(x, t, weight=w), ((), (3,), (1, 3))),
        ("pos_weight", lambda w, x, t: jaxloss.binary_cross_entropy_with_logits(x, t, pos_weight=w), ((), (3,))),
        ("alpha", lambda w, x, t: jaxloss.sigmoid_focal_loss(x, t, alpha=w), ((3,),)),
        ("quantile", lambda w, x, t: jaxloss.quantile_loss(x, t, quantile=w / 4), ((3,),)),
        ("var", lambda w, x, t: jaxloss.gaussian_nll_loss(x, t, w), ((), (1, 3))),
    ],
)
def test_what_is_broadcast_has_its_gradient_added_up_in_float32(name, loss, shapes, dtype):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(30_000, 3)).astype(np.float32), rng.random((30_000, 3)).astype(np.float32)
    program = jax.jit(jax.grad(loss))
    for shape in shapes:
        w = jnp.full(shape, 1.5, dtype)
        exact = program(w.astype(jnp.float32), x, t)
        np.testing.assert_allclose(program(w, x, t).astype(jnp.float32), exact, rtol=jnp.finfo(dtype).eps)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y, z: jaxloss.cross_entropy(x, y, label_smoothing=0.1, implementation="autodiff"),
        lambda x, y, z: jaxloss.distillation_loss(x, z, y, temperature=2.0),
        lambda x, y, z: jaxloss.triplet_margin_loss(z, x, z[::-1], swap=True),
    ],
)
def test_a_gradient_from_several_parts_is_rounded_once(loss):
    rng = np.random.default_rng(0)
    x, z = (jnp.asarray(3 * rng.normal(size=(256, 30)), jnp.bfloat16) for _ in range(2))
    y = rng.integers(0, 30, 256)
    exact = jax.jit(jax.grad(loss))(x.astype(jnp.float32), y, z.astype(jnp.float32))
    got = jax.jit(jax.grad(loss))(x, y, z).astype(jnp.float32)
    np.testing.assert_allclose(got, exact, rtol=2.0**-8, atol=1e-4 * np.abs(exact).max())


@pytest.mark.parametrize("gap", [15.0, 17.0, 20.0, 30.0])
def test_autodiff_rounds_no_slope_of_a_confident_row_to_zero(gap):
    def loss(x):
        return jaxloss.cross_entropy(x, jnp.array([0]), implementation="autodiff")

    slope = -1 / (1 + np.exp(gap))
    np.testing.assert_allclose(jax.grad(loss)(jnp.array([[gap, 0]], jnp.float32))[0], [slope, -slope], rtol=1e-5)
