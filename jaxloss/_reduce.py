"""The tail of each loss: zero where masked, then none, sum, mean or the pair that makes a mean exact."""

import jax.numpy as jnp
from jax import lax

from . import _check
from ._types import Array, Reduced

REDUCTIONS = ("mean", "sum", "none", "sum_and_weight")


def reduce(
    name: str,
    loss: Array,
    reduction: str,
    keep: Array | None = None,
    share: Array | None = None,
) -> Reduced:
    """Reduce an unreduced loss that already carries its weights.

    `share` is what each entry adds to the denominator of the mean, 1 if None. Masked entries add nothing.
    """
    _check.choice(name, "reduction", reduction, REDUCTIONS)
    loss = _check.masked(loss, keep)
    if reduction == "none":
        return loss
    total = jnp.sum(loss)
    if reduction == "sum":
        return total
    weight = denominator(total.dtype, loss.size, keep, share)
    return (total, weight) if reduction == "sum_and_weight" else mean(total, weight)


def denominator(dtype: jnp.dtype, size: int, keep: Array | None, share: Array | None) -> Array:
    """What the mean over `size` entries divides by, those that are masked left out. It carries no gradient."""
    if share is not None:
        return lax.stop_gradient(jnp.sum(_check.masked(share, keep), dtype=dtype))
    # Counted in integers: a float32 sum of ones can stop growing at 2**24.
    count = size if keep is None else jnp.sum(keep, dtype=jnp.int32)
    return jnp.asarray(count, dtype)


def mean(total: Array, weight: Array) -> Array:
    """total / weight. Over nothing it is NaN, as in torch, but the gradient is 0 and not 0/0."""
    nothing = weight == 0
    return jnp.where(nothing, jnp.nan, total / jnp.where(nothing, 1, weight))
