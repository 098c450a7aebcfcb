"""The sum of exponentials of each row and its entry at one class, from a single reading: a Triton kernel for CUDA.

XLA reads a row twice, for its maximum and for the sum. Here one program reads one row from left to right, with a
running maximum and sum in every lane; each step takes several values per lane, so that going over to a new maximum
costs one exponential for all of them.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from .._numerics import at_least_float32
from .._types import Array

Ref: TypeAlias = Any  # a block of memory inside a kernel


def read_rows(x: Array, index: Array, *, interpret: bool) -> tuple[Array, Array, Array]:
    """For each row of `x` (N, C): its maximum m, Σ_c e^{x_c - m} without class `index`, and x_index - m.

    A maximum that is not finite counts as 0. At index -1 nothing is left out of the sum, and the last number is 0. A
    row with an index from C on is not read: its numbers are 0, 1 and 0.
    """
    rows, classes = x.shape
    block, warps = (1024, 8) if classes > 4096 else (256, 2)
    number = jax.eval_shape(partial(jnp.zeros, (rows,), at_least_float32(x.dtype)))
    call = pl.pallas_call(
        partial(_read_row, classes=classes, block=block),
        out_shape=(number,) * 3,
        grid=(rows,),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=warps, num_stages=2),
    )
    top, others, at = call(x, index)
    return top, others, at


VALUES = 4  # of one lane in one step


def _read_row(x: Ref, index: Ref, top: Ref, others: Ref, at: Ref, *, classes: int, block: int) -> None:
    row = pl.program_id(0)
    y = triton.load(index.at[row])
    dtype = top.dtype

    def step(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        highest, total, found = carry
        values = []
        for k in range(VALUES):
            column = (i * VALUES + k) * block + jnp.arange(block, dtype=jnp.int32)
            value = triton.load(x.at[row, column], mask=column < classes, other=-jnp.inf).astype(dtype)
            hit = column == y
            highest = jnp.maximum(highest, value)
            found += jnp.where(hit, value, 0)
            values.append(jnp.where(hit, -jnp.inf, value))
        total *= _decay(carry[0], highest)
        for value in values:
            total += jnp.exp(value - _finite(highest))
        return highest, total, found

    start = jnp.full((block,), -jnp.inf, dtype), jnp.zeros((block,), dtype), jnp.zeros((block,), dtype)
    # Typed: a select between Python's numbers is lowered to one of booleans.
    steps = jnp.where(y < classes, np.int32(pl.cdiv(classes, block * VALUES)), np.int32(0))
    highest, total, found = lax.fori_loop(0, steps, step, start)
    maximum = jnp.max(highest)
    triton.store(top.at[row], _finite(maximum))
    sum_of_lanes = jnp.sum(total * _decay(highest, maximum))
    triton.store(others.at[row], jnp.where(y < classes, sum_of_lanes, 1))
    triton.store(at.at[row], jnp.where((y >= 0) & (y < classes), jnp.sum(found) - _finite(maximum), 0))


def _finite(maximum: Array) -> Array:
    """A maximum to subtract: -inf - -inf would be NaN."""
    return jnp.where(jnp.abs(maximum) < jnp.inf, maximum, 0)


def _decay(old: Array, new: Array) -> Array:
    """What a sum is multiplied by when the maximum rises; a sum of nothing, at -inf, is 0 and stays so."""
    return jnp.exp(jnp.minimum(_finite(old) - _finite(new), 0))
