"""Losses between regions: masks over pixels, empty classes, and what other libraries and the documents compute."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from test_edges import value_and_grad

import jaxloss

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(3, 4, 5, 2)) * 2
CLASSES = np.asarray(RNG.integers(0, 4, size=(3, 5, 2)))
LABELS = RNG.uniform(size=IMAGE.shape).round()
KEEP = RNG.uniform(size=CLASSES.shape) < 0.6
LOSSES = [
    (jaxloss.dice_loss, oracles.dice_loss),
    (jaxloss.iou_loss, oracles.iou_loss),
    (jaxloss.tversky_loss, oracles.tversky_loss),
]
each = pytest.mark.parametrize(("loss", "oracle"), LOSSES, ids=["dice", "iou", "tversky"])
MODES = [
    ("binary", LABELS, KEEP[:, None]),
    ("multilabel", LABELS, KEEP[:, None]),
    ("multiclass", CLASSES, KEEP),
    ("multiclass", jax.nn.softmax(IMAGE, 1), KEEP[:, None]),
]


@each
@pytest.mark.parametrize(("mode", "target", "keep"), MODES, ids=["binary", "multilabel", "index", "soft"])
@pytest.mark.parametrize("per_sample", [False, True])
def test_masked_pixels_do_not_exist(loss, oracle, mode, target, keep, per_sample):
    target = np.asarray(target)
    options = {"mode": mode, "per_sample": per_sample, "smooth": 0.3}
    unreduced, share = oracle(IMAGE, target, where=keep, **options)
    for poison in (0.0, np.nan, np.inf):
        image = np.where(keep if keep.ndim == 4 else keep[:, None], IMAGE, poison)
        dirty = np.where(keep, target, 77 if np.issubdtype(target.dtype, np.integer) else poison)
        got = loss(image, dirty, where=keep, reduction="none", **options)
        chex.assert_trees_all_close(got, unreduced, rtol=1e-12, atol=1e-15)
        image, dirty = jnp.asarray(image), jnp.asarray(dirty)
        with jax.debug_nans(not np.isnan(poison)):
            value, grad = value_and_grad(loss, image, dirty, where=keep, **options)
        np.testing.assert_allclose(value, unreduced.sum() / share.sum(), rtol=1e-12)
        assert (np.moveaxis(grad, 1, -1)[~KEEP] == 0).all()
        assert np.isfinite(grad).all()


def test_a_gpu_finds_the_same_in_its_way(as_on_a_gpu):
    image = jnp.asarray(np.where(KEEP[:1, None], IMAGE[:1], np.nan))

    def results():
        loss = partial(jaxloss.dice_loss, target=CLASSES[:1], mode="multiclass", where=KEEP[:1])
        return [form(loss)(image) for form in (jax.jit, jax.grad, jax.hessian)]

    expected = results()
    as_on_a_gpu()
    chex.assert_trees_all_close(results(), expected, rtol=1e-12, atol=1e-15)


@each
def test_an_ignored_class_is_a_masked_pixel(loss, oracle):
    ignored = np.where(KEEP, CLASSES, 255)
    expected = loss(IMAGE, CLASSES, mode="multiclass", where=KEEP)
    assert loss(IMAGE, ignored, mode="multiclass", ignore_index=255) == expected
    assert loss(IMAGE, ignored.astype(np.uint8), mode="multiclass", ignore_index=255) == expected
    marked = np.where(KEEP[:, None], LABELS, 255).astype(np.uint8)
    assert loss(IMAGE, marked, ignore_index=255) == loss(IMAGE, LABELS, where=KEEP[:, None])


@each
def test_index_and_one_hot_targets_are_the_same(loss, oracle):
    one_hot = np.moveaxis(np.eye(4)[CLASSES], -1, 1)
    for target in (one_hot, one_hot.astype(int), one_hot.astype(bool)):
        chex.assert_trees_all_close(
            loss(IMAGE, target, mode="multiclass"), loss(IMAGE, CLASSES, mode="multiclass"), rtol=1e-13
        )


@each
@pytest.mark.parametrize("empty", ["smooth", "zero", "skip"])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_a_class_that_is_not_there(loss, oracle, empty, smooth):
    background = np.zeros_like(CLASSES)
    options = {"mode": "multiclass", "empty": empty, "smooth": smooth}
    expected = oracle(IMAGE, background, **options)
    got = loss(IMAGE, background, **options, reduction="sum_and_weight")
    chex.assert_trees_all_close(got, tuple(a.sum() for a in expected), rtol=1e-12)
    grad = jax.grad(lambda x: loss(x, background, **options))(jnp.asarray(IMAGE))
    assert np.isfinite(grad).all()


@each
def test_two_empty_regions_agree(loss, oracle):
    far = jnp.full((2, 3), -jnp.inf)
    with jax.debug_nans(True):
        value, grad = jax.value_and_grad(lambda x: loss(x, jnp.zeros((2, 3)), smooth=0))(far)
    assert value == 0
    assert (grad == 0).all()


@each
def test_nothing_left_to_average(loss, oracle):
    for where, empty in ((False, "smooth"), (True, "skip")):
        value, grad = value_and_grad(loss, jnp.ones((2, 3)), jnp.zeros((2, 3)), where=where, empty=empty)
        assert np.isnan(value)
        assert (grad == 0).all()


@each
def test_classes_and_weights(loss, oracle):
    weight = np.array([0.5, 1.0, 2.0, 4.0])
    for options in (
        {"classes": range(1, 4)},
        {"classes": (2,)},
        {"weight": weight},
        {"weight": weight, "classes": [1, 3]},
    ):
        unreduced, share = oracle(IMAGE, CLASSES, mode="multiclass", **options)
        got = loss(IMAGE, CLASSES, mode="multiclass", **options)
        np.testing.assert_allclose(got, unreduced.sum() / share.sum(), rtol=1e-12)


def test_classes_last():
    chex.assert_trees_all_close(
        jaxloss.dice_loss(np.moveaxis(IMAGE, 1, -1), CLASSES, mode="multiclass", axis=-1),
        jaxloss.dice_loss(IMAGE, CLASSES, mode="multiclass"),
        rtol=1e-13,
    )


def test_a_class_that_does_not_exist_is_nan():
    bad = CLASSES.copy()
    bad[0, 0, 0] = 4
    rows = jaxloss.dice_loss(IMAGE, bad, mode="multiclass", per_sample=True, reduction="none")
    assert np.isnan(rows[0]).all()
    assert np.isfinite(rows[1:]).all()


def test_the_documents_dice_and_iou():
    # D1 and D2 flatten everything: 1 - (2 Σpt + s)/(Σp + Σt + s) and 1 - (I + s)/(Σp + Σt - I + s).
    p, t = 1 / (1 + np.exp(-IMAGE)), LABELS
    both = (p * t).sum()
    for s in (1e-6, 1.0):
        dice = 1 - (2 * both + s) / (p.sum() + t.sum() + s)
        np.testing.assert_allclose(jaxloss.dice_loss(IMAGE, t, smooth=s), dice, rtol=1e-12)
    iou = 1 - (both + 1) / (p.sum() + t.sum() - both + 1)
    np.testing.assert_allclose(jaxloss.iou_loss(IMAGE, t), iou, rtol=1e-12)


def test_optax_smooths_with_half():
    optax = pytest.importorskip("optax", minversion="0.2.8")
    x, t = jnp.asarray(IMAGE.reshape(3, -1)), jnp.asarray(LABELS.reshape(3, -1))
    theirs = optax.losses.binary_dice_loss(x, t, smooth=0.5)
    ours = jaxloss.dice_loss(x, t, smooth=1.0, per_sample=True)
    np.testing.assert_allclose(ours, jnp.mean(theirs), rtol=1e-10)


@pytest.mark.without_x64
def test_half_precision_sums_do_not_overflow():
    x = jnp.full((512, 512), 10.0, jnp.float16)
    assert jaxloss.dice_loss(x, jnp.ones((512, 512), jnp.float16)) < 1e-3


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("`mode`", {"mode": "multi"}),
        ("`empty`", {"empty": "ignore"}),
        ("`smooth`", {"smooth": -1}),
        ("`alpha`", {"alpha": -1}),
        ("`classes`", {"classes": (1,)}),
        ("`weight`", {"weight": np.ones(4)}),
        ("`classes` must name", {"mode": "multilabel", "classes": (4,)}),
        ("one entry per class", {"mode": "multilabel", "weight": np.ones(3)}),
        ("`reduction`", {"reduction": "avg"}),
        ("`where`", {"where": np.ones((4, 5), bool)}),
    ],
)
def test_refused(words, options):
    with pytest.raises(ValueError, match=f"tversky_loss: {words}|tversky_loss: .*{words}"):
        jaxloss.tversky_loss(IMAGE, LABELS, **options)


@pytest.mark.parametrize("loss", [jaxloss.dice_loss, jaxloss.tversky_loss, jaxloss.generalized_dice_loss])
def test_complex_targets_are_refused(loss):
    with pytest.raises(TypeError, match="`target` must be real numbers, got complex64"):
        loss(IMAGE, jnp.ones(IMAGE.shape, jnp.complex64), mode="multilabel")


def test_per_sample_needs_samples():
    with pytest.raises(ValueError, match="samples on the first axis"):
        jaxloss.dice_loss(IMAGE, np.ones((4, 5, 2), int), mode="multiclass", axis=0, per_sample=True)
