"""The tail of each loss: zero where masked, then none, sum, mean or the pair that makes a mean exact."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check
from ._devices import alone
from ._numerics import again, by_itself, compiled_once
from ._types import Array, ArrayLike, Reduced

REDUCTIONS = ("mean", "sum", "none", "sum_and_weight")
MANY = 2**15
THIN = 16


def reduce(
    name: str,
    loss: Array,
    reduction: str,
    keep: Array | None = None,
    share: Array | None = None,
    *,
    in_loop: bool = False,
) -> Reduced:
    """Reduce an unreduced loss that already carries its weights.

    `share` is what each entry adds to the denominator of the mean, 1 if None. Masked entries add nothing. `in_loop` is
    for entries without a logarithm of what is not an argument: `sum_in_loop`.
    """
    _check.choice(name, "reduction", reduction, REDUCTIONS)
    loss = _check.masked(loss, keep)
    if reduction == "none":
        return _finished(loss) if in_loop else loss
    total = sum_in_loop(loss) if in_loop else jnp.sum(loss)
    if reduction == "sum":
        return total
    if reduction == "mean" and keep is share is None and is_known(loss.size) and loss.size:
        return total / float(loss.size)  # which `mean` makes of it, and faster compiled
    weight = denominator(total.dtype, loss.size, keep, share, in_loop=in_loop)
    return (total, weight) if reduction == "sum_and_weight" else mean(total, weight)


def better_in_loop(keep: Array | None, *arguments: ArrayLike, weight: ArrayLike | None = None) -> bool:
    """Whether even a sum of squares is: with the select of a mask or weight, narrow numbers, or short rows."""
    if keep is not None or weight is not None:
        return True
    arrays = [jnp.asarray(a) for a in arguments]
    return are_thin(arrays[0]) or any(a.dtype.itemsize < 4 for a in arrays)


def are_thin(x: Array) -> bool:
    """Whether the rows are so short that a library which takes them one by one is slow: it has x[:, None], say."""
    return x.ndim > 1 and is_known(x.size) and x.shape[-1] < THIN


def is_known(size: int) -> bool:
    """Whether a program is traced for one size, and not, as `jax.export` can, for any."""
    return isinstance(size, int)


def are_many(x: Array) -> bool:
    """Whether there are so many entries, for sure, that XLA adds them up on a CPU by a library."""
    return is_known(x.size) and x.size >= MANY


@jax.custom_jvp
@compiled_once()
def _finished(loss: Array) -> Array:
    """The same entries, of which a sum that the caller may take starts from an array and not with their arithmetic.

    That is `sum_in_loop` for a sum that is not ours: a CPU's library stops at the select.
    """
    finished: Array = lax.platform_dependent(loss, cpu=by_itself, default=lambda loss: loss)
    return finished


@_finished.defjvp
def _finished_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _finished(*primals), tangents[0]


@jax.custom_jvp
@compiled_once()
def sum_in_loop(loss: Array) -> Array:
    """Σ loss by one vectorised loop on a CPU that computes the entries as well.

    A plain sum XLA leaves to a library, which takes the arithmetic in front of it one operation after the other, each
    over a tile in memory, and stops at a select. A loop keeps its numbers in registers and knows selects; only a
    logarithm of an exponential has no vector code there.
    """
    if not are_many(loss) or not alone():
        return jnp.sum(loss)
    last = () if are_thin(loss) else loss.shape[1:][-1:]
    rows = loss.size // math.prod(last)
    # More parts would be a loop in the loop, without vector code, once the arithmetic of each is long, as float64's is.
    # Of an odd number of sums XLA gives none to a second core.
    some = (4, 3, 5, 2) if loss.dtype.itemsize < 8 else (2, 3)
    parts = next((n for by in (2, 1) for n in some if rows % (by * n) == 0), 1)
    if parts == 1:
        return jnp.sum(loss)

    def by_parts(loss: Array) -> Array:
        # XLA does not recognise this addition, so that the library gets a part of the numbers, when they are finished.
        split = loss.reshape(parts, -1, *last)
        return jnp.sum(lax.reduce(split, np.zeros((), loss.dtype), lambda a, b: a - (-b), (0,)))

    total: Array = lax.platform_dependent(loss, cpu=by_parts, default=jnp.sum)
    return total


@sum_in_loop.defjvp
def _sum_in_loop_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return sum_in_loop(*primals), jnp.sum(*tangents)


def denominator(
    dtype: jnp.dtype, size: int, keep: Array | None, share: Array | None, *, in_loop: bool = False
) -> Array:
    """What the mean over `size` entries divides by, those that are masked left out. It carries no gradient."""
    # Not `in_loop` what may be a constant: XLA knows what ones sum to only where it sees that they are added.
    add = sum_in_loop if in_loop else jnp.sum
    if in_loop:  # or XLA would add up a mask that is known while it compiles, which takes seconds by our addition
        if keep is not None:
            (keep,) = again(keep)
        elif share is not None:
            (share,) = again(share)
    if share is not None:
        return lax.stop_gradient(add(_check.masked(share, keep).astype(dtype)))
    # A float32 sum of ones can stop growing at 2**24. Below it is exact, and compiles faster on a CPU than integers.
    exact = is_known(size) and size <= 2**24
    count = size if keep is None else add(keep.astype(dtype if exact else jnp.int32))
    return jnp.asarray(count, dtype)


def mean(total: Array, weight: Array) -> Array:
    """total / weight. Over nothing it is NaN, as in torch, but the gradient is 0 and not 0/0."""
    nothing = weight == 0
    return jnp.where(nothing, jnp.nan, total / jnp.where(nothing, 1, weight))
