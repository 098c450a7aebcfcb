"""Weights for imbalanced classes, to pass to a loss as `weight`, `alpha` or `pos_weight`.

Each function takes how often every class occurs, or the labels themselves. A class that never occurs gets weight 0: no
target can ask for it, and it would otherwise take its share of the others' weight.
"""

import jax.numpy as jnp

from . import _check, _labels
from ._numerics import reciprocal
from ._types import Array, ArrayLike, Number


def inverse_frequency(
    counts: ArrayLike | None = None, *, labels: ArrayLike | None = None, num_classes: int | None = None
) -> Array:
    r"""Weights proportional to 1 / count that sum to the number of classes.

    $$w_c = C \, \frac{1 / n_c}{\sum_k 1 / n_k}$$

    Args:
        counts: How often each class occurs, n, (C,); real numbers, at least 0.
        labels: In place of `counts`: class indices of any integer dtype and shape. Those outside [0, C), such as
            -100, are not counted.
        num_classes: With `labels`, the number of classes C. Static.

    Returns:
        Weights (C,), float32 or float64; 0 for a class that never occurs.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If not exactly one of `counts` and `labels` is given, or `counts` is no vector.

    Example:
        >>> import jaxloss
        >>> jaxloss.class_weights.inverse_frequency([1000, 100, 50]).tolist()
        [0.09677, 0.96774, 1.93548]

    References:
        King and Zeng (2001), "Logistic Regression in Rare Events Data".
    """
    n = _counts("inverse_frequency", counts, labels, num_classes)
    return _normalised(reciprocal(n))


def balanced(
    counts: ArrayLike | None = None, *, labels: ArrayLike | None = None, num_classes: int | None = None
) -> Array:
    r"""Weights under which every class counts the same in total, scikit-learn's "balanced".

    $$w_c = \frac{\sum_k n_k}{C \, n_c}$$

    Args:
        counts: How often each class occurs, n, (C,); real numbers, at least 0.
        labels: In place of `counts`: class indices of any integer dtype and shape. Those outside [0, C), such as
            -100, are not counted.
        num_classes: With `labels`, the number of classes C. Static.

    Returns:
        Weights (C,), float32 or float64; 0 for a class that never occurs.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If not exactly one of `counts` and `labels` is given, or `counts` is no vector.

    Example:
        >>> import jaxloss
        >>> jaxloss.class_weights.balanced(labels=[0, 0, 0, 1], num_classes=2).tolist()
        [0.6667, 2.0]

    References:
        https://scikit-learn.org/stable/modules/generated/sklearn.utils.class_weight.compute_class_weight.html
    """
    n = _counts("balanced", counts, labels, num_classes)
    return jnp.sum(n) / n.size * reciprocal(n)


def effective_number(
    counts: ArrayLike | None = None,
    *,
    beta: Number = 0.999,
    labels: ArrayLike | None = None,
    num_classes: int | None = None,
) -> Array:
    r"""Weights by the effective number of samples, which saturates as samples repeat each other; they sum to C.

    $$w_c \propto \frac{1 - \beta}{1 - \beta^{n_c}}$$

    Args:
        counts: How often each class occurs, n, (C,); real numbers, at least 0.
        beta: In [0, 1): 0 weighs all classes alike, towards 1 it becomes `inverse_frequency`. A number or a 0-d
            array.
        labels: In place of `counts`: class indices of any integer dtype and shape. Those outside [0, C), such as
            -100, are not counted.
        num_classes: With `labels`, the number of classes C. Static.

    Returns:
        Weights (C,), float32 or float64; 0 for a class that never occurs.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If `beta` is a Python number outside [0, 1), not exactly one of `counts` and `labels` is given, or
            `counts` is no vector.

    Example:
        >>> import jaxloss
        >>> jaxloss.class_weights.effective_number([1000, 10], beta=0.99).tolist()
        [0.1746, 1.8254]

    References:
        Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of Samples",
        https://arxiv.org/abs/1901.05555
    """
    n = _counts("effective_number", counts, labels, num_classes)
    beta = _check.number("effective_number", "beta", beta, n.dtype, low=0, high=1, below=True)
    return _normalised(reciprocal(-jnp.expm1(n * jnp.log(beta))))


def pos_weight(
    counts: ArrayLike | None = None, *, total: Number | None = None, labels: ArrayLike | None = None
) -> Array:
    r"""Negatives per positive of each label, for `binary_cross_entropy_with_logits(pos_weight=...)`.

    $$w = \frac{N - n}{\max(n, 1)}$$

    Args:
        counts: How often each label is positive, n; real numbers of any shape.
        total: With `counts`, the number of samples N.
        labels: In place of both: 0 or 1 (or booleans) with samples on the first axis, (N, ...).

    Returns:
        Weights in the shape of `counts`, or of one sample; float32 or float64.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If not either `counts` and `total` or `labels` are given, or `labels` has no axis of samples.

    Example:
        >>> import jaxloss
        >>> jaxloss.class_weights.pos_weight(labels=[[1, 0], [0, 0], [0, 1], [0, 1]])
        Array([3., 1.], dtype=float32)

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    name = "pos_weight"
    if counts is not None and total is not None and labels is None:
        n = _check.promoted(name, ("counts",), counts=counts)[0]
        size = jnp.asarray(total, n.dtype)
    elif labels is not None and counts is None and total is None:
        y = _check.array(name, "labels", labels)
        if y.ndim == 0:
            raise ValueError(f"{name}: `labels` must have an axis of samples, got a scalar.")
        n, size = jnp.sum(y, 0, dtype=jnp.float32), jnp.asarray(y.shape[0], jnp.float32)
    else:
        raise ValueError(f"{name}: give either `counts` and `total`, or `labels`.")
    return (size - n) / jnp.maximum(n, 1)


def _counts(name: str, counts: ArrayLike | None, labels: ArrayLike | None, num_classes: int | None) -> Array:
    if counts is not None and labels is None and num_classes is None:
        n = _check.promoted(name, ("counts",), counts=counts)[0]
        if n.ndim != 1:
            raise ValueError(f"{name}: `counts` must be a vector, one entry for each class, got shape {n.shape}.")
        return n
    if counts is None and labels is not None and num_classes is not None:
        size = _check.integer(name, "num_classes", num_classes)
        index = _labels.narrowed(_labels.indices(name, "labels", labels), size).ravel()
        known = jnp.where(index < 0, size, index)  # -1 would count for the last class
        return jnp.zeros(size, jnp.int32).at[known].add(1, mode="drop").astype(jnp.float32)
    raise ValueError(f"{name}: give either `counts`, or `labels` and `num_classes`.")


def _normalised(rarity: Array) -> Array:
    """Scaled to sum to the number of classes."""
    total = jnp.sum(rarity)
    return rarity.size * rarity / jnp.where(total > 0, total, 1)
