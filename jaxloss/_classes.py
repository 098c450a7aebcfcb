"""More losses over classes: poly, generalized cross entropy, sparsemax."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from . import _check, _labels
from ._devices import spread_like
from ._numerics import (
    again,
    at_least_float32,
    change,
    compiled_once,
    for_any,
    log_sum,
    pick_shifted,
    shift,
    sum_of_rows,
    sums,
    times,
    upcast,
)
from ._reduce import reduce
from ._rows import surprise
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def poly_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    *,
    epsilon: Number = 2.0,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Cross entropy whose expansion in powers of 1 - p has another first coefficient.

    $$\ell = \sum_c q_c \bigl(-\log p_c + \epsilon\,(1 - p_c)\bigr), \qquad p = \operatorname{softmax}(x)$$

    where q is 1 at the class of an index and 0 elsewhere, or given class probabilities. `epsilon=0` is cross entropy.

    Args:
        input: Logits x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices of any integer dtype, in the input's shape without the class axis; or class
            probabilities q, floating point, in the input's shape.
        epsilon: What is added to the first coefficient, at least -1. A number or a 0-d array.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
            With class probabilities it means nothing, and one that is not negative is refused.
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
        ValueError: If a shape does not fit, `epsilon` is a Python number below -1, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.poly_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]))
        Array(1.693, dtype=float32)

    Note:
        torch has no such loss. A class of probability 0 may have logit -inf.

    References:
        Leng et al. (2022), "PolyLoss", https://arxiv.org/abs/2204.12511
    """
    name = "poly_cross_entropy"
    rows = _rows(name, input, target, ignore_index, axis, where)
    epsilon = _check.number(name, "epsilon", epsilon, at_least_float32(rows.logits.dtype), low=-1)
    return reduce(name, _expected(lambda nll: nll - epsilon * jnp.expm1(-nll), rows), reduction, rows.keep)


def generalized_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    *,
    q: Number = 0.7,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Between cross entropy and mean absolute error: a bounded loss, which wrong labels do less harm.

    $$\ell = \sum_c t_c \, \frac{1 - p_c^q}{q}, \qquad p = \operatorname{softmax}(x)$$

    where t is 1 at the class of an index and 0 elsewhere, or given class probabilities. `q=0` is cross entropy, its
    limit.

    Args:
        input: Logits x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices of any integer dtype, in the input's shape without the class axis; or class
            probabilities t, floating point, in the input's shape.
        q: How far to go from cross entropy (0) to absolute error (1). A number or a 0-d array.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
            With class probabilities it means nothing, and one that is not negative is refused.
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
        ValueError: If a shape does not fit, `q` is a Python number outside [0, 1], or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.generalized_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]), q=0.5)
        Array(0.5858, dtype=float32)

    Note:
        torch has no such loss. It takes logits, where Keras takes probabilities, so that a small p^q keeps its
        digits. A right class of logit -inf costs 1/q.

    References:
        Zhang and Sabuncu (2018), "Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy
        Labels", https://arxiv.org/abs/1805.07836
    """
    name = "generalized_cross_entropy"
    rows = _rows(name, input, target, ignore_index, axis, where)
    dtype = at_least_float32(rows.logits.dtype)
    q = jnp.asarray(_check.number(name, "q", q, dtype, low=0, high=1), dtype)
    return reduce(name, _expected(lambda nll: _less_than_one(nll, q), rows), reduction, rows.keep)


@jax.custom_jvp
def _less_than_one(nll: Array, q: Array) -> Array:
    """(1 - p^q) / q for p = e^-nll."""
    never = jnp.isinf(nll)
    held = jnp.where(never, 0, nll)
    at_most = jnp.where(q == 0, jnp.inf, 1 / jnp.where(q == 0, 1, q))
    return jnp.where(never, at_most, held * _mean_exponential(-q * held))


@partial(_less_than_one.defjvp, symbolic_zeros=True)
def _less_than_one_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    # p^q is what the slopes of the product leave when they cancel, the last digits of a wrong row.
    (nll, q), (dnll, dq) = primals, tangents
    never = jnp.isinf(nll)
    slope = jnp.where(never, 0, jnp.exp(-q * jnp.where(never, 0, nll)))
    moved = change(nll, (slope, dnll))
    if not isinstance(dq, SymbolicZero):
        moved += jax.jvp(partial(_less_than_one.fun, nll), (q,), (dq,))[1]
    return _less_than_one(nll, q), moved


def _mean_exponential(x: Array) -> Array:
    """(e^x - 1) / x, and 1 at 0. Its derivative would cancel near 0, where the series has seven terms."""
    near = jnp.abs(x) < 0.05
    small, other = jnp.where(near, x, 0), jnp.where(near, 1, x)
    series = jnp.ones_like(x)
    for n in range(8, 1, -1):
        series = 1 + small / n * series
    return jnp.where(near, series, jnp.expm1(other) / other)


class Rows(NamedTuple):
    """Logits with their class axis, the target, and which rows count: what stands in the others is not read.

    The target holds class probabilities, or if `indexed` a class index for each row, with the class axis of size 1.
    """

    logits: Array
    axis: int
    target: Array
    indexed: bool
    keep: Array | None

    @property
    def counted(self) -> Array:
        """Which rows count, with the class axis; where the target holds indices."""
        assert self.keep is not None
        return jnp.expand_dims(self.keep, self.axis)


def _rows(
    name: str, input: ArrayLike, target: ArrayLike, ignore_index: int, axis: int | None, where: ArrayLike | None
) -> Rows:
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    soft = _labels.probabilities(name, target, x, axis, ignore_index)
    if soft is None:
        index, keep = _labels.rows(name, target, x, axis, where, ignore_index)
        return Rows(x, axis, jnp.expand_dims(index, axis), True, keep)
    mask = _check.mask(name, where, _check.without(axis, x.shape))
    counted = None if mask is None else jnp.expand_dims(mask, axis)
    dtype = at_least_float32(x.dtype, soft.dtype)
    x, soft = (_check.masked(a, counted).astype(dtype) for a in (x, soft))
    return Rows(x, axis, soft, False, mask)


def _expected(cost: Callable[[Array], Array], rows: Rows) -> Array:
    """Σ q cost(-log p): that of the right class, or that of all classes by their probabilities."""
    axis, target = rows.axis, rows.target
    if rows.indexed:
        return _spoilt(cost(surprise(rows.logits, target, rows.counted, axis)), rows)
    z, _ = shift(rows.logits, axis)
    return sum_of_rows(times(target, cost(log_sum(z, axis) - z)), axis)


def _spoilt(loss: Array, rows: Rows) -> Array:
    """Without the class axis; NaN, and so is the gradient, in rows that count but have no right answer."""
    return jnp.squeeze(_labels.spoiled(jnp.ones_like(loss), rows.target) * loss, rows.axis)


def sparsemax_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""What cross entropy is to softmax, for sparsemax, which gives many classes probability 0 exactly.

    $$\ell = \sum_c q_c \Bigl(\tfrac12 \sum_{j \in S} (x_j^2 - \tau^2) - x_c\Bigr) + \tfrac12 \sum_c q_c^2, \qquad
    p = \max(0, x - \tau), \quad \sum_c p_c = 1, \quad S = \{c : p_c > 0\}$$

    where q is 1 at the class of an index and 0 elsewhere, or given class probabilities. The gradient is p - q.

    Args:
        input: Scores x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices of any integer dtype, in the input's shape without the class axis; or class
            probabilities q, floating point, in the input's shape.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
            With class probabilities it means nothing, and one that is not negative is refused.
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
        >>> jaxloss.sparsemax_loss(jnp.array([[0.5, 0.0, -3.0], [2.0, 0.0, 0.0]]), jnp.array([0, 0]), reduction="none")
        Array([0.0625, 0.    ], dtype=float32)

    Note:
        torch has no such loss. optax calls this multiclass_sparsemax_loss, and its sparsemax_loss is
        `binary_sparsemax_loss` here.

    References:
        Martins and Astudillo (2016), "From Softmax to Sparsemax", https://arxiv.org/abs/1602.02068
    """
    name = "sparsemax_loss"
    rows = _rows(name, input, target, ignore_index, axis, where)
    axis, logits = rows.axis, rows.logits
    counted = rows.counted if rows.indexed else None
    z, top = shift(_check.masked(logits, counted), axis)
    conjugate = _conjugate(logits, top, counted, axis)
    if rows.indexed:
        loss = _spoilt(conjugate - pick_shifted(logits, top, rows.target, axis) + 0.5, rows)
    else:
        q = rows.target
        loss = sum_of_rows(times(q, conjugate - z) + q * q / 2, axis)
    return reduce(name, loss, reduction, rows.keep)


def _shifted(x: Array, top: Array, counted: Array | None) -> Array:
    return upcast(_check.masked(x, counted)) - top


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def _conjugate(x: Array, top: Array, counted: Array | None, axis: int) -> Array:
    """½ Σ (z² - τ²) over the classes of z = x - top that are above the threshold τ, `axis` kept."""
    return _conjugate_at(_threshold(x, top, counted, axis), x, top, counted, axis)


def _conjugate_at(tau: Array, x: Array, top: Array, counted: Array | None, axis: int) -> Array:
    high = jnp.maximum(tau, _shifted(x, top, counted))
    return jnp.expand_dims(sums([(high - tau) * (high + tau)], axis)[0], axis) / 2


@_conjugate.defjvp
def _conjugate_jvp(
    axis: int, primals: tuple[Array, Array, Array | None], tangents: tuple[Array, Any, Any]
) -> tuple[Array, Array]:
    # It is the largest p·z - p·p / 2 + 1/2 of all probabilities p, and has that p for a gradient.
    (x, top, counted), tau = primals, _threshold(*primals, axis)
    y, still, held = again(_check.masked(x, counted), top, tau)
    z = upcast(y) - still
    p = jnp.where(z <= held, 0, z - held)
    return _conjugate_at(tau, *primals, axis), jnp.sum(p * tangents[0], axis, keepdims=True)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
@compiled_once(3)
def _threshold(x: Array, top: Array, counted: Array | None, axis: int) -> Array:
    """The τ with Σ max(0, x - top - τ) = 1 in each row, `axis` kept.

    Newton's method from below: the sum is convex in τ and made of straight pieces, so that each step leaves out some of
    the classes until none is left to leave out. That takes about five passes over a row, where sorting takes hundreds.
    """

    def step(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        count = state[1]
        y, tau = lax.optimization_barrier((x, state[0]))  # or it would be widened, and kept so, ahead of the loop
        above = _shifted(y, top, counted) - tau
        found = sums([jnp.where(above > 0, above, 0), jnp.where(above > 0, 1.0, 0.0).astype(top.dtype)], axis)
        total, left = (jnp.expand_dims(a, axis) for a in found)
        return jnp.maximum(tau, tau + (total - 1) / jnp.maximum(left, 1)), left, count

    none = spread_like(jnp.zeros_like(top), top)
    tau, _, _ = lax.while_loop(lambda state: for_any(jnp.any(state[1] != state[2])), step, (none - 1, none - 1, none))
    return tau


@_threshold.defjvp
def _threshold_jvp(
    axis: int, primals: tuple[Array, Array, Array | None], tangents: tuple[Array, Any, Any]
) -> tuple[Array, Array]:
    # τ = (Σ z - 1) / count over the classes above it.
    tau = _threshold(*primals, axis)
    above = _shifted(*primals) > tau
    count = jnp.sum(above, axis, keepdims=True, dtype=tau.dtype)
    return tau, jnp.sum(jnp.where(above, tangents[0], 0), axis, keepdims=True) / jnp.maximum(count, 1)


def binary_sparsemax_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""`sparsemax_loss` of two classes: a logistic loss that is exactly 0 from a score of 1 on.

    $$\ell = t\,s(-x) + (1 - t)\,s(x) - t\,(1 - t), \qquad
    s(x) = \begin{cases} 0 & x \le -1 \\ (x + 1)^2 / 4 & -1 < x < 1 \\ x & x \ge 1 \end{cases}$$

    Args:
        input: Scores x, floating point, any shape.
        target: Targets t in [0, 1], of the input's shape; floating point or integers.
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
        >>> jaxloss.binary_sparsemax_loss(jnp.array([0.0, 2.0, -2.0]), jnp.array([1, 1, 1]), reduction="none")
        Array([0.25, 0.  , 2.  ], dtype=float32)

    Note:
        torch has no such loss.

    References:
        Blondel, Martins and Niculae (2020), "Learning with Fenchel-Young Losses", https://arxiv.org/abs/1901.02324
    """
    name = "binary_sparsemax_loss"
    x, t, keep = _check.pair(name, input, target, where, integer_target=True)
    return reduce(name, _sparse_mix(x, t), reduction, keep)


@jax.custom_jvp
def _sparse_mix(x: Array, t: Array) -> Array:
    # With h = clip(x, -1, 1), p = (h + 1) / 2 and d = p - t, it is d² + d (x - h). 0·inf is 0: nothing is wrong.
    h, d = _sparse(x, t)
    return jnp.where(d == 0, 0, d * (d + x - h))


def _sparse(x: Array, t: Array) -> tuple[Array, Array]:
    h = jnp.clip(x, -1, 1)
    return h, (h - (2 * t - 1)) / 2  # exact near both ends, where p is not


@partial(_sparse_mix.defjvp, symbolic_zeros=True)
def _sparse_mix_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, t), (dx, dt) = primals, tangents
    value = _sparse_mix(x, t)
    return value, change(value, (_sparse(x, t)[1], dx), (2 * t - 1 - x, dt))
