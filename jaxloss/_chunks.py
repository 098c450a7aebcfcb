"""A function of many rows, a few of them at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ._devices import by_chunk, chunk_axis, devices_of_rows, out_of_chunks, vary_alike
from ._types import Array, Tree


def over_rows(
    function: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]], rows: Tree, size: int, total: Tree, large: Tree = None
) -> tuple[Tree, Tree]:
    """What `function` makes of `rows`, `size` of them at a time, so that no more is alive at once.

    Every array of `rows` and `large` has the rows on its first axis. `function(rows, large, total)` returns a pair:
    what it has for each row, which is put together again, and the total so far with its rows added. Differentiated in
    reverse mode, it is computed again. No copy is made of `large`, for which its gradient would be slow.
    """
    first = jax.tree.leaves(rows)[0]
    count, devices = len(first), devices_of_rows(first)
    if devices > 1:  # each has its share of every chunk
        size = _even(count // devices, max(1, size // devices)) * devices
    if count <= size:
        return function(rows, large, total)
    rest = count % size
    inside = count - rest
    # A Python loop would let XLA keep all chunks alive at once.
    again = jax.checkpoint(function, prevent_cse=False)
    several, many = jax.tree.map(lambda a: by_chunk(a[:inside] if rest else a, size), (rows, large))
    axis = chunk_axis()

    def step(total: Tree, chunk: tuple[Array, Tree]) -> tuple[Tree, Tree]:
        number, some = chunk
        here = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, number, axis, keepdims=False), many)
        each, total = again(some, here, total)
        return total, each

    chunks = jnp.arange(inside // size), jax.tree.map(lambda a: a.swapaxes(0, axis), several)
    total, each = lax.scan(step, vary_alike((total, rows))[0], chunks)
    each = jax.tree.map(out_of_chunks, each)
    if not rest:
        return each, total
    last, total = jax.checkpoint(function)(*jax.tree.map(lambda a: a[inside:], (rows, large)), total)
    return jax.tree.map(lambda *a: jnp.concatenate(a), each, last), total


def _even(count: int, size: int) -> int:
    """The largest divisor of `count` that is at most `size`."""
    return next(divisor for divisor in range(min(size, count), 0, -1) if count % divisor == 0)
