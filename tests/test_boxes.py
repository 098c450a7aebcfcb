"""Losses between boxes: degenerate and equal ones, formats, the trade-off that is held constant."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles_more as oracles
import pytest

import jaxloss

NAMES = ("box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
each = pytest.mark.parametrize("name", NAMES)
A = np.array([[0.0, 0.0, 2.0, 1.0], [1.0, 1.0, 3.0, 4.0], [0.0, 0.0, 1.0, 1.0]])
B = np.array([[1.0, 0.25, 2.5, 2.0], [0.5, 2.0, 2.0, 3.0], [4.0, 2.0, 5.5, 3.0]])
DEGENERATE = {
    "equal": ([1, 2, 3, 5], [1, 2, 3, 5]),
    "the same point": ([0, 0, 0, 0], [0, 0, 0, 0]),
    "two points": ([0, 0, 0, 0], [1, 1, 1, 1]),
    "no height": ([0, 0, 2, 0], [0, 0, 1, 3]),
    "the same line": ([0, 1, 0, 3], [0, 1, 0, 3]),
    "touching": ([0, 0, 1, 1], [1, 0, 2, 1]),
    "inside": ([0, 0, 4, 4], [1, 1, 2, 3]),
    "upside down": ([2, 2, 0, 1], [0, 0, 1, 1]),
    "tiny": ([0, 0, 1e-25, 1e-25], [0, 0, 1e-25, 2e-25]),
}


@jax.jit(static_argnums=0)
def value_and_gradients(name, a, b, eps):
    loss = partial(getattr(jaxloss, name), eps=eps)
    return jax.vmap(jax.value_and_grad(loss, (0, 1)))(a, b)


@each
def test_a_gpu_finds_the_same_in_its_way(name, as_on_a_gpu):
    def results():
        narrow = [jnp.asarray(boxes, jnp.bfloat16) for boxes in (A, B)]
        return value_and_gradients(name, A, B, 1e-7), jax.value_and_grad(getattr(jaxloss, name))(*narrow)

    expected = results()
    as_on_a_gpu()
    chex.assert_trees_all_close(results(), expected, rtol=1e-6)


@pytest.mark.without_x64
@each
@pytest.mark.parametrize("eps", [1e-7, 0.0])
def test_degenerate_boxes_have_finite_values_and_gradients(name, eps):
    a, b = (np.array(boxes, np.float32) for boxes in zip(*DEGENERATE.values(), strict=True))
    values, grads = value_and_gradients(name, a, b, eps)
    chex.assert_tree_all_finite((values, grads))
    by_name = dict(zip(DEGENERATE, values, strict=True))
    assert by_name["equal"] == pytest.approx(0, abs=1e-6)
    assert by_name["the same point"] == pytest.approx(1, abs=1e-6)
    assert (grads[0][1] == 0).all()
    with jax.debug_nans(True):
        jax.grad(lambda a: getattr(jaxloss, name)(a, b, eps=eps))(jnp.asarray(a))


@each
def test_formats(name):
    loss = getattr(jaxloss, name)
    expected = loss(A, B, reduction="none")
    yxyx = (box[:, [1, 0, 3, 2]] for box in (A, B))
    xywh = (np.concatenate([box[:, :2], box[:, 2:] - box[:, :2]], 1) for box in (A, B))
    cxcywh = (np.concatenate([(box[:, :2] + box[:, 2:]) / 2, box[:, 2:] - box[:, :2]], 1) for box in (A, B))
    for box_format, (a, b) in (("yxyx", yxyx), ("xywh", xywh), ("cxcywh", cxcywh)):
        np.testing.assert_allclose(loss(a, b, box_format=box_format, reduction="none"), expected, rtol=1e-12)
        oracle, _ = getattr(oracles, name)(a, b, box_format=box_format)
        np.testing.assert_allclose(oracle, expected, rtol=1e-12)


@each
def test_boxes_far_apart_are_pulled_together_where_the_paper_says_so(name):
    grad = jax.grad(lambda a: getattr(jaxloss, name)(a, B[2]))(jnp.asarray(A[2]))
    assert (grad[2:] < 0).all() if name != "box_iou_loss" else (grad == 0).all()


def test_the_trade_off_of_the_aspect_is_constant():
    direction = np.random.default_rng(0).normal(size=A.shape)
    ious = 1 - oracles.box_iou_loss(A, B)[0]
    angles = [np.arctan((c[:, 2] - c[:, 0]) / (c[:, 3] - c[:, 1])) for c in (A, B)]
    v = 4 / np.pi**2 * (angles[0] - angles[1]) ** 2
    alphas = v / (1 - ious + v + 1e-7)
    ahead, behind = (
        oracles.complete_box_iou_loss(A + step * direction, B, alphas=alphas)[0].sum() for step in (1e-6, -1e-6)
    )
    loss = partial(jaxloss.complete_box_iou_loss, reduction="sum")
    np.testing.assert_allclose(np.sum(jax.grad(loss)(A, B) * direction), (ahead - behind) / 2e-6, rtol=1e-6)
    free = [oracles.complete_box_iou_loss(A + step * direction, B)[0].sum() for step in (1e-6, -1e-6)]
    assert not np.isclose(np.sum(jax.grad(loss)(A, B) * direction), (free[0] - free[1]) / 2e-6, rtol=1e-3)


def test_a_traced_eps_does_not_recompile():
    loss = jax.jit(lambda eps: jaxloss.complete_box_iou_loss(A, B, eps=eps))
    for eps in (1e-7, 0.5):
        np.testing.assert_allclose(loss(eps), oracles.complete_box_iou_loss(A, B, eps=eps)[0].mean(), rtol=1e-12)
    assert loss._cache_size() == 1


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (r"four numbers on the last axis, got \(3, 3\)", lambda: jaxloss.box_iou_loss(A[:, :3], B[:, :3])),
        ("`boxes1` and `boxes2`", lambda: jaxloss.box_iou_loss(A, B[0])),
        ("`box_format` must be", lambda: jaxloss.generalized_box_iou_loss(A, B, box_format="xy")),
        ("`eps` must be at least 0", lambda: jaxloss.distance_box_iou_loss(A, B, eps=-1)),
    ],
)
def test_refused(words, call):
    with pytest.raises(ValueError, match=words):
        call()
