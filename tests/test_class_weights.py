"""Weights for imbalanced classes, against scikit-learn and the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

import jaxloss
from jaxloss import class_weights

LABELS = np.array([0, 0, 0, 1, 2, 2, 0, 2, 2, 2, 2])
ALL = [class_weights.inverse_frequency, class_weights.balanced, class_weights.effective_number]


def test_balanced_is_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)
    np.testing.assert_allclose(class_weights.balanced(labels=LABELS, num_classes=3), expected, rtol=1e-6)
    np.testing.assert_allclose(class_weights.balanced(np.bincount(LABELS)), expected, rtol=1e-6)


def test_inverse_frequency_is_the_documents():
    # D1-cw: 1/count, scaled to sum to the number of classes.
    np.testing.assert_allclose(
        class_weights.inverse_frequency([1000, 100, 50]), [0.096774, 0.967742, 1.935484], rtol=2e-6
    )


def test_effective_number_is_the_papers():
    counts, beta = np.array([5000.0, 30.0, 1.0]), 0.999
    by_hand = (1 - beta) / (1 - beta**counts)
    np.testing.assert_allclose(class_weights.effective_number(counts), 3 * by_hand / by_hand.sum(), rtol=1e-10)
    np.testing.assert_allclose(class_weights.effective_number(counts, beta=0), 1, rtol=1e-10)
    near = class_weights.effective_number(counts, beta=1 - 1e-10)
    np.testing.assert_allclose(near, class_weights.inverse_frequency(counts), rtol=1e-4)


@pytest.mark.parametrize("function", ALL)
def test_labels_or_counts_jitted_or_not(function):
    from_counts = function(jnp.array([4.0, 1.0, 0.0, 6.0]))
    labels = jnp.array([[0, 0, 0, 1, 3, 3, -100], [0, 3, 3, 3, 3, 77, -1]])
    from_labels = jax.jit(lambda y: function(labels=y, num_classes=4))(labels)
    np.testing.assert_allclose(from_labels, from_counts, rtol=1e-6)
    assert from_counts[2] == 0, "a class that never occurs"
    assert np.isfinite(from_counts).all()
    assert (np.asarray(function(jnp.zeros(3))) == 0).all()


@pytest.mark.parametrize("function", [class_weights.inverse_frequency, class_weights.effective_number])
def test_weights_sum_to_the_number_of_classes(function):
    np.testing.assert_allclose(jnp.sum(function([7, 1, 0, 100])), 4, rtol=1e-6)


def test_balanced_weights_make_classes_count_the_same():
    weight = class_weights.balanced(labels=LABELS, num_classes=3)
    total = np.zeros(3)
    np.add.at(total, LABELS, np.asarray(weight)[LABELS])
    np.testing.assert_allclose(total, len(LABELS) / 3, rtol=1e-6)


def test_pos_weight():
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 1]])
    for given in (labels, labels.astype(bool), labels.astype(float)):
        np.testing.assert_allclose(class_weights.pos_weight(labels=given), [3, 4, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(class_weights.pos_weight([1, 0, 3], total=4), [3, 4, 1 / 3], rtol=1e-6)
    loss = jaxloss.binary_cross_entropy_with_logits(
        jnp.zeros((4, 3)), jnp.asarray(labels, float), pos_weight=class_weights.pos_weight(labels=labels)
    )
    assert np.isfinite(loss)


@pytest.mark.without_x64
def test_int64_labels_without_x64():
    counts = class_weights.balanced(labels=np.array([2**32 + 1, 1, 0], np.int64), num_classes=2)
    np.testing.assert_allclose(counts, [1, 1])


@pytest.mark.parametrize(
    ("error", "words", "call"),
    [
        (ValueError, "give either", lambda: class_weights.balanced()),
        (ValueError, "give either", lambda: class_weights.balanced([1, 2], labels=[0, 1], num_classes=2)),
        (ValueError, "give either", lambda: class_weights.inverse_frequency(labels=[0, 1])),
        (ValueError, "give either", lambda: class_weights.pos_weight([1])),
        (ValueError, "axis of samples", lambda: class_weights.pos_weight(labels=1)),
        (ValueError, "vector", lambda: class_weights.balanced([[1, 2]])),
        (ValueError, "less than 1, got 1", lambda: class_weights.effective_number([1, 2], beta=1)),
        (TypeError, "integers", lambda: class_weights.balanced(labels=[0.5], num_classes=2)),
        (TypeError, "`num_classes`", lambda: class_weights.balanced(labels=[0], num_classes=2.0)),
    ],
)
def test_refused(error, words, call):
    with pytest.raises(error, match=words):
        call()
