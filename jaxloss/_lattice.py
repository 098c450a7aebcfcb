"""The lattice of CTC: all ways to stretch S labels over T frames, with blanks allowed before, between and behind them.

Its states at a frame are the blanks 0..S and the labels 0..S-1, kept apart: label s lies between blanks s and s + 1.
From one frame to the next a path stays, moves on by one state, or skips the blank between two labels that differ:

    blank s  ← (blank s + label s-1) · p(blank)
    label s  ← (label s + blank s + [label s may follow label s-1 at once] · label s-1) · p(label s)

Paths begin at blank 0 before the first frame. β is α of the sequence read from its end. Arrays are (T, N) for
log p(blank), (T, S, N) for log p(label), and (T, slots, N) for the states, with slots and samples always on the last
two axes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import _wide
from ._devices import spread_like
from ._numerics import compiled_once
from ._types import Array
from ._wide import Wide

# Has its argument computed before what uses it. Merged with it, as XLA would have them, it would be computed again for
# each user, and its odd order of access would cost the user its vector code: two to three times slower on a CPU.
apart: Callable[[Any], Any] = lax.optimization_barrier


class States(NamedTuple):
    """Blanks 0..S and labels 0..S-1, each on an axis of slots behind one that nothing reaches.

    The first label has a predecessor that way; the blanks have it since XLA then forms them, too, as vectors on a CPU.
    """

    blanks: Wide
    labels: Wide


def start(first: Array, skip: Array, p: tuple[Wide, Wide]) -> States:
    """Certain to be at blank `first`, (1, N), before any frame."""
    p_blank, p_labels = p
    a_frame = (p.exponent[:1, ..., :1, :].sum(0) for p in (p_blank, p_labels))  # of none where there is none
    first = spread_like(first, *a_frame, skip[..., :1, :])
    at = jnp.arange(-1, skip.shape[-2] + 1)[:, None] == first
    dtype = p_blank.fraction.dtype
    return States(_wide.one_where(at, dtype), _wide.one_where(at[..., 1:, :] & False, dtype))


def arrivals(skip: Array, states: States) -> tuple[Wide, Wide]:
    """What arrives at the blanks and at the labels one frame further."""
    blanks, before = unpadded(states.blanks), states.labels
    skipping = _wide.only_where(skip, but_the_last(before))
    return _wide.add(blanks, before), _wide.add(unpadded(before), but_the_last(blanks), skipping)


def passed(arrived: tuple[Wide, Wide], p: tuple[Wide, Wide]) -> States:
    """The states of the frame whose probabilities are `p`."""
    return States(*(padded(_wide.times(a, p)) for a, p in zip(arrived, p, strict=True)))


def padded(x: Wide) -> Wide:
    """The slots behind one that nothing reaches."""
    widths = [*[(0, 0)] * (x.exponent.ndim - 2), (1, 0), (0, 0)]
    return x.map(lambda a, fill: jnp.pad(a, widths, constant_values=fill), (1, _wide.ZERO))


def unpadded(x: Wide) -> Wide:
    """All slots but the one that nothing reaches."""
    return x.map(lambda a: a[..., 1:, :])


def but_the_last(x: Wide) -> Wide:
    """All slots but the last."""
    return x.map(lambda a: a[..., :-1, :])


def from_the_end(x: Wide) -> Wide:
    """The same slots in the opposite order."""
    return x.map(lambda a: jnp.flip(a, -2))


def skip_from_the_end(skip: Array) -> Array:
    """`may_skip` of the sequence read from its end.

    Label s may follow label s+1 exactly if the reverse holds; what precedes the first one is nothing.
    """
    return jnp.roll(jnp.flip(skip, 0), 1, 0)


@compiled_once()
def forward(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Wide:
    """The mass of all alignments, (N,)."""
    p = _wide.exp(apart(log_blank[:, None])), _wide.exp(apart(log_labels))
    first = start(jnp.zeros_like(sizes)[None], skip, p)
    last, _ = lax.scan(lambda states, p: (passed(arrivals(skip, states), p), None), first, p)
    return mass(last, sizes)


def mass(last: States, sizes: Array) -> Wide:
    """What has arrived at the last label or at the blank behind it."""
    blank = last.blanks.map(lambda a: jnp.take_along_axis(a, sizes[None] + 1, 0)[0])
    return _wide.add(blank, last.labels.map(lambda a: jnp.take_along_axis(a, sizes[None], 0)[0]))


class Shares(NamedTuple):
    """The share of each label in the mass of all alignments, (T, S, N), and that mass, (N,)."""

    labels: Array
    mass: Wide


@compiled_once()
def shares(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Shares:
    """The posterior of each label, from α and β."""
    arrays = log_blank, log_labels, skip, sizes
    found: Shares = lax.platform_dependent(*arrays, cpu=shares_in_turn, default=shares_at_once)
    return found


def shares_in_turn(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Shares:
    """α in a loop over time, then β in one that stores nothing but the shares.

    Best on a CPU, where a step takes longer to compute than to start: nothing is put in another order first.
    """
    p = _wide.exp(log_blank[:, None]), _wide.exp(log_labels)

    def ahead(states: States, p: tuple[Wide, Wide]) -> tuple[States, Wide]:
        states = passed(arrivals(skip, states), p)
        return states, states.labels

    last, labels = lax.scan(ahead, start(jnp.zeros_like(sizes)[None], skip, p), p)
    total = mass(last, sizes)
    skip_back = skip_from_the_end(skip)

    def behind(states: States, frame: tuple[tuple[Wide, Wide], Wide]) -> tuple[States, Array]:
        (p_blank, p_labels), labels = frame
        arrived = arrivals(skip_back, states)
        share = share_of(total, _wide.times(unpadded(labels), from_the_end(arrived[1])))
        return passed(arrived, (p_blank, from_the_end(p_labels))), share

    first = start((skip.shape[0] - sizes)[None], skip, p)
    _, shares = lax.scan(behind, first, (p, labels), reverse=True)
    return Shares(shares, total)


def share_of(total: Wide, x: Wide) -> Array:
    """x / total, 0 where no path is possible, since every exponent is far below 0 there."""
    possible = total.exponent > _wide.VANISHED
    return _wide.as_float(Wide(x.fraction / total.fraction, x.exponent - jnp.where(possible, total.exponent, 0)))


class Ways(NamedTuple):
    """α and β of the labels, each with p(frame) in it, (T, S, N), and the mass of all alignments, (N,)."""

    ahead: Wide
    behind: Wide
    mass: Wide


def both_ways(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Ways:
    """α and β from one loop over time, each on its own place of the first axis."""

    def both(a: Array, b: Array) -> Array:
        return jnp.stack([a, b], -3)

    p_blank = _wide.exp(both(log_blank[:, None], jnp.flip(log_blank, 0)[:, None]))
    log_both = apart(both(log_labels, apart(jnp.flip(log_labels, (0, 1)))))
    skips = both(skip, skip_from_the_end(skip))
    p = apart((p_blank, _wide.exp(log_both)))
    first = start(both(jnp.zeros_like(sizes)[None], (skip.shape[0] - sizes)[None]), skips, p)

    def one_frame(states: States, p: tuple[Wide, Wide]) -> tuple[States, Wide]:
        states = passed(arrivals(skips, states), p)
        return states, states.labels

    last, labels = lax.scan(one_frame, first, p)
    ahead, behind = (unpadded(labels.map(lambda a, way=way: a[:, way])) for way in (0, 1))
    return Ways(ahead, behind.map(lambda a: jnp.flip(a, (0, 1))), mass(jax.tree.map(lambda a: a[0], last), sizes))


def shares_at_once(log_blank: Array, log_labels: Array, skip: Array, sizes: Array) -> Shares:
    """α and β from one loop, of half as many steps, then the shares."""
    ways = both_ways(log_blank, log_labels, skip, sizes)
    return Shares(posterior(ways, log_labels), ways.mass)


def posterior(ways: Ways, log_labels: Array) -> Array:
    """The share of each label in the mass, (T, S, N): α·β / (p·mass), since α and β both hold the frame's own p."""
    p, (ahead, behind, total) = _wide.exp(log_labels), ways
    joint = Wide(ahead.fraction * behind.fraction / p.fraction, ahead.exponent + behind.exponent - p.exponent)
    return share_of(total, joint)


@compiled_once()
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
