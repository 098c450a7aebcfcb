"""chunked: any loss over samples equals itself in chunks; exact mean, derivatives, memory, refusals."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick
from traces import LARGE, cost, large

import jaxloss

N = 11


def head(batch, target, *, w, reduction="mean", **options):
    """The last layer and its loss; the features come in a pytree."""
    return jaxloss.cross_entropy(batch["x"] @ w, target, reduction=reduction, **options)


def data():
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(N, 3))), jnp.asarray(rng.normal(size=(3, 5)))
    # What counts is spread unevenly, so that a mean of the chunks' means is another number.
    y, where = jnp.asarray(rng.integers(0, 5, N)).at[:3].set(-100), jnp.arange(N) != 5
    return {"x": x}, y, w, {"where": where, "weight": jnp.linspace(0.2, 2.0, 5)}


def random_total(loss, batch, y, w, options):
    """Value and gradients of a loss or of its parts with random cotangents."""
    parts = jax.tree.leaves(loss(batch, y, w=w, **options))
    rng = np.random.default_rng(1)
    return sum(jnp.sum(part * rng.normal(size=part.shape)) for part in parts)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "sum_and_weight"])
def test_chunks_of_any_size_change_nothing(reduction):
    batch, y, w, options = data()

    @quick.jit
    def everything(batch, w):
        def of(loss):
            total = partial(random_total, loss, y=y, options={**options, "reduction": reduction})
            return jax.value_and_grad(lambda batch, w: total(batch, w=w), (0, 1))(batch, w)

        return of(head), [of(jaxloss.chunked(head, size)) for size in (1, 4, N, 100)]

    expected, several = everything(batch, w)
    for got in several:
        chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-14)


def test_derivatives_of_any_mode_and_order():
    batch, y, w, options = data()
    direction = jnp.cos(w)

    def everything(loss, w):
        total = partial(random_total, partial(loss, implementation="autodiff"), batch, y, options=options)
        product = jax.jvp(lambda w: jax.grad(lambda w: total(w=w))(w), (w,), (direction,))[1]
        forward = jax.jvp(lambda w: total(w=w), (w,), (direction,))
        return product, forward, jax.vmap(lambda scale: total(w=scale * w))(jnp.arange(3.0))

    got, expected = quick.jit(lambda w: (everything(jaxloss.chunked(head, 4), w), everything(head, w)))(w)
    chex.assert_trees_all_close(got, expected, rtol=1e-12, atol=1e-13)
    with pytest.raises(TypeError, match="custom_vjp") as refusal:
        jax.jvp(lambda w: jaxloss.chunked(head, 4)(batch, y, w=w), (w,), (w,))
    assert any("chunked: " in note and "implementation='autodiff'" in note for note in refusal.value.__notes__)


def test_arrays_of_samples_by_name_and_losses_of_several_arguments():
    rng = np.random.default_rng(0)
    x, t, weight, *anchors = (jnp.asarray(rng.uniform(size=(N, 2))) for _ in range(6))
    logits, y = jnp.asarray(rng.normal(size=(N, 6, 4))), jnp.asarray(rng.integers(1, 4, (N, 2)))
    sizes = jnp.full(N, 6), jnp.full(N, 2).at[3].set(1)

    @quick.jit
    def everything():
        results = []
        for change in (lambda loss: loss, lambda loss: jaxloss.chunked(loss, 4, per_sample=("where", "weight"))):
            values = (
                change(jaxloss.mse_loss)(x, t, weight=weight),
                change(jaxloss.triplet_margin_loss)(*anchors, margin=2.0, where=None),
                change(jaxloss.ctc_loss_with_logits)(logits, y, *sizes, batch_first=True),
            )
            results.append(values)
        return results

    expected, got = everything()
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_mean_over_nothing():
    batch, y, w, _ = data()
    loss = partial(jaxloss.chunked(head, 4), batch, y, where=jnp.zeros(N, bool))
    (value, gradient), pair = quick.jit(
        lambda w: (jax.value_and_grad(lambda w: loss(w=w))(w), loss(w=w, reduction="sum_and_weight"))
    )(w)
    assert np.isnan(value)
    assert (gradient == 0).all()
    assert pair == (0, 0)


@pytest.mark.without_x64
def test_an_index_that_would_wrap_stays_out_of_range():
    y = np.array([0, 1, 2**32 + 1, 2])
    rows = jaxloss.chunked(jaxloss.cross_entropy, 2)(np.zeros((4, 3), np.float32), y, reduction="none")
    assert np.isnan(rows).tolist() == [False, False, True, False]


@pytest.mark.without_x64
def test_no_more_than_a_chunk_of_logits_exists():
    n, h, v = LARGE
    x, w, y = large()

    def last(x, y, *, w, reduction):
        return jaxloss.cross_entropy(jnp.dot(x, w.T, preferred_element_type=jnp.float32), y, reduction=reduction)

    def total(loss, reduction, x, w, y):
        return jnp.sum(loss(x, y, w=w, reduction=reduction))

    for reduction in ("mean", "none"):
        ours, plain = (partial(total, loss, reduction) for loss in (jaxloss.chunked(last, n // 8), last))
        assert cost(ours, x, w, y, aside={(h, v)}) == (n * v // 8, n * h * v)
        gradient = jax.value_and_grad(ours, (0, 1))
        assert cost(gradient, x, w, y, aside={(v, h), (h, v)}) == (n * v // 8, 4 * n * h * v)
        assert cost(jax.value_and_grad(plain, (0, 1)), x, w, y, aside={(v, h), (h, v)})[0] == n * v


def test_refusals():
    batch, y, w, _ = data()
    for size, error in ((0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError)):
        with pytest.raises(error, match=r"chunked: `chunk_size`"):
            jaxloss.chunked(head, size)
    loss = jaxloss.chunked(head, 4)
    with pytest.raises(ValueError, match=r"chunked: `reduction` must be .*'median'"):
        loss(batch, y, w=w, reduction="median")
    with pytest.raises(ValueError, match=r"chunked: arrays .*\(11, 3\).*\(10,\).*keyword"):
        loss(batch, y[:10], w=w)
    for extra in ((1.0,), (w,)):
        with pytest.raises(ValueError, match=r"chunked: arrays .*same number of samples"):
            loss(batch, y, *extra)
    with pytest.raises(ValueError, match=r"chunked: arrays .*same number of samples"):
        loss(batch, y, w=w, where=True)
    with pytest.raises(ValueError, match=r"chunked: .*no array"):
        loss()
    with pytest.raises(ValueError, match=r"chunked: with reduction 'sum_and_weight' `loss` .*pair .*\(11,\)"):
        jaxloss.chunked(lambda x, reduction: x, 4)(batch["x"][:, 0])
