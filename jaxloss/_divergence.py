"""Divergences between distributions over classes, and distillation, which is made of them."""

from functools import partial
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from . import _check, _labels
from ._numerics import added_in_loop, afresh, change, log, log_sum, shift, sum_of_rows, times
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
    total = added_in_loop(_generalized_kl_of, axis, x, t, few=15)
    return reduce(name, jnp.squeeze(total, axis), reduction, keep)


def _generalized_kl_of(first: int, x: Array, t: Array) -> Array:
    kl: Array = _generalized_kl(x, t)
    return kl


@jax.custom_jvp
def _generalized_kl(x: Array, t: Array) -> Array:
    return times(t, jnp.maximum(jnp.log(t), np.finfo(t.dtype).min) - x) - t + jnp.exp(x)


@partial(_generalized_kl.defjvp, symbolic_zeros=True)
def _generalized_kl_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    # At t = 0 the slope of t, which is -∞, is that of the other terms.
    (dx, dt), (x, t) = tangents, afresh(*primals)
    nothing = t == 0
    of_t = jnp.log(jnp.where(nothing, 1, t)) - jnp.where(nothing & jnp.isinf(x), 0, x) - nothing
    value = _generalized_kl(*primals)
    return value, change(value, (jnp.exp(x) - t, dx), (of_t, dt))


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
    return reduce(name, _jensen_shannon(t, x, beta, axis, log_target), reduction, keep)


def _distributions(
    name: str, axis: int | None, where: ArrayLike | None, **values: ArrayLike
) -> tuple[list[Array], Array | None, int]:
    first = _check.floating(name, *next(iter(values.items())))
    return _check.rows(name, _labels.class_axis(name, axis, first), where, integers=(), **values)


def _kullback_leibler(log_p: Array, log_q: Array, p: Array | None = None) -> Array:
    """p log(p/q) for each class, 0 where p is."""
    p = jnp.exp(log_p) if p is None else p
    return times(p, jnp.maximum(log_p, np.finfo(log_p.dtype).min) - log_q)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _jensen_shannon(p: Array, log_q: Array, beta: Array, axis: int, log_target: bool) -> Array:
    """The divergence of each row, of probabilities p or, if `log_target`, their logarithms."""
    from_p, from_q = _from_mixture(p, log_q, beta, log_target)
    return sum_of_rows(beta * from_p + (1 - beta) * from_q, axis)


@partial(_jensen_shannon.defjvp, symbolic_zeros=True)
def _jensen_shannon_jvp(
    axis: int, log_target: bool, primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]
) -> tuple[Array, Array]:
    # What the mixture changes adds up to 0, so that each slope is a term of the sum: a CPU keeps them for both.
    (p, log_q, beta), (dp, dq, dbeta) = primals, tangents
    from_p, from_q = _from_mixture(p, log_q, beta, log_target)
    terms = beta * from_p + (1 - beta) * from_q
    p, log_q = afresh(p, log_q, shared_by_cpu=True)
    from_p, from_q = _from_mixture(p, log_q, beta, log_target)
    of_beta = from_p - from_q + jnp.exp(log_q) - (jnp.exp(p) if log_target else p)
    if not (log_target or isinstance(dp, SymbolicZero)):
        dp = jax.jvp(log, (p,), (dp,))[1]
    slope = change(terms, (beta * from_p, dp), ((1 - beta) * from_q, dq), (of_beta, dbeta))
    return sum_of_rows(terms, axis), jnp.sum(slope, axis)


def _from_mixture(p: Array, log_q: Array, beta: Array, log_target: bool) -> tuple[Array, Array]:
    log_p, p = (p, jnp.exp(p)) if log_target else (log(p), p)
    mixture = beta * p + (1 - beta) * jnp.exp(log_q)
    # Held where its reciprocal can be squared, in second derivatives. What lies below adds nothing to the sum.
    log_mixture = jnp.log(jnp.maximum(mixture, np.finfo(mixture.dtype).tiny ** 0.5))
    return _kullback_leibler(log_p, log_mixture, p), _kullback_leibler(log_q, log_mixture)


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
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    (x, z), dtype, keep, axis = _check.rows_as_given(name, axis, where, input=x, teacher=teacher)
    temperature = _check.number(name, "temperature", temperature, dtype, low=0, above=True)
    alpha = _check.number(name, "alpha", alpha, dtype, low=0, high=1)
    beta = jnp.asarray(_check.number(name, "beta", beta, dtype, low=0, high=1), dtype)
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    index, read = None, [z, x]
    if target is not None:
        index, keep = _labels.rows(name, target, x, axis, where, ignore_index)
        counted = jnp.expand_dims(keep, axis)
        # Widened once for both parts: the sum of their gradients is what is rounded.
        wide = _check.masked(x, counted).astype(dtype)
        read = [_check.masked(z, counted), wide]

    z_p, z_q = (_shifted(a, jnp.asarray(temperature, dtype), axis) for a in read)
    if divergence == "jensen_shannon":
        log_p, log_q = (z - log_sum(z, axis) for z in (z_p, z_q))
        apart = _jensen_shannon(log_p, log_q, beta, axis, True)
    else:
        order = (z_p, z_q) if divergence == "forward_kl" else (z_q, z_p)
        apart = _kullback_leibler_of_rows(*order, axis)
    loss = temperature * temperature * apart
    if index is not None:
        right = jnp.squeeze(surprise(x, jnp.expand_dims(index, axis), counted, axis, wide), axis)
        right = _labels.spoiled(jnp.ones_like(loss), index) * right
        share = jnp.broadcast_to(jnp.asarray(alpha, loss.dtype), loss.shape)
        loss = times(share, loss) + times(1 - share, right)
    return reduce(name, loss, reduction, keep)


def _shifted(x: Array, temperature: Array, axis: int) -> Array:
    """x / T less its maximum, shifted before it is divided; a class at -inf says nothing of the temperature."""
    return _divided(shift(x, axis)[0].astype(temperature.dtype), temperature)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kullback_leibler_of_rows(z_p: Array, z_q: Array, axis: int) -> Array:
    """KL(p, q) of each row, from logits that are shifted."""
    log_p, log_q = (z - log_sum(z, axis) for z in (z_p, z_q))
    return jnp.squeeze(added_in_loop(_kullback_leibler_of, axis, log_p, log_q, few=15), axis)


def _kullback_leibler_of(first: int, log_p: Array, log_q: Array) -> Array:
    return _kullback_leibler(log_p, log_q)


@partial(_kullback_leibler_of_rows.defjvp, symbolic_zeros=True)
def _kullback_leibler_of_rows_jvp(
    axis: int, primals: tuple[Array, Array], tangents: tuple[Any, Any]
) -> tuple[Array, Array]:
    # That p adds up to 1 is known: only the slope of p has to wait for a sum over the row.
    totals = [log_sum(z, axis) for z in primals]
    log_p, log_q = map(jnp.subtract, primals, totals)
    value = added_in_loop(_kullback_leibler_of, axis, log_p, log_q, few=15)
    log_p, log_q = map(jnp.subtract, afresh(*primals, shared_by_cpu=True), totals)
    (dp, dq), p = tangents, jnp.exp(log_p)
    surplus = jnp.maximum(log_p, np.finfo(p.dtype).min) - log_q
    of_p = 0 if isinstance(dp, SymbolicZero) else times(p, surplus - value)
    return jnp.squeeze(value, axis), jnp.sum(change(jnp.zeros_like(p), (of_p, dp), (jnp.exp(log_q) - p, dq)), axis)


@jax.custom_jvp
def _divided(z: Array, temperature: Array) -> Array:
    return z / temperature


@partial(_divided.defjvp, symbolic_zeros=True)
def _divided_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (z, temperature), (dz, dtemperature) = primals, tangents
    quotient = _divided(z, temperature)
    of_temperature = -jnp.where(jnp.isinf(z), 0, quotient) / temperature
    return quotient, change(quotient, (1 / temperature, dz), (of_temperature, dtemperature))
