"""Losses between real numbers: l1, mse, smooth_l1, huber, poisson_nll, gaussian_nll."""

import math
import numbers
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _check
from ._devices import broadcast_like
from ._numerics import absolute, afresh, again, change, clamp, divide, exp, positive_part, times, xlogy
from ._reduce import better_in_loop, reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Absolute error.

    $$\ell = w\,|x - t|$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        weight: Weight w of each entry, of the input's shape. The mean divides by its sum.
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
        >>> jaxloss.l1_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.5, 2.5, 3.5]))
        Array(0.5, dtype=float32)

    Note:
        The derivative at x = t is 0, as in torch. Nothing is broadcast, where torch warns and broadcasts.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.l1_loss.html
    """
    x, t, keep = _check.pair("l1_loss", input, target, where, integer_target=True)
    in_loop = better_in_loop(keep, input, target, weight=weight)
    return _weighted_mean("l1_loss", absolute(x - t), weight, keep, reduction, in_loop)


def mse_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Squared error.

    $$\ell = w\,(x - t)^2$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        weight: Weight w of each entry, of the input's shape. The mean divides by its sum; for mean(w·(x - t)²)
            divide `reduction="sum"` by the number of entries.
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
        >>> jaxloss.mse_loss(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.5, 2.5, 3.5]))
        Array(0.25, dtype=float32)

    Note:
        Nothing is broadcast, where torch warns and broadcasts.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html
    """
    x, t, keep = _check.pair("mse_loss", input, target, where, integer_target=True)
    in_loop = better_in_loop(keep, input, target, weight=weight)
    return _weighted_mean("mse_loss", jnp.square(x - t), weight, keep, reduction, in_loop)


def _weighted_mean(
    name: str, loss: Array, weight: ArrayLike | None, keep: Array | None, reduction: str, in_loop: bool
) -> Reduced:
    if weight is None:
        return reduce(name, loss, reduction, keep, in_loop=in_loop)
    w = _check.weight(name, weight, loss, keep)
    return reduce(name, times(w, loss), reduction, keep, share=w, in_loop=in_loop)


def smooth_l1_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    beta: Number = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Squared error near zero, absolute error far from it.

    $$\ell = \begin{cases} d^2 / 2\beta & |d| < \beta \\ |d| - \beta/2 & \text{otherwise} \end{cases}
    \qquad d = x - t$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        beta: Where the two pieces meet, at least 0, in the units of the input. 0 gives `l1_loss`. A number or a
            0-d array, which may be traced and learned.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ, `beta` is a negative Python number, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.smooth_l1_loss(jnp.array([0.0, 0.0]), jnp.array([0.5, 3.0]), reduction="none")
        Array([0.125, 2.5  ], dtype=float32)

    Note:
        Equals `huber_loss(..., delta=beta) / beta`. Nothing is broadcast, where torch warns and broadcasts.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.smooth_l1_loss.html
    """
    x, t, keep = _check.pair("smooth_l1_loss", input, target, where, integer_target=True)
    beta = _check.number("smooth_l1_loss", "beta", beta, x.dtype, low=0)
    return reduce("smooth_l1_loss", _smooth_l1(x - t, jnp.asarray(beta, x.dtype)), reduction, keep, in_loop=True)


@jax.custom_jvp
def _smooth_l1(d: Array, beta: Array) -> Array:
    size = jnp.abs(d)
    near = jnp.minimum(size, beta)
    return (size - near) + near * (near / (2 * _above_zero(beta)))


@partial(_smooth_l1.defjvp, symbolic_zeros=True)
def _smooth_l1_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    # Of d it is d / β, and sign d outside; of β it is half the square of that, negative.
    (dd, dbeta), (d, width) = tangents, afresh(*primals)
    near = jnp.abs(d) < width
    inner = divide(jnp.where(near, d, 0), broadcast_like(_above_zero(width), d))
    slope = jnp.where(near, inner, jnp.sign(d))
    value = _smooth_l1(*primals)
    return value, change(value, (slope, dd), (-slope * slope / 2, dbeta))


def _above_zero(width: Array) -> Array:
    return jnp.maximum(width, np.finfo(width.dtype).tiny)


def huber_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    delta: Number = 1.0,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Squared error near zero, absolute error scaled by delta far from it.

    $$\ell = w \begin{cases} d^2 / 2 & |d| \le \delta \\ \delta\,(|d| - \delta/2) & \text{otherwise} \end{cases}
    \qquad d = x - t$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        delta: Where the two pieces meet, greater than 0, in the units of the input. A number or a 0-d array,
            which may be traced and learned.
        weight: Weight w of each entry, of the input's shape. As in torch, and unlike `mse_loss`, the mean
            divides by the number of entries.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ, `delta` is a Python number not above 0, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.huber_loss(jnp.array([0.0, 0.0]), jnp.array([0.5, 3.0]), delta=2.0, reduction="none")
        Array([0.125, 4.   ], dtype=float32)

    Note:
        Nothing is broadcast, where torch warns and broadcasts.

    References:
        Huber (1964), "Robust Estimation of a Location Parameter".
        https://pytorch.org/docs/stable/generated/torch.nn.functional.huber_loss.html
    """
    x, t, keep = _check.pair("huber_loss", input, target, where, integer_target=True)
    delta = _check.number("huber_loss", "delta", delta, x.dtype, low=0, above=True)
    loss = _huber(x - t, jnp.asarray(delta, x.dtype))
    if weight is not None:
        loss = times(_check.weight("huber_loss", weight, loss, keep), loss)
    return reduce("huber_loss", loss, reduction, keep, in_loop=True)


@jax.custom_jvp
def _huber(d: Array, delta: Array) -> Array:
    size = jnp.abs(d)
    near = jnp.minimum(size, delta)
    return near * (size - near / 2)


@partial(_huber.defjvp, symbolic_zeros=True)
def _huber_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (dd, ddelta), (d, delta) = tangents, afresh(*primals)
    value = _huber(*primals)
    return value, change(value, (clamp(d, delta), dd), (positive_part(absolute(d) - delta), ddelta))


def poisson_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: Number = 1e-8,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Negative log-likelihood of counts under a Poisson distribution.

    $$\ell = \begin{cases} e^x - t\,x & \text{log\_input} \\ x - t \log(x + \epsilon) & \text{otherwise} \end{cases}
    \quad \left[\; + \; t \log t - t + \tfrac12 \log 2 \pi t \;\text{ if full and } t > 1 \right]$$

    Args:
        input: Logarithm of the expected count, or with `log_input=False` the expected count itself, at least 0;
            floating point, any shape.
        target: Observed counts t, of the input's shape; floating point or integers.
        log_input: Whether `input` is a logarithm.
        full: Whether to add Stirling's approximation of log t!, where t > 1.
        eps: Added to the expected count inside the logarithm if not `log_input`. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `log_input` or `full` is not a bool.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.poisson_nll_loss(jnp.array([0.5, 1.0]), jnp.array([1.0, 2.0]))
        Array(0.9335, dtype=float32)

    Note:
        A count of 0 at a log-input of -inf costs 0; torch gives NaN. Nothing is broadcast.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.poisson_nll_loss.html
    """
    name = "poisson_nll_loss"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    _check.flag(name, "log_input", log_input)
    _check.flag(name, "full", full)
    eps = _check.number(name, "eps", eps, x.dtype)
    loss = exp(x) - times(t, x) if log_input else x - xlogy(t, x + eps)
    if full:
        many = jnp.where(t > 1, t, 1)
        stirling = many * jnp.log(many) - many + 0.5 * jnp.log(2 * math.pi * many)
        loss = loss + jnp.where(t > 1, stirling, 0)
    return reduce(name, loss, reduction, keep, in_loop=True)


def gaussian_nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    var: ArrayLike,
    *,
    full: bool = False,
    eps: Number = 1e-6,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Negative log-likelihood under a normal distribution whose variance is predicted too.

    $$\ell = \tfrac12 \left( \log v + \frac{(x - t)^2}{v} \right) \; \left[ + \tfrac12 \log 2\pi \text{ if full}
    \right], \qquad v = \max(\text{var}, \epsilon)$$

    Args:
        input: Predicted means x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        var: Variances in squared units of the input: one number, the input's shape, the input's shape without
            its last axis, or with size 1 on one axis.
        full: Whether to add the constant ½·log 2π.
        eps: The least variance. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `full` is not a bool.
        ValueError: If the shapes do not fit, `var` is a negative Python number, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, t, v = jnp.array([0.0, 0.0]), jnp.array([1.0, 3.0]), jnp.array([2.0, 4.0])
        >>> jaxloss.gaussian_nll_loss(x, t, v, reduction="none")
        Array([0.5966, 1.818], dtype=float32)

    Note:
        As in torch, the gradient passes straight through the clamp: below eps it is that of the clamped value,
        and can be huge; predict a log-variance or apply softplus. torch raises for a negative variance; where it
        is known only at run time, the loss and its gradient are NaN here.

    References:
        Nix and Weigend (1994), "Estimating the mean and variance of the target probability distribution".
        https://pytorch.org/docs/stable/generated/torch.nn.functional.gaussian_nll_loss.html
    """
    name = "gaussian_nll_loss"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    _check.flag(name, "full", full)
    eps = _check.number(name, "eps", eps, x.dtype)
    v = _variance(name, var, x, keep)
    v = _held(v, jnp.asarray(eps, v.dtype))
    loss = _gaussian(x - t, v)
    if full:
        loss = loss + 0.5 * math.log(2 * math.pi)
    return reduce(name, loss, reduction, keep, in_loop=True)


@jax.custom_jvp
def _gaussian(d: Array, v: Array) -> Array:
    return 0.5 * (jnp.log(v) + d * (d / v))


@partial(_gaussian.defjvp, symbolic_zeros=True)
def _gaussian_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (dd, dv), (d, v) = tangents, afresh(*primals)
    d_, v_ = again(d, v)  # or a CPU would keep what the two slopes share
    of_variance = 0.5 * divide(1 - d_ * divide(d_, v_), v_)
    value = _gaussian(*primals)
    return value, change(value, (divide(d, v), dd), (of_variance, dv))


@jax.custom_jvp
def _held(v: Array, eps: Array) -> Array:
    """The variance, at least eps; NaN below 0, in the value and in the gradient."""
    return jnp.where(v < 0, jnp.nan, jnp.maximum(v, eps))


@partial(_held.defjvp, symbolic_zeros=True)
def _held_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    # Straight through: below eps the value is eps, the derivative that of v.
    (dv, deps), (v, eps) = tangents, afresh(*primals)
    value = _held(*primals)
    return value, change(value, (jnp.where(v < 0, jnp.nan, 1), dv), (jnp.where(v < eps, 1, 0), deps))


def _variance(name: str, var: ArrayLike, x: Array, keep: Array | None) -> Array:
    """`var` in the input's shape, 1 where masked."""
    if isinstance(var, numbers.Real):
        return jnp.full(x.shape, _check.number(name, "var", float(var), x.dtype, low=0), x.dtype)
    v = _check.real(name, "var", var)
    if v.shape != x.shape and v.shape == x.shape[:-1]:
        v = v[..., None]
    missing = [b for a, b in zip(x.shape, v.shape, strict=False) if a != b]
    if v.ndim and (v.ndim != x.ndim or missing not in ([], [1])):
        raise ValueError(
            f"{name}: `var` must be a number, or have the input's shape, or that without its last axis or with size 1 "
            f"on one axis; got {v.shape} for an input of shape {x.shape}."
        )
    return _check.masked(_check.widened_like(v, x), keep, harmless=1).astype(_check.at_least(v, x.dtype))
