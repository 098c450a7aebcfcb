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
    k = lax.stop_gradient(jnp.round(x * (1 / LOG2)))
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
    """x·y, not normalized."""
    return Wide(x.fraction * y.fraction, x.exponent + y.exponent)


def add(*terms: Wide) -> Wide:
    """The sum of normalized numbers, not normalized."""
    top = reduce(jnp.maximum, [x.exponent for x in terms])
    return Wide(reduce(jnp.add, [scaled(x, top) for x in terms]), top)


def scaled(x: Wide, top: Array) -> Array:
    """x / 2^top as a float, for a `top` that is at least its exponent."""
    return x.fraction * power_of_two(x.exponent - top, x.fraction.dtype)


def normalized(x: Wide) -> Wide:
    """The same number with its fraction in [1, 2)."""
    mantissa, bias, integer = _layout(x.fraction.dtype)
    bits = lax.bitcast_convert_type(lax.stop_gradient(x.fraction), integer)
    shift = (bits >> mantissa).astype(jnp.int32) - bias
    # Multiplied rather than cut out of the bits, so that it has a derivative.
    fraction = x.fraction * power_of_two(-shift, x.fraction.dtype)
    return Wide(fraction, jnp.maximum(x.exponent + shift, ZERO))


def power_of_two(k: Array, dtype: Any) -> Array:
    """2^k put together from its bits, 0 where k is below what `dtype` holds."""
    mantissa, bias, integer = _layout(dtype)
    return lax.bitcast_convert_type((jnp.maximum(k, -bias) + bias).astype(integer) << mantissa, dtype)


def _layout(dtype: Any) -> tuple[int, int, Any]:
    """Bits of the mantissa, bias of the exponent, and the integer type of the same width."""
    return (23, 127, jnp.int32) if dtype == jnp.float32 else (52, 1023, jnp.int64)
