"""The contract's table of edges: values and gradients where other libraries give NaN, inf or a neighbour's loss."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

INF = jnp.inf
IMPLEMENTATIONS = ("xla", "autodiff")
both = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def value_and_grad(loss, *args, argnums=0, **options):
    return jax.value_and_grad(lambda *a: loss(*a, **options), argnums)(*args)


@both
def test_ignored_and_masked_rows_may_hold_anything(implementation):
    x = jnp.array([[1.0, 2.0, 3.0], [jnp.nan, INF, -INF], [-INF, -INF, -INF], [0.0, 1.0, 0.0]])
    for target, where in (
        (jnp.array([2, -100, -100, 1]), None),
        (jnp.array([2, 77, -5, 1]), jnp.array([True, False, False, True])),
    ):
        options = {"where": where, "label_smoothing": 0.1, "implementation": implementation}
        value, grad = value_and_grad(jaxloss.cross_entropy, x, target, **options)
        clean, clean_grad = value_and_grad(
            jaxloss.cross_entropy, x[::3], jnp.array([2, 1]), label_smoothing=0.1, implementation=implementation
        )
        chex.assert_trees_all_close(value, clean, rtol=1e-13)
        chex.assert_trees_all_close(grad[::3], clean_grad, rtol=1e-13)
        assert (grad[1:3] == 0).all()


@both
def test_minus_inf_at_another_class(implementation):
    x = jnp.array([[1.0, -INF, 2.0]])
    value, grad = value_and_grad(jaxloss.cross_entropy, x, jnp.array([0]), implementation=implementation)
    np.testing.assert_allclose(value, math.log(1 + math.e), rtol=1e-12)
    p = 1 / (1 + math.e)
    np.testing.assert_allclose(grad, [[p - 1, 0, 1 - p]], rtol=1e-12)


@both
def test_zero_times_infinity_is_zero(implementation):
    x = jnp.array([[1.0, -INF, 2.0]])
    q = jnp.array([[0.5, 0.0, 0.5]])
    expected = math.log(1 + math.e) - 0.5
    for target, options in (
        (q, {}),
        (jnp.array([2]), {"weight": jnp.array([1.0, 0.0, 1.0]), "label_smoothing": 0.5, "reduction": "sum"}),
        (q, {"weight": jnp.array([1.0, 0.0, 1.0]), "label_smoothing": 0.5}),
    ):
        argnums = (0, 1) if target is q else 0
        value, grads = value_and_grad(
            jaxloss.cross_entropy, x, target, argnums=argnums, implementation=implementation, **options
        )
        assert np.isfinite(value)
        chex.assert_tree_all_finite(grads)
        if not options:
            np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_plus_inf_at_another_class():
    for loss in (jaxloss.cross_entropy, jaxloss.poly_cross_entropy):
        for axis in (1, -1):
            x = jnp.array([[0.0, jnp.inf, 1.0]]) if axis == 1 else jnp.array([[[0.0, jnp.inf, 1.0]]])
            target = jnp.zeros(x.shape[:-1], int)
            with jax.debug_nans(False):
                assert loss(x, target, axis=axis) == jnp.inf


@both
def test_all_minus_inf(implementation):
    x = jnp.full((2, 3), -INF).at[1].set(0.0)
    rows = jaxloss.cross_entropy(x, jnp.array([0, 1]), implementation=implementation, reduction="none")
    assert np.isnan(rows[0])
    np.testing.assert_allclose(rows[1], math.log(3))
    assert jaxloss.logsumexp(x)[0] == -INF
    assert (jax.grad(lambda x: jaxloss.logsumexp(x)[0])(x)[0] == 0).all()


@pytest.mark.without_x64
@both
def test_bfloat16_logits_that_differ_by_less_than_their_rounding(implementation):
    x = jnp.array([200.0, 200.0, 190.0], jnp.bfloat16)
    value, grad = value_and_grad(jaxloss.cross_entropy, x, 0, implementation=implementation)
    np.testing.assert_allclose(value, 0.693170, rtol=1e-6)
    assert value.dtype == jnp.float32
    assert grad.dtype == jnp.bfloat16


@pytest.mark.without_x64
@both
def test_a_common_offset_changes_nothing(implementation):
    x = jnp.array([[1.0, 0.0, -1.0], [2.0, 0.0, 0.5]])
    for offset in (1e6, -1e6):
        for y in ([1, 1], [0, 2]):
            far = value_and_grad(jaxloss.cross_entropy, x + offset, jnp.array(y), implementation=implementation)
            near = value_and_grad(jaxloss.cross_entropy, x, jnp.array(y), implementation=implementation)
            chex.assert_trees_all_close(far, near, rtol=1e-6)


@pytest.mark.without_x64
def test_logsumexp_and_log_softmax_keep_their_gradient_under_an_offset():
    x = jnp.array([1.0, 0.0, -1.0])
    for function in (jaxloss.logsumexp, lambda x: jaxloss.log_softmax(x)[1]):
        chex.assert_trees_all_close(jax.grad(function)(x + 1e6), jax.grad(function)(x), rtol=1e-6)


@pytest.mark.without_x64
def test_a_confident_prediction_still_learns():
    # Liger, torch and optax round p to 1 before they subtract 1: random logits cannot show it.
    x = jnp.array([[11.0, 0.0, -1.0]], jnp.bfloat16)
    grad = jax.grad(jaxloss.cross_entropy)(x, jnp.array([0]))
    p = np.exp(np.array([11.0, 0.0, -1.0], np.float64))
    p /= p.sum()
    np.testing.assert_allclose(np.asarray(grad, np.float64)[0], p - [1, 0, 0], rtol=0.01)
    x, t = jnp.array([20.0, -20.0]), jnp.array([1.0, 0.0])
    grad = jax.grad(lambda x: jaxloss.binary_cross_entropy_with_logits(x, t, reduction="sum"))(x)
    np.testing.assert_allclose(grad, [-math.exp(-20), math.exp(-20)], rtol=1e-6)


@pytest.mark.without_x64
@both
@pytest.mark.parametrize("gap", [15.0, 20.0, 60.0])
def test_a_confident_row_keeps_its_digits(implementation, gap):
    # In float32 the sum of exponentials rounds to 1 beyond a gap of 17.
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.array([gap, 0.0], dtype)
        value, grad = value_and_grad(jaxloss.cross_entropy, x, 0, implementation=implementation)
        np.testing.assert_allclose(value, math.log1p(math.exp(-gap)), rtol=1e-6)
        if implementation == "xla":
            p = 1 / (1 + math.exp(gap))
            np.testing.assert_allclose(np.asarray(grad, np.float64), [-p, p], rtol=float(jnp.finfo(dtype).eps) * 4)


def test_ties_are_all_the_largest():
    x = jnp.array([2.0, 2.0, 2.0, 1.0])
    np.testing.assert_allclose(jaxloss.logsumexp(x), 2 + math.log(3 + math.exp(-1)), rtol=1e-14)
    p = 1 / (3 + math.exp(-1))
    for implementation in IMPLEMENTATIONS:
        _, grad = value_and_grad(jaxloss.cross_entropy, x, 0, implementation=implementation)
        np.testing.assert_allclose(grad, [p - 1, p, p, p * math.exp(-1)], rtol=1e-14)


@both
@pytest.mark.parametrize("bad", [-1, 3, 10**6, -101])
def test_an_index_out_of_range_spoils_its_row_and_no_other(implementation, bad):
    x = jnp.array([[1.0, 2.0, 3.0], [0.5, 0.0, 1.0]])
    options = {"implementation": implementation, "label_smoothing": 0.1, "weight": jnp.array([1.0, 2.0, 3.0])}
    rows = jaxloss.cross_entropy(x, jnp.array([2, bad]), reduction="none", **options)
    assert np.isnan(rows[1])
    assert rows[0] == jaxloss.cross_entropy(x[:1], jnp.array([2]), reduction="none", **options)[0]
    for loss in (lambda x, y: jaxloss.cross_entropy(x, y, **options), jaxloss.nll_loss):
        grad = jax.grad(loss)(x, jnp.array([2, bad]))
        assert np.isnan(grad[1]).all()
        assert np.isfinite(grad[0]).all()
    assert np.isnan(jaxloss.nll_loss(x, jnp.array([2, bad]), reduction="none")[1])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize("host", [True, False])
def test_every_integer_dtype(dtype, host):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 300)))
    y = np.array([3, 100, 1], dtype)
    index = y if host else jnp.asarray(y)
    chex.assert_trees_all_close(
        jaxloss.cross_entropy(x, index, ignore_index=100), jaxloss.cross_entropy(x, jnp.array([3, -100, 1]))
    )
    assert np.isfinite(jaxloss.cross_entropy(x, index))  # -100 fits into no unsigned dtype and equals nothing


@pytest.mark.without_x64
def test_int64_labels_without_x64_are_compared_before_they_are_narrowed():
    x = jnp.zeros((2, 3))
    wide = np.array([2**32 + 1, 1], np.int64)  # narrowed first, this is class 1
    rows = jaxloss.cross_entropy(x, wide, reduction="none")
    assert np.isnan(rows[0])
    assert np.isfinite(rows[1])
    assert jaxloss.cross_entropy(x, wide, ignore_index=2**32 + 1, reduction="sum_and_weight")[1] == 1
    assert np.isnan(jaxloss.cross_entropy(x, wide.tolist(), reduction="none")[0])


def test_255_can_be_ignored_in_uint8():
    x = jnp.zeros((3, 4))
    y = jnp.array([0, 255, 1], jnp.uint8)
    assert jaxloss.cross_entropy(x, y, ignore_index=255, reduction="sum_and_weight")[1] == 2
    assert np.isnan(jaxloss.cross_entropy(x, y, reduction="none")[1])


def test_ignore_index_may_be_a_class_which_stays_in_the_softmax():
    x = jnp.array([[0.0, 1.0], [2.0, 0.0]])
    got = jaxloss.cross_entropy(x, jnp.array([0, 1]), ignore_index=0)
    np.testing.assert_allclose(got, math.log(1 + math.exp(2)), rtol=1e-12)


def test_weight_zero_at_an_infinite_loss():
    weight = jnp.array([0.0, 1.0])
    assert jaxloss.nll_loss(jnp.array([[-INF, 0.0]]), jnp.array([0]), weight=weight, reduction="sum") == 0
    x, t = jnp.array([-INF, 1.0]), jnp.array([1.0, 1.0])
    for loss in (jaxloss.binary_cross_entropy_with_logits, jaxloss.mse_loss, jaxloss.l1_loss, jaxloss.huber_loss):
        assert np.isfinite(loss(x, t, weight=weight))


def test_weights_that_sum_to_zero():
    x, weight = jnp.array([[1.0, 2.0], [0.0, 3.0]]), jnp.array([1.0, 0.0])
    y = jnp.array([1, 1])
    value, grad = value_and_grad(jaxloss.cross_entropy, x, y, weight=weight)
    assert np.isnan(value)
    assert (grad == 0).all()
    assert jaxloss.cross_entropy(x, y, weight=weight, reduction="sum_and_weight") == (0, 0)
    value, grad = value_and_grad(jaxloss.mse_loss, x, x + 1, weight=jnp.zeros((2, 2)))
    assert np.isnan(value)
    assert (grad == 0).all()


@pytest.mark.parametrize(
    ("x", "t", "value", "gradient"),
    [
        (0.0, 1.0, math.log(2), -0.5),
        (0.0, 0.0, math.log(2), 0.5),
        (0.0, 0.5, math.log(2), 0.0),
        (INF, 1.0, 0.0, 0.0),
        (INF, 0.0, INF, 1.0),
        (-INF, 1.0, INF, -1.0),
        (-INF, 0.0, 0.0, 0.0),
        (1e4, 1.0, 0.0, 0.0),
        (-1e4, 1.0, 1e4, -1.0),
    ],
)
def test_bce_with_logits_at_its_edges(x, t, value, gradient):
    loss = jaxloss.binary_cross_entropy_with_logits
    got, grad = value_and_grad(loss, jnp.asarray(x), jnp.asarray(t))
    np.testing.assert_allclose([got, grad], [value, gradient], rtol=1e-15)
    assert np.isfinite(jax.grad(jax.grad(loss))(jnp.asarray(x), jnp.asarray(t)))
    with jax.debug_nans(True):
        value_and_grad(loss, jnp.asarray(x), jnp.asarray(t))


@pytest.mark.parametrize(
    ("p", "t", "value", "gradient"),
    [(0.0, 1.0, 100.0, -1e12), (1.0, 0.0, 100.0, 1e12), (0.0, 0.0, 0.0, 0.0), (1.0, 1.0, 0.0, 0.0)],
)
def test_bce_at_certainty(p, t, value, gradient):
    loss = jaxloss.binary_cross_entropy
    got, grads = value_and_grad(loss, jnp.asarray(p), jnp.asarray(t), argnums=(0, 1))
    np.testing.assert_allclose([got, grads[0]], [value, gradient], rtol=1e-8)
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("p", [-0.5, 1.5, 1 + 1e-7])
@pytest.mark.parametrize("t", [0.0, 1.0, 0.5])
def test_bce_outside_its_range_is_nan(p, t):
    assert np.isnan(value_and_grad(jaxloss.binary_cross_entropy, jnp.asarray(p), jnp.asarray(t))).all()


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("p", [INF, -0.5, 1.5])
def test_bce_outside_its_range_is_nan_in_a_masked_loop_too(p, dtype):
    x, t = jnp.full(32769, 0.5, dtype).at[7].set(p), jnp.full(32769, 0.25, dtype)
    loss = jax.jit(jaxloss.binary_cross_entropy)
    assert np.isnan(loss(x, t))
    assert np.isnan(loss(x, t, where=jnp.arange(32769) < 1000))
    assert np.isfinite(loss(x, t, where=jnp.arange(32769) != 7))


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("t", [0.0, 1.0, 0.3])
def test_bce_at_certainty_has_second_derivatives(p, t):
    with jax.debug_nans(True):
        hessian = jax.hessian(jaxloss.binary_cross_entropy, (0, 1))(jnp.asarray(p), jnp.asarray(t))
    chex.assert_tree_all_finite(hessian)


def test_kl_at_target_zero():
    for x in (-1.0, -INF):
        value, (dx, dt) = value_and_grad(jaxloss.kl_div, jnp.asarray(x), jnp.asarray(0.0), argnums=(0, 1))
        assert value == 0
        assert dx == 0
        assert np.isfinite(dt)
        value, grads = value_and_grad(
            jaxloss.kl_div, jnp.asarray(x), jnp.asarray(-INF), argnums=(0, 1), log_target=True
        )
        assert value == 0
        assert grads == (0, 0)
    assert jaxloss.kl_div(jnp.asarray(-INF), jnp.asarray(0.5)) == INF
    assert np.isnan(jaxloss.kl_div(jnp.asarray(-1.0), jnp.asarray(-0.5)))


def test_kl_where_the_probability_of_a_log_target_underflows():
    x, t = jnp.asarray(-INF), jnp.asarray(-1e9)
    value, grads = value_and_grad(jaxloss.kl_div, x, t, argnums=(0, 1), log_target=True)
    assert value == 0
    assert grads == (0, 0)
    assert np.isnan(jaxloss.kl_div(jnp.asarray(jnp.nan), jnp.asarray(-INF), log_target=True))


def test_kl_batchmean_counts_samples():
    x = jnp.log(jnp.array([[0.2, 0.8], [0.5, 0.5], [0.9, 0.1]]))
    t = jnp.array([[0.5, 0.5], [0.1, 0.9], [0.4, 0.6]])
    rows = jnp.sum(jaxloss.kl_div(x, t, reduction="none"), 1)
    np.testing.assert_allclose(jaxloss.kl_div(x, t, reduction="batchmean"), rows.mean(), rtol=1e-12)
    keep = jnp.array([[True], [False], [True]])
    got = jaxloss.kl_div(x.at[1].set(jnp.nan), t, where=keep, reduction="batchmean")
    np.testing.assert_allclose(got, (rows[0] + rows[2]) / 2, rtol=1e-12)
    np.testing.assert_allclose(
        jaxloss.kl_div(x[0, 0], t[0, 0], reduction="batchmean"), jaxloss.kl_div(x[0, 0], t[0, 0], reduction="sum")
    )
    value, grad = value_and_grad(jaxloss.kl_div, x, t, where=False, reduction="batchmean")
    assert np.isnan(value)
    assert (grad == 0).all()


def test_absolute_error_at_zero_has_no_slope():
    x = jnp.array([0.0, -0.0, 1.0])
    for loss, options in ((jaxloss.l1_loss, {}), (jaxloss.smooth_l1_loss, {"beta": 0}), (jaxloss.huber_loss, {})):
        _, grad = value_and_grad(loss, x, jnp.zeros(3), reduction="sum", **options)
        assert grad.tolist() == [0, 0, 1]


def test_smooth_l1_with_beta_zero_is_l1_also_when_traced():
    x, t = jnp.array([0.0, 0.5, -3.0]), jnp.zeros(3)
    expected = value_and_grad(jaxloss.l1_loss, x, t)
    chex.assert_trees_all_close(value_and_grad(jaxloss.smooth_l1_loss, x, t, beta=0.0), expected)
    traced = jax.jit(lambda beta: value_and_grad(jaxloss.smooth_l1_loss, x, t, beta=beta))
    chex.assert_trees_all_close(traced(0.0), expected)
    assert np.isfinite(jax.grad(lambda beta: jaxloss.smooth_l1_loss(x, t, beta=beta))(0.0))


@pytest.mark.without_x64
def test_smooth_l1_at_extreme_beta():
    x = jnp.array([1.0, 2.0])
    assert jaxloss.smooth_l1_loss(x, x + 1, beta=INF) == 0
    for beta in (1e-50, 1e-40, 1e-20):
        assert jaxloss.smooth_l1_loss(x, x, beta=beta) == 0
        assert jaxloss.smooth_l1_loss(x, x + 1, beta=beta) == 1

    def of_beta(x, beta):
        return jax.grad(lambda beta: jaxloss.smooth_l1_loss(x, jnp.zeros(2), beta=beta))(beta)

    np.testing.assert_allclose(of_beta(jnp.array([INF, 3.0]), 1.0), -0.5)
    np.testing.assert_allclose(of_beta(x, 1e-20), -0.5)


@pytest.mark.without_x64
def test_gaussian_gradient_of_huge_and_tiny_variances():
    def of_variance(x, v, **options):
        return jax.grad(lambda v: jaxloss.gaussian_nll_loss(jnp.float32(x), jnp.float32(0), v, **options))(
            jnp.float32(v)
        )

    for x, v in ((1.4e10, 1e20), (2e12, 1e24), (1e19, 1e38)):
        np.testing.assert_allclose(of_variance(x, v), 0.5 / v - 0.5 * (x / v) ** 2, rtol=1e-5)
    np.testing.assert_allclose(of_variance(0.0, 1e-20, eps=1e-30), 5e19, rtol=1e-5)


def test_infinite_error_has_a_bounded_slope():
    x, t = jnp.array([INF, -INF]), jnp.zeros(2)
    for loss in (jaxloss.l1_loss, jaxloss.smooth_l1_loss, jaxloss.huber_loss):
        with jax.debug_nans(True):
            _, grad = value_and_grad(loss, x, t, reduction="sum")
        assert grad.tolist() == [1, -1]


def test_gaussian_below_eps_is_clamped_with_the_gradient_straight_through():
    x, t, v = jnp.asarray(0.0), jnp.asarray(1.0), jnp.asarray(1e-9)
    value, grads = value_and_grad(jaxloss.gaussian_nll_loss, x, t, v, argnums=(0, 2))
    np.testing.assert_allclose(value, 0.5 * (math.log(1e-6) + 1e6), rtol=1e-12)
    np.testing.assert_allclose(grads, [-1e6, 0.5 * (1e6 - 1e12)], rtol=1e-9)


def test_gaussian_with_a_number_for_the_variance():
    x, t = jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 3.0]])
    expected = jaxloss.gaussian_nll_loss(x, t, jnp.full((1, 2), 2.0))
    for var in (2, 2.0, np.float32(2), jnp.asarray(2.0)):
        np.testing.assert_allclose(jaxloss.gaussian_nll_loss(x, t, var), expected, rtol=1e-12)
    np.testing.assert_allclose(jax.jit(lambda v: jaxloss.gaussian_nll_loss(x, t, v))(2.0), expected, rtol=1e-12)


def test_gaussian_with_a_negative_variance_at_run_time_is_nan():
    x, t, v = jnp.zeros(2), jnp.ones(2), jnp.array([1.0, -1.0])
    rows = jaxloss.gaussian_nll_loss(x, t, v, reduction="none")
    assert np.isfinite(rows[0])
    assert np.isnan(rows[1])
    _, grads = value_and_grad(jaxloss.gaussian_nll_loss, x, t, v, argnums=(0, 1, 2))
    assert all(np.isfinite(g[0]) and np.isnan(g[1]) for g in grads)
    with jax.debug_nans(True):
        jaxloss.gaussian_nll_loss(x, t, v, where=jnp.array([True, False]))


def test_poisson_at_zero():
    assert jaxloss.poisson_nll_loss(jnp.asarray(-INF), jnp.asarray(0.0)) == 0
    assert jax.grad(jaxloss.poisson_nll_loss)(-INF, jnp.asarray(0.0)) == 0
    value, grad = value_and_grad(jaxloss.poisson_nll_loss, jnp.asarray(0.0), jnp.asarray(1.0), log_input=False)
    np.testing.assert_allclose([value, grad], [-math.log(1e-8), 1 - 1e8], rtol=1e-7)
    value, grad = value_and_grad(jaxloss.poisson_nll_loss, jnp.asarray(0.0), jnp.asarray(0.0), log_input=False, eps=0)
    assert (value, grad) == (0, 1)


def test_poisson_stirling_only_above_one():
    full = jaxloss.poisson_nll_loss(jnp.zeros(4), jnp.array([0.0, 1.0, 2.0, 5.0]), full=True, reduction="none")
    plain = jaxloss.poisson_nll_loss(jnp.zeros(4), jnp.array([0.0, 1.0, 2.0, 5.0]), reduction="none")
    np.testing.assert_allclose(full - plain, [0, 0, 0.651806, 4.770847], rtol=1e-6)


def test_integer_targets_of_regression():
    x = jnp.array([0.5, 2.0])
    for loss in (
        jaxloss.mse_loss,
        jaxloss.l1_loss,
        jaxloss.smooth_l1_loss,
        jaxloss.huber_loss,
        jaxloss.poisson_nll_loss,
    ):
        chex.assert_trees_all_close(loss(x, jnp.array([1, 3])), loss(x, jnp.array([1.0, 3.0])))
    large = np.array([2**24 + 1, 2**40 + 1])
    assert jaxloss.l1_loss(jnp.asarray(large, float), large) == 0


@pytest.mark.without_x64
def test_int64_regression_targets_without_x64():
    assert jaxloss.l1_loss(jnp.array([2.0**40]), np.array([2**40])) == 0


def test_double_precision_anywhere_gives_double_precision():
    x, double = jnp.ones(2, jnp.float32), jnp.ones(2)
    assert jaxloss.mse_loss(x, x, weight=double).dtype == jnp.float64
    assert jaxloss.binary_cross_entropy_with_logits(x, x, pos_weight=double).dtype == jnp.float64
    assert jaxloss.cross_entropy(x, 0, weight=double).dtype == jnp.float64
    tiny = jaxloss.gaussian_nll_loss(x, x, jnp.array([1e-60, 1.0]), eps=1e-70)
    assert tiny.dtype == jnp.float64
    assert np.isfinite(tiny)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2], ids=str)
def test_eight_bits(dtype):
    x = jnp.array([0.5, 2.0], dtype)
    for loss in (jaxloss.mse_loss, jaxloss.binary_cross_entropy_with_logits):
        value, grad = value_and_grad(loss, x, jnp.ones(2))
        assert value.dtype == jnp.float64
        assert grad.dtype == dtype
    assert jaxloss.cross_entropy(x, 0).dtype == jnp.float32
    exact = math.log(math.exp(0.5) + math.exp(2))
    np.testing.assert_allclose(jaxloss.logsumexp(x), exact, rtol=1e-6)
    np.testing.assert_allclose(jaxloss.log_softmax(x), np.array([0.5, 2]) - exact, rtol=1e-6)
    for target in (0, jnp.array([1.0, 0.0])):
        np.testing.assert_allclose(jaxloss.cross_entropy(x, target), exact - 0.5, rtol=1e-6)


@pytest.mark.without_x64
def test_float16_does_not_overflow():
    x = jnp.full((70_000,), 1.0, jnp.float16)
    assert jaxloss.mse_loss(x, jnp.zeros_like(x), reduction="sum") == 70_000
    assert jaxloss.mse_loss(jnp.full((2,), 300.0, jnp.float16), jnp.zeros(2, jnp.float16)) == 90_000
    value = jaxloss.gaussian_nll_loss(x[:1], x[:1] * 0, jnp.zeros((1,), jnp.float16))
    np.testing.assert_allclose(value, 499993.1, rtol=1e-6)


@pytest.mark.without_x64
def test_a_long_mean_is_exact():
    ones = jnp.ones(2**24 + 8, jnp.float32)
    assert jaxloss.l1_loss(ones, jnp.zeros_like(ones), where=ones > 0) == 1
    assert jaxloss.l1_loss(ones, jnp.zeros_like(ones), where=ones > 0, reduction="sum_and_weight")[1] == 2**24 + 8
