"""α and β of CTC on CUDA: one program per sequence and direction runs the whole loop over time.

A lane holds blank s and label s in registers. What it needs from its left neighbour, label s - 1, it reads back from
the row of labels that all lanes have just stored, which has to be stored anyway. The next frame's probabilities are on
their way while the states of this one are formed.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from .. import _lattice, _wide
from .._types import Array
from .._wide import Wide

_array: Callable[..., Any] = jax.ShapeDtypeStruct

# A program's lanes share one multiprocessor's registers; beyond this many they spill.
MOST_LANES = 4096
WARPS = 8


def refusal(dtype: Any, frames: int, labels: int) -> str:
    """Why the kernel cannot take states of this dtype and size, or nothing."""
    if dtype != jnp.float32:
        return f"it computes in float32, not in {jnp.dtype(dtype)}"
    if labels >= MOST_LANES:
        return f"it takes targets of fewer than {MOST_LANES} labels, not {labels}"
    return "" if frames else "there is no frame"


def both_ways(
    log_blank: Array, log_labels: Array, skip: Array, sizes: Array, *, interpret: bool = False
) -> _lattice.Ways:
    """What `_lattice.both_ways` gives."""
    p_blank, p_labels = _wide.exp(log_blank), _wide.exp(log_labels)
    length, slots, count = p_labels.fraction.shape
    lanes = pl.next_power_of_2(slots + 1)
    shapes = [
        _array(shape, dtype)
        for shape in ((length, 2 * count, lanes), (2 * count, lanes))
        for dtype in (jnp.float32, jnp.int32)
    ]
    row_fraction, row_exponent, end_fraction, end_exponent = pl.pallas_call(
        partial(_program, count=count, length=length, slots=slots, lanes=lanes, interpret=interpret),
        out_shape=shapes,
        grid=(2 * count,),
        interpret=interpret,
        compiler_params=None if interpret else plgpu.CompilerParams(num_warps=WARPS, num_stages=1),
    )(*p_blank, *p_labels.map(lambda a: a.swapaxes(1, 2)), skip.T, sizes)
    labels = Wide(row_fraction, row_exponent).map(lambda a: a[..., :slots].swapaxes(1, 2))
    ahead = labels.map(lambda a: a[..., :count])
    behind = labels.map(lambda a: jnp.flip(a[..., count:], (0, 1)))
    ends = Wide(end_fraction, end_exponent).map(lambda a: a[:count, : slots + 1].T)
    last = _lattice.States(_lattice.padded(ends), _lattice.padded(ahead.map(lambda a: a[-1])))
    return _lattice.Ways(ahead, behind, _lattice.mass(last, sizes))


def _program(
    blank_p: Any,
    blank_k: Any,
    label_p: Any,
    label_k: Any,
    skip: Any,
    sizes: Any,
    out_fraction: Any,
    out_exponent: Any,
    end_fraction: Any,
    end_exponent: Any,
    *,
    count: int,
    length: int,
    slots: int,
    lanes: int,
    interpret: bool,
) -> None:
    lane = pl.program_id(0)
    backward = lane >= count
    n = jnp.where(backward, lane - count, lane)
    s = jnp.arange(lanes)
    is_label, is_first = s < slots, s == 0
    # The label in lane s, and the one whose entry of `skip` says whether lane s may follow lane s - 1 at once.
    place = jnp.clip(jnp.where(backward, slots - 1 - s, s), 0, slots - 1)
    skip_place = jnp.clip(jnp.where(backward, slots - s, s), 0, slots - 1)
    may_skip = plgpu.load(skip.at[n, skip_place]) & ~is_first
    left = jnp.where(is_first, 0, s - 1)

    def frame(i: int | Array) -> tuple[Wide, Wide]:
        t = jnp.clip(jnp.where(backward, length - 1 - i, i), 0, length - 1)
        at_labels = Wide(plgpu.load(label_p.at[t, n, place]), plgpu.load(label_k.at[t, n, place]))
        return Wide(plgpu.load(blank_p.at[t, n]), plgpu.load(blank_k.at[t, n])), _wide.only_where(is_label, at_labels)

    def step(i: Array, carry: Any) -> Any:
        blanks, labels, before, (p_blank, p_labels) = carry
        ahead = frame(i + 1)
        at_blanks = _wide.add(blanks, before)
        at_labels = _wide.add(labels, blanks, _wide.only_where(may_skip, before))
        blanks, labels = _wide.times(at_blanks, p_blank), _wide.times(at_labels, p_labels)
        plgpu.store(out_fraction.at[i, lane, s], labels.fraction)
        plgpu.store(out_exponent.at[i, lane, s], labels.exponent)
        if not interpret:
            plgpu.debug_barrier()  # the row is complete before any lane reads its neighbour's part of it
        neighbour = Wide(plgpu.load(out_fraction.at[i, lane, left]), plgpu.load(out_exponent.at[i, lane, left]))
        return blanks, labels, _wide.only_where(~is_first, neighbour), ahead

    start = jnp.where(backward, slots - plgpu.load(sizes.at[n]), 0)
    nothing = _wide.one_where(s < 0, jnp.float32)
    first = _wide.one_where(s == start, jnp.float32), nothing, nothing, frame(0)
    blanks, *_ = lax.fori_loop(0, length, step, first)
    plgpu.store(end_fraction.at[lane, s], blanks.fraction)
    plgpu.store(end_exponent.at[lane, s], blanks.exponent)
