"""Focal losses: cross entropy that turns away from what is already right."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _labels
from ._numerics import (
    afresh,
    at_least_float32,
    change,
    divide,
    log_sum,
    one_hot,
    shift,
    sigmoids,
    softplus_mix,
    times,
)
from ._reduce import reduce
from ._rows import surprise
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def _turned_away(miss: Array, gamma: Number, cost: Array) -> Array:
    """(1 - p)^γ · (-log p) from `miss`, log(1 - p), and `cost`, -log p.

    `miss` is formed from the logits: from p it would be log 0 where the prediction is confident, and (1 - p)^γ has an
    infinite derivative there for γ < 1. The floor is finite, so that γ = 0 gives exactly the cost and every derivative
    at p = 1 is 0. An infinite cost has 1 - p = 1, and its slope must not meet that infinity.
    """
    miss = jnp.where(jnp.isinf(cost), 0, jnp.maximum(miss, -1e30))
    return times(jnp.exp(gamma * miss), cost)


def softmax_focal_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    gamma: Number = 2.0,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Focal loss over classes of which one is right.

    $$\ell = -\sum_c \alpha_c\, q_c\, (1 - p_c)^\gamma \log p_c, \qquad p = \operatorname{softmax}(x)$$

    where q is 1 at the class of an index and 0 elsewhere, or given class probabilities. `gamma=0` is cross entropy.

    Args:
        input: Logits x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices of any integer dtype, in the input's shape without the class axis; or class
            probabilities q, floating point, in the input's shape.
        alpha: Weight: one number, or one for each class, (C,). It may be traced.
        gamma: How far to turn away from what is right, at least 0. A number or a 0-d array, which may be learned.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
            With class probabilities it means nothing, and one that is not negative is refused.
        axis: The class axis: by default 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            The mean divides by the number of rows that count, whatever `alpha` is.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A class index outside [0, C)
        makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `gamma` is a negative Python number, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.softmax_focal_loss(jnp.array([[0.0, 0.0]]), jnp.array([1]))
        Array(0.1733, dtype=float32)

    Note:
        Value and first and second derivatives are finite for every gamma, however confident the prediction.

    References:
        Lin et al. (2017), "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002
    """
    name = "softmax_focal_loss"
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    soft = _labels.probabilities(name, target, x, axis, ignore_index)
    dtype = at_least_float32(x.dtype, *([] if soft is None else [soft.dtype]))
    gamma = _check.number(name, "gamma", gamma, dtype, low=0)
    a = _check.real(name, "alpha", alpha).astype(dtype)
    if a.ndim:
        a = _labels.per_class(name, a, x.shape[axis], dtype, argument="alpha")

    if soft is None:
        index, keep = _labels.rows(name, target, x, axis, where, ignore_index)
        nll = jnp.squeeze(surprise(x, jnp.expand_dims(index, axis), jnp.expand_dims(keep, axis), axis), axis)
        # Held where its reciprocal can be squared; below that the loss is as good as 0.
        miss = jnp.log(-jnp.expm1(-jnp.maximum(nll, np.finfo(dtype).tiny ** 0.5)))
        loss = _turned_away(miss, gamma, nll)
        share = _labels.of_target(jnp.broadcast_to(a, x.shape[axis]), index, dtype)
        return reduce(name, times(_labels.spoiled(share, index), loss), reduction, keep)

    mask = _check.mask(name, where, _check.without(axis, x.shape))
    rows = None if mask is None else jnp.expand_dims(mask, axis)
    z, _ = shift(_check.masked(x, rows).astype(dtype), axis)
    log_total = log_sum(z, axis)
    # Only the likeliest class can be so likely that 1 - p loses its digits.
    top = one_hot(jnp.argmax(z, axis, keepdims=True), z, axis)
    rest = jnp.log1p(-jnp.exp(jnp.where(top, -1, z - log_total)))
    miss = jnp.where(top, _log_of_others(top, z, log_total, axis), rest)
    a = _labels.along(axis, x, a) if a.ndim else a
    loss = jnp.sum(times(a * _check.masked(soft, rows), _turned_away(miss, gamma, log_total - z)), axis)
    return reduce(name, loss, reduction, mask)


def _log_of_others(own: Array, z: Array, log_total: Array, axis: int) -> Array:
    """log(1 - p) of the class where `own` is True: the others' share of the whole."""
    others, top = shift(jnp.where(own, -jnp.inf, z), axis)
    return top + log_sum(others, axis) - log_total


def sigmoid_focal_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: Number = 2.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Focal loss between logits and yes or no, for one label or many.

    $$\ell = -\alpha_t\,(1 - p_t)^\gamma \bigl(t \log p + (1 - t) \log (1 - p)\bigr), \qquad
    p = \sigma(x), \quad p_t = t p + (1 - t)(1 - p), \quad \alpha_t = t \alpha + (1 - t)(1 - \alpha)$$

    Args:
        input: Logits x, floating point, any shape.
        target: Targets t in [0, 1], floating point, of the input's shape.
        alpha: Weight of yes against no, in [0, 1]: one number, or one for each label, broadcast against the
            trailing axes of the input. None weighs both alike, by 1. It may be traced.
        gamma: How far to turn away from what is right, at least 0. A number or a 0-d array, which may be learned.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            Detectors divide "sum" by the number of positives.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not fit, `gamma` is a negative Python number, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.sigmoid_focal_loss(jnp.array([0.0, 0.0]), jnp.array([1.0, 0.0]))
        Array(0.08664, dtype=float32)

    Note:
        alpha and gamma default to torchvision's values, the reduction to "mean", where torchvision has "none".
        Value and first and second derivatives are finite for every gamma, however confident the prediction.

    References:
        Lin et al. (2017), "Focal Loss for Dense Object Detection", https://arxiv.org/abs/1708.02002
        https://pytorch.org/vision/stable/generated/torchvision.ops.sigmoid_focal_loss.html
    """
    name = "sigmoid_focal_loss"
    x, t, keep = _check.pair(name, input, target, where)
    gamma = _check.number(name, "gamma", gamma, x.dtype, low=0)
    loss = _sigmoid_focal(x, t, jnp.asarray(gamma, x.dtype))
    if alpha is not None:
        a = _check.spread(name, "alpha", alpha, x, keep)
        loss = (t * a + (1 - t) * (1 - a)) * loss
    return reduce(name, loss, reduction, keep, in_loop=True)


# The chance to be wrong is m = 1 - p_t = t σ(-x) + (1 - t) σ(x), a sum of positive terms, and the loss m^γ c with the
# cross entropy c. Its derivatives are written with m' / m, which is at most 1: m^(γ-1) has no bound for γ < 1. Where m
# is held above 0, c is below what a float can hold.


@jax.custom_jvp
def _sigmoid_focal(x: Array, t: Array, gamma: Array) -> Array:
    yes, no = sigmoids(x)
    wrong = jnp.maximum(t * no + (1 - t) * yes, np.finfo(x.dtype).tiny)
    factor = wrong**gamma
    return factor * jnp.where(factor == 0, 0, softplus_mix(x, 1 - t, t))


@partial(_sigmoid_focal.defjvp, symbolic_zeros=True)
def _sigmoid_focal_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    (dx, dt, dgamma), (x, t, gamma) = tangents, afresh(*primals)
    yes, no = sigmoids(x)
    wrong = jnp.maximum(t * no + (1 - t) * yes, np.finfo(x.dtype).tiny)
    cost = softplus_mix(x, 1 - t, t)
    factor = wrong**gamma
    held = jnp.minimum(cost, np.finfo(x.dtype).max)  # infinite only where yes or no is 0
    of_x = gamma * divide((1 - 2 * t) * yes * no, wrong) * held + (1 - t) * yes - t * no
    of_t = gamma * times(divide(no - yes, wrong), cost) - x
    of_gamma = times(factor * jnp.log(wrong), cost)
    value = _sigmoid_focal(*primals)
    return value, change(value, (factor * of_x, dx), (factor * of_t, dt), (of_gamma, dgamma))
