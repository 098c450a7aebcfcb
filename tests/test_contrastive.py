"""Contrastive losses: masks over a batch in which every row meets every other, anchors without a positive, chunks."""

import math
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_more as oracles
import pytest

import jaxloss

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 7, 3))
LABELS = np.array([4, 9, 4, 2, 9, 4, 9])
KEEP = np.array([True, True, False, True, True, True, False])
NAMES = ("info_nce", "clip", "siglip", "nt_xent", "supervised_contrastive", "circle")
# One program instead of one for each operation, which is what most of the time here goes to.
JITTED = SimpleNamespace(
    **{
        f"{name}_loss": jax.jit(
            getattr(jaxloss, f"{name}_loss"), static_argnames=("reduction", "chunk_size", "normalize")
        )
        for name in NAMES
    }
)
# the loss with its options, its two arrays
LOSSES = {
    "info_nce": (partial(jaxloss.info_nce_loss, temperature=0.5), X, Y),
    "clip": (partial(jaxloss.clip_loss, logit_scale=2.0), X, Y),
    "siglip": (partial(jaxloss.siglip_loss, logit_scale=2.0, logit_bias=-1.0), X, Y),
    "nt_xent": (partial(jaxloss.nt_xent_loss, temperature=0.5), X, LABELS),
    "nt_xent views": (partial(jaxloss.nt_xent_loss, temperature=0.5), X, Y),
    "supervised": (partial(jaxloss.supervised_contrastive_loss, temperature=0.5), X, LABELS),
    "circle": (partial(jaxloss.circle_loss, gamma=5.0), X, LABELS),
}
each = pytest.mark.parametrize("name", LOSSES)


def oracle(name):
    loss = LOSSES[name][0]
    return partial(getattr(oracles, loss.func.__name__), **loss.keywords)


@jax.jit(static_argnums=0)
def value_and_gradient(name, x, y, where):
    loss, _, second = LOSSES[name]
    moving = (0, 1) if second is Y else (0,)
    return jax.value_and_grad(lambda *pair: loss(*pair, where=where), moving)(x, y)


@each
def test_a_gpu_gets_the_same(name, as_on_a_gpu):
    expected = value_and_gradient(name, *LOSSES[name][1:], KEEP)
    as_on_a_gpu()
    chex.assert_trees_all_close(value_and_gradient(name, *LOSSES[name][1:], KEEP), expected, rtol=1e-12, atol=1e-15)


@each
def test_a_masked_row_is_not_in_the_batch(name):
    loss, x, y = LOSSES[name]
    unreduced, share = oracle(name)(x, y, where=KEEP)
    got = loss(x, y, where=KEEP, reduction="sum_and_weight")
    np.testing.assert_allclose(got, (unreduced.sum(), share.sum()), rtol=1e-12)
    np.testing.assert_allclose(loss(x, y, where=KEEP, reduction="none"), unreduced, rtol=1e-12)

    clean = value_and_gradient(name, x, y, KEEP)
    for grad in clean[1]:
        assert (grad[~KEEP] == 0).all()
        assert (grad[KEEP] != 0).any()
    for poison in (np.nan, np.inf):
        dirty = [np.where(KEEP[:, None], a, poison) if a.ndim == 2 else np.where(KEEP, a, 10**6) for a in (x, y)]
        chex.assert_trees_all_equal(value_and_gradient(name, *dirty, KEEP), clean)


@each
def test_no_nan_is_made_on_the_way(name):
    loss, x, y = LOSSES[name]
    x, y = (jnp.asarray(np.where(KEEP[:, None], a, np.nan) if a.ndim == 2 else a) for a in (x, y))
    with jax.debug_nans(True):
        jax.grad(lambda x: loss(x, y, where=KEEP))(x)


@each
def test_nan_in_a_vector_that_counts_is_not_passed_over(name):
    loss, x, y = LOSSES[name]
    with jax.debug_nans(False):
        assert np.isnan(loss(np.where(np.arange(7)[:, None] == 2, np.nan, x), y, reduction="sum"))


@each
def test_nothing_left(name):
    value, grads = value_and_gradient(name, *LOSSES[name][1:], np.zeros(7, bool))
    assert np.isnan(value)
    assert all((g == 0).all() for g in grads)
    loss, x, y = LOSSES[name]
    assert loss(x, y, where=False, reduction="sum_and_weight") == (0, 0)
    assert loss(x[:0], y[:0], reduction="sum_and_weight") == (0, 0)
    assert loss(x[:0], y[:0], chunk_size=2, reduction="none").shape == (0,)


@each
def test_chunks_change_nothing(name):
    loss, x, y = LOSSES[name]
    direction = jnp.asarray(RNG.normal(size=x.shape))

    @jax.jit
    def of(x, chunk_sizes=(None, 3)):  # 3 leaves a rest
        def total(x, chunk_size):
            return loss(x, y, where=KEEP, chunk_size=chunk_size)

        values = [jax.value_and_grad(total)(x, c) for c in chunk_sizes]
        if name != "nt_xent":
            return values
        twice = [jax.jvp(jax.grad(partial(total, chunk_size=c)), (x,), (direction,))[1] for c in chunk_sizes]
        return list(zip(values, twice, strict=True))

    whole, chunked = of(x)
    chex.assert_trees_all_close(chunked, whole, rtol=1e-11, atol=1e-13)


def test_a_chunk_may_be_larger_than_the_batch():
    np.testing.assert_allclose(JITTED.clip_loss(X, Y, chunk_size=100), JITTED.clip_loss(X, Y), rtol=1e-13)


def largest(jaxpr):
    """The size of the largest array in a program and in those it calls."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [math.prod(v.aval.shape) for v in equation.outvars]
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            sizes += [largest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


@pytest.mark.without_x64
@each
def test_the_matrix_of_similarities_is_never_there(name):
    loss, _, second = LOSSES[name]
    number, width, chunk = 4096, 64, 128
    x = jax.ShapeDtypeStruct((number, width), jnp.bfloat16)
    y = x if second is Y else jax.ShapeDtypeStruct((number,), jnp.int32)
    sizes = {}
    for chunk_size in (None, chunk):
        gradient = jax.grad(partial(loss, chunk_size=chunk_size))
        sizes[chunk_size] = largest(jax.make_jaxpr(gradient)(x, y).jaxpr)
    rows = number * (2 if name == "nt_xent views" else 1)
    assert sizes[None] == rows * rows
    assert sizes[chunk] <= rows * max(chunk, width)


def test_negatives_of_ones_own_and_for_all():
    shared, own = RNG.normal(size=(4, 3)), RNG.normal(size=(7, 2, 3))
    for negatives in (shared, own):
        expected, _ = oracles.info_nce_loss(X, Y, negatives, temperature=0.3)
        for chunk_size in (None, 2):
            got = JITTED.info_nce_loss(X, Y, negatives, temperature=0.3, chunk_size=chunk_size, reduction="none")
            np.testing.assert_allclose(got, expected, rtol=1e-12)
    many = np.broadcast_to(shared, (7, 4, 3))
    np.testing.assert_allclose(JITTED.info_nce_loss(X, Y, shared), JITTED.info_nce_loss(X, Y, many), rtol=1e-13)
    grads = jax.grad(lambda n: JITTED.info_nce_loss(X, Y, n))(jnp.asarray(own))
    assert (grads != 0).all()


def test_without_normalisation():
    for name, (loss, x, y) in LOSSES.items():
        expected, share = oracle(name)(x / 3, y if y is LABELS else y / 3, normalize=False)
        got = loss(x / 3, y if y is LABELS else y / 3, normalize=False)
        np.testing.assert_allclose(got, expected.sum() / share.sum(), rtol=1e-12)


def test_anchors_without_a_positive_or_a_negative_are_in_neither_sum():
    labels = np.array([1, 1, 2, 3, 4, 5, 6])
    for loss, pairs in (
        (JITTED.nt_xent_loss, 2),
        (JITTED.supervised_contrastive_loss, 2),
        (JITTED.circle_loss, 2),
    ):
        total, weight = loss(X, labels, reduction="sum_and_weight")
        assert weight == pairs
        np.testing.assert_allclose(total, loss(X, labels, reduction="none")[:2].sum(), rtol=1e-13)
    same = np.zeros(7, int)
    assert JITTED.nt_xent_loss(X, same) == 0  # every pair is right among no negatives
    assert JITTED.circle_loss(X, same, reduction="sum_and_weight") == (0, 0)
    grads = jax.grad(lambda x: JITTED.nt_xent_loss(x, same) + JITTED.supervised_contrastive_loss(x, same))(X)
    assert np.isfinite(grads).all()


def test_one_pair_alone_is_right():
    one = X[:1], Y[:1]
    for loss in (JITTED.info_nce_loss, JITTED.clip_loss, JITTED.nt_xent_loss):
        value, grad = jax.value_and_grad(loss)(*one)
        assert value == 0 or loss is JITTED.nt_xent_loss
        assert np.isfinite(grad).all()
    assert JITTED.nt_xent_loss(*one) == 0


def test_labels_and_views_are_the_same_pairs():
    both, labels = np.concatenate([X, Y]), np.tile(np.arange(7), 2)
    np.testing.assert_allclose(JITTED.nt_xent_loss(X, Y), JITTED.nt_xent_loss(both, labels), rtol=1e-13)
    np.testing.assert_allclose(
        JITTED.nt_xent_loss(both, labels), JITTED.supervised_contrastive_loss(both, labels), rtol=1e-12
    )


@pytest.mark.without_x64
def test_a_confident_pair_still_learns():
    # The share of the negatives is e^-40: as a difference of logarithms it would be 0.
    q, k = jnp.eye(2, dtype=jnp.float32), jnp.eye(2, dtype=jnp.float32)
    value, grad = jax.value_and_grad(lambda s: JITTED.clip_loss(q, k, logit_scale=s))(40.0)
    np.testing.assert_allclose([value, -grad], math.exp(-40), rtol=1e-5)


def test_a_vector_of_zeros_has_finite_gradients():
    x = X.copy()
    x[2] = 0
    for name, (loss, _, y) in LOSSES.items():
        grad = jax.grad(lambda x, loss=loss, y=y: loss(x, y))(x)
        assert np.isfinite(grad).all(), name


@pytest.mark.without_x64
def test_labels_that_int32_cannot_hold():
    labels = np.array([2**32, 0, 2**32, 1, 1, 0, 0])
    names = np.array([3, 0, 3, 1, 1, 0, 0])
    x = X.astype(np.float32)
    for loss in (jaxloss.nt_xent_loss, jaxloss.supervised_contrastive_loss, jaxloss.circle_loss):
        assert loss(x, labels) == loss(x, labels.tolist()) == loss(x, jnp.asarray(names))


def test_the_weights_of_the_circle_are_constant():
    direction = RNG.normal(size=X.shape)
    options = {"margin": 0.3, "gamma": 4.0}
    ahead, behind = (
        oracles.circle_loss(X + step * direction, LABELS, held=X, **options)[0].sum() for step in (1e-6, -1e-6)
    )
    grad = jax.grad(lambda x: JITTED.circle_loss(x, LABELS, reduction="sum", **options))(X)
    np.testing.assert_allclose(np.sum(grad * direction), (ahead - behind) / 2e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (r"\(N, D\), got \(3,\)", lambda: jaxloss.clip_loss(X[0], Y[0])),
        (r"`image_features` and `text_features`", lambda: jaxloss.siglip_loss(X, Y[:3])),
        (r"`negatives`.*\(7, M, 3\).*got \(6, 2, 3\)", lambda: jaxloss.info_nce_loss(X, Y, np.ones((6, 2, 3)))),
        (r"`negatives`.*got \(4, 2\)", lambda: jaxloss.info_nce_loss(X, Y, np.ones((4, 2)))),
        (r"one label for each vector, \(7,\), got \(6,\)", lambda: jaxloss.circle_loss(X, LABELS[:6])),
        ("`chunk_size` must be at least 1", lambda: jaxloss.nt_xent_loss(X, LABELS, chunk_size=0)),
        ("`temperature` must be greater than 0", lambda: jaxloss.info_nce_loss(X, Y, temperature=0)),
        ("`logit_scale` must be greater than 0", lambda: jaxloss.clip_loss(X, Y, logit_scale=-1.0)),
        ("`where`", lambda: jaxloss.nt_xent_loss(X, Y, where=np.ones(14, bool))),
    ],
)
def test_refused(words, call):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("`normalize` must be True or False", lambda: jaxloss.clip_loss(X, Y, normalize=None)),
        ("`chunk_size` must be a Python integer", lambda: jaxloss.clip_loss(X, Y, chunk_size=2.5)),
        ("`negatives` must be floating point", lambda: jaxloss.info_nce_loss(X, Y, np.ones((4, 3), int))),
        ("class indices must be integers", lambda: jaxloss.nt_xent_loss(X, LABELS.astype(float))),
    ],
)
def test_wrong_dtypes(words, call):
    with pytest.raises(TypeError, match=words):
        call()
