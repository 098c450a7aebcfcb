"""The lattice of CTC: all ways to stretch S labels over T frames, with blanks allowed before, between and behind them.

Its states at a frame are the blanks 0..S and the labels 0..S-1, kept apart: label s lies between blanks s and s + 1.
From one frame to the next a path stays, moves on by one state, or skips the blank between two labels that differ:

    blank s  ← (blank s + label s-1) · p(blank)
    label s  ← (label s + blank s + [label s may follow label s-1 at once] · label s-1) · p(label s)

Paths begin at blank 0 before the first frame. β is α of the sequence read from its end, so that one loop over time
carries both. Arrays are (T, N) for log p(blank), (T, S, N) for log p(label), and (T, slots, N) for the states, always
with slots and samples on the last two axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import _wide
from ._devices import spread_like
from ._types import Array
from ._wide import Wide

# Has its argument computed before what uses it. Merged with it, as XLA would have them, it would be computed again for
# each user, and its odd order of access would cost the user its vector code: two to three times slower on a CPU.
apart: Callable[[Any], Any] = lax.optimization_barrier


class States(NamedTuple):
    """Blanks 0..S and labels 0..S-1 on an axis of slots."""

    blanks: Wide
    labels: Wide


def start(first: Array, skip: Array, p: tuple[Wide, Wide]) -> States:
    """Certain to be at blank `first`, (1, N), before any frame."""
    p_blank, p_labels = p
    a_frame = (p.exponent[:1, ..., :1, :].sum(0) for p in (p_blank, p_labels))  # of none where there is none
    first = spread_like(first, *a_frame, skip[..., :1, :])
    at = jnp.arange(skip.shape[-2] + 1)[:, None] == first
    dtype = p_blank.fraction.dtype
    return States(_wide.one_where(at, dtype), _wide.one_where(at[..., 1:, :] & False, dtype))


def step(skip: Array, states: States, p: tuple[Wide, Wide]) -> States:
    """One frame further."""
    p_blank, p_labels = p
    blanks, labels = _wide.normalized(states.blanks), _wide.normalized(states.labels)
    below = [*[(0, 0)] * (skip.ndim - 2), (1, 0), (0, 0)]
    before = labels.map(lambda a, fill: jnp.pad(a, below, constant_values=fill), (1, _wide.ZERO))
    at_blanks = _wide.add(blanks, before)
    skipping = _wide.only_where(skip, before.map(lambda a: a[..., :-1, :]))
    at_labels = _wide.add(labels, blanks.map(lambda a: a[..., :-1, :]), skipping)
    return States(_wide.times(at_blanks, p_blank), _wide.times(at_labels, p_labels))


def forward(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Wide:
    """The mass of all alignments, (N,)."""
    p = _wide.exp(apart(log_blank[:, None])), _wide.exp(apart(log_labels))
    first = start(jnp.zeros_like(sizes)[None], skip, p)
    last, _ = lax.scan(lambda states, p: (step(skip, states, p), None), first, p)
    return mass(last, sizes)


def mass(last: States, sizes: Array) -> Wide:
    """What has arrived at the last label or at the blank behind it."""
    blank = last.blanks.map(lambda a: jnp.take_along_axis(a, sizes[None], 0)[0])
    label = last.labels.map(lambda a: jnp.take_along_axis(a, jnp.maximum(sizes - 1, 0)[None], 0)[0])
    return _wide.add(_wide.normalized(blank), _wide.only_where(sizes > 0, _wide.normalized(label)))


class Ways(NamedTuple):
    """α and β of the labels, each with p(frame) in it, (T, S, N), and the mass of all alignments, (N,)."""

    ahead: Wide
    behind: Wide
    mass: Wide


def both_ways(log_blank: Array, log_labels: Array, skip: Array, sizes: Array, *, long_rows: bool = False) -> Ways:
    """α and β from one loop over time.

    With `long_rows` the two lie side by side on the axis of samples, which a CPU is a third faster with; but samples on
    many devices then have to move. Otherwise they have an axis of their own.
    """
    count = sizes.size

    def join(a: Array, b: Array) -> Array:
        return jnp.concatenate([a, b], -1) if long_rows else jnp.stack([a, b], -3)

    p_blank = _wide.exp(join(log_blank[:, None], jnp.flip(log_blank, 0)[:, None]))
    log_both = apart(join(log_labels, apart(jnp.flip(log_labels, (0, 1)))))
    # Read from the end, label s may follow label s+1 exactly if the reverse holds; nothing precedes the first one.
    skip = join(skip, jnp.roll(jnp.flip(skip, 0), 1, 0))
    p = apart((p_blank, _wide.exp(log_both)))
    first = start(join(jnp.zeros_like(sizes)[None], (skip.shape[-2] - sizes)[None]), skip, p)

    def one_frame(states: States, p: tuple[Wide, Wide]) -> tuple[States, Wide]:
        states = step(skip, states, p)
        return states, states.labels

    last, labels = lax.scan(one_frame, first, p)

    def way(number: int) -> Callable[[Array], Array]:
        return lambda a: a[..., number * count :][..., :count] if long_rows else a[..., number, :, :]

    behind = labels.map(way(1)).map(lambda a: jnp.flip(a, (0, 1)))
    return Ways(labels.map(way(0)), behind, mass(jax.tree.map(way(0), last), sizes))


def posterior(ways: Ways, log_labels: Array) -> Array:
    """The share of each label in the mass, (T, S, N): α·β / (p·mass), since α and β both hold the frame's own p."""
    p, (ahead, behind, total) = _wide.exp(log_labels), ways
    possible = total.exponent > _wide.VANISHED
    joint = Wide(
        ahead.fraction * behind.fraction / (p.fraction * total.fraction),
        ahead.exponent + behind.exponent - p.exponent,
    )
    # Where no path is possible every exponent is far below 0.
    return _wide.scaled(joint, jnp.where(possible, total.exponent, 0))


def best_path(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> tuple[Array, Array]:
    """The state of the best path at each frame, (T, N), 2s at blank s and 2s + 1 at label s; and where there is a path.

    A tie is decided by staying.
    """
    slots, dtype = skip.shape[0] + 1, log_blank.dtype
    first = jnp.where(jnp.arange(slots)[:, None] == jnp.zeros_like(sizes), 0, -jnp.inf).astype(dtype)

    def one_frame(scores: tuple[Array, Array], logs: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        blanks, labels = scores
        before = jnp.pad(labels, ((1, 0), (0, 0)), constant_values=-jnp.inf)
        to_blank = jnp.stack([blanks, before])
        to_label = jnp.stack([labels, blanks[:-1], jnp.where(skip, before[:-1], -jnp.inf)])
        blanks, labels = to_blank.max(0) + logs[0], to_label.max(0) + logs[1]
        # Only differences matter, and small numbers keep more digits of them.
        top = jnp.maximum(blanks.max(0), labels.max(0))
        top = jnp.where(jnp.isfinite(top), top, 0)
        # How far the best predecessor of each state lies behind it, blanks and labels in turn.
        moves = jnp.stack([to_blank.argmax(0)[:-1], to_label.argmax(0)], 1).reshape(2 * skip.shape[0], sizes.size)
        moves = jnp.concatenate([moves, to_blank.argmax(0)[-1:]])
        return (blanks - top, labels - top), moves.astype(jnp.int8)

    (blanks, labels), moves = lax.scan(one_frame, (first, jnp.full_like(first[1:], -jnp.inf)), (log_blank, log_labels))
    end_blank = jnp.take_along_axis(blanks, sizes[None], 0)[0]
    end_label = jnp.take_along_axis(labels, jnp.maximum(sizes - 1, 0)[None], 0)[0]
    end_label = jnp.where(sizes > 0, end_label, -jnp.inf)
    last = 2 * sizes - (end_label > end_blank)

    def back(state: Array, moves: Array) -> tuple[Array, Array]:
        return state - jnp.take_along_axis(moves, state[None], 0)[0], state

    return lax.scan(back, last, moves, reverse=True)[1], jnp.maximum(end_blank, end_label) > -jnp.inf
