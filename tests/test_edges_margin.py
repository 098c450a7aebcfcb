"""The contract's edges for margins, embeddings and focal losses."""

import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from test_edges import value_and_grad

import jaxloss

INF = jnp.inf


def test_full_slope_where_a_clamp_is_met_exactly():
    # torch's clamp_min passes 1 at the kink, JAX's maximum one half.
    x = jnp.array([1.0])
    assert jax.grad(lambda x: jaxloss.hinge_embedding_loss(x, jnp.array([-1]), reduction="sum"))(x) == -1
    assert (
        jax.grad(lambda x: jaxloss.margin_ranking_loss(x, jnp.array([1.0]), jnp.array([1]), reduction="sum"))(x) == -1
    )
    a, p, n = jnp.array([0.0]), jnp.array([1.0]), jnp.array([2.0])  # d(a, n) - d(a, p) is the margin
    value, grad = value_and_grad(jaxloss.triplet_margin_loss, a, p, n, eps=0, argnums=(1, 2))
    assert value == 0
    assert (grad[0][0], grad[1][0]) == (1, -1)
    v = jnp.array([[1.0, 0.0]])
    w = jnp.array([[0.0, 1.0]])
    _, grad = value_and_grad(jaxloss.cosine_embedding_loss, v, w, jnp.array([-1]))
    np.testing.assert_allclose(grad, [[0, 1]], rtol=1e-10)


def test_no_slope_where_a_multi_class_margin_is_met_exactly():
    x = jnp.array([[1.0, 0.0]])
    for loss, target in (
        (jaxloss.multi_margin_loss, jnp.array([0])),
        (jaxloss.multilabel_margin_loss, jnp.array([[0, -1]])),
    ):
        value, grad = value_and_grad(loss, x, target)
        assert value == 0
        assert (grad == 0).all()


@pytest.mark.parametrize("p", [0.5, 1, 2, 3, math.inf])
def test_distance_of_equal_points(p):
    x = jnp.array([[0.3, -2.0, 1e8]])
    value, grads = value_and_grad(
        lambda x, y: jnp.sum(jaxloss.pairwise_distance(x, y, p=p, eps=0)), x, x, argnums=(0, 1)
    )
    assert value == 0
    assert all((g == 0).all() for g in grads)
    with jax.debug_nans(True):
        hessian = jax.hessian(lambda x: jnp.sum(jaxloss.pairwise_distance(x, x * 1, p=p, eps=0)))(x)
    chex.assert_tree_all_finite(hessian)


def test_distance_of_equal_points_with_torchs_eps():
    value, grad = value_and_grad(lambda x: jnp.sum(jaxloss.pairwise_distance(x, jnp.ones((1, 3)))), jnp.ones((1, 3)))
    np.testing.assert_allclose(value, math.sqrt(3) * 1e-6, rtol=1e-9)
    np.testing.assert_allclose(grad, np.full((1, 3), 1 / math.sqrt(3)), rtol=1e-9)


@pytest.mark.without_x64
def test_vectors_whose_squares_overflow_or_vanish():
    def loss(x):
        return jaxloss.pairwise_distance(x, jnp.zeros((1, 2)), eps=0)[0]

    for size in (1e20, 1e-25, 1e-37, 9e37, 3e38):
        x = jnp.array([[3.0, 4.0]]) / 5 * size
        for f in (jax.value_and_grad(loss), jax.jit(jax.value_and_grad(loss))):  # jit may multiply by reciprocals
            value, grad = f(x)
            np.testing.assert_allclose(value, size, rtol=1e-6)
            np.testing.assert_allclose(grad, [[0.6, 0.8]], rtol=1e-6)
    for size in (1e20, 1e-6):
        x = jnp.array([[3.0, 4.0]]) * size
        np.testing.assert_allclose(jaxloss.cosine_similarity(x, jnp.array([[1.0, 0.0]])), [0.6], rtol=1e-6)


@pytest.mark.without_x64
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [2, 80, 256])  # whose squares are added one by one, in parts, in more parts
@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_an_extreme_vector_among_others(way, width, dtype, as_on_a_gpu):
    if way == "gpu":
        as_on_a_gpu()
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(5, width)), dtype) for _ in range(2))
    size = jnp.asarray([[1.0], [2.0**66], [2.0**-70], [2.0**100], [1.0]], dtype)
    a, b, other = (np.asarray(v.astype(jnp.float32), np.float64) for v in (x, y, x[::-1]))
    sizes = np.asarray(size.astype(jnp.float32), np.float64)
    x, y = x.at[4].set(jnp.nan) * size, y * size

    values, pull = jax.vjp(lambda x, y: jaxloss.pairwise_distance(x, y, eps=0), x, y)
    apart = (a - b) * sizes
    lengths = np.linalg.norm(apart, axis=1, keepdims=True)
    np.testing.assert_allclose(values[:4], lengths[:4, 0], rtol=1e-6)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == "float32" else {"rtol": 2**-8}
    for grad, sign in zip(pull(jnp.ones(5)), (1, -1), strict=True):
        np.testing.assert_allclose(grad[:4].astype(jnp.float32), sign * (apart / lengths)[:4], **tolerance)

    far = jaxloss.triplet_margin_loss(x, x, y, eps=0, swap=True, margin=2.0**101, reduction="none")
    np.testing.assert_allclose(far[:4], np.maximum(2.0**101 - lengths[:4, 0], 0), rtol=1e-6)

    near = jnp.asarray(other, dtype)
    values, pull = jax.vjp(lambda x: jaxloss.cosine_similarity(x, near, eps=0), x)
    lengths, others = (np.linalg.norm(v, axis=1, keepdims=True) for v in (a, other))
    cosine = np.sum(a * other, 1, keepdims=True) / lengths / others
    np.testing.assert_allclose(values[1:4], cosine[1:4, 0], rtol=1e-4, atol=1e-6)
    expected = (other / others - cosine * a / lengths) / lengths / sizes
    got = pull(jnp.ones(5))[0].astype(jnp.float32)
    np.testing.assert_allclose(got[2] * sizes[2], expected[2] * sizes[2], rtol=0.02, atol=1e-3)
    np.testing.assert_allclose(got[1] * sizes[1], expected[1] * sizes[1], rtol=0.02, atol=1e-3)

    large, keys = np.array([0, 1, 3]), near[:3]
    among = jaxloss.info_nce_loss(jnp.asarray(a[large] * sizes[large], dtype), keys, reduction="none")
    np.testing.assert_allclose(
        among, jaxloss.info_nce_loss(jnp.asarray(a[large], dtype), keys, reduction="none"), rtol=1e-4
    )


@pytest.mark.without_x64
@pytest.mark.parametrize("way", ["cpu", "gpu"])
def test_cosines_of_what_is_shorter_than_eps_beside_a_long_vector(way, as_on_a_gpu):
    if way == "gpu":
        as_on_a_gpu()
    x = jnp.array([[1e30, 0.0], [0.0, 0.0], [1e-12, 0.0], [3e-8, 4e-8]])
    values = jaxloss.cosine_similarity(x, jnp.array([[1.0, 0.0]]))
    np.testing.assert_allclose(values, [1, 0, 1e-4, 0.6], rtol=1e-6)


def test_cosine_of_a_zero_vector():
    zero, x = jnp.zeros((1, 2)), jnp.array([[1.0, 2.0]])
    value, grads = value_and_grad(lambda a, b: jaxloss.cosine_similarity(a, b)[0], zero, x, argnums=(0, 1))
    assert value == 0
    np.testing.assert_allclose(grads[0], x / math.sqrt(5) * 1e8, rtol=1e-9)
    assert (grads[1] == 0).all()
    for y in (1, -1):
        value, grads = value_and_grad(jaxloss.cosine_embedding_loss, zero, zero, jnp.array([y]), argnums=(0, 1))
        assert value == (1 if y == 1 else 0)
        chex.assert_tree_all_finite(grads)


def test_labels_that_are_none():
    x = jnp.array([[1.0, 0.0]])
    assert jaxloss.cosine_embedding_loss(x, x, jnp.array([0])) == 0
    assert jaxloss.hinge_embedding_loss(jnp.array([0.25]), jnp.array([0])) == 1  # both branches, as torch


@pytest.mark.without_x64
@pytest.mark.parametrize(("x", "value", "gradient"), [(-1000.0, 1000.0, -1.0), (1000.0, 0.0, 0.0), (-INF, INF, -1.0)])
def test_soft_margin_does_not_overflow(x, value, gradient):
    assert value_and_grad(jaxloss.soft_margin_loss, jnp.asarray(x), jnp.asarray(1.0)) == (value, gradient)


def test_multilabel_soft_margin_at_infinity():
    value, grad = value_and_grad(jaxloss.multilabel_soft_margin_loss, jnp.array([INF, -INF]), jnp.array([1, 0]))
    assert value == 0
    assert (grad == 0).all()


@pytest.mark.parametrize("loss", [jaxloss.multi_margin_loss, jaxloss.softmax_focal_loss])
@pytest.mark.parametrize("bad", [-1, 3, -100, 10**6])
def test_an_index_out_of_range_spoils_its_row_and_no_other(loss, bad):
    options = {"ignore_index": -7} if loss is jaxloss.softmax_focal_loss else {"weight": jnp.array([1.0, 2.0, 3.0])}
    x = jnp.array([[1.0, 2.0, 3.0], [0.5, 0.0, 1.0]])
    rows = loss(x, jnp.array([2, bad]), reduction="none", **options)
    assert np.isfinite(rows[0])
    assert np.isnan(rows[1])
    _, grad = value_and_grad(loss, x, jnp.array([2, bad]), **options)
    assert np.isfinite(grad[0]).all()
    assert np.isnan(grad[1]).all()


@pytest.mark.parametrize("classes", [7, 21, 128])
def test_multilabel_margin_of_lists_of_every_length(classes):
    """They are read a few labels at a time; some labels stand there twice, and some classes lie on the margin."""
    rng = np.random.default_rng(0)
    x = np.round(2 * rng.standard_normal((classes + 1, classes))) / 2
    y = rng.integers(0, classes, x.shape)
    for row, labels in enumerate(y):
        labels[row : row + 1] = -1
    values, slopes = np.zeros(len(x)), np.zeros_like(x)
    for row, labels in enumerate(y):
        labels = labels[:row]
        others = np.setdiff1d(np.arange(classes), labels)
        for label in labels:
            reach = 1 - x[row, label] + x[row, others]
            values[row] += reach[reach > 0].sum() / classes
            slopes[row, others] += (reach > 0) / classes
            slopes[row, label] -= (reach > 0).sum() / classes
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y)
    got, pull = jax.vjp(lambda x: jaxloss.multilabel_margin_loss(x, y, reduction="none"), x)
    np.testing.assert_allclose(got, values, rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(got))[0], slopes, rtol=1e-6, atol=1e-6)


def test_multilabel_margin_reads_up_to_the_first_minus_one():
    x = jnp.array([[0.1, 0.2, 0.4, 0.8]])
    expected = jaxloss.multilabel_margin_loss(x, jnp.array([[3, 0, -1, -1]]))
    assert jaxloss.multilabel_margin_loss(x, jnp.array([[3, 0, -1, 99]])) == expected
    for bad in (4, -2, 99):
        value, grad = value_and_grad(jaxloss.multilabel_margin_loss, x, jnp.array([[3, bad, -1, 0]]))
        assert np.isnan(value)
        assert np.isnan(grad).all()
    assert jaxloss.multilabel_margin_loss(x, jnp.full((1, 4), -1)) == 0


@pytest.mark.without_x64
def test_focal_of_a_confident_prediction():
    logits = jnp.array([0.0, 1.0, 15.0, 50.0, 100.0, 1e4])
    logits = jnp.concatenate([logits, -logits])

    def binary(x, gamma):
        return jaxloss.sigmoid_focal_loss(x, jnp.asarray(1.0), gamma=gamma)

    def soft(x, gamma):
        return jaxloss.softmax_focal_loss(jnp.stack([x, x * 0]), jnp.array([1.0, 0.0]), gamma=gamma)

    def index(x, gamma):
        return jaxloss.softmax_focal_loss(jnp.stack([x, x * 0]), jnp.array(0), gamma=gamma)

    for loss, gamma in itertools.product((binary, soft, index), (0.0, 0.5, 1.0, 1.5, 2.0)):
        with jax.debug_nans(True):  # without jit, where each operation is looked at
            first = jax.vmap(jax.grad(loss, (0, 1)), (0, None))(logits, gamma)
            second = jax.vmap(jax.hessian(loss, (0, 1)), (0, None))(logits, gamma)
        chex.assert_tree_all_finite((first, second))
        assert loss is not index or loss(jnp.asarray(1e4), gamma) == 0


@pytest.mark.parametrize("traced", [False, True])
def test_focal_with_gamma_zero_is_cross_entropy(traced):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)) * 30)
    y = jnp.array([0, 1, -100, 3, 2, 1])
    gamma = jnp.asarray(0.0) if traced else 0
    focal = value_and_grad(jaxloss.softmax_focal_loss, x, y, gamma=gamma)
    chex.assert_trees_all_close(focal, value_and_grad(jaxloss.cross_entropy, x, y), rtol=1e-12, atol=1e-15)
    t = (x > 0).astype(float)
    focal = value_and_grad(jaxloss.sigmoid_focal_loss, x, t, gamma=gamma, alpha=None)
    binary = value_and_grad(jaxloss.binary_cross_entropy_with_logits, x, t)
    chex.assert_trees_all_close(focal, binary, rtol=1e-12, atol=1e-15)


def test_focal_with_one_class_and_with_a_forbidden_class():
    for gamma in (0.0, 2.0):
        value, grad = value_and_grad(jaxloss.softmax_focal_loss, jnp.array([[3.0]]), jnp.array([0]), gamma=gamma)
        assert (value, grad[0, 0]) == (0, 0)
    x = jnp.array([[1.0, -INF, 2.0]])
    for target in (jnp.array([0]), jnp.array([[0.7, 0.0, 0.3]])):
        value, grad = value_and_grad(jaxloss.softmax_focal_loss, x, target)
        assert np.isfinite(value)
        chex.assert_tree_all_finite(grad)


def test_sigmoid_focal_at_infinity():
    for x, t, value in ((INF, 1.0, 0), (-INF, 0.0, 0), (INF, 0.0, INF), (-INF, 1.0, INF)):
        got, grads = value_and_grad(jaxloss.sigmoid_focal_loss, jnp.asarray(x), jnp.asarray(t))
        assert got == value
        assert np.isfinite(grads)


def test_the_documents_focal():
    # D1 to D3: alpha (1 - pt)^gamma ce with pt = exp(-ce).
    x, y = jnp.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]]), jnp.array([2, 0])
    ce = jaxloss.cross_entropy(x, y, reduction="none")
    expected = 0.25 * (1 - jnp.exp(-ce)) ** 2 * ce
    for reduction, by_hand in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
        got = jaxloss.softmax_focal_loss(x, y, alpha=0.25, gamma=2, reduction=reduction)
        chex.assert_trees_all_close(got, by_hand, rtol=1e-12)


def test_optax_agrees_on_sigmoid_focal():
    import optax

    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(5, 3)) * 4), jnp.asarray(rng.uniform(size=(5, 3)).round())
    chex.assert_trees_all_close(
        jaxloss.sigmoid_focal_loss(x, t, alpha=0.3, gamma=1.5, reduction="none"),
        optax.losses.sigmoid_focal_loss(x, t, alpha=0.3, gamma=1.5),
        rtol=1e-10,
    )


def test_the_documents_margins_and_distances():
    pairs = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[1.0, 1.0], [2.0, 2.0]])
    np.testing.assert_allclose(jaxloss.pairwise_distance(*pairs), [1.414214, 1.414214], rtol=2e-6)  # D3-pd
    x1, x2, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 2.5, 2.0]), jnp.array([1, -1, 1])
    np.testing.assert_allclose(jaxloss.margin_ranking_loss(x1, x2, y, margin=1), 0.333333, rtol=2e-6)  # D3-rank


def test_optax_is_wrong_about_triplets_with_p_1():
    # It takes no absolute value: 0.8 where the distances say 1.2.
    a, p, n = jnp.array([[0.0, 0.0]]), jnp.array([[0.3, 0.9]]), jnp.array([[1.0, 0.0]])
    np.testing.assert_allclose(jaxloss.triplet_margin_loss(a, p, n, p=1, eps=0), 1.2, rtol=1e-12)


def test_a_masked_triplet_does_not_reach_the_distance_function():
    # The distance of equal points has no derivative here; a masked triplet must not spoil the parameters.
    def distance(scale):
        return lambda x, y: jnp.sqrt(jnp.sum((scale * (x - y)) ** 2, -1))

    a, p, n = jnp.array([[0.0], [jnp.nan]]), jnp.array([[1.0], [0.0]]), jnp.array([[0.5], [0.0]])

    def loss(scale):
        return jaxloss.triplet_margin_with_distance_loss(
            a, p, n, distance_function=distance(scale), where=jnp.array([True, False])
        )

    np.testing.assert_allclose(jax.grad(loss)(1.0), 0.5, rtol=1e-12)


@pytest.mark.parametrize("loss", [jaxloss.multi_margin_loss, jaxloss.multiclass_hinge_loss])
def test_a_gpu_finds_the_same_in_its_way(as_on_a_gpu, loss):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.integers(0, 4, (6, 7)) / 2), jnp.asarray(rng.integers(0, 7, 6)).at[1].set(9)
    x, where = x.at[2].set(jnp.nan), jnp.arange(6) != 2
    cotangent = jnp.asarray(rng.normal(size=6))

    def found(x):
        value, pull = jax.vjp(lambda x: loss(x, y, where=where, p=2, reduction="none"), x)
        return value, pull(cotangent), jax.jvp(jax.grad(lambda x: loss(x, y, where=where, p=2)), (x,), (x,))

    here = quick.jit(lambda x: found(x))(x)
    as_on_a_gpu()
    chex.assert_trees_all_close(quick.jit(lambda x: found(x))(x), here, rtol=1e-14, atol=1e-14)
    assert np.isnan(here[1][0][1]).all()


def test_the_mean_over_no_entries_has_no_slope():
    x = jnp.zeros((0, 3))
    for slope in (jax.grad, jax.jacfwd):
        assert slope(lambda margin: jaxloss.hinge_loss(x, x, margin=margin))(1.0) == 0
    value, change = jax.jvp(lambda x: jaxloss.mse_loss(x, x), (x,), (x,))
    assert np.isnan(value)
    assert change == 0


@pytest.mark.parametrize("size", [50, 129, 512])
def test_sums_of_long_vectors_in_parts_that_need_not_divide_them(size):
    a, b, c = np.random.default_rng(size).normal(size=(3, 6, size))
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(quick.jit(jaxloss.cosine_similarity)(a, b), cosine, rtol=1e-12)
    near, far = np.linalg.norm(a - b + 1e-6, axis=1), np.linalg.norm(a - c + 1e-6, axis=1)
    triplet = np.maximum(near - far + 1, 0).mean()
    np.testing.assert_allclose(quick.jit(jaxloss.triplet_margin_loss)(a, b, c), triplet, rtol=1e-12)
    right = np.arange(6) * 7 % size
    excess = np.maximum(1 - a[np.arange(6), right, None] + a, 0)
    excess[np.arange(6), right] = 0
    value, slope = value_and_grad(jaxloss.multi_margin_loss, a, right)
    np.testing.assert_allclose(value, (excess.sum(1) / size).mean(), rtol=1e-12)
    pushed = (excess > 0) / (6 * size)
    pushed[np.arange(6), right] = -pushed.sum(1)
    np.testing.assert_allclose(slope, pushed, atol=1e-15)


@pytest.mark.parametrize("order", ["forward over reverse", "reverse over reverse", "reverse over forward"])
def test_second_derivatives_do_not_see_what_is_masked(order):
    x, y, z, v = jnp.asarray(np.random.default_rng(0).normal(size=(4, 5, 4)))
    x, y = x.at[:, :2].add(-3), y.at[:, 2:].add(3)  # boxes that overlap
    keep, sign = jnp.array([True, True, False, True, False]), jnp.array([1, -1, 1, 1, -1])

    def change(loss, x):
        product = {
            "forward over reverse": lambda x: jax.jvp(jax.grad(loss), (x,), (v,))[1],
            "reverse over reverse": jax.grad(lambda x: jnp.vdot(jax.grad(loss)(x), v)),
            "reverse over forward": jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1]),
        }
        return product[order](x)

    losses = [
        lambda x: jaxloss.triplet_margin_loss(x, y, z, where=keep),
        lambda x: jaxloss.triplet_margin_loss(x, y, z, p=3, swap=True, where=keep),
        lambda x: jaxloss.cosine_embedding_loss(x, y, sign, where=keep),
        lambda x: jaxloss.generalized_box_iou_loss(x, y, where=keep),
    ]
    found = quick.jit(lambda x: [change(loss, x) for loss in losses])
    chex.assert_trees_all_close(found(x.at[2].set(jnp.nan).at[4, 1].set(jnp.inf)), found(x), rtol=1e-12)
    spoilt = x.at[2].set(jnp.nan)
    with jax.debug_nans(True):  # without jit, where each operation is looked at
        for loss in losses:
            change(loss, spoilt)
    for product in found(x):
        assert (product[keep] != 0).any()
        assert (product[~keep] == 0).all()
