"""A function of many rows, a few of them at a time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from ._devices import alone, devices_of_rows
from ._types import Array

Tree: TypeAlias = Any


def over_rows(
    function: Callable[[Tree, Tree], tuple[Tree, Tree]], rows: Tree, size: int, total: Tree
) -> tuple[Tree, Tree]:
    """What `function` makes of `rows`, `size` of them at a time, so that no more is alive at once.

    Every array of `rows` has the rows on its first axis. `function(rows, total)` returns a pair: what it has for each
    row, which is put together again, and the total so far with its rows added. Differentiated in reverse mode, it is
    computed again.
    """
    first = jax.tree.leaves(rows)[0]
    count, devices = len(first), devices_of_rows(first)
    if devices > 1:  # each has its share of every chunk
        size = _even(count // devices, max(1, size // devices)) * devices
    if count <= size:
        return function(rows, total)
    chunks, rest = count // size, count % size
    inside = chunks * size
    # A Python loop would let XLA keep all chunks alive at once.
    again = jax.checkpoint(function, prevent_cse=False)

    def step(total: Tree, chunk: Tree) -> tuple[Tree, Tree]:
        each, total = again(chunk, total)
        return total, each

    def cut(a: Array) -> Array:
        if alone():
            return a[:inside].reshape(chunks, size, *a.shape[1:])
        # Rows of all devices in every chunk, if they are spread over several.
        return a[:inside].reshape(size, chunks, *a.shape[1:]).swapaxes(0, 1)

    def join(a: Array) -> Array:
        return (a if alone() else a.swapaxes(0, 1)).reshape(inside, *a.shape[2:])

    total, each = lax.scan(step, total, jax.tree.map(cut, rows))
    each = jax.tree.map(join, each)
    if not rest:
        return each, total
    last, total = jax.checkpoint(function)(jax.tree.map(lambda a: a[inside:], rows), total)
    return jax.tree.map(lambda *a: jnp.concatenate(a), each, last), total


def _even(count: int, size: int) -> int:
    """The largest divisor of `count` that is at most `size`."""
    return next(divisor for divisor in range(min(size, count), 0, -1) if count % divisor == 0)
