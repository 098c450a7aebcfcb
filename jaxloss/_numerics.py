r"""The few functions whose value or derivative at an edge differs from what JAX gives by default.

Derivatives that are choices stand above the function that makes them. Everything here works in forward and reverse mode
and to any order.

Values of many entries are made of sums, products, minima, maxima, exponentials and logarithms: from those XLA makes one
fast pass on a CPU that ends in a sum. A comparison or a select in it costs an array of intermediate values, and up to
five times the time; derivatives, which have to be written anyway, may have as many as they like. So may values that
`_reduce.sum_in_loop`, or for a row `added_in_loop`, adds up, which then have no logarithm of an exponential:
`twice_artanh`.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from numpy.polynomial import Chebyshev, Polynomial

from ._devices import alone, broadcast_like, is_split, vary_alike
from ._types import Array, Number

Function = TypeVar("Function", bound=Callable[..., Any])
Vectors: TypeAlias = Callable[..., list[Array]]

# torch's 1e-12 is a float32 constant, which shows in its float64 results.
TORCH_EPSILON = 9.999999960041972e-13


def compiled_once(*static: int) -> Callable[[Function], Function]:
    """What is called outside of `jax.jit` compiles a choice of platform, a loop or a reduction of its own at each call.

    A function so marked, of arrays and of `static` arguments that compare equal, compiles it at the first. Inside of
    `jax.jit` the mark changes nothing.
    """
    mark: Any = partial(jax.jit, static_argnums=static, inline=True)
    marked: Callable[[Function], Function] = mark
    return marked


def at_least_float32(*dtypes: jnp.dtype) -> jnp.dtype:
    """The widest of some floating-point dtypes, and float32 for those below 16 bits, which JAX does not promote."""
    return jnp.result_type(jnp.float32, *(d for d in dtypes if d.itemsize > 1))


def upcast(x: Array) -> Array:
    """`x` in at least float32."""
    return x.astype(at_least_float32(x.dtype))


def widened(*arrays: Array) -> list[Array]:
    """The arrays in one dtype of at least float32."""
    dtype = at_least_float32(*(x.dtype for x in arrays))
    return [x.astype(dtype) for x in arrays]


# A CPU's fast pass takes the second of two numbers for their minimum or maximum if one is NaN, and XLA puts constants
# second. Where a NaN has to come through, it stands second, or a select that keeps it takes the place of a bound.


def change(value: Array, *terms: tuple[Array | float, Any]) -> Array:
    """Σ slope·tangent for `symbolic_zeros=True`, without what nothing is differentiated by: 0·inf would be NaN."""
    moved = [slope * tangent for slope, tangent in terms if not isinstance(tangent, SymbolicZero)]
    return reduce(jnp.add, moved) if moved else jnp.zeros_like(value)


@compiled_once()
def again(*arrays: Array) -> list[Array]:
    """The same arrays for a derivative that shares nothing with the value on a CPU.

    There XLA would keep every number that both need in an array of its own; reading the arrays twice is cheaper. On a
    GPU it computes both in one pass, which this must not divide.
    """
    found: list[Array] = lax.platform_dependent(
        *arrays, cpu=lambda *arrays: [lax.optimization_barrier(a) for a in arrays], default=lambda *arrays: list(arrays)
    )
    return found


@partial(jax.jit, static_argnames=("shared_by_cpu", "bit"), inline=True)
def afresh(*arrays: Array, shared_by_cpu: bool = False, bit: int = 1) -> list[Array]:
    """`again`, for a derivative that stands beside its value in a sum over numbers.

    A GPU computes both in one pass too, unless they share what XLA holds expensive, a logarithm say: that it would
    keep, and read.
    """

    def on_cpu(*arrays: Array) -> list[Array]:
        return list(arrays) if shared_by_cpu else [lax.optimization_barrier(a) for a in arrays]

    found: list[Array] = lax.platform_dependent(*arrays, cpu=on_cpu, default=partial(disguised, bit))
    return found


def disguised(bit: int, *arrays: Array) -> list[Array]:
    """The arrays, which XLA takes for others, and for others again with another `bit`.

    It cuts a program into kernels without seeing that two flips of a bit cancel. The compiler of a kernel does see it,
    and computes what is the same once. Single numbers stay as they are: of those XLA may know something, and a square
    is faster than a power. So do dtypes of 8 bits and fewer.
    """
    return [_flipped_twice(a, bit) if jnp.ndim(a) and a.dtype.itemsize > 1 else a for a in arrays]


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _flipped_twice(x: Array, bit: int) -> Array:
    bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}")
    flip = jnp.asarray(bit, bits.dtype)
    return lax.bitcast_convert_type(bits ^ flip ^ flip, x.dtype)


@_flipped_twice.defjvp
def _flipped_twice_jvp(bit: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _flipped_twice(*primals, bit), tangents[0]


def together(*arrays: Array) -> list[Array]:
    """The same arrays, whose gradients a CPU computes in one loop, and varying over devices alike, as that needs them.

    XLA writes a loop for each array that leaves, and each reads all that it needs; only a reduction may leave several.
    """
    found: list[Array] = _together(*vary_alike(arrays))
    return found


@jax.custom_jvp
def _together(*arrays: Array) -> list[Array]:
    return list(arrays)


@partial(_together.defjvp, symbolic_zeros=True)
def _together_jvp(primals: tuple[Array, ...], tangents: tuple[Any, ...]) -> tuple[list[Array], list[Any]]:
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]
    # The identity, as the one linear function that takes a transpose of our own in both modes and under vmap.
    moved = lax.custom_linear_solve(
        lambda x: x, [tangents[i] for i in moving], lambda _, x: x, lambda _, x: _left_by_one_loop(x)
    )
    found = dict(enumerate(tangents)) | dict(zip(moving, moved, strict=True))
    return _together(*primals), list(found.values())


@compiled_once()
def _left_by_one_loop(arrays: list[Array]) -> list[Array]:
    """The arrays, as the sums of each and nothing."""
    alike = len({(x.shape, x.dtype) for x in arrays}) == 1 and arrays[0].dtype.itemsize >= 4
    if len(arrays) < 2 or not alike or not alone():
        return arrays

    def with_nothing(x: Array) -> Array:
        both = jnp.broadcast_to(x, (2, *x.shape))
        return jnp.where(lax.broadcasted_iota(jnp.int32, both.shape, 0) == 0, both, 0)

    found: list[Array] = lax.platform_dependent(
        *arrays, cpu=lambda *arrays: _added([with_nothing(x) for x in arrays], 0), default=lambda *arrays: list(arrays)
    )
    return found


@jax.custom_batching.custom_vmap
def for_any(condition: Array) -> Array:
    """`condition` of a loop or branch, under vmap one for all samples: it is taken if any of them needs it.

    A loop with a condition for each sample selects what it carries at each turn, and checkify refuses it; of a
    `lax.cond` both branches would be taken.
    """
    return condition


@for_any.def_vmap
def _for_any_of_all(axis_size: int, in_batched: list[bool], condition: Array) -> tuple[Array, bool]:
    return jnp.any(condition), False


def reread(x: Array) -> Array:
    """`x`, for a pass of its own: on a CPU two that share a narrow array would share, and store, all of it widened."""
    return again(x)[0] if x.dtype.itemsize < 4 else x


@partial(jax.custom_jvp, nondiff_argnums=(1,))
@compiled_once(1)
def narrow(x: Array, dtype: jnp.dtype) -> Array:
    """`x` rounded to `dtype`, as `astype` does it, for the end of a derivative.

    On a CPU, where XLA's own rounding to bfloat16 takes twice as long as all the arithmetic of a softmax, the bits are
    rounded, half to even.
    """
    if dtype != jnp.bfloat16 or x.dtype != jnp.float32:
        return x.astype(dtype)
    rounded: Array = lax.platform_dependent(x, cpu=_to_bfloat16, default=lambda x: x.astype(jnp.bfloat16))
    return rounded


@narrow.defjvp
def _narrow_jvp(dtype: jnp.dtype, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return narrow(*primals, dtype), tangents[0].astype(dtype)  # bits have no derivative


def _to_bfloat16(x: Array) -> Array:
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet = bits >> 16 | 64  # no carry may make a number of a NaN
    return lax.bitcast_convert_type(jnp.where(jnp.isnan(x), quiet, rounded).astype(jnp.uint16), jnp.bfloat16)


@jax.custom_jvp
def exp(x: Array) -> Array:
    """e^x, which a derivative computes again: on a CPU that costs less than to keep it."""
    return jnp.exp(x)


@exp.defjvp
def _exp_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return exp(*primals), exp(*again(*primals)) * tangents[0]


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
    return jnp.where(x < 0, 0, x)


@positive_part.defjvp
def _positive_part_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return positive_part(*primals), jnp.where(primals[0] < 0, 0, tangents[0])


def at_most(x: Array, bound: Number) -> Array:
    """The lesser of the two. XLA would join a minimum with a maximum to a clamp, which ends a fast pass on a CPU."""
    return -jnp.maximum(-x, -bound)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def times(a: Array, b: Array, bounded: bool = False) -> Array:
    """a·b with 0·inf = 0, in the value and in both derivatives.

    If the slope of b is `bounded`, whether b is infinite or not, its derivative does not look at b, which a GPU would
    keep for that.
    """
    return a * jnp.where((a == 0) & jnp.isinf(b), 0, b)


@partial(times.defjvp, symbolic_zeros=True)
def _times_jvp(bounded: bool, primals: tuple[Array, Array], tangents: tuple[Any, Any]) -> tuple[Array, Array]:
    (a, b), (da, db) = primals, tangents
    value, nothing = times(a, b, bounded), (a == 0) & jnp.isinf(b)
    if not (bounded or isinstance(db, SymbolicZero)):
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


def norm(x: Array, p: float, axis: int = -1) -> Array:
    """The p-norm along `axis`, 0 < p ≤ inf, with derivative 0 at 0 in every entry and for the whole vector.

    Dividing by the largest entry, a constant to differentiation since the norm does not depend on it, lets no power
    overflow or vanish.
    """
    size = absolute(x)
    if p == math.inf:
        return jnp.max(size, axis, initial=0)
    if p == 1:
        return jnp.sum(size, axis)
    top = _scale(x, axis)
    total = jnp.sum(_power(size / top, p), axis, keepdims=True)
    return jnp.squeeze(top * _power(total, 1 / p), axis)


def _scale(x: Array, axis: int) -> Array:
    """The largest size of an entry, held where its reciprocal is a normal number, which XLA may multiply by."""
    limits = np.finfo(x.dtype)
    top = jnp.max(jnp.abs(lax.stop_gradient(x)), axis, keepdims=True, initial=0)
    return at_most(jnp.maximum(top, 16 * limits.tiny), limits.max / 16)


def _power(x: Array, p: float) -> Array:
    """x^p for x ≥ 0, with derivative 0 at 0 whatever p is."""
    zero = x == 0
    base = jnp.where(zero, 1, x)
    power = jnp.sqrt(base) if p == 0.5 else base**p
    return jnp.where(zero, 0, power)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
@partial(jax.jit, static_argnums=(0, 1, 2))  # or each call outside of jit would compile both branches anew
def lengths(
    vectors: Vectors, axis: int, cheap: bool, eps: Number | None, keep: Array | None, *arrays: Array
) -> list[Array]:
    """The lengths along `axis` of `vectors(*arrays)`, or `eps` where that is more, and 1 of rows not to `keep`.

    `arrays` come in their own dtypes. The vectors are made of them anew wherever they are needed: none is kept, nor are
    any masked. If beside the work that follows it is `cheap` to read them, a CPU does so twice rather than compile two
    ways.
    """

    def of_rows(length: Array) -> Array:
        length = length if eps is None else jnp.maximum(length, eps)
        return length if keep is None else jnp.where(keep, length, 1)

    def squared(*arrays: Array) -> tuple[list[Array], list[Array]]:
        narrow = any(x.dtype.itemsize < 4 for x in arrays)
        squares = sums([jnp.square(v) for v in vectors(*arrays)], axis, narrow)
        found = [of_rows(jnp.sqrt(square)) for square in squares]
        return found, found

    def found_by(way: Callable[..., list[Array]], *arrays: Array) -> list[Array]:
        return [of_rows(length) for length in way(vectors, axis, *arrays)]

    scaled, at_once = partial(found_by, _scaled_lengths), partial(found_by, _lengths_at_once)
    if not cheap:
        return _of_any_size(squared, scaled, at_once, arrays)
    kept: list[Array] = lax.platform_dependent(*arrays, cpu=scaled, default=at_once)
    return kept


@lengths.defjvp
def _lengths_jvp(
    vectors: Vectors, axis: int, cheap: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[list[Array], list[Array]]:
    (eps, keep, *arrays), (deps, _, *darrays) = primals, tangents
    found = lengths(vectors, axis, cheap, eps, keep, *arrays)
    least = (0, 0) if eps is None else (eps, deps)
    return found, _changes_of_lengths(vectors, axis, keep, *least, found, arrays, darrays)


@partial(jax.jit, static_argnums=(0, 1))  # jax_debug_nans sees only what leaves, not the rows that are masked
def _changes_of_lengths(
    vectors: Vectors,
    axis: int,
    keep: Array | None,
    eps: Number,
    deps: Number,
    found: list[Array],
    arrays: list[Array],
    darrays: list[Array],
) -> list[Array]:
    at, moved = jax.jvp(vectors, tuple(again(*arrays)), tuple(darrays))
    return [_change_of_length(*each, eps, deps, axis, keep) for each in zip(found, at, moved, strict=True)]


def _change_of_length(
    length: Array, x: Array, dx: Array, eps: Number, deps: Number, axis: int, keep: Array | None = None
) -> Array:
    above = length > eps
    # The reciprocal of the largest lengths is no normal number: that of each, moved towards 1, is.
    towards_1 = jnp.where(length > 1, 2.0**-32, 2.0**32).astype(length.dtype)
    inverse = divide(jnp.ones_like(length), jnp.where(above, length * towards_1, 1))
    moving = above if keep is None else above & keep
    moving, towards_1, inverse = (jnp.expand_dims(a, axis) for a in (moving, towards_1, inverse))
    direction = jnp.where(moving, x, 0) * towards_1 * inverse
    return jnp.sum(direction * dx, axis) + jnp.where(above, 0, deps)


def cosine(a: Array, b: Array, axis: int, eps: Number) -> Array:
    """a·b through the lengths of both, each at least `eps`. The vectors come in their own dtypes."""
    found: Array = _cosine(axis, False, eps, a, b)[0]
    return found


def smooth_cosine(a: Array, b: Array, axis: int, eps: Number) -> Array:
    """a·b through √(|a|² + eps) and √(|b|² + eps), whose squares have to be numbers."""
    found: Array = _cosine(axis, True, eps, a, b)[0]
    return found


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _cosine(axis: int, smooth: bool, eps: Number, *vectors: Array) -> list[Array]:
    """The cosine, and what it was divided by."""

    def squared(*vectors: Array) -> tuple[list[Array], list[Array]]:
        a, b = widened(*vectors)
        product, *squares = sums([a * b, a * a, b * b], axis)
        found = [jnp.sqrt(x + eps) if smooth else jnp.maximum(jnp.sqrt(x), eps) for x in squares]
        return [reduce(jnp.divide, found, product), *found], found

    ways = partial(_scaled_cosine, axis, eps), partial(_cosine_at_once, axis, eps)
    return squared(*vectors)[0] if smooth else _of_any_size(squared, *ways, vectors)


@_cosine.defjvp
def _cosine_jvp(
    axis: int, smooth: bool, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[list[Array], list[Array]]:
    (eps, *vectors), (deps, *dvectors) = primals, tangents
    value, *found = _cosine(axis, smooth, *primals)
    (a, b), (da, db) = widened(*again(*vectors)), widened(*dvectors)
    floor, dfloor = (0, 0) if smooth else (eps, deps)
    each = zip(found, (a, b), (da, db), strict=True)
    dfound = [_change_of_length(length, x, dx, floor, dfloor, axis) for length, x, dx in each]

    def over_both(x: Array) -> Array:
        return reduce(divide, [jnp.expand_dims(length, axis) for length in found], x)

    of_product = jnp.sum(over_both(b) * da + over_both(a) * db, axis)
    return [value, *found], [of_product - value * sum(map(divide, dfound, found)), *dfound]


def _of_any_size(
    squared: Callable[..., tuple[list[Array], list[Array]]],
    scaled: Callable[..., list[Array]],
    at_once: Callable[..., list[Array]],
    arrays: Sequence[Array],
) -> list[Array]:
    """What `squared` makes of the arrays, or `scaled` where the lengths, which it returns too, are extreme.

    A GPU, which reads as fast whatever it computes and would wait for a condition, finds it `at_once`. For a CPU that
    would be a long loop to compile, whether it is ever needed or not.
    """

    def on_cpu(*arrays: Array) -> list[Array]:
        found, sizes = squared(*arrays)
        farthest = jnp.maximum(reduce(jnp.maximum, sizes), 1 / reduce(jnp.minimum, sizes))
        # With that much room no square that matters has over- or underflowed.
        safe = jnp.max(farthest, initial=1) < float(np.finfo(farthest.dtype).max) ** 0.3
        chosen: list[Array] = lax.cond(for_any(~safe), scaled, lambda *arrays: found, *arrays)
        return chosen

    kept: list[Array] = lax.platform_dependent(*arrays, cpu=on_cpu, default=at_once)
    return kept


def _scaled(x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Vectors divided by their largest entry, their lengths then, and that entry."""
    top = _scale(x, axis)
    return x / top, jnp.sqrt(jnp.sum(jnp.square(x / top), axis)), jnp.squeeze(top, axis)


def _scaled_lengths(vectors: Vectors, axis: int, *arrays: Array) -> list[Array]:
    return [length * top for _, length, top in (_scaled(v, axis) for v in vectors(*arrays))]


def _scaled_cosine(axis: int, eps: Number, *vectors: Array) -> list[Array]:
    (a, *of_a), (b, *of_b) = (_scaled(v, axis) for v in widened(*vectors))
    value, sizes = jnp.sum(a * b, axis), (of_a, of_b)
    value = reduce(jnp.divide, [jnp.maximum(length, eps / top) for length, top in sizes], value)
    return [value, *(jnp.maximum(length * top, eps) for length, top in sizes)]


def _lengths_at_once(vectors: Vectors, axis: int, *arrays: Array) -> list[Array]:
    """The lengths of vectors of any size, from one reading: squares of entries enlarged, as they are, and reduced."""
    each = [vectors(*disguised(bit, *arrays)) for bit in (1, 2, 4)]  # or a GPU would keep what they share
    return [_length_of(three, axis) for three in zip(*each, strict=True)]


def _length_of(same: tuple[Array, ...], axis: int) -> Array:
    step, far = _step_and_far(same[0].dtype)
    factors = step, 1, 1 / step
    squares = [jnp.square(x * by) for x, by in zip(same, factors, strict=True)]
    # Of few entries the thread that works on adds them up, if no reduction tells XLA to give them to others.
    add = _written_out if are_few(squares[0], axis) else _added
    small, plain, large = add(squares, axis)
    length = jnp.where(plain < far, jnp.sqrt(plain), jnp.sqrt(large) * step)
    return jnp.where(plain < 1 / far, jnp.sqrt(small) / step, length)


def _step_and_far(dtype: jnp.dtype) -> tuple[float, float]:
    """A factor, and the square beyond which a vector is the better for its inverse: no number of use is lost."""
    most = np.finfo(dtype).maxexp
    return 2.0 ** (2 * int(0.35 * most)), 2.0 ** int(0.6 * most)


def _cosine_at_once(axis: int, eps: Number, *vectors: Array) -> list[Array]:
    """The cosine and the lengths, each at least `eps`, from one reading: every sum that may be the right one."""
    a, b = widened(*vectors)
    step, far = _step_and_far(a.dtype)
    # For a small, a plain and a large vector, and between them for the product of two neighbours.
    factors = step, step**0.5, 1.0, step**-0.5, 1 / step
    scaled = [(a * by, b * by) for by in factors]
    squares = [jnp.square(x) for each in zip(*scaled[::2], strict=True) for x in each]
    found = _added([x * y for x, y in scaled] + squares, axis)
    value, index, lengths = found[:5], jnp.int32(0), []
    for same in (found[5:8], found[8:]):
        size = jnp.where(same[1] < 1 / far, 0, jnp.where(same[1] < far, 1, 2))
        by = jnp.where(size == 0, step, jnp.where(size == 1, 1, 1 / step))
        length = jnp.sqrt(lax.select_n(size, *same))
        index, value = index + size, [x / jnp.maximum(length, eps * by) for x in value]
        lengths.append(jnp.maximum(length / by, eps))
    return [lax.select_n(index, *value), *lengths]


@compiled_once(1, 2)
def sums(terms: list[Array], axis: int, narrow: bool = True) -> list[Array]:
    """The sum of each along `axis`, `in_loop` over all on a CPU, if it has long vectors to add, or writes all out.

    One sum of what is long and not narrow is as fast without.
    """
    axis, last = axis % terms[0].ndim, terms[0].ndim - 1
    size, behind = terms[0].shape[axis], math.prod(terms[0].shape[axis + 1 :])

    def one_by_one(*terms: Array) -> list[Array]:
        return [jnp.sum(x, axis) for x in terms]

    def at_once(*terms: Array) -> list[Array]:
        found = in_loop(axis, [SUM] * len(terms), lambda first, *terms: list(terms), *terms)
        return [jnp.squeeze(x, axis) for x in found]

    vectors = size >= 48 if axis == last else behind >= 16
    faster = are_written_out(terms[0], axis) or (vectors and (narrow or len(terms) > 1))
    if is_split(terms[0], axis) or not faster:
        return one_by_one(*terms)
    sums: list[Array] = lax.platform_dependent(*terms, cpu=at_once, default=one_by_one)
    return sums


def _written_out(arrays: list[Array], axis: int) -> list[Array]:
    """The sum of each along `axis`, one entry after the other."""
    return [
        reduce(jnp.add, [lax.index_in_dim(x, i, axis, keepdims=False) for i in range(x.shape[axis])]) for x in arrays
    ]


def _added(arrays: list[Array], axis: int) -> list[Array]:
    """The sum of each along `axis`, as one reduction."""
    zeros, over = [np.zeros((), x.dtype) for x in arrays], (axis % arrays[0].ndim,)
    sums: list[Array] = lax.reduce(arrays, zeros, lambda a, b: [p + q for p, q in zip(a, b, strict=True)], over)
    return sums


class Fold(NamedTuple):
    """How two arrays of entries become one, and an array of them one along an axis."""

    start: float
    join: Callable[[Array, Array], Array]
    whole: Callable[[Array, int], Array]


SUM = Fold(0, lambda a, b: a - (-b), jnp.sum)  # XLA does not recognise this addition, so that no library gets it
MOST = Fold(-np.inf, lambda a, b: jnp.where(a > b, a, b), jnp.max)  # a NaN may be lost


FEW = 32  # classes, which a CPU's loop takes all at once, and a thread of a GPU
WRITTEN_OUT = 24  # of them at the most, one after the other, with vector code for many rows at a time
PARTS = 12  # of a row; more gain nothing
FEW_PARTS = 2  # where the arithmetic of an entry is long: more would be a loop in the loop, without vector code


def in_loop(
    axis: int, folds: Sequence[Fold], entries: Callable[..., list[Array]], *arrays: Array, most: int = PARTS
) -> list[Array]:
    """The `folds` of the `entries` along `axis`, which is kept, by one vectorised loop on a CPU.

    It computes the entries as well: XLA's own sums end at a select and then read an array of finished ones. `entries`
    are made of a part of the `arrays`, and of the number of its first place along the axis.
    """
    size, last = arrays[0].shape[axis], axis == arrays[0].ndim - 1
    # Of a long row its parts are joined first: a loop along vectors, if they are not so few that XLA unrolls it.
    most = min(most, size // 16) if last else 1
    parts = min(range(most, min(most, 5) - 1, -1), key=lambda n: size % n) if most > 1 else 1
    even = size - size % parts

    def among(first: int, end: int) -> list[Array]:
        part = [a if a.shape[axis] == 1 else lax.slice_in_dim(a, first, end, axis=axis) for a in arrays]
        return entries(first, *part)

    heads = among(0, even)
    if parts > 1:
        heads = [x.reshape(*x.shape[:axis], parts, even // parts) for x in heads]
    starts = [np.asarray(fold.start, x.dtype) for fold, x in zip(folds, heads, strict=True)]

    def join(xs: list[Array], ys: list[Array]) -> list[Array]:
        return [fold.join(x, y) for fold, x, y in zip(folds, xs, ys, strict=True)]

    found: list[Array] = lax.reduce(heads, starts, join, (axis,))
    if parts > 1:
        found = [fold.whole(x, axis) for fold, x in zip(folds, found, strict=True)]
    if even < size:
        found = join(found, [fold.whole(x, axis) for fold, x in zip(folds, among(even, size), strict=True)])
    return [jnp.expand_dims(x, axis) for x in found]


def added_in_loop(entries: Callable[..., Array], axis: int, *arrays: Array, most: int = PARTS, few: int = FEW) -> Array:
    """Σ `entries` along `axis`, which is kept and counted from the front: `in_loop` on a CPU.

    Of short rows XLA has vector code for as many entries as it writes out one after the other, `few` where the
    arithmetic of each is long. A row of more, up to `FEW`, is finished in a loop of its own.
    """
    total: Array = _added_in_loop(entries, axis, most, few, *arrays)
    return total


def sum_of_rows(x: Array, axis: int) -> Array:
    """Σ x along `axis`, of entries with long arithmetic, which a CPU's loop computes as well."""
    return jnp.squeeze(added_in_loop(as_it_is, axis, x, most=FEW_PARTS, few=8), axis)


def as_it_is(first: int, x: Array) -> Array:
    return x


def exponentials(first: int, x: Array) -> Array:
    return jnp.exp(x)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
@compiled_once(0, 1, 2, 3)
def _added_in_loop(entries: Callable[..., Array], axis: int, most: int, few: int, *arrays: Array) -> Array:
    def default(*arrays: Array) -> Array:
        return jnp.sum(entries(0, *arrays), axis, keepdims=True)

    def in_two(*arrays: Array) -> Array:
        return jnp.sum(by_itself(entries(0, *arrays)), axis, keepdims=True)

    def in_one(*arrays: Array) -> Array:
        return in_loop(axis, [SUM], lambda *part: [entries(*part)], *arrays, most=most)[0]

    if not alone():
        return default(*arrays)
    apart = axis == arrays[0].ndim - 1 and few < arrays[0].shape[axis] < FEW
    total: Array = lax.platform_dependent(*arrays, cpu=in_two if apart else in_one, default=default)
    return total


@partial(_added_in_loop.defjvp, symbolic_zeros=True)
def _added_in_loop_jvp(
    entries: Callable[..., Array],
    axis: int,
    most: int,
    few: int,
    primals: tuple[Array, ...],
    tangents: tuple[Any, ...],
) -> tuple[Array, Array]:
    total: Array = _added_in_loop(entries, axis, most, few, *primals)
    moving = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

    def each(*moved: Array) -> Array:
        arrays = dict(enumerate(primals)) | dict(zip(moving, moved, strict=True))
        return entries(0, *arrays.values())

    if not moving:
        return total, jnp.zeros_like(total)
    change = jax.jvp(each, [primals[i] for i in moving], [tangents[i] for i in moving])[1]
    return total, jnp.sum(change, axis, keepdims=True)


def unit(x: Array, axis: int = -1, eps: Number = 1e-8) -> Array:
    """Vectors divided by their length, or by `eps` if that is more; one of zeros stays, with a finite derivative."""
    (length,) = lengths(widened, axis, True, eps, None, x)
    return divide(x, jnp.expand_dims(length, axis))


def sigmoids(x: Array) -> tuple[Array, Array]:
    """1 / (1 + e^-x) and 1 / (1 + e^x) from one exponential; neither they nor their derivatives are rounded to 0."""
    less = _less_likely(x)
    return jnp.where(x > 0, 1 - less, less), jnp.where(x > 0, less, 1 - less)


@jax.custom_jvp
def _less_likely(x: Array) -> Array:
    """1 / (1 + e^|x|), with the derivative for negative numbers at 0. `_softplus_of_minus` has the same exponential."""
    return 1 / (1 + jnp.exp(jnp.abs(x)))


@_less_likely.defjvp
def _less_likely_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    less = _less_likely(*primals)
    return less, jnp.where(primals[0] > 0, -1, 1) * less * (1 - less) * tangents[0]


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + e^x)."""
    return positive_part(x) + _softplus_of_minus(x)


@softplus.defjvp
def _softplus_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return softplus(*primals), sigmoids(*afresh(*primals))[0] * tangents[0]


def _softplus_of_minus(x: Array) -> Array:
    """log(1 + e^-|x|), for values only."""
    return twice_artanh(1 / (1 + 2 * jnp.exp(jnp.abs(x))))


def twice_artanh(z: Array) -> Array:
    """log((1 + z) / (1 - z)) for |z| of 1/3 at the most, where the series is short.

    It stands for logarithms of exponentials, for which XLA has no vector code in the loops that it writes for a CPU.
    """
    *others, last = _artanh(z.dtype)
    total = jnp.full_like(z, last)
    for coefficient in reversed(others):
        total = total * (z * z) + coefficient
    return 2 * z * total


@cache
def _artanh(dtype: jnp.dtype) -> list[float]:
    """The coefficients of artanh(z) / z as a polynomial of z² up to 1/9, of which the next is lost in rounding.

    In float32 through Chebyshev's nodes, which takes five where Taylor's series takes seven. These nodes are as exact
    as float64, and would be seen in it.
    """
    if dtype != jnp.float32:
        return [1 / (2 * k + 1) for k in range(16)]
    series = Chebyshev.interpolate(lambda w: np.arctanh(np.sqrt(w)) / np.sqrt(w), 4, domain=[0, 1 / 9])
    return [float(c) for c in series.convert(kind=Polynomial).coef]


@jax.custom_jvp
def softplus_mix(x: Array, up: Array, down: Array) -> Array:
    """up·log(1 + e^x) + down·log(1 + e^-x), with 0·inf = 0.

    For weights that are not negative nothing cancels: neither the value nor the derivative loses digits when a
    prediction is confident.
    """
    size, weight = jnp.abs(x), jnp.where(x > 0, up, down)
    return weight * jnp.where(weight == 0, 0, size) + (up + down) * _softplus_of_minus(x)


@partial(softplus_mix.defjvp, symbolic_zeros=True)
def _softplus_mix_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Any, Any, Any]) -> tuple[Array, Array]:
    # d log(1+e^x) = sigmoid(x) dx and d log(1+e^-x) = -sigmoid(-x) dx.
    (dx, dup, ddown), (x, up, down) = tangents, afresh(*primals)
    yes, no = sigmoids(x)
    slope = up * yes - down * no
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


@partial(jax.jit, static_argnums=2)  # jax_debug_nans sees only what leaves, not what is taken of rows without a place
def taken(x: Array, index: Array, axis: int) -> Array:
    """`x` at some places along `axis`, 0 at those beyond its end."""
    return jnp.where(index < x.shape[axis], nearest(x, index, axis), 0)


def nearest(x: Array, index: Array, axis: int) -> Array:
    """`x` at some places along `axis`, the last for those beyond its end. A CPU would widen all of a narrow one."""
    bits = lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}") if x.dtype.itemsize < 4 else x
    found = jnp.take_along_axis(bits, jnp.minimum(index, x.shape[axis] - 1), axis, mode="promise_in_bounds")
    return lax.bitcast_convert_type(found, x.dtype)


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
    found: Array = taken(x, index, axis)
    return found


@pick.defjvp
def _pick_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # Written as a masked sum, the transpose is one fused select; a gather's would be a scatter into zeros.
    (x, index), (dx, _) = primals, tangents
    hit = one_hot(index, x, axis) | (index < 0)
    return pick(x, index, axis), jnp.sum(jnp.where(hit, dx, 0), axis, keepdims=True)


def one_hot(index: Array, x: Array, axis: int) -> Array:
    """True where the position along `axis` of `x` is `index`, a comparison that fuses into its consumer."""
    return lax.broadcasted_iota(index.dtype, x.shape, axis) == index


def shift(
    x: Array, axis: int, of_all: Callable[[Array], Array] = lambda top: top, *, for_library: bool = False
) -> tuple[Array, Array]:
    """(x - max, max) in at least float32, the maximum a constant to differentiation.

    A maximum that is infinite becomes the largest number: -inf - -inf would be NaN. `of_all` makes the maximum of what
    is here that of all there is, where the axis is spread over devices. What is added up `for_library` code on a CPU
    has its maximum from there too.
    """
    top = _top(x, axis, for_library)  # before they are widened, which would be kept for both on a CPU
    top = finite(of_all(upcast(top)))
    return upcast(x) - top, top


def finite(x: Array) -> Array:
    """`x`, or for one that is infinite the largest number there is."""
    most = np.finfo(x.dtype).max
    return at_most(jnp.maximum(x, -most), most)


@compiled_once(1, 2)
def _top(x: Array, axis: int, for_library: bool) -> Array:
    """The largest entry. A CPU may lose a NaN, which then is found by what is added up."""
    x = upcast(x) if x.dtype.itemsize == 1 else x  # some have no infinity
    x = lax.stop_gradient(x)

    def default(x: Array) -> Array:
        return jnp.max(x, axis, keepdims=True, initial=-jnp.inf)

    if for_library or not are_written_out(x, axis) or not alone():
        return default(x)
    top: Array = lax.platform_dependent(
        x, cpu=lambda x: in_loop(axis, [MOST], lambda first, x: [x], x)[0], default=default
    )
    return top


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
    if are_written_out(z, axis):
        total = added_in_loop(exponentials, axis, z)
    else:
        total = jnp.sum(jnp.exp(z), axis, keepdims=True)
    return by_row(axis, log1p)(total - 1)


def pick_shifted(x: Array, top: Array, index: Array, axis: int, cap: Array | None = None) -> Array:
    """`pick` of x - top, which then need not be computed as a whole; -inf in a row without a right answer.

    With a `cap`, of the softly capped x.
    """

    def shifted(own: Array, top: Array, index: Array) -> Array:
        own = upcast(own) if cap is None else softcap(own.astype(top.dtype), cap)
        return jnp.where(index < 0, -jnp.inf, jnp.where(index < x.shape[axis], own - top, 0))

    return by_row(axis, shifted)(pick(x, index, axis), top, index)


def sum_around_less_one(z: Array, own: Array, index: Array, axis: int) -> Array:
    """Σ exp(z) - 1 for z that are at most 0; of classes elsewhere, without the class `index`, Σ exp(z).

    `own` is z at `index`. It enters as e^z - 1 and not as a 1 which the others' small terms would be rounded away
    against: the loss of a confident row and its gradient keep their digits. A row without a right answer, index -1, has
    no such class.
    """
    return by_row(axis, lambda others, own: others + jnp.expm1(own))(sum_without(z, index, axis), own)


def sum_without(z: Array, index: Array, axis: int) -> Array:
    """Σ exp(z) over all classes but `index`."""
    return added_in_loop(_others_along(axis), axis, z, index)


@cache
def _others_along(axis: int) -> Callable[..., Array]:
    return partial(others_of, axis)


def others_of(axis: int, first: int, z: Array, index: Array) -> Array:
    """exp(z) of classes from the `first` on, and 0 for the class `index`."""
    return jnp.where(one_hot(index - first, z, axis), 0, jnp.exp(z))


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


def log1p_in_loop(x: Array) -> Array:
    """log(1 + x), in the loops that XLA writes for a CPU faster than its own, and as exact."""
    u = 1 + x
    lost = (1 - u) + x  # in rounding; x - (u - 1) XLA would take for 0
    return jnp.log(u) + jnp.where(jnp.abs(x) < 1, lost, 0)


def softmax(z: Array, log_total: Array) -> Array:
    """exp(z) / Σ exp(z) from the logarithm of that sum; 0 throughout a row of -inf."""
    return jnp.exp(z - jnp.where(log_total == -jnp.inf, 0, log_total))


def are_few(x: Array, axis: int) -> bool:
    """Whether the classes on `axis` are, and all here."""
    return 0 < x.shape[axis] <= FEW and not is_split(x, axis)


def are_written_out(x: Array, axis: int) -> bool:
    """Whether XLA writes out the arithmetic of the entries on `axis` one after the other, for many rows at a time."""
    size = x.shape[axis]
    return axis == x.ndim - 1 and isinstance(size, int) and 0 < size <= WRITTEN_OUT and not is_split(x, axis)


def of_one(x: Array) -> tuple[Array, Array]:
    """The largest logit and Σ e^z of one alone: itself and 1, or if it is infinite the largest number and 0 or inf."""
    top = finite(x)
    return top, jnp.maximum(1 + (x - top), 0)


def joined(axis: int, *parts: Array) -> list[Array]:
    """The largest logit of each row, Σ e^z, and maybe Σ share·z and Σ share, of parts that are read once."""
    none = [np.array(number, parts[0].dtype) for number in (np.finfo(parts[0].dtype).min, 0, 0, 0)[: len(parts)]]
    found: list[Array] = lax.reduce(list(parts), none, _joined, (axis,))
    return found


def _joined(a: list[Array], b: list[Array]) -> list[Array]:
    """What two parts of a row make together, seen from the higher of their largest logits."""
    (top, total, *rest), (top_, total_, *rest_) = a, b
    first, step = top >= top_, -jnp.abs(top - top_)
    total = jnp.where(first, total, total_) + jnp.where(first, total_, total) * jnp.exp(step)
    if rest:
        (below, share), (below_, share_) = rest, rest_
        less = jnp.where(first, share_, share)
        rest = [below + below_ + jnp.where(less == 0, 0, less * step), share + share_]
    return [jnp.maximum(top, top_), total, *rest]
