r"""The few functions whose value or derivative at an edge differs from what JAX gives by default.

Derivatives that are choices stand above the function that makes them. Everything here works in forward and
reverse mode and to any order, except `logsumexp` and `log_softmax`, whose `jax.custom_vjp` trades forward mode
for memory.

Values of many entries are made of sums, products, minima, maxima, exponentials and logarithms: from those XLA makes one
fast pass on a CPU that ends in a sum. A comparison or a select in it costs an array of intermediate values, and up to
five times the time; derivatives, which have to be written anyway, may have as many as they like.
"""

import math
from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from ._devices import broadcast_like, is_split
from ._types import Array, Number

# torch's 1e-12 is a float32 constant, which shows in its float64 results.
TORCH_EPSILON = 9.999999960041972e-13


def at_least_float32(*dtypes: jnp.dtype) -> jnp.dtype:
    """The widest of some floating-point dtypes, and float32 for those below 16 bits, which JAX does not promote."""
    return jnp.result_type(jnp.float32, *(d for d in dtypes if d.itemsize > 1))


def upcast(x: Array) -> Array:
    """`x` in at least float32."""
    return x.astype(at_least_float32(x.dtype))


def change(value: Array, *terms: tuple[Array | float, Any]) -> Array:
    """Σ slope·tangent for `symbolic_zeros=True`, without what nothing is differentiated by: 0·inf would be NaN."""
    moved = [slope * tangent for slope, tangent in terms if not isinstance(tangent, SymbolicZero)]
    return reduce(jnp.add, moved) if moved else jnp.zeros_like(value)


def again(*arrays: Array) -> list[Array]:
    """The same arrays for a derivative that shares nothing with the value on a CPU.

    There XLA would keep every number that both need in an array of its own; reading the arrays twice is cheaper. On a
    GPU it computes both in one pass, which this must not divide.
    """
    found: list[Array] = lax.platform_dependent(
        *arrays, cpu=lambda *arrays: [lax.optimization_barrier(a) for a in arrays], default=lambda *arrays: list(arrays)
    )
    return found


@jax.custom_jvp
def absolute(x: Array) -> Array:
    """|x| with derivative 0 at 0, as torch has it (JAX: 1)."""
    return jnp.abs(x)


@absolute.defjvp
def _absolute_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return absolute(*primals), jnp.sign(primals[0]) * tangents[0]


def clamp(x: Array, bound: Number) -> Array:
    """`x` held in [-bound, bound]. Outside, the derivative for x is 0 even where the cotangent is infinite."""
    # The derivative of lax.clamp needs bounds of the shape of x; XLA fuses the broadcast.
    limit = broadcast_like(jnp.asarray(bound, x.dtype), x)
    return lax.clamp(-limit, x, limit)


def softcap(x: Array, cap: Array) -> Array:
    """cap·tanh(x / cap). At ±inf it is ±cap, with derivative 0 for x and ±1 for the cap."""
    # tanh is 1 in every precision long before 100, where x / cap would be infinite, and its derivative 0·inf.
    return cap * jnp.tanh(clamp(x, 100 * cap) / cap)


@jax.custom_jvp
def positive_part(x: Array) -> Array:
    """max(x, 0) with derivative 1 at 0, as torch's clamp has it (JAX: 1/2)."""
    return jnp.abs(jnp.maximum(x, -0.0))  # -0.0 is no zero that XLA would share with a derivative, as in `again`


@positive_part.defjvp
def _positive_part_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return positive_part(*primals), jnp.where(primals[0] < 0, 0, tangents[0])


def at_most(x: Array, bound: Number) -> Array:
    """The lesser of the two. XLA would join a minimum with a maximum to a clamp, which ends a fast pass on a CPU."""
    return -jnp.maximum(-x, -bound)


@jax.custom_jvp
def times(a: Array, b: Array) -> Array:
    """a·b with 0·inf = 0, in the value and in both derivatives."""
    # b is held in [-bound, bound], which is 0 for a = 0 and infinite otherwise.
    most = np.finfo(jnp.result_type(a, b)).max
    bound = jnp.minimum(jnp.abs(a) * most, most) * most
    return a * jnp.maximum(jnp.minimum(b, bound), -bound)


@partial(times.defjvp, symbolic_zeros=True)
def _times_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    value, nothing = times(a, b), (a == 0) & jnp.isinf(b)
    if not isinstance(db, SymbolicZero):
        db = jnp.where(nothing, 0, db)
    return value, change(value, (jnp.where(nothing, 0, b), da), (a, db))


def reciprocal(x: Array) -> Array:
    """1 / x, and 0, with derivative 0, where there is nothing to divide by: x is not above 0."""
    return jnp.where(x > 0, 1 / jnp.where(x > 0, x, 1), 0)


@jax.custom_jvp
def divide(a: Array, b: Array) -> Array:
    """a / b, whose derivative divides twice by b where JAX's forms b⁻², which over- and underflows long before."""
    return a / b


@divide.defjvp
def _divide_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    quotient = divide(a, b)
    return quotient, divide(da - quotient * db, b)


@jax.custom_jvp
def xlogy(x: Array, y: Array) -> Array:
    """x·log(y) with 0·log(0) = 0; both derivatives at (0, 0) are 0."""
    return times(x, jnp.log(y))


@partial(xlogy.defjvp, symbolic_zeros=True)
def _xlogy_jvp(primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    value, safe = xlogy(x, y), jnp.where((x == 0) & (y == 0), 1, y)
    return value, change(value, (jnp.log(safe), dx), (x / safe, dy))


def norm(x: Array, p: float, axis: int = -1, *, keepdims: bool = False) -> Array:
    """The p-norm along `axis`, 0 < p ≤ inf, with derivative 0 at 0 in every entry and for the whole vector.

    Dividing by the largest entry, a constant to differentiation since the norm does not depend on it, lets no power
    overflow or vanish.
    """
    if p == 2:
        length = _length(x, axis)
        return length if keepdims else jnp.squeeze(length, axis)
    size = absolute(x)
    if p == math.inf:
        return jnp.max(size, axis, keepdims=keepdims, initial=0)
    if p == 1:
        return jnp.sum(size, axis, keepdims=keepdims)
    top = _scale(x, axis)
    total = jnp.sum(_power(size / top, p), axis, keepdims=True)
    length = top * _power(total, 1 / p)
    return length if keepdims else jnp.squeeze(length, axis)


def _scale(x: Array, axis: int) -> Array:
    """The largest size of an entry, held where its reciprocal is a normal number, which XLA may multiply by."""
    limits = np.finfo(x.dtype)
    top = jnp.max(jnp.abs(lax.stop_gradient(x)), axis, keepdims=True, initial=0)
    return at_most(jnp.maximum(top, 16 * limits.tiny), limits.max / 16)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _length(x: Array, axis: int) -> Array:
    top = _scale(x, axis)
    return top * jnp.sqrt(jnp.sum(jnp.square(x / top), axis, keepdims=True))


@_length.defjvp
def _length_jvp(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    length, top = _length(x, axis), _scale(x, axis)
    somewhere = length > 0
    direction = divide(jnp.where(somewhere, x, 0) / top, jnp.where(somewhere, length / top, 1))
    return length, jnp.sum(direction * dx, axis, keepdims=True)


def _power(x: Array, p: float) -> Array:
    """x^p for x ≥ 0, with derivative 0 at 0 whatever p is."""
    zero = x == 0
    base = jnp.where(zero, 1, x)
    power = jnp.sqrt(base) if p == 0.5 else base**p
    return jnp.where(zero, 0, power)


def unit(x: Array, axis: int = -1, eps: Number = 1e-8) -> Array:
    """Vectors divided by their length, or by `eps` if that is more; one of zeros stays, with a finite derivative."""
    return x / jnp.maximum(norm(x, 2, axis, keepdims=True), eps)


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), whose derivative σ(x) σ(-x) keeps its digits where JAX's σ(x) (1 - σ(x)) is 0."""
    return lax.logistic(x)


@sigmoid.defjvp
def _sigmoid_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * dx


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return positive_part(x) + jnp.log1p(jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softplus(*primals), sigmoid(*again(*primals)) * tangents[0]


@jax.custom_jvp
def softplus_mix(x: Array, up: Array, down: Array) -> Array:
    """up·log(1 + e^x) + down·log(1 + e^-x), with 0·inf = 0.

    For weights that are not negative nothing cancels: neither the value nor the derivative loses digits when a
    prediction is confident.
    """
    linear = times(up, positive_part(x)) + times(down, positive_part(-x))
    return linear + (up + down) * jnp.log1p(jnp.exp(-jnp.abs(x)))


@partial(softplus_mix.defjvp, symbolic_zeros=True)
def _softplus_mix_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    # d log(1+e^x) = sigmoid(x) dx and d log(1+e^-x) = -sigmoid(-x) dx.
    (dx, dup, ddown), (x, up, down) = tangents, again(*primals)
    slope = up * sigmoid(x) - down * sigmoid(-x)
    of_down, of_up = softplus_pair(x)
    of_down = jnp.where((down == 0) & jnp.isinf(x), 0, of_down)
    of_up = jnp.where((up == 0) & jnp.isinf(x), 0, of_up)
    value = softplus_mix(*primals)
    return value, change(value, (slope, dx), (of_up, dup), (of_down, ddown))


@jax.custom_jvp
def softplus_pair(x: Array) -> tuple[Array, Array]:
    """(log(1 + e^-x), log(1 + e^x)): both never negative, from one exponential and one logarithm."""
    small = jnp.log1p(jnp.exp(-jnp.abs(x)))
    return small + positive_part(-x), small + positive_part(x)


@softplus_pair.defjvp
def _softplus_pair_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    # d log(1+e^-x) = -sigmoid(-x) dx and d log(1+e^x) = sigmoid(x) dx. Left to autodiff, the derivatives of |x|
    # and max(x, 0) at 0 would not add up to 1/2. Dividing 1 or e^-|x| by 1 + e^-|x| rounds neither tail to 0.
    (x,), (dx,) = primals, tangents
    e = jnp.exp(-jnp.abs(x))
    positive = x >= 0
    up = jnp.where(positive, 1, e) / (1 + e)
    down = jnp.where(positive, e, 1) / (1 + e)
    return softplus_pair(x), (-down * dx, up * dx)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def pick(x: Array, index: Array, axis: int) -> Array:
    """`x` at one `index` per row along `axis`, which stays with size 1.

    An index of -1 marks a row that has no right answer: the value is a placeholder, which the caller multiplies
    by NaN, and the derivative goes to every class, so that the whole row becomes NaN. An index beyond the last class
    marks a row that is not read: the value is 0.
    """
    index = jnp.maximum(index, 0)
    if is_split(x, axis):
        return jnp.sum(jnp.where(one_hot(index, x, axis), x, 0), axis, keepdims=True)
    return jnp.take_along_axis(x, index, axis, mode="fill", fill_value=0)


@pick.defjvp
def _pick_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Written as a masked sum, the transpose is one fused select; a gather's would be a scatter into zeros.
    (x, index), (dx, _) = primals, tangents
    hit = one_hot(index, x, axis) | (index < 0)
    return pick(x, index, axis), jnp.sum(jnp.where(hit, dx, 0), axis, keepdims=True)


def one_hot(index: Array, x: Array, axis: int) -> Array:
    """True where the position along `axis` of `x` is `index`, a comparison that fuses into its consumer."""
    return lax.broadcasted_iota(index.dtype, x.shape, axis) == index


def shift(x: Array, axis: int, of_all: Callable[[Array], Array] = lambda top: top) -> tuple[Array, Array]:
    """(x - max, max) in at least float32, the maximum a constant to differentiation.

    A maximum that is infinite becomes the largest number: -inf - -inf would be NaN. `of_all` makes the maximum of what
    is here that of all there is, where the axis is spread over devices.
    """
    x = upcast(x)
    top = of_all(_top(x, axis))
    most = np.finfo(x.dtype).max
    top = at_most(jnp.maximum(top, -most), most)
    return x - top, top


def _top(x: Array, axis: int) -> Array:
    return jnp.max(lax.stop_gradient(x), axis, keepdims=True, initial=-jnp.inf)


def by_row(axis: int, function: Callable[..., Array]) -> Callable[..., Array]:
    """`function` of arrays with one entry for each row, without the `axis` on which they have size 1.

    A CPU has no vector code for an innermost axis of 1.
    """
    return lambda *rows: jnp.expand_dims(function(*(jnp.squeeze(a, axis) for a in rows)), axis)


def by_itself(rows: Array) -> Array:
    """The same numbers, one for each row, in an array of their own.

    A CPU's pass that adds them up would go on to spread them over the entries of each row, which takes an array of
    that size; it ends where there is a select.
    """
    return jnp.where(jnp.isnan(rows), jnp.nan, rows)


def log_sum(z: Array, axis: int) -> Array:
    """log Σ exp(z) of shifted rows, `axis` kept. A row of -inf gives -inf with derivative 0."""
    return by_row(axis, log1p)(jnp.sum(jnp.exp(z), axis, keepdims=True) - 1)


def surprise(x: Array, index: Array, axis: int) -> Array:
    """-log softmax(x) of one class `index` per row, `axis` kept."""
    z, top = shift(x, axis)
    # Finite without a right answer too: what a caller makes NaN then has a slope that carries it to every class.
    own = jnp.where(index < 0, 0, pick_shifted(x, top, index, axis))
    return by_row(axis, log1p)(sum_around_less_one(x, z, own, index, axis)) - own


def pick_shifted(x: Array, top: Array, index: Array, axis: int) -> Array:
    """`pick` of x - top, which then need not be computed as a whole; -inf in a row without a right answer."""

    def shifted(own: Array, top: Array, index: Array) -> Array:
        return jnp.where(index < 0, -jnp.inf, jnp.where(index < x.shape[axis], upcast(own) - top, 0))

    return by_row(axis, shifted)(pick(x, index, axis), top, index)


def sum_around_less_one(x: Array, z: Array, own: Array, index: Array, axis: int) -> Array:
    """Σ exp(z) - 1 for z that are at most 0; of classes elsewhere, without the class `index`, Σ exp(z).

    `z` is that of `shift(x, axis)`, and `own` is z at `index`. It enters as e^z - 1 and not as a 1 which the others'
    small terms would be rounded away against: the loss of a confident row and its gradient keep their digits. A row
    without a right answer, index -1, has no such class.
    """
    return by_row(axis, lambda others, own: others + jnp.expm1(own))(sum_of_others(x, z, index, axis), own)


def sum_of_others(x: Array, z: Array, index: Array, axis: int) -> Array:
    """`sum_without` of z = shift(x, axis), and infinite where a logit is."""

    def total(others: Array, top: Array) -> Array:
        most = float(np.finfo(top.dtype).max)
        return others + (jnp.maximum(top, most) - most)  # 0 or inf

    return by_row(axis, total)(sum_without(z, index, axis), _top(upcast(x), axis))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def sum_without(z: Array, index: Array, axis: int) -> Array:
    """Σ exp(z) over all classes but `index`, for z that are at most 0."""
    if z.shape[axis] > 2**24:  # what float32 can count
        return jnp.sum(jnp.where(one_hot(index, z, axis), 0, jnp.exp(z)), axis, keepdims=True)
    # The distance to the class is 0 there, and no less than any exp(z) elsewhere.
    place = lax.broadcasted_iota(z.dtype, z.shape, axis)
    return jnp.sum(jnp.minimum(jnp.exp(z), jnp.abs(place - index.astype(z.dtype))), axis, keepdims=True)


@sum_without.defjvp
def _sum_without_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (z, index), (dz, _) = primals, tangents
    others = jnp.where(one_hot(index, z, axis), 0, jnp.exp(z))
    return sum_without(z, index, axis), jnp.sum(others * dz, axis, keepdims=True)


@jax.custom_jvp
def log(x: Array) -> Array:
    """The natural logarithm, with derivative 0 at 0."""
    return jnp.log(x)


@log.defjvp
def _log_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return log(x), jnp.where(x > 0, divide(dx, jnp.where(x > 0, x, 1)), 0)


@jax.custom_jvp
def log1p(x: Array) -> Array:
    """log(1 + x) with derivative 0 at -1."""
    return jnp.log1p(x)


@log1p.defjvp
def _log1p_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return log1p(*primals), reciprocal(1 + primals[0]) * tangents[0]


def softmax(z: Array, log_total: Array) -> Array:
    """exp(z) / Σ exp(z) from the logarithm of that sum; 0 throughout a row of -inf."""
    return jnp.exp(z - jnp.where(log_total == -jnp.inf, 0, log_total))


# Both rules below keep the input, which is alive anyway, and per row the logarithm of Σ exp(x - max). Keeping the
# finished log-sum-exp instead would save finding the maximum again, but at x ≈ 1e6 its rounding alone is 3 % of
# every gradient; and inside one jit XLA shares the maximum between the two passes. The forward rules are plain
# operations, so that jax.hessian, which is forward mode over reverse mode, can differentiate them again.


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def logsumexp(x: Array, axis: int) -> Array:
    """log Σ exp(x) along `axis`; d logsumexp = Σ p dx with p = softmax(x)."""
    return _logsumexp_fwd(x, axis)[0]


def _logsumexp_fwd(x: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    z, top = shift(x, axis)
    log_total = log_sum(z, axis)
    return jnp.squeeze(top + log_total, axis), (x, jnp.squeeze(log_total, axis))


def _logsumexp_bwd(axis: int, residuals: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, p = _softmax_again(residuals, axis)
    return ((jnp.expand_dims(g, axis) * p).astype(x.dtype),)


logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def log_softmax(x: Array, axis: int) -> Array:
    """x - log Σ exp(x) along `axis`; d log_softmax = dx - Σ p dx with p = softmax(x)."""
    return _log_softmax_fwd(x, axis)[0]


def _log_softmax_fwd(x: Array, axis: int) -> tuple[Array, tuple[Array, Array]]:
    z, _ = shift(x, axis)
    log_total = log_sum(z, axis)
    return z - log_total, (x, jnp.squeeze(log_total, axis))


def _log_softmax_bwd(axis: int, residuals: tuple[Array, Array], g: Array) -> tuple[Array]:
    x, p = _softmax_again(residuals, axis)
    return ((g - p * jnp.sum(g, axis, keepdims=True)).astype(x.dtype),)


log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)


def _softmax_again(residuals: tuple[Array, Array], axis: int) -> tuple[Array, Array]:
    x, log_total = residuals
    return x, softmax(shift(x, axis)[0], jnp.expand_dims(log_total, axis))
