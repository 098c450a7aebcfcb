"""More losses between real numbers: half squared, percentage, logarithmic, log-cosh, quantile and expectile."""

import math
import numbers
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from . import _check
from ._numerics import absolute, afresh, change, divide, log1p_in_loop, positive_part, twice_artanh
from ._reduce import are_thin, better_in_loop, reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def l2_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Half the squared error, whose derivative is the error.

    $$\ell = \tfrac12 (x - t)^2$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
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
        >>> jaxloss.l2_loss(jnp.array([1.0, 5.0]), jnp.array([1.0, 3.0]), reduction="none")
        Array([0., 2.], dtype=float32)

    Note:
        The name is optax's. torch has only the whole square, `mse_loss`.

    References:
        https://optax.readthedocs.io/en/latest/api/losses.html#optax.losses.l2_loss
    """
    x, t, keep = _check.pair("l2_loss", input, target, where, integer_target=True)
    in_loop = better_in_loop(keep, input, target)
    return reduce("l2_loss", jnp.square(x - t) / 2, reduction, keep, in_loop=in_loop)


def mean_absolute_percentage_error(
    input: ArrayLike,
    target: ArrayLike,
    *,
    eps: Number = 1e-7,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Absolute error in percent of the target.

    $$\ell = 100 \, \frac{|x - t|}{\max(|t|, \epsilon)}$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        eps: The least size of a target that an error is divided by. A number or a 0-d array.
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
        >>> jaxloss.mean_absolute_percentage_error(jnp.array([90.0, 5.0]), jnp.array([100.0, 4.0]), reduction="none")
        Array([10., 25.], dtype=float32)

    Note:
        torch has no such loss. As in Keras it is in percent; scikit-learn's is a fraction. The derivative at x = t
        is 0.

    References:
        https://keras.io/api/losses/regression_losses/
    """
    name = "mean_absolute_percentage_error"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    eps = _check.number(name, "eps", eps, x.dtype, low=0)
    size = _check.masked(jnp.maximum(absolute(t), eps), keep, harmless=1)
    return reduce(name, 100 * divide(absolute(x - t), size), reduction, keep, in_loop=True)


def mean_squared_logarithmic_error(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Squared difference of logarithms: an error counts in proportion to the size of what is predicted.

    $$\ell = \bigl(\log(1 + x) - \log(1 + t)\bigr)^2$$

    Args:
        input: Predictions x, greater than -1, floating point, any shape.
        target: Targets t, greater than -1, of the input's shape; floating point or integers.
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
        >>> jaxloss.mean_squared_logarithmic_error(jnp.array([0.0, 9.0]), jnp.array([1.0, 9.0]))
        Array(0.2402, dtype=float32)

    Note:
        torch has no such loss. A number below -1 gives NaN. Keras raises all numbers below 1e-7 to that, so that a
        negative prediction has no gradient there; here it has.

    References:
        https://keras.io/api/losses/regression_losses/
    """
    name = "mean_squared_logarithmic_error"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    in_loop = keep is not None or are_thin(x)
    return reduce(name, _squared_log_ratio(in_loop, x, t), reduction, keep, in_loop=in_loop)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _squared_log_ratio(in_loop: bool, x: Array, t: Array) -> Array:
    log = log1p_in_loop if in_loop else jnp.log1p
    return jnp.square(log(x) - log(t))


@partial(_squared_log_ratio.defjvp, symbolic_zeros=True)
def _squared_log_ratio_jvp(
    in_loop: bool, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    # Value and derivative share the difference, which is an array on a CPU: made by a loop, and read twice.
    (x, t), (dx, dt) = primals, tangents
    value = jnp.square(log1p_in_loop(x) - log1p_in_loop(t))
    x, t = afresh(x, t, shared_by_cpu=True)
    d = log1p_in_loop(x) - log1p_in_loop(t)
    return value, change(value, (divide(2 * d, 1 + x), dx), (-divide(2 * d, 1 + t), dt))


def log_cosh_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Half the squared error near zero, the absolute error far from it, smooth in between.

    $$\ell = \log \cosh (x - t)$$

    Args:
        input: Predictions x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
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
        >>> jaxloss.log_cosh_loss(jnp.array([0.0, 0.0]), jnp.array([0.001, 1000.0]), reduction="none")
        Array([5.e-07, 9.993e+02], dtype=float32)

    Note:
        torch has no such loss. It keeps its digits near 0, where |d| - log 2 + log(1 + e^(-2|d|)) would lose them,
        and never overflows.

    References:
        Chen et al. (2019), "Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder".
    """
    x, t, keep = _check.pair("log_cosh_loss", input, target, where, integer_target=True)
    return reduce("log_cosh_loss", _log_cosh(x - t), reduction, keep, in_loop=True)


@jax.custom_jvp
def _log_cosh(d: Array) -> Array:
    # With h = tanh(|d| / 2), log cosh d is 2·artanh(h²) and, as e^-|d| = (1 - h) / (1 + h) =: a / b, also
    # |d| - log 2 + log(1 + a²/b²): small where nothing cancels in it, and |d| where it is far.
    size = jnp.abs(d)
    far, h = size > 1.3, jnp.tanh(size / 2)
    a, b = jnp.square(1 - h), jnp.square(1 + h)
    return jnp.where(far, size - math.log(2), 0) + twice_artanh(jnp.where(far, a / (2 * b + a), h * h))


@_log_cosh.defjvp
def _log_cosh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _log_cosh(*primals), jnp.tanh(primals[0]) * tangents[0]


def quantile_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    quantile: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Pinball loss, which the quantile of a distribution minimises as the median does the absolute error.

    $$\ell = \max\bigl(q\,(t - x), \; (q - 1)\,(t - x)\bigr)$$

    Args:
        input: Predicted quantiles x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        quantile: q, between 0 and 1: one number, or several, broadcast against the trailing axes of the input,
            (Q,) for an input of (N, Q). They may be traced.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not fit, `quantile` is a Python number outside [0, 1], or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, t = jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 3.0]])  # one target for two quantiles
        >>> jaxloss.quantile_loss(x, t, quantile=jnp.array([0.1, 0.9]), reduction="none")
        Array([[0.2, 0.9]], dtype=float32)

    Note:
        torch has no such loss. With q = 0.5 it is half of `l1_loss`. The derivative at x = t is 0.

    References:
        Koenker and Bassett (1978), "Regression Quantiles".
    """
    name = "quantile_loss"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    q = _level(name, "quantile", quantile, x, keep)
    return reduce(name, _pinball(t - x, q), reduction, keep, in_loop=True)


@jax.custom_jvp
def _pinball(d: Array, q: Array) -> Array:
    return q * positive_part(d) + (1 - q) * positive_part(-d)


@partial(_pinball.defjvp, symbolic_zeros=True)
def _pinball_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (dd, dq), (d, q) = tangents, afresh(*primals)
    value = _pinball(*primals)
    return value, change(value, (jnp.where(d > 0, q, jnp.where(d < 0, q - 1, 0)), dd), (d, dq))


def expectile_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    expectile: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Squared error that weighs errors to one side more than to the other.

    $$\ell = \begin{cases} \tau\,(t - x)^2 & t \ge x \\ (1 - \tau)\,(t - x)^2 & t < x \end{cases}$$

    Args:
        input: Predicted expectiles x, floating point, any shape.
        target: Targets t, of the input's shape; floating point or integers.
        expectile: Tau, between 0 and 1: one number, or several, broadcast against the trailing axes of the input,
            (Q,) for an input of (N, Q). They may be traced.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not fit, `expectile` is a Python number outside [0, 1], or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, t = jnp.array([0.0, 0.0]), jnp.array([2.0, -2.0])
        >>> jaxloss.expectile_loss(x, t, expectile=0.75, reduction="none")
        Array([3., 1.], dtype=float32)

    Note:
        torch has no such loss. With tau = 0.5 it is half of `mse_loss`.

    References:
        Newey and Powell (1987), "Asymmetric Least Squares Estimation and Testing".
    """
    name = "expectile_loss"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    tau = _level(name, "expectile", expectile, x, keep)
    return reduce(name, _expectile(t - x, tau), reduction, keep, in_loop=True)


@jax.custom_jvp
def _expectile(d: Array, tau: Array) -> Array:
    return tau * jnp.square(positive_part(d)) + (1 - tau) * jnp.square(positive_part(-d))


@partial(_expectile.defjvp, symbolic_zeros=True)
def _expectile_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (dd, dtau), (d, tau) = tangents, afresh(*primals)
    value = _expectile(*primals)
    slope = 2 * jnp.where(d < 0, 1 - tau, tau) * d
    return value, change(value, (slope, dd), (jnp.sign(d) * jnp.square(d), dtau))


def _level(name: str, argument: str, value: ArrayLike, x: Array, keep: Array | None) -> Array:
    """One level between 0 and 1, or several along the trailing axes."""
    if isinstance(value, numbers.Real):
        return jnp.asarray(_check.number(name, argument, float(value), x.dtype, low=0, high=1), x.dtype)
    return _check.spread(name, argument, value, x, keep)
