"""The sum of exponentials of each row and its entry at one class, from a single reading: a Triton kernel for CUDA.

XLA reads a row twice, for its maximum and for the sum. Here one program reads one row from left to right, with a
running maximum and sum in every lane; each step takes several values per lane, so that going over to a new maximum
costs one exponential for all of them. Only the step with the class and one that the row does not fill look at where
they are: narrow numbers come faster than they could be compared.
"""

from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .._devices import vary_as
from .._numerics import at_least_float32
from .._types import Array
from . import triton

Ref: TypeAlias = Any  # a block of memory inside a kernel


def read_rows(x: Array, index: Array, *, interpret: bool) -> tuple[Array, Array, Array]:
    """For each row of `x` (N, C): its maximum m, Σ_c e^{x_c - m} without class `index`, and x_index - m.

    An infinite maximum counts as the largest number. At index -1 nothing is left out of the sum, and the last number is
    0. A row with an index from C on is not read: its numbers are 0, 1 and 0.
    """
    rows, classes = x.shape
    block, warps = (512, 4) if classes > 4096 else (128, 1)
    number = jax.eval_shape(partial(jnp.zeros, (rows,), at_least_float32(x.dtype)))
    call = pl.pallas_call(
        partial(_read_row, classes=classes, block=block),
        out_shape=(number,) * 3,
        grid=(rows,),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=warps, num_stages=2),
    )
    # The results of a kernel have the type of what is the same on all devices.
    top, others, at = vary_as(call(x, index), x, index)
    return top, others, at


VALUES = 8  # of one lane in one step


def _read_row(x: Ref, index: Ref, top: Ref, others: Ref, at: Ref, *, classes: int, block: int) -> None:
    row = pl.program_id(0)
    y = triton.load(index.at[row])
    end = jnp.where(y < classes, jnp.int32(classes), jnp.int32(0))  # typed, or they would be lowered as booleans
    dtype = top.dtype
    lowest, highest = np.finfo(dtype).min, np.finfo(dtype).max

    def step(i: Array, carry: tuple[Array, Array], look: bool) -> tuple[Array, Array]:
        largest, total = carry
        values = []
        for k in range(VALUES):
            column = (i * VALUES + k) * block + jnp.arange(block, dtype=jnp.int32)
            within = column < end if look else None
            value = triton.load(x.at[row, column], mask=within, other=-jnp.inf if look else None).astype(dtype)
            largest = jnp.maximum(largest, value)
            values.append(jnp.where(column == y, -jnp.inf, value) if look else value)
        largest = jnp.minimum(largest, highest)
        total *= jnp.exp(carry[0] - largest)
        for value in values:
            total += jnp.exp(value - largest)
        return largest, total

    steps = lax.div(end, jnp.int32(VALUES * block))
    own = jnp.where(y < 0, steps, jnp.minimum(lax.div(y, jnp.int32(VALUES * block)), steps))
    carry = jnp.full((block,), lowest, dtype), jnp.zeros((block,), dtype)
    for first, last, look in ((0, own, False), (own, jnp.minimum(own + 1, steps), True), (own + 1, steps, False)):
        carry = lax.fori_loop(first, last, partial(step, look=look), carry)
    if classes % (VALUES * block):
        carry = step(steps, carry, look=True)
    largest, total = carry
    maximum = jnp.max(largest)
    mine = triton.load(x.at[row, jnp.clip(y, 0, classes - 1)]).astype(dtype)
    triton.store(top.at[row], jnp.where(y < classes, maximum, 0))
    triton.store(others.at[row], jnp.where(y < classes, jnp.sum(total * jnp.exp(largest - maximum)), 1))
    triton.store(at.at[row], jnp.where((y >= 0) & (y < classes), mine - maximum, 0))
