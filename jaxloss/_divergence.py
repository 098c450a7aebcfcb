"""Divergences between distributions over classes, and distillation, which is made of them."""

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _labels
from ._numerics import again, change, log, log_sum, shift, times, xlogy
from ._reduce import reduce
from ._rows import surprise
from ._types import Array, ArrayLike, Number, Reduced, Reduction

Divergence: TypeAlias = Literal["forward_kl", "reverse_kl", "jensen_shannon"]


def generalized_kl_div(
    input: ArrayLike,
    target: ArrayLike,
    *,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Kullback-Leibler divergence of what need not sum to 1, from the logarithm of a prediction.

    $$\ell = \sum_c \bigl(t_c (\log t_c - x_c) - t_c + e^{x_c}\bigr)$$

    Args:
        input: Logarithms x of the predicted measure, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Measure t, at least 0, floating point, of the input's shape.
        axis: The class axis: by default 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.generalized_kl_div(jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 1.0]]))
        Array(0.3863, dtype=float32)

    Note:
        torch has no such loss. Unlike `kl_div` it sums over the classes, so that the mean is over rows. A target of
        0 at a log-input of -inf costs 0.

    References:
        Boyd and Vandenberghe (2004), "Convex Optimization", p. 90.
    """
    name = "generalized_kl_div"
    (x, t), keep, axis = _distributions(name, axis, where, input=input, target=target)
    return reduce(name, jnp.sum(xlogy(t, t) - times(t, x) - t + jnp.exp(x), axis), reduction, keep)


def js_div(
    input: ArrayLike,
    target: ArrayLike,
    *,
    beta: Number = 0.5,
    log_target: bool = False,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Jensen-Shannon divergence, symmetric for beta = 0.5 and generalised by it.

    $$\ell = \beta \sum_c t_c \log \frac{t_c}{m_c} + (1 - \beta) \sum_c q_c \log \frac{q_c}{m_c}, \qquad
    q = e^x, \quad m = \beta\,t + (1 - \beta)\,q$$

    Args:
        input: Logarithms x of the predicted probabilities, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Probabilities t, floating point, of the input's shape; their logarithms if `log_target`.
        beta: Share of the target in the mixture, between 0 and 1. A number or a 0-d array.
        log_target: Whether `target` holds logarithms.
        axis: The class axis: by default 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `log_target` is not a bool.
        ValueError: If the shapes differ, `beta` is a Python number outside [0, 1], or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.js_div(jnp.log(jnp.array([[0.5, 0.5]])), jnp.array([[1.0, 0.0]]))
        Array(0.2158, dtype=float32)

    Note:
        torch has no such loss. Unlike `kl_div` it sums over the classes, so that the mean is over rows. With beta
        near 0 it tends to beta times the forward divergence KL(t, q), with beta near 1 to 1 - beta times the reverse
        one. A class that neither distribution has costs 0.

    References:
        Lin (1991), "Divergence Measures Based on the Shannon Entropy"; for beta Agarwal et al. (2023), "On-Policy
        Distillation of Language Models", https://arxiv.org/abs/2306.13649
    """
    name = "js_div"
    (x, t), keep, axis = _distributions(name, axis, where, input=input, target=target)
    beta = jnp.asarray(_check.number(name, "beta", beta, x.dtype, low=0, high=1), x.dtype)
    _check.flag(name, "log_target", log_target)
    p, log_p = (jnp.exp(t), t) if log_target else (t, log(t))
    return reduce(name, jnp.sum(_jensen_shannon(p, log_p, x, beta), axis), reduction, keep)


def _distributions(
    name: str, axis: int | None, where: ArrayLike | None, **values: ArrayLike
) -> tuple[list[Array], Array | None, int]:
    first = _check.floating(name, *next(iter(values.items())))
    return _check.rows(name, _labels.class_axis(name, axis, first), where, integers=(), **values)


def _kullback_leibler(log_p: Array, log_q: Array) -> Array:
    """p log(p/q) for each class, 0 where p is."""
    return times(jnp.exp(log_p), jnp.maximum(log_p, np.finfo(log_p.dtype).min) - log_q)


@jax.custom_jvp
def _jensen_shannon(p: Array, log_p: Array, log_q: Array, beta: Array) -> Array:
    """Of each class, p log(p/m) and q log(q/m) mixed as p and q are in m. `p` is there to spare its exponential."""
    # Held where its reciprocal can be squared, in second derivatives. What lies below adds nothing to the sum.
    log_m = jnp.log(jnp.maximum(_mixture(p, log_q, beta), _least(p)))
    return beta * _kullback_leibler(log_p, log_m) + (1 - beta) * _kullback_leibler(log_q, log_m)


@partial(_jensen_shannon.defjvp, symbolic_zeros=True)
def _jensen_shannon_jvp(
    primals: tuple[Array, Array, Array, Array], tangents: tuple[Any, Any, Any, Any]
) -> tuple[Array, Array]:
    # What the mixture contributes adds up to -dm, which cancels what the factors p and q contribute.
    (_, dlog_p, dlog_q, dbeta), (p, log_p, log_q, beta) = tangents, again(*primals)
    # Selects and a bound of its own: constants that the value shares a CPU would spread out to arrays.
    m, least = _mixture(p, log_q, beta), 4 * _least(p)
    log_m = jnp.log(jnp.where(m > least, m, least))
    of_p, of_q = (jnp.exp(a) * (jnp.where(a == -jnp.inf, 0, a) - log_m) for a in (log_p, log_q))
    of_beta = of_p - of_q - p + jnp.exp(log_q)
    value = _jensen_shannon(*primals)
    return value, change(value, (beta * of_p, dlog_p), ((1 - beta) * of_q, dlog_q), (of_beta, dbeta))


def _mixture(p: Array, log_q: Array, beta: Array) -> Array:
    return beta * p + (1 - beta) * jnp.exp(log_q)


def _least(x: Array) -> float:
    return float(np.finfo(x.dtype).tiny ** 0.5)


def distillation_loss(
    input: ArrayLike,
    teacher: ArrayLike,
    target: ArrayLike | None = None,
    *,
    temperature: Number = 1.0,
    alpha: Number = 0.5,
    divergence: Divergence = "forward_kl",
    beta: Number = 0.5,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Teaches one network the softened predictions of another, beside the right class.

    $$\ell = \alpha\,T^2 D(p, q) + (1 - \alpha) \bigl(-\log \operatorname{softmax}(x)_y\bigr), \qquad
    p = \operatorname{softmax}(z / T), \quad q = \operatorname{softmax}(x / T)$$

    where D is KL(p, q) for "forward_kl", KL(q, p) for "reverse_kl", or for "jensen_shannon" the divergence of
    `js_div`. Without a target the loss is T² D alone.

    Args:
        input: The student's logits x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        teacher: The teacher's logits z, of the same shape.
        target: Class indices y of any integer dtype, in the input's shape without the class axis; or None.
        temperature: T, greater than 0, by which both logits are divided. A number or a 0-d array.
        alpha: Share of the teacher, between 0 and 1. A number or a 0-d array.
        divergence: "forward_kl", "reverse_kl" or "jensen_shannon".
        beta: Share of the teacher in the mixture of "jensen_shannon". A number or a 0-d array.
        ignore_index: Rows with this class index count neither in the sum nor in the mean, the teacher's part
            included. It may be any integer.
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
        ValueError: If a shape does not fit, a Python number is out of its range, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[2.0, 0.0]])
        >>> jaxloss.distillation_loss(student, teacher, jnp.array([0]), temperature=2.0)
        Array(0.5685, dtype=float32)

    Note:
        The teacher's gradient is the true one: wrap it in `jax.lax.stop_gradient` if it is computed in the same
        step. T² keeps the size of the gradient when T changes; some libraries leave it out. A class that is -inf in
        both costs 0.

    References:
        Hinton et al. (2015), "Distilling the Knowledge in a Neural Network", https://arxiv.org/abs/1503.02531
        Agarwal et al. (2023), "On-Policy Distillation of Language Models", https://arxiv.org/abs/2306.13649
    """
    name = "distillation_loss"
    _check.choice(name, "divergence", divergence, ("forward_kl", "reverse_kl", "jensen_shannon"))
    (x, z), keep, axis = _distributions(name, axis, where, input=input, teacher=teacher)
    temperature = _check.number(name, "temperature", temperature, x.dtype, low=0, above=True)
    alpha = _check.number(name, "alpha", alpha, x.dtype, low=0, high=1)
    beta = jnp.asarray(_check.number(name, "beta", beta, x.dtype, low=0, high=1), x.dtype)
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    index = None
    if target is not None:
        index, keep = _labels.rows(name, target, x, axis, where, ignore_index)
        counted = jnp.expand_dims(keep, axis)
        x, z = (_check.masked(a, counted) for a in (x, z))

    log_p, log_q = (_log_softmax(a, temperature, axis) for a in (z, x))
    if divergence == "jensen_shannon":
        terms = _jensen_shannon(jnp.exp(log_p), log_p, log_q, beta)
    else:
        terms = _kullback_leibler(*((log_p, log_q) if divergence == "forward_kl" else (log_q, log_p)))
    loss = temperature * temperature * jnp.sum(terms, axis)
    if index is not None:
        right = jnp.squeeze(surprise(x, jnp.expand_dims(index, axis), counted, axis), axis)
        right = _labels.spoiled(jnp.ones_like(loss), index) * right
        share = jnp.broadcast_to(jnp.asarray(alpha, loss.dtype), loss.shape)
        loss = times(share, loss) + times(1 - share, right)
    return reduce(name, loss, reduction, keep)


def _log_softmax(x: Array, temperature: Number, axis: int) -> Array:
    """That of x / T, shifted before it is divided; a class at -inf says nothing of the temperature."""
    z = _divided(shift(x, axis)[0], jnp.asarray(temperature, x.dtype))
    return z - log_sum(z, axis)


@jax.custom_jvp
def _divided(z: Array, temperature: Array) -> Array:
    return z / temperature


@partial(_divided.defjvp, symbolic_zeros=True)
def _divided_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (z, temperature), (dz, dtemperature) = primals, tangents
    quotient = _divided(z, temperature)
    of_temperature = -jnp.where(jnp.isinf(z), 0, quotient) / temperature
    return quotient, change(quotient, (1 / temperature, dz), (of_temperature, dtemperature))
