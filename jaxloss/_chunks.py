"""A function of many rows, a few of them at a time."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from ._devices import Tree, by_chunk, out_of_chunks, varying_with
from ._types import Array


def over_rows(
    function: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]], rows: Tree, size: int, total: Tree, large: Tree = None
) -> tuple[Tree, Tree]:
    """What `function` makes of `rows`, `size` of them at a time, so that no more is alive at once.

    Every array of `rows` and `large` has the rows on its first axis. `function(rows, large, total)` returns a pair:
    what it has for each row, which is put together again, and the total so far with its rows added. Differentiated in
    reverse mode, it is computed again. No copy is made of `large`, for which its gradient would be slow.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= size:
        return function(rows, large, total)
    rest = count % size
    inside = count - rest
    # A Python loop would let XLA keep all chunks alive at once.
    again = jax.checkpoint(function, prevent_cse=False)
    several, many = jax.tree.map(lambda a: by_chunk(a[:inside] if rest else a, size), (rows, large))

    def step(total: Tree, chunk: tuple[Array, Tree]) -> tuple[Tree, Tree]:
        number, some = chunk
        here = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, number, 1, keepdims=False), many)
        each, total = again(some, here, total)
        return total, each

    chunks = jnp.arange(inside // size), jax.tree.map(lambda a: a.swapaxes(0, 1), several)
    total, each = lax.scan(step, varying_with(total, rows), chunks)
    each = jax.tree.map(out_of_chunks, each)
    if not rest:
        return each, total
    last, total = jax.checkpoint(function)(*jax.tree.map(lambda a: a[inside:], (rows, large)), total)
    return jax.tree.map(lambda *a: jnp.concatenate(a), each, last), total
