"""Losses of linear classifiers: hinge, squared hinge and perceptron, for two classes and for many."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _labels
from ._numerics import again, at_least_float32, one_hot, pick, positive_part, reread, upcast
from ._reduce import reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def hinge_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""The loss of a support vector machine: wants a score on the right side of zero, by a margin.

    $$\ell = \max(0, \; \text{margin} - y\,x)$$

    Args:
        input: Scores x, floating point, any shape.
        target: Labels y, 1 or -1, in the input's shape; floating point or integers.
        margin: By how much. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.hinge_loss(jnp.array([0.5, -2.0, 3.0]), jnp.array([1, 1, 1]), reduction="none")
        Array([0.5, 3. , 0. ], dtype=float32)

    Note:
        torch has no such loss; its `hinge_embedding_loss` is for distances. The full derivative passes where the
        margin is met exactly. Labels 0 and 1 are not converted, as Keras does: pass `2 * t - 1`.

    References:
        Cortes and Vapnik (1995), "Support-Vector Networks".
    """
    return _binary("hinge_loss", input, target, margin, 1, where, reduction)


def squared_hinge_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""The square of `hinge_loss`, which is differentiable where the margin is met.

    $$\ell = \max(0, \; \text{margin} - y\,x)^2$$

    Args:
        input: Scores x, floating point, any shape.
        target: Labels y, 1 or -1, in the input's shape; floating point or integers.
        margin: By how much. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.squared_hinge_loss(jnp.array([0.5, -2.0, 3.0]), jnp.array([1, 1, 1]), reduction="none")
        Array([0.25, 9.  , 0.  ], dtype=float32)

    Note:
        torch has no such loss. Labels 0 and 1 are not converted, as Keras does: pass `2 * t - 1`.

    References:
        Lee and Mangasarian (2001), "SSVM: A Smooth Support Vector Machine for Classification".
    """
    return _binary("squared_hinge_loss", input, target, margin, 2, where, reduction)


def perceptron_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants a score on the right side of zero; `hinge_loss` without a margin.

    $$\ell = \max(0, \; -y\,x)$$

    Args:
        input: Scores x, floating point, any shape.
        target: Labels y, 1 or -1, in the input's shape; floating point or integers.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.perceptron_loss(jnp.array([0.5, -2.0]), jnp.array([1, 1]), reduction="none")
        Array([0., 2.], dtype=float32)

    Note:
        torch has no such loss. A score of 0 has the full derivative -y, so that scores that start at 0 learn.

    References:
        Rosenblatt (1958), "The Perceptron: A Probabilistic Model for Information Storage and Organization in the
        Brain".
    """
    return _binary("perceptron_loss", input, target, 0.0, 1, where, reduction)


def _binary(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    margin: Number,
    p: int,
    where: ArrayLike | None,
    reduction: str,
) -> Reduced:
    x, y, keep = _check.pair(name, input, target, where, integer_target=True)
    margin = _check.number(name, "margin", margin, x.dtype)
    return reduce(name, _power(positive_part(margin - y * x), p), reduction, keep, in_loop=True)


def _power(excess: Array, p: int) -> Array:
    return excess if p == 1 else excess * excess


def multiclass_hinge_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    p: int = 1,
    margin: Number = 1.0,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants the score of the right class above the best of the others, by a margin.

    $$\ell = \max\bigl(0, \; \text{margin} - x_y + \max_{c \ne y} x_c\bigr)^p$$

    Args:
        input: Scores x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices y of any integer dtype, in the input's shape without the class axis.
        p: 1, or 2 for the squared form. Static.
        margin: By how much. A number or a 0-d array.
        axis: The class axis: by default 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A class index outside [0, C)
        makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `p` is neither 1 nor 2, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multiclass_hinge_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([3]))
        Array(0.6, dtype=float32)

    Note:
        torch's `multi_margin_loss` sums over all other classes instead and divides by their number. The full
        derivative passes where the margin is met exactly; classes that tie for the best share it.

    References:
        Crammer and Singer (2001), "On the Algorithmic Implementation of Multiclass Kernel-based Vector Machines".
    """
    if p not in (1, 2):
        raise ValueError(f"multiclass_hinge_loss: `p` must be 1 or 2, got {p!r}.")
    return _multiclass("multiclass_hinge_loss", input, target, margin, p, axis, where, reduction)


def multiclass_perceptron_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants the score of the right class to be the highest; `multiclass_hinge_loss` without a margin.

    $$\ell = \max_c x_c - x_y$$

    Args:
        input: Scores x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices y of any integer dtype, in the input's shape without the class axis.
        axis: The class axis: by default 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A class index outside [0, C)
        makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multiclass_perceptron_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([1]))
        Array(0.6, dtype=float32)

    Note:
        torch has no such loss. The right class, where it ties with the best other one, still has its full
        derivative, so that scores that start equal learn.

    References:
        Collins (2002), "Discriminative Training Methods for Hidden Markov Models: Theory and Experiments with
        Perceptron Algorithms".
    """
    return _multiclass("multiclass_perceptron_loss", input, target, None, 1, axis, where, reduction)


def _multiclass(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    margin: Number | None,
    p: int,
    axis: int | None,
    where: ArrayLike | None,
    reduction: str,
) -> Reduced:
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    index, keep = _labels.rows(name, target, x, axis, where)
    right, counted = jnp.expand_dims(index, axis), jnp.expand_dims(keep, axis)
    x = _check.masked(x, counted)
    if margin is None:
        return reduce(name, _lead(x, right, axis), reduction, keep)
    margin = _check.number(name, "margin", margin, at_least_float32(x.dtype))
    own = upcast(jnp.squeeze(pick(x, right, axis), axis))
    excess = positive_part(margin - own + _best_other(x, right, axis))
    return reduce(name, _labels.spoiled(jnp.ones_like(excess), index) * _power(excess, p), reduction, keep)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _best_other(x: Array, right: Array, axis: int) -> Array:
    """The highest score of another class, or -inf if there is none."""
    return _highest(jnp.where(one_hot(right, x, axis), -jnp.inf, x), axis)


@_best_other.defjvp
def _best_other_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    best = _best_other(*primals, axis)
    share, _ = _share_of_ties(*primals, jnp.expand_dims(best, axis), axis)
    return best, jnp.sum(share * tangents[0], axis)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _lead(x: Array, right: Array, axis: int) -> Array:
    """How far the highest score is above that of the right class, NaN without one."""
    own, top = upcast(jnp.squeeze(pick(x, right, axis), axis)), _highest(x, axis)
    return _labels.spoiled(jnp.where(own == top, 0, top - own), jnp.squeeze(right, axis))


@_lead.defjvp
def _lead_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    # The right class has a slope where another is above it or ties with it.
    (x, right), lead = primals, _lead(*primals, axis)
    share, others = _share_of_ties(x, right, upcast(jnp.max(lax.stop_gradient(x), axis, keepdims=True)), axis)
    behind = (jnp.expand_dims(lead, axis) > 0) | (others > 0)
    slope = jnp.where(one_hot(right, x, axis), -behind.astype(share.dtype), _labels.spoiled(share, right))
    return lead, jnp.sum(slope * tangents[0], axis)


def _highest(x: Array, axis: int) -> Array:
    """The highest score, and NaN where one is: the maxima of a CPU's fast pass leave it out, sums do not."""
    wide = upcast(reread(x))
    return upcast(jnp.max(x, axis)) + 0 * jnp.sum(1 / (1 + jnp.abs(wide)), axis)  # finite for infinite scores


def _share_of_ties(x: Array, right: Array, top: Array, axis: int) -> tuple[Array, Array]:
    """What share each class but the right one has in the highest score `top`, and how many have one: they tie.

    Both are constants to differentiation.
    """
    x, top = lax.stop_gradient((x, top))
    most = np.finfo(top.dtype).max
    top = jnp.clip(top, -most, most)
    # 1 for a score that is equal, 0 for another, without a comparison
    ties = jnp.sum(jnp.maximum(1 - jnp.abs(upcast(x) - top) * most, -0.0), axis, keepdims=True)
    others = ties - (pick(x, right, axis) == top)
    share = jnp.where(others > 1, 1 / others, 1)
    (top,) = again(top)
    return jnp.where((x >= top) & ~one_hot(right, x, axis), share, 0), others
