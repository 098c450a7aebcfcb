"""Numbers that neither underflow nor lose digits, for sums over many paths.

A number is a pair (fraction, exponent) for fraction·2^exponent: a float, and an int32 beside it. Over a thousand frames
the probabilities of paths span thousands of powers of ten, within one frame too, which no float holds. Logarithms do,
but each addition of them costs an exponential and a logarithm, and rounds to the size of the logarithm where this
rounds to the size of the number. Fractions are positive: a number that stands for 0 has a very low exponent.
"""

from functools import reduce
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from ._types import Array

# The exponent of 0, and that below which a number counts as 0. Exponents added up over all frames stay far from the
# ends of int32 because what is below e^LEAST counts as 0 from the start.
ZERO = -(2**28)
VANISHED = ZERO // 2
LEAST = -1e6

# log 2 in two parts. k·HIGH is exact for every k that matters, so that x - k·log 2 keeps the digits of x.
LOG2 = 0.6931471805599453
LOG2_HIGH, LOG2_LOW = 0.693359375, -2.121944400546905827679e-4


class Wide(NamedTuple):
    """fraction·2^exponent, elementwise."""

    fraction: Array
    exponent: Array

    def map(self, function: Any, fill: tuple[float, int] | None = None) -> "Wide":
        """The same rearrangement of both parts; `fill` is handed on as a second argument."""
        if fill is None:
            return Wide(function(self.fraction), function(self.exponent))
        return Wide(function(self.fraction, fill[0]), function(self.exponent, fill[1]))


def exp(x: Array) -> Wide:
    """e^x, 0 below e^LEAST."""
    nothing = x < LEAST
    x = jnp.where(nothing, 0, x)
    k = lax.stop_gradient(jnp.floor(x * (1 / LOG2) + 0.5))  # a kernel cannot round
    fraction = jnp.exp((x - k * LOG2_HIGH) - k * LOG2_LOW)
    return Wide(fraction, jnp.where(nothing, ZERO, k.astype(jnp.int32)))


def log(x: Wide) -> Array:
    """The natural logarithm; -inf, with derivative 0, of what has vanished."""
    alive = x.exponent > VANISHED
    k = jnp.where(alive, x.exponent, 0).astype(x.fraction.dtype)
    value = (jnp.log(jnp.where(alive, x.fraction, 1)) + k * LOG2_LOW) + k * LOG2_HIGH
    return jnp.where(alive, value, -jnp.inf)


def one_where(condition: Array, dtype: Any) -> Wide:
    """1 where `condition` holds, else 0."""
    exponent = jnp.where(condition, 0, ZERO).astype(jnp.int32)
    return Wide(jnp.ones_like(exponent, dtype), exponent)


def only_where(condition: Array, x: Wide) -> Wide:
    """`x` where `condition` holds, else 0."""
    return Wide(x.fraction, jnp.where(condition, x.exponent, ZERO))


def times(x: Wide, y: Wide) -> Wide:
    """x·y."""
    return Wide(x.fraction * y.fraction, jnp.maximum(x.exponent + y.exponent, ZERO))


def add(*terms: Wide) -> Wide:
    """The sum, its fraction at least 1 and below twice the number of terms."""
    _, bias, _ = _layout(terms[0].fraction.dtype)
    # Multiplied by powers of two, which do not round and have a derivative, rather than cut out of the bits.
    top = reduce(jnp.maximum, [x.exponent + raised_exponent(x.fraction) for x in terms])
    bottom = top - 2 * bias
    scaled = [x.fraction * raised_power(x.exponent - bottom, x.fraction.dtype) for x in terms]
    return Wide(reduce(jnp.add, scaled), top - bias)


def as_float(x: Wide) -> Array:
    """The number, 0 where it is below what a float holds."""
    _, bias, _ = _layout(x.fraction.dtype)
    return x.fraction * raised_power(x.exponent + bias, x.fraction.dtype)


# A float keeps its exponent raised by a bias. Taken as they are, such exponents need not be lowered and raised again.


def raised_exponent(x: Array) -> Array:
    """k + bias of a float x in [2^k, 2^(k+1))."""
    mantissa, _, integer = _layout(x.dtype)
    return (lax.bitcast_convert_type(lax.stop_gradient(x), integer) >> mantissa).astype(jnp.int32)


def raised_power(k: Array, dtype: Any) -> Array:
    """2^(k - bias) put together from its bits, 0 for a negative k."""
    mantissa, _, integer = _layout(dtype)
    return lax.bitcast_convert_type(jnp.maximum(k, 0).astype(integer) << mantissa, dtype)


def _layout(dtype: Any) -> tuple[int, int, Any]:
    """Bits of the mantissa, bias of the exponent, and the integer type of the same width."""
    return (23, 127, jnp.int32) if dtype == jnp.float32 else (52, 1023, jnp.int64)
