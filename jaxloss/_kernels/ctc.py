"""α and β of CTC on CUDA: one program per sequence and direction runs the whole loop over time.

A lane holds blank s and label s in registers. A step needs of its left neighbour what only memory can carry across, and
waiting for that takes longer than the arithmetic. So lanes meet once in FRAMES frames: each also holds that many
neighbours to its left, of which it has one less that is right after each frame. What the next meeting needs is on its
way while the states of this one are formed.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from .. import _wide
from .._devices import vary_as
from .._types import Array
from .._wide import Wide
from . import triton


def _array(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.eval_shape(partial(jnp.zeros, shape, dtype))  # inside `jax.shard_map` of a full type


# A program's lanes share one multiprocessor's registers; beyond this many they spill.
MOST_LANES = 4096
FRAMES = 2  # from one meeting to the next


def refusal(dtype: Any, frames: int, labels: int) -> str:
    """Why the kernel cannot take states of this dtype and size, or nothing."""
    if triton is None:
        return "this version of JAX has no Triton"
    if dtype != jnp.float32:
        return f"it computes in float32, not in {jnp.dtype(dtype)}"
    if labels >= MOST_LANES:
        return f"it takes targets of fewer than {MOST_LANES} labels, not {labels}"
    return "" if frames else "there is no frame"


def both_ways(
    log_blank: Array, log_labels: Array, skip: Array, sizes: Array, *, interpret: bool = False
) -> tuple[Wide, Wide, Wide]:
    """α of the labels and β less the frame's own p, (T, S, N), with their joint mass as product; and all mass, (N,)."""
    length, slots, count = log_labels.shape
    lanes = pl.next_power_of_2(slots + 1)
    shapes = {
        "fraction": _array((length, 2 * count, lanes), jnp.float32),
        "exponent": _array((length, 2 * count, lanes), jnp.int32),
        "mass_fraction": _array((2 * count,), jnp.float32),
        "mass_exponent": _array((2 * count,), jnp.int32),
        # Labels and blanks of two meetings in turn, so that none is overwritten that a slow lane has yet to read.
        "met_fraction": _array((2, 2, 2 * count, lanes), jnp.float32),
        "met_exponent": _array((2, 2, 2 * count, lanes), jnp.int32),
    }
    found = pl.pallas_call(
        partial(_program, count=count, length=length, slots=slots, lanes=lanes, interpret=interpret),
        out_shape=list(shapes.values()),
        grid=(2 * count,),
        interpret=interpret,
        compiler_params=None if interpret else triton.CompilerParams(num_warps=_warps(lanes), num_stages=1),
    )(log_blank, log_labels.swapaxes(1, 2), skip.T, sizes)
    # The results of a kernel have the type of what is the same on all devices.
    found = vary_as(found, log_blank, log_labels, skip, sizes)
    rows = Wide(*found[:2]).map(lambda a: a[..., :slots].swapaxes(1, 2))
    ahead, behind = rows.map(lambda a: a[..., :count]), rows.map(lambda a: a[..., count:])
    return ahead, behind, Wide(*(a[:count] for a in found[2:4]))


def _warps(lanes: int) -> int:
    return min(8, max(1, lanes // 32))


class _Near(NamedTuple):
    """Of a lane and of those to its left, each at its distance."""

    labels: list[Wide]
    blanks: list[Wide]


def _program(
    log_blank: Any,
    log_labels: Any,
    skip: Any,
    sizes: Any,
    out_fraction: Any,
    out_exponent: Any,
    mass_fraction: Any,
    mass_exponent: Any,
    met_fraction: Any,
    met_exponent: Any,
    *,
    count: int,
    length: int,
    slots: int,
    lanes: int,
    interpret: bool,
) -> None:
    row = pl.program_id(0)
    backward = row >= count
    n = jnp.where(backward, row - count, row)
    lane = jnp.arange(lanes, dtype=jnp.int32)
    left = [jnp.maximum(lane - k, 0) for k in range(FRAMES + 1)]
    is_label = [(lane >= k) & (lane < slots + k) for k in range(FRAMES + 1)]
    # The label of each, and that whose entry of `skip` says whether it may follow the one to its left at once.
    places = [jnp.clip(jnp.where(backward, slots - 1 - s, s), 0, slots - 1) for s in left]
    home = jnp.where(backward, (slots - 1 - lane) & (lanes - 1), lane)  # a place of its own for every lane
    skips = [jnp.clip(jnp.where(backward, slots - s, s), 0, slots - 1) for s in left[:-1]]
    may_skip = [triton.load(skip.at[n, place]) & (lane > k) for k, place in enumerate(skips)]

    def logs(i: int | Array) -> list[tuple[Array, list[Array]]]:
        """log p of the blank and of the labels that each frame of a meeting needs; behind the last a certain blank."""
        found = []
        for frame in range(FRAMES):
            t = jnp.minimum(i + frame, length - 1)
            t = jnp.where(backward, length - 1 - t, t)
            there = i + frame < length
            blank = jnp.where(there, triton.load(log_blank.at[t, n]), np.float32(0))
            near = [(log_labels.at[t, n, places[k]], is_label[k] & there) for k in range(FRAMES - frame)]
            found.append((blank, [triton.load(at, mask=mask, other=-jnp.inf) for at, mask in near]))
        return found

    def meeting(turn: Array, carry: Any) -> Any:
        near, frames = carry
        i = turn * FRAMES
        ahead = logs(i + FRAMES)
        for frame, (log_p_blank, log_p_labels) in enumerate(frames):
            p_blank, labels, blanks = _wide.exp(log_p_blank), [], []
            for k, log_p in enumerate(log_p_labels):
                own, before, blank = near.labels[k], near.labels[k + 1], near.blanks[k]
                arrived = _wide.add(own, blank, _wide.only_where(may_skip[k], before))
                labels.append(_wide.times(arrived, _wide.exp(log_p)))
                if k < max(1, len(log_p_labels) - 1):
                    blanks.append(_wide.times(_wide.add(blank, before), p_blank))
                if k == 0:
                    kept = Wide(*(jnp.where(backward, a, b) for a, b in zip(arrived, labels[0], strict=True)))
            t = jnp.where(backward, length - 1 - i - frame, i + frame)
            there = is_label[0] & (i + frame < length)
            for out, a in ((out_fraction, kept.fraction), (out_exponent, kept.exponent)):
                triton.store(out.at[jnp.maximum(t, 0), row, home], a, mask=there)
            near = _Near(labels, blanks)
        return _met(turn & 1, near), ahead

    def _met(side: Array, near: _Near) -> _Near:
        """What the lanes to the left hold, by way of memory."""
        for kind, own in enumerate((near.labels[0], near.blanks[0])):
            triton.store(met_fraction.at[side, kind, row, lane], own.fraction)
            triton.store(met_exponent.at[side, kind, row, lane], own.exponent)
        if not interpret:
            triton.debug_barrier()  # all is there before any lane reads of it

        def of(kind: int, k: int) -> Wide:
            at = side, kind, row, left[k]
            return _wide.only_where(lane >= k, Wide(triton.load(met_fraction.at[at]), triton.load(met_exponent.at[at])))

        labels = [near.labels[0], *(of(0, k) for k in range(1, FRAMES + 1))]
        return _Near(labels, [near.blanks[0], *(of(1, k) for k in range(1, FRAMES))])

    size = triton.load(sizes.at[n])
    start = jnp.where(backward, slots - size, 0)
    nothing = _wide.one_where(lane < 0, jnp.float32)
    first = [_wide.one_where(lane - k == start, jnp.float32) for k in range(FRAMES)]
    near = _Near([nothing] * (FRAMES + 1), first)
    # One certain blank at least stands behind the last frame, after which all mass is at a blank.
    near, _ = lax.fori_loop(0, length // FRAMES + 1, meeting, (near, logs(0)))
    for out, a in zip((mass_fraction, mass_exponent), near.blanks[0], strict=True):
        triton.store(out.at[row], jnp.sum(jnp.where(lane == size, a, jnp.zeros_like(a)), dtype=a.dtype))
