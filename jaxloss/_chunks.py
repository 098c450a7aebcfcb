"""A function of many rows, a few of them at a time."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

Tree: TypeAlias = Any


def over_rows(function: Callable[[Tree], tuple[Tree, Tree]], rows: Tree, size: int) -> tuple[Tree, Tree]:
    """What `function` makes of `rows`, `size` of them at a time, so that no more is alive at once.

    Every array of `rows` has the rows on its first axis. `function` returns a pair: what it has for each row, which is
    put together again, and what is added up over all rows. Differentiated in reverse mode, it is computed again.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    if count <= size:
        return function(rows)
    chunks, rest = count // size, count % size
    inside = chunks * size
    # A Python loop would let XLA keep all chunks alive at once.
    again = jax.checkpoint(function, prevent_cse=False)

    def step(total: Tree, chunk: Tree) -> tuple[Tree, Tree]:
        each, part = again(chunk)
        return jax.tree.map(jnp.add, total, part), each

    batches = jax.tree.map(lambda a: a[:inside].reshape(chunks, size, *a.shape[1:]), rows)
    _, part = jax.eval_shape(lambda rows: function(jax.tree.map(lambda a: a[0], rows)), batches)
    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), part)
    total, each = lax.scan(step, nothing, batches)
    each = jax.tree.map(lambda a: a.reshape(inside, *a.shape[2:]), each)
    if not rest:
        return each, total
    last, part = jax.checkpoint(function)(jax.tree.map(lambda a: a[inside:], rows))
    return jax.tree.map(lambda *a: jnp.concatenate(a), each, last), jax.tree.map(jnp.add, total, part)
