"""Gradients of several tasks, met only through their inner products, and the small problems posed in those."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check
from ._devices import everywhere
from ._numerics import reciprocal, upcast
from ._types import Array, Tree

Gradients: TypeAlias = Mapping[str, Tree] | Sequence[Tree]


def trees(name: str, gradients: Gradients) -> list[Tree]:
    """One gradient tree for each task, all alike."""
    found = list(gradients.values()) if isinstance(gradients, Mapping) else list(gradients)
    if not found:
        raise ValueError(f"{name}: `gradients` must hold one tree for each task, got none.")
    shapes = [jax.tree.map(jnp.shape, tree) for tree in found]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(f"{name}: `gradients` must be trees of one structure with equal shapes, got {shapes}.")
    for leaf in jax.tree.leaves(found):
        _check.floating(name, "gradients", leaf)
    return found


def gram(tasks: list[Tree]) -> Array:
    """The inner products of all pairs of trees, (K, K), in at least float32; constants."""
    products = []
    for leaves in zip(*map(jax.tree.leaves, tasks), strict=True):
        rows = jnp.stack([upcast(jnp.asarray(leaf)) for leaf in leaves])
        axes = tuple(range(1, rows.ndim))
        highest, layout = lax.Precision.HIGHEST, everywhere(rows)
        products.append(jnp.tensordot(rows, rows, axes=(axes, axes), precision=highest, out_sharding=layout))
    if not products:
        return jnp.zeros((len(tasks), len(tasks)))
    return lax.stop_gradient(sum(products[1:], products[0]))


def combined(tasks: list[Tree], weights: Array) -> Tree:
    """The sum of weight times tree, each leaf in its own dtype."""

    def leaf(*leaves: Array) -> Array:
        terms = [weights[k] * upcast(jnp.asarray(x)) for k, x in enumerate(leaves)]
        return sum(terms[1:], terms[0]).astype(leaves[0].dtype)

    return jax.tree.map(leaf, *tasks)


def nonnegative(a: Array, c: Array) -> Array:
    """The v ≥ 0 that minimises v·Av/2 - c·v for a positive semidefinite A.

    By the active sets of Lawson and Hanson, scaled to a unit diagonal: entries enter one by one where the slope
    c - Av is positive, the system of those inside is solved, and whoever would turn negative leaves. It ends after a
    few rounds with the exact solution. What rounding might let go round in circles is cut off.
    """
    size = c.shape[0]
    scale = jnp.sqrt(reciprocal(jnp.diagonal(a)))
    a, c = a * scale * scale[:, None], c * scale
    eps = np.finfo(a.dtype).eps

    def solved(inside: Array) -> Array:
        both = inside & inside[:, None]
        # Parallel gradients make the system singular; the ridge is below its rounding.
        system = jnp.where(both, a, 0) + jnp.diag(jnp.where(inside, eps, 1).astype(a.dtype))
        return jnp.where(inside, jnp.linalg.solve(system, jnp.where(inside, c, 0)), 0)

    def round_(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        v, inside, _, count = state
        best = solved(inside)
        stopped = inside & (best <= 0)
        reach = jnp.where(stopped, jnp.where(v > best, v / jnp.where(v > best, v - best, 1), 0), jnp.inf)
        part = jnp.min(reach)
        blocked = jnp.any(stopped)
        v = jnp.where(blocked, v + jnp.minimum(part, 1) * (best - v), best)
        inside &= ~(stopped & (reach <= part))
        v = jnp.where(inside, v, 0)
        slope = jnp.where(inside, -jnp.inf, c - a @ v)
        entering = jnp.argmax(slope)
        tolerance = 8 * size * eps * (jnp.abs(a[entering]) @ v + jnp.abs(c[entering]))
        improves = ~blocked & (slope[entering] > tolerance)
        inside |= improves & (jnp.arange(size) == entering)
        return v, inside, blocked | improves, count + 1

    def goes_on(state: tuple[Array, Array, Array, Array]) -> Array:
        return state[2] & (state[3] < 10 * size)

    start = jnp.zeros_like(c), jnp.zeros(size, bool), jnp.asarray(True), jnp.asarray(0)
    return scale * lax.while_loop(goes_on, round_, start)[0]


def shortest(g: Array) -> Array:
    """The weights w ≥ 0 that sum to 1 for which Σ w_k g_k is shortest, from inner products g.

    For v = s·w with Σ w = 1 the minimum over s of s² |Σ w_k g_k|² + (s - 1)² grows with |Σ w_k g_k|: the v ≥ 0 that
    minimises it points to the same w, whatever the unit of length. The shortest gradient, which counts most, gives it.
    """
    squares = jnp.diagonal(g)
    least = jnp.min(jnp.where(squares > 0, squares, jnp.inf))
    v = nonnegative(g / jnp.where(jnp.isfinite(least), least, 1) + 1, jnp.ones(g.shape[0], g.dtype))
    return v / jnp.sum(v)
