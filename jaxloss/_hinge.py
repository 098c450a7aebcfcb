"""Losses of linear classifiers: hinge, squared hinge and perceptron, for two classes and for many."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _labels
from ._devices import alone
from ._numerics import again, are_few, at_least_float32, compiled_once, one_hot, pick, positive_part, upcast
from ._reduce import are_many, reduce
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
    return _multiclass("multiclass_perceptron_loss", input, target, 0.0, 1, axis, where, reduction)


def _multiclass(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    margin: Number,
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
    margin = _check.number(name, "margin", margin, at_least_float32(x.dtype))
    best, _ = _best_other(x, right, axis, False)
    excess = positive_part(margin + _apart(best, upcast(jnp.squeeze(pick(x, right, axis), axis))))
    return reduce(name, _labels.spoiled(jnp.ones_like(excess), index) * _power(excess, p), reduction, keep)


@jax.custom_jvp
def _apart(a: Array, b: Array) -> Array:
    """a - b, and 0 for equal infinities, with the derivatives of a difference."""
    return jnp.where(a == b, 0, a - b)


@_apart.defjvp
def _apart_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return _apart(*primals), tangents[0] - tangents[1]


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
@compiled_once(2, 3)
def _best_other(x: Array, right: Array, axis: int, counted: bool) -> tuple[Array, Array]:
    """The highest score of another class, -inf if there is none, and if they are to be `counted` how many have it."""
    others = jnp.where(one_hot(right, x, axis), -jnp.inf, upcast(x))
    parts = _parts(others, axis)

    def simply(x: Array) -> tuple[Array, Array]:
        best = _highest(x, axis)
        return best, jnp.sum(x == jnp.expand_dims(best, axis), axis, dtype=best.dtype) if counted else best

    def by_parts(x: Array) -> tuple[Array, Array]:
        return _best_of_parts(x.reshape(*x.shape[:axis], parts, -1, *x.shape[axis + 1 :]), axis, counted)

    def at_once(x: Array) -> tuple[Array, Array]:
        return _at_once(x, axis, counted)

    if not alone():
        return simply(others)
    if are_few(x, axis):
        return at_once(others)
    on_cpu = by_parts if parts > 1 and are_many(others) else simply
    found: tuple[Array, Array] = lax.platform_dependent(others, cpu=on_cpu, default=at_once)
    return found


@_best_other.defjvp
def _best_other_jvp(
    axis: int, counted: bool, primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # Classes that tie share the slope.
    best, ties = _best_other(*primals, axis, True)
    x, top, each = again(primals[0], lax.stop_gradient(best), jnp.where(best == -jnp.inf, 0, 1 / ties))
    is_best = (upcast(x) >= jnp.expand_dims(top, axis)) & ~one_hot(primals[1], x, axis)
    share = lax.stop_gradient(jnp.where(is_best, jnp.expand_dims(each, axis), 0))
    return (best, ties), (jnp.sum(share * tangents[0], axis), jnp.zeros_like(ties))


def _highest(x: Array, axis: int) -> Array:
    """The highest score, and NaN where one is: the maxima of a CPU's fast pass leave it out, sums do not."""
    return jnp.max(x, axis) + 0 * jnp.sum(1 / (1 + jnp.abs(x)), axis)  # finite for infinite scores


def _parts(x: Array, axis: int) -> int:
    """In how many parts the classes fall, of which a CPU compares all the first, then all the second scores at once."""
    classes, after = x.shape[axis], math.prod(x.shape[axis + 1 :])
    return next((parts for parts in range(8, 1, -1) if classes % parts == 0 and classes * after >= 32 * parts), 1)


def _best_of_parts(x: Array, axis: int, counted: bool) -> tuple[Array, Array]:
    """The highest of the scores on `axis` and the next one, and how many there are, found in one loop over them."""
    found, ties = _at_once(x, axis, counted)
    best = _highest(found, axis)
    return best, jnp.sum(jnp.where(found == jnp.expand_dims(best, axis), ties, 0), axis) if counted else best


def _at_once(x: Array, axis: int, counted: bool) -> tuple[Array, Array]:
    """The highest of the scores on `axis`, and how many there are, as one reduction."""

    def higher(a: list[Array], b: list[Array]) -> list[Array]:
        first = (a[0] > b[0]) | jnp.isnan(a[0])
        best = jnp.where(first, a[0], b[0])
        return [best, jnp.where(a[0] == b[0], a[1] + b[1], jnp.where(first, a[1], b[1]))] if counted else [best]

    each, none = ([x, jnp.ones_like(x)], [-np.inf, 0]) if counted else ([x], [-np.inf])
    found = lax.reduce(each, [np.array(number, x.dtype) for number in none], higher, (axis,))
    return found[0], found[-1]
