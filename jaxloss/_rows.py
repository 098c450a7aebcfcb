r"""A row of logits against its class: the arithmetic that every form of cross entropy shares.

Every form of the loss is, for each row, Σ_c a_c (log Σ_k e^{z_k} - z_c) + s L² with z = y - max y of the softly capped
logits y, their log-sum-exp L = max y + log Σ_k e^{z_k}, and coefficients

    a_c = scale·[c = target] + uniform_c      for an index, scale per row,
    a_c = scale_c·target_c + uniform_c        for probabilities.

It is added up as it stands: every term is positive, and none holds a large offset. The derivatives are, with A = Σ a_c,

    dy_c = (A + 2 s L) p_c - a_c,   p = softmax(y),     and through `cost` for everything else.

The class axis stays on every array, with size 1 where a row has one number.
"""

from collections.abc import Callable, Sequence
from functools import partial
from functools import reduce as fold
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from . import _check, _labels
from ._devices import Classes, alone, vary_alike, vary_as
from ._kernels import triton
from ._kernels.logsumexp import read_rows
from ._numerics import (
    FEW,
    MOST,
    SUM,
    added_in_loop,
    afresh,
    again,
    are_few,
    are_written_out,
    as_it_is,
    at_least_float32,
    by_itself,
    by_row,
    disguised,
    exponentials,
    finite,
    for_any,
    in_loop,
    joined,
    log1p,
    nearest,
    of_one,
    one_hot,
    others_of,
    pick_shifted,
    reread,
    shift,
    softcap,
    softmax,
    sum_around_less_one,
    sum_without,
    times,
    upcast,
    widened,
)
from ._reduce import is_known, reduce
from ._types import Array, ArrayLike, KernelImplementation, Number, RowStatistics, Tree


class Terms(NamedTuple):
    """What the loss of a row depends on besides its logits."""

    target: Array  # class indices, one per row, or class probabilities
    scale: Array  # of the target: per row for an index, per class for probabilities
    keep: Array | None  # which rows count; the others may hold anything
    uniform: Array | None  # what every class costs, per class or, for all alike, one number
    square: Array | None  # what the squared log-sum-exp costs, per row
    cap: Array | None  # of the logits, one number


class Sums(NamedTuple):
    """What a reading of a row finds: all that its loss and its gradient need besides the logits themselves."""

    top: Array  # the largest logit, or another near enough that no exponential overflows
    log_total: Array
    below: Array | None = None  # Σ of the logits less that one, if it was found on the way


def terms(
    name: str,
    target: ArrayLike,
    x: _labels.Logits,
    classes: Classes,
    *,
    ignore_index: int,
    label_smoothing: Number,
    z_loss: Number,
    logit_softcap: Number | None,
    weight: ArrayLike | None,
    where: ArrayLike | None,
) -> tuple[Terms, Array | None, Array | None]:
    """The terms of the rows of `x`, which rows count, and what each adds to the denominator of a mean."""
    axis, here = classes.axis, x.shape[classes.axis]
    soft = _labels.probabilities(name, target, x, axis, ignore_index)
    dtype = at_least_float32(x.dtype, *([] if soft is None else [soft.dtype]))
    smoothing = _check.number(name, "label_smoothing", label_smoothing, dtype, low=0, high=1)
    squared = _check.number(name, "z_loss", z_loss, dtype, low=0)
    cap = None
    if logit_softcap is not None:
        cap = jnp.asarray(_check.number(name, "logit_softcap", logit_softcap, dtype, low=0, above=True), dtype)
    w = None if weight is None else _labels.per_class(name, weight, here, dtype)
    uniform = None
    if not _is_zero(smoothing):
        uniform = jnp.asarray(smoothing / classes.count(here), dtype)
        uniform = uniform if w is None else _labels.along(axis, x, uniform * w)

    keep: Array | None
    share: Array | None
    if soft is None:
        index, keep = _labels.rows(name, target, x, axis, where, ignore_index, classes=classes.count(here))
        own = classes.own(index, here)
        share = jnp.ones(index.shape, dtype) if w is None else classes.of_parts(_labels.of_target(w, own, dtype))
        scale = _labels.spoiled((1 - smoothing) * share, index)
        given, scale, counts = (jnp.expand_dims(a, axis) for a in (own, scale, share))
    else:
        keep, share = _check.mask(name, where, _check.without(axis, x.shape)), None
        scale = jnp.asarray(1 - smoothing, dtype) * (1 if w is None else _labels.along(axis, x, w))
        given, counts = soft, jnp.ones((*x.shape[:axis], 1, *x.shape[axis + 1 :]), dtype)
    kept = None if keep is None else jnp.expand_dims(keep, axis)
    square = None if _is_zero(squared) else squared * counts
    return Terms(given, scale, kept, uniform, square, cap), keep, share


def _is_zero(value: Number) -> bool:
    """Python's 0.0 drops its term; a traced number cannot know that it is 0."""
    return isinstance(value, float) and value == 0


def losses(
    classes: Classes,
    implementation: KernelImplementation,
    statistics: bool,
    x: Array,
    terms: Terms,
    *,
    kept: bool = False,
    value_only: bool = False,
) -> tuple[Array, RowStatistics | None, Sums]:
    """The loss of each row, 0 or finite in rows that do not count; what else is asked; and its sums.

    If the sums are `kept` for a derivative, a CPU takes the loss in a pass of its own: in one that finds them too it
    would keep the shifted logits for both. If the loss is all that is wanted of the rows, a GPU reads them once, and a
    CPU's library those that are short and have probabilities.
    """
    value_only = value_only and not statistics
    if implementation == "autodiff":
        x = _harmless(classes.axis, x, terms)  # once for all uses: the sum of their gradients is what is rounded
    by_library = _is_for_library(classes, value_only, x, terms)
    sums = _read(classes, implementation, not (statistics or by_library), x, terms)
    apart = lax.optimization_barrier(sums) if kept else sums
    loss = _costs(classes, implementation, value_only, x, apart, terms)
    found = _statistics(classes, _shifted(classes, x, sums, terms)[0], sums, terms) if statistics else None
    return classes.of_parts(loss), found, sums


def _is_for_library(classes: Classes, value_only: bool, x: Array, terms: Terms) -> bool:
    """Whether a CPU's library finds sums and loss of a row in one pass: it has probabilities, and not very many."""
    return value_only and is_soft(terms) and FEW // 2 < x.shape[classes.axis] < LONG


@partial(jax.jit, static_argnums=(0, 1, 2))  # jax_debug_nans sees only what leaves, not the rows that do not count
def _costs(
    classes: Classes, implementation: KernelImplementation, value_only: bool, x: Array, sums: Sums, terms: Terms
) -> Array:
    """The loss of each row, masked when it is added up: a select among logits would make an array of them on a CPU."""
    autodiff = implementation == "autodiff"
    if autodiff or classes.axis_name is not None:
        return _cost_apart(classes, autodiff, x, sums, terms)
    on_gpu = None
    if are_few(x, classes.axis):
        on_gpu = _cost_of_few
    elif value_only and alone() and (is_soft(terms) or terms.uniform is not None):
        on_gpu = _cost_at_once
    on_gpu = None if implementation == "pallas" else on_gpu
    return _costs_by_platform(classes, on_gpu, _is_for_library(classes, value_only, x, terms), x, sums, terms)


def _cost_apart(classes: Classes, autodiff: bool, x: Array, sums: Sums, terms: Terms) -> Array:
    """Behind a barrier, or a CPU would spread out to all classes what it has selected for rows."""
    return _masked_cost(classes, autodiff, _dot, _anew(x, terms.cap), lax.optimization_barrier(sums), terms)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _costs_by_platform(
    classes: Classes, on_gpu: Callable[..., Array] | None, by_library: bool, x: Array, sums: Sums, terms: Terms
) -> Array:
    ways: dict[str, Any] = {"default": partial(_cost_apart, classes, False)}
    if by_library and alone():
        ways = {"default": partial(_masked_cost, classes, False, _dot), "cpu": partial(_costs_with_care, classes)}
    if on_gpu is not None:
        ways |= dict.fromkeys(GPUS, partial(on_gpu, classes.axis))
    found: Array = lax.platform_dependent(x, sums, terms, **ways) if len(ways) > 1 else ways["default"](x, sums, terms)
    return found


@_costs_by_platform.defjvp
def _costs_by_platform_jvp(
    classes: Classes,
    on_gpu: Callable[..., Array] | None,
    by_library: bool,
    primals: tuple[Array, Sums, Terms],
    tangents: tuple[Any, Any, Any],
) -> tuple[Array, Array]:
    """That of plain operations: a loop of unknown length has no reverse mode."""
    change: Array = jax.jvp(partial(_cost_apart, classes, False), primals, tangents)[1]
    return _costs_by_platform(classes, on_gpu, by_library, *primals), change


GPUS = "cuda", "rocm"


def _cost_of_few(axis: int, x: Array, sums: Sums, terms: Terms) -> Array:
    """`_masked_cost` for a GPU, in the pass that finds the sums."""
    read, soft = _read_unmasked(terms), is_soft(terms)
    rows = _of_class(axis, 0, read)  # what is not one number for each row is not used
    ys = [_logits(x.ndim, y, rows) for y in _each_class(axis, x)]
    top, log_total, zs, own = _sums_of_few(ys, None if soft else rows.target)
    costs = [] if own is None else [times(rows.scale, log_total - own)]
    if soft or terms.uniform is not None:
        for c, z in enumerate(zs):
            of_class = _of_class(axis, c, read)
            costs.append(times(_mixed(of_class) if soft else of_class.uniform, log_total - z))
    if rows.square is not None:
        costs.append(_z_loss(Sums(top, log_total), rows))
    return _check.masked(jnp.expand_dims(fold(jnp.add, costs), axis), terms.keep)


def _sums_by_few(
    axis: int, x: Array, index: Array | None, keep: Array | None, cap: Array | None
) -> tuple[Array, Array]:
    """`_plain` for a GPU, which takes it for another computation than that of the loss, and makes one of both."""
    y = _capped(disguised(1, x)[0], cap)
    top, log_total, *_ = _sums_of_few(_each_class(axis, y), _of_class(axis, 0, index))
    return jnp.expand_dims(top, axis), jnp.expand_dims(log_total, axis)


def _sums_of_few(ys: Sequence[Array], index: Array | None) -> tuple[Array, Array, list[Array], Array | None]:
    """The sums of rows from their classes one by one; the shifted logits, and what of them stands at a class index."""
    ys = widened(*ys)
    top = finite(fold(lax.max, ys))
    zs = [lax.sub(y, top) for y in ys]
    if index is None:
        return top, log1p(fold(lax.add, map(lax.exp, zs)) - 1), zs, None
    owns, others = zip(*(_own_or_other(index, c, z) for c, z in enumerate(zs)), strict=True)
    own = fold(lax.add, owns)
    return top, log1p(fold(lax.add, others) + jnp.where(index < 0, -1, jnp.expm1(own))), zs, own


@jax.jit  # traced once for all classes
def _own_or_other(index: Array, c: int, z: Array) -> tuple[Array, Array]:
    return jnp.where(index == c, z, 0), jnp.where(index == c, 0, jnp.exp(z))


def _each_class(axis: int, x: Array) -> list[Array]:
    return [_of_class(axis, c, x) for c in range(x.shape[axis])]


def _of_class(axis: int, c: int, tree: Tree) -> Tree:
    """What one class has of arrays, without their class axis."""

    def one(a: Array) -> Array:
        return a if a.ndim == 0 else lax.index_in_dim(a, min(c, a.shape[axis] - 1), axis, keepdims=False)

    return jax.tree.map(one, tree)


def _cost_at_once(axis: int, x: Array, sums: Sums, terms: Terms) -> Array:
    """`_masked_cost` for a GPU of terms of all classes, in one reading that finds the sums too."""
    read = _read_unmasked(terms)
    own = None if is_soft(terms) else terms.target
    shares = _mixed(read) if own is None or read.uniform is None else read.uniform
    y = x.astype(at_least_float32(_dtype(x, terms), shares.dtype))
    top, log_total, below, share = _found_at_once(axis, y, own, terms.cap, shares)
    cost = times(share, log_total) - below + _z_loss(Sums(top, log_total), terms)
    if own is not None:
        cost += times(terms.scale, log_total - pick_shifted(y, top, own, axis, terms.cap))
    return _check.masked(cost, terms.keep)


def _sums_at_once(
    axis: int, x: Array, index: Array | None, keep: Array | None, cap: Array | None
) -> tuple[Array, Array]:
    """`_plain` for a GPU, from one reading."""
    top, log_total = _found_at_once(axis, x, index, cap)
    return top, log_total


def _found_at_once(axis: int, x: Array, index: Array | None, cap: Array | None, *shares: Array) -> list[Array]:
    """The sums of rows as one reduction, and for shares of classes the sums of share·(y - top) and of the shares."""
    y = upcast(_capped(x, cap))
    if cap is None:
        top, other = of_one(y)
        z = y - top  # 0, and infinite where the logit is
    else:  # none is infinite, and a tanh that is needed twice would be kept
        top, z = y, upcast(jnp.where(jnp.isnan(x), x, 0))
        other = 1 + z
    parts = [top, other if index is None else jnp.where(one_hot(index, z, axis), 0, other)]
    for share in shares:
        parts += [times(share, z), jnp.broadcast_to(share, z.shape)]
    found = [jnp.expand_dims(a, axis) for a in joined(axis, *parts)]
    less: Array | int = -1
    if index is not None:
        less = jnp.where(index < 0, -1, jnp.expm1(pick_shifted(x, found[0], index, axis, cap)))
    return [found[0], log1p(found[1] + less), *found[2:]]


def _read_unmasked(terms: Terms) -> Terms:
    """Terms whose logits are read as they are: only autodiff would carry NaN back through them, and a cap does."""
    return terms if terms.cap is not None else terms._replace(keep=None)


def _masked_cost(
    classes: Classes, autodiff: bool, dot: Callable[[int, Array, Array], Array], x: Array, sums: Sums, terms: Terms
) -> Array:
    given = terms if autodiff else _read_unmasked(terms)
    z, own = _shifted(classes, x, sums, given)
    nll = None
    if autodiff and own is not None and classes.axis_name is None:
        # Left to autodiff, the slope p - 1 would be rounded before it is formed.
        keep = jnp.ones(own.shape, bool) if given.keep is None else given.keep
        nll = surprise(_logits(classes.axis, x, given), given.target, keep, classes.axis, plain=True)
    return _check.masked(_cost(classes, z, own, sums, given, dot, nll), terms.keep)


def _costs_with_care(classes: Classes, x: Array, sums: Sums, terms: Terms) -> Array:
    """That 0·inf counts as 0 takes a pass a third longer: there is one more if a row has come out as NaN."""

    def with_care(found: tuple[Array, Array]) -> tuple[Array, Array]:
        y, lost = lax.optimization_barrier((x, found[0]))
        again = Sums(*_plain(classes, _logits(classes.axis, y, _read_unmasked(terms)), None))
        return jnp.zeros_like(lost), _masked_cost(classes, False, _dot, y, again, terms)

    # Read for this alone: what another pass reads too would be kept widened for both.
    x_, target = lax.optimization_barrier((x, terms.target))
    loss = _masked_cost(classes, False, _careless_dot, x_, sums, terms._replace(target=target))
    lost = for_any(jnp.isnan(jnp.sum(loss * 0)))
    return lax.while_loop(lambda found: found[0], with_care, (lost, loss))[1]


def _is_even(terms: Terms) -> bool:
    """Whether there is something that every class costs, and it is one number for all."""
    return terms.uniform is not None and terms.uniform.ndim == 0


def _shifted(classes: Classes, x: Array, sums: Sums, terms: Terms) -> tuple[Array, Array | None]:
    """The logits less their largest, and what of them stands at a class index."""
    own = None if is_soft(terms) else pick_shifted(x, sums.top, terms.target, classes.axis, terms.cap)
    return _logits(classes.axis, x, terms) - sums.top, own


def _read(classes: Classes, implementation: KernelImplementation, once: bool, x: Array, terms: Terms) -> Sums:
    index = None if is_soft(terms) else terms.target
    if implementation == "autodiff" or classes.axis_name is not None:
        return Sums(*_plain(classes, _logits(classes.axis, x, terms), index))
    cap = terms.cap
    if cap is not None or _dtype(x, terms) != at_least_float32(x.dtype):
        if implementation == "pallas":  # what changes the logits on the way has to be written out for a kernel
            x, cap = _logits(classes.axis, x, terms), None
        else:  # masked as for the derivative, with which a CPU shares what a cap makes
            x, implementation = _harmless(classes.axis, x, terms), "xla"
    even = once and index is not None and _is_even(terms) and not are_few(x, classes.axis)
    return Sums(*_sums(implementation, classes.axis, once, even, x, index, terms.keep, cap))


MANY = 1000  # classes, from which on a kernel was measured
LONG = 2000  # and from which on a CPU is the faster for one reading
SOME = 128  # classes that it starts from
SHORT = 10  # and up to which it is for one loop


def _may_have_kernels(x: Array) -> bool:
    """Whether Triton is there, and `x` is one array of one size, as a kernel needs it."""
    return bool(triton) and alone() and is_known(x.size)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2, 3))
@partial(jax.jit, static_argnums=(0, 1, 2, 3))  # jax_debug_nans sees only what leaves, not the rows that do not count
def _sums(
    implementation: KernelImplementation,
    axis: int,
    once: bool,
    even: bool,
    x: Array,
    index: Array | None,
    keep: Array | None,
    cap: Array | None = None,
) -> list[Array]:
    """The sums of rows, read as fast as a platform can; differentiable in any mode, to any order.

    The first of them is the largest logit on every platform, unless rows with an index may be read `once`; the last
    that of all logits, if classes cost `even` where they are not the target.
    """
    ways: dict[str, Any] = {"default": lambda x, index, keep, cap: _plain(Classes(axis), x, index, cap)}
    if are_few(x, axis):
        ways |= dict.fromkeys(GPUS, partial(_sums_by_few, axis))
    elif alone():
        ways |= dict.fromkeys(GPUS, partial(_sums_at_once, axis))
    if axis < x.ndim - 1:
        implementation = "xla"
    if implementation == "pallas":
        ways = {"cuda": partial(_by_kernel, False), "cpu": partial(_by_kernel, True)}
    elif implementation == "auto" and x.shape[-1] >= MANY and x.dtype.itemsize < 8 and _may_have_kernels(x):
        ways["cuda"] = partial(_by_kernel, False)
    if even:
        ways = {name: partial(_with_all, axis, way) for name, way in ways.items()}
    if once and implementation != "pallas" and alone():
        if index is not None:
            ways["cpu"] = partial(_read_once, axis, even)
        elif axis == x.ndim - 1 and x.shape[axis] >= LONG:
            ways["cpu"] = partial(_read_from_some, axis)
        elif x.dtype.itemsize < 4 or (are_written_out(x, axis) and x.shape[axis] <= SHORT):
            ways["cpu"] = partial(_read_in_loop, axis)
    given = x, index, keep, cap
    found = lax.platform_dependent(*given, **ways) if len(ways) > 1 else ways["default"](*given)
    return [_check.masked(a, keep) for a in found]


def _with_all(axis: int, way: Callable[..., tuple[Array, Array]], x: Array, *which: Any) -> tuple[Array, ...]:
    """What a `way` finds, and Σ z."""
    top, log_total = way(x, *which)
    y = _capped(_anew(x, which[-1]), which[-1])
    return top, log_total, added_in_loop(as_it_is, axis, upcast(y) - top)


def row_sums(
    x: Array, axis: int, keep: Array | None = None, implementation: KernelImplementation = "auto"
) -> tuple[Array, Array]:
    """The `Sums` that any function of rows alone needs; `keep`, with `axis` kept, says which may be read."""
    top, log_total = _sums(implementation, axis, True, False, x, None, keep)
    return top, log_total


def _plain(classes: Classes, x: Array, index: Array | None, cap: Array | None = None) -> tuple[Array, Array]:
    z, top = shift(_capped(x, cap), classes.axis, classes.largest_of_parts, for_library=index is None)
    if index is None:
        return top, by_row(classes.axis, log1p)(classes.total(jnp.exp(z)) - 1)
    own = pick_shifted(x, top, index, classes.axis, cap)
    total = classes.of_parts(sum_around_less_one(z, own, index, classes.axis))
    return top, by_row(classes.axis, log1p)(total)


def _read_once(axis: int, even: bool, x: Array, index: Array, keep: Array, cap: Array | None) -> tuple[Array, ...]:
    """`_plain` on a CPU, without a pass for the maximum: logits are taken from that of the row's own class.

    If all classes cost, too, Σ z is found on the way.

    If the loss of a row is above 30, from where on probabilities would lose digits and in the end overflow, all are
    read again, from their maxima.
    """
    x = _capped(x, cap)
    y = upcast(nearest(x, jnp.maximum(index, 0), axis))
    z = upcast(x) - finite(y)
    others, *below = _others_and_all(axis, z, index) if even else [sum_without(z, index, axis)]
    others = jnp.where(keep & (index >= 0), others, 0)

    def from_maximum(found: tuple[Array, ...]) -> tuple[Array, ...]:
        # Tied to what the loop carries, nothing of this can be moved ahead of it.
        x_, far = lax.optimization_barrier((x, found[0]))
        z, top = shift(x_, axis)

        def rescaled(total: Array, others: Array, own: Array, top: Array) -> Array:
            # Where the others were too much, nothing is left of the row's own class in the total.
            return jnp.minimum(others * jnp.exp(jnp.maximum(finite(own) - top, -30)), total)

        total = by_row(axis, rescaled)(jnp.sum(jnp.exp(z), axis, keepdims=True), found[2], found[1], top)
        return jnp.zeros_like(far), top, total, *(jnp.sum(z, axis, keepdims=True) for _ in below)

    far = for_any(~(jnp.max(others, initial=0) < 1e13))
    _, top, others, *below = lax.while_loop(lambda found: found[0], from_maximum, (far, y, others, *below))
    top = finite(top)
    return top, by_row(axis, lambda others, y, top: log1p(others + jnp.expm1(y - top)))(others, y, top), *below


def _others_and_all(axis: int, z: Array, index: Array) -> list[Array]:
    """Σ exp(z) over all classes but `index`, and Σ z."""
    return in_loop(axis, [SUM, SUM], lambda first, z, index: [others_of(axis, first, z, index), z], z, index)


def _read_in_loop(axis: int, x: Array, index: None, keep: Array | None, cap: Array | None) -> tuple[Array, Array]:
    """`_plain` on a CPU of short rows, and of narrow logits, which it widens faster in a loop than for a sum."""
    z, top = shift(_capped(x, cap), axis)
    total = added_in_loop(exponentials, axis, z)
    return top, by_row(axis, log1p)(total - 1)


def _read_from_some(axis: int, x: Array, index: None, keep: Array | None, cap: Array | None) -> tuple[Array, Array]:
    """`_plain` of long rows on a CPU, in one reading that finds the maximum too: logits are taken from that of some.

    Where another is so far above it that digits would be lost, and in the end the sum, all are read again.
    """
    x = _capped(x, cap)
    some = shift(lax.slice_in_dim(x, 0, SOME, axis=axis), axis)[1]

    def each(first: int, x: Array, some: Array) -> list[Array]:
        return [upcast(x), jnp.exp(upcast(x) - some)]

    def read(found: tuple[Array, Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array, Array]:
        x_, _, again, _, some, _ = lax.optimization_barrier((x, *found))
        most, total = in_loop(axis, [MOST, SUM], each, x_, some)
        more = for_any(~(jnp.max(_check.masked(total, keep), initial=0) < 1e13) & ~again)
        return more, more, some, finite(most), total

    start = vary_as((jnp.bool_(True), jnp.bool_(False), some, some, some), x, keep)
    _, _, some, top, total = lax.while_loop(lambda found: found[0], read, start)
    # The exponential of the largest is in the total as it is here: the quotient is 1 and what the others add.
    return top, by_row(axis, lambda total, top, some: log1p(total / jnp.exp(top - some) - 1))(total, top, some)


def _by_kernel(interpret: bool, y: Array, index: Array | None, keep: Array | None, cap: None) -> tuple[Array, Array]:
    classes = y.shape[-1]
    apart = index
    if apart is None:
        apart = jnp.full((*y.shape[:-1], 1), -1) if keep is None else jnp.where(keep, -1, classes)
    numbers = read_rows(y.reshape(-1, classes), apart.reshape(-1).astype(jnp.int32), interpret=interpret)
    top, others, at = (a.reshape(apart.shape) for a in numbers)
    total = others + (-1 if index is None else jnp.where(index < 0, -1, jnp.expm1(at)))
    return top, by_row(total.ndim - 1, log1p)(total)


@_sums.defjvp
def _sums_jvp(
    implementation: KernelImplementation,
    axis: int,
    once: bool,
    even: bool,
    primals: tuple[Array, Array | None, Array | None, Array | None],
    tangents: tuple[Array, Array | None, Array | None, Array | None],
) -> tuple[list[Array], list[Array]]:
    # d log Σ e^z = Σ p dz. What logits are taken from is a constant: it cancels wherever it enters.
    x, _, keep, cap = primals
    top, log_total, *below = _sums(implementation, axis, once, even, *primals)
    y, dy = _masked(x, keep, axis), _masked(tangents[0], keep, axis)
    if cap is not None:
        y, dy = jax.jvp(_capped, (y, cap), (dy, tangents[3]))
    changes = [softmax(upcast(y) - top, log_total) * dy, *(upcast(dy) for _ in below)]
    moved = [jnp.sum(change, axis, keepdims=True).astype(log_total.dtype) for change in changes]
    return [top, log_total, *below], [jnp.zeros_like(top), *moved]


def surprise(
    x: Array, index: Array, keep: Array, axis: int, wide: Array | None = None, *, plain: bool = False
) -> Array:
    """-log softmax(x) of one class `index` per row, `axis` kept; 0 in rows that do not count, which may hold anything.

    It is finite without a right answer too: what a caller makes NaN then has a slope that carries it to every class.
    The derivative is that for `wide`, x as a caller has widened it to add up gradients before they are rounded. `plain`
    operations alone read the rows if asked.
    """
    nll: Array = _surprise(*vary_alike((x, x if wide is None else wide, index, keep)), axis, plain)
    return nll


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
@partial(jax.jit, static_argnums=(4, 5))  # as above
def _surprise(x: Array, wide: Array, index: Array, keep: Array, axis: int, plain: bool) -> Array:
    top, log_total = _sums_around(plain, axis, x, index, keep)
    own = pick_shifted(reread(x), top, index, axis)
    nll = by_row(axis, lambda log_total, own, index: log_total - jnp.where(index < 0, 0, own))(log_total, own, index)
    return _check.masked(nll, keep)


def _sums_around(plain: bool, axis: int, x: Array, index: Array, keep: Array) -> tuple[Array, Array]:
    top, log_total = _plain(Classes(axis), x, index) if plain else _sums("auto", axis, True, False, x, index, keep)
    return top, log_total


@_surprise.defjvp
def _surprise_jvp(
    axis: int, plain: bool, primals: tuple[Array, Array, Array, Array], tangents: tuple[Array, Array, Array, Array]
) -> tuple[Array, Array]:
    # dz_y - Σ p dz, in which p - 1 at the class rounds no p to 1.
    x, _, index, keep = primals
    nll, (top, log_total) = _surprise(*primals, axis, plain), _sums_around(plain, axis, x, index, keep)
    p = softmax(upcast(_masked(reread(x), keep, axis)) - top, log_total)
    slope = jnp.where(one_hot(index, x, axis), by_row(axis, lambda nll: jnp.expm1(-nll))(nll), p)
    return nll, jnp.sum(slope * _masked(tangents[1], keep, axis), axis, keepdims=True)


def _dot(axis: int, a: Array, b: Array) -> Array:
    """Σ a b of rows, in which 0·inf is 0."""
    return added_in_loop(lambda first, a, b: times(a, b), axis, a, b)


def _careless_dot(axis: int, a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis, keepdims=True)


def _cost(
    classes: Classes,
    z: Array,
    own: Array | None,
    sums: Sums,
    terms: Terms,
    dot: Callable[[int, Array, Array], Array] = _dot,
    nll: Array | None = None,
) -> Array:
    """The loss of each row from its shifted logits: this device's part of it, if classes are spread over several.

    `nll` is -log p of a class index, if it is known.
    """
    axis, log_total = classes.axis, sums.log_total
    if own is None:
        loss = dot(axis, _mixed(terms), log_total - z)
    else:
        if nll is None:
            nll = by_row(axis, jnp.subtract)(classes.only_first(log_total), own)
        loss = by_row(axis, times)(terms.scale, nll)
        if terms.uniform is not None and _is_even(terms):
            total = added_in_loop(as_it_is, axis, z) if sums.below is None else sums.below
            loss += times(terms.uniform, z.shape[axis] * log_total - total)
        elif terms.uniform is not None:
            loss += dot(axis, terms.uniform, log_total - z)
    return loss if terms.square is None else loss + classes.only_first(_z_loss(sums, terms))


@partial(jax.jit, static_argnums=0)  # jax_debug_nans sees only what leaves, not the rows that do not count
def pull(classes: Classes, x: Array, sums: Sums, terms: Terms, g: Array | float) -> tuple[Array, Terms]:
    """The cotangents of the logits, in at least float32 and not yet rounded to their dtype, and of the terms.

    `g` is that of this device's part of the loss.
    """
    (x,) = again(x) if terms.cap is None else afresh(x, shared_by_cpu=True, bit=2)
    target, top, log_total = again(terms.target, sums.top, sums.log_total)
    terms, sums = terms._replace(target=target), sums._replace(top=top, log_total=log_total)
    z, own = _shifted(classes, x, sums, terms)
    dx = _slope(classes, z, own, sums, terms, g)
    part, of_terms = jax.vjp(partial(_cost, classes, z, own, sums), terms)
    (dterms,) = of_terms(vary_alike((g * jnp.ones_like(part, dx.dtype), part))[0])
    if terms.cap is not None:
        _, of_cap = jax.vjp(_capped, _harmless(classes.axis, x, terms), terms.cap)
        dx, dcap = of_cap(dx.astype(z.dtype))
        dterms = dterms._replace(cap=dcap)
    return dx, dterms


def _slope(classes: Classes, z: Array, own: Array | None, sums: Sums, terms: Terms, g: Array | float) -> Array:
    axis = classes.axis
    scale, uniform, log_total = terms.scale, terms.uniform, sums.log_total
    push: Array | float = 0 if terms.square is None else 2 * terms.square * (sums.top + log_total)
    if own is None:
        total = by_itself(classes.total(_mixed(terms._replace(target=reread(terms.target)))))
        return g * ((total + push) * jnp.exp(z - log_total) - _mixed(terms))
    # At the target A p - scale = A (p - 1) + Σ uniform + push, which rounds no p to 1. One product for both kinds of
    # class by what may be NaN: a CPU would divide the loop at two.
    shared = push
    if uniform is not None:
        shared += uniform * classes.count(z.shape[axis]) if uniform.ndim == 0 else classes.total(uniform)
    hit = one_hot(terms.target, z, axis)
    less = _less_target(axis, hit, z - log_total, own - log_total)
    dy = g * (scale + shared) * less
    if uniform is None and terms.square is None:
        return dy
    dy += jnp.where(hit, g * shared, 0)
    return dy if uniform is None else dy - g * uniform


def _less_target(axis: int, hit: Array, log_p: Array, own: Array) -> Array:
    """p - [c = target]. For few classes a GPU finds p - 1 among them rather than in an array of rows."""

    def by_rows(hit: Array, log_p: Array, own: Array) -> Array:
        return jnp.where(hit, by_row(axis, jnp.expm1)(own), jnp.exp(log_p))

    if not are_few(log_p, axis):
        return by_rows(hit, log_p, own)
    each = dict.fromkeys(GPUS, lambda hit, log_p, own: jnp.where(hit, jnp.expm1(log_p), jnp.exp(log_p)))
    found: Array = lax.platform_dependent(hit, log_p, own, **each, default=by_rows)
    return found


def _logits(axis: int, x: Array, terms: Terms) -> Array:
    return _capped(_harmless(axis, x, terms), terms.cap)


def _capped(x: Array, cap: Array | None) -> Array:
    return x if cap is None else softcap(upcast(x), cap)


def _anew(x: Array, cap: Array | None) -> Array:
    """`reread`. With a cap a GPU's passes have their own logits too: what a tanh has made of them would be kept."""
    return reread(x) if cap is None else afresh(x, shared_by_cpu=True)[0]


def _harmless(axis: int, x: Array, terms: Terms) -> Array:
    """The given logits, masked, in the precision of the loss."""
    return _masked(x, terms.keep, axis).astype(_dtype(x, terms))


def _masked(x: Array, keep: Array | None, axis: int) -> Array:
    """`x` with 0 in rows that do not count.

    For few classes the condition is made one of the class too: a CPU would otherwise divide the loop over them into one
    for either kind of row, and have no vector code for either.
    """
    if keep is not None and axis == x.ndim - 1 and x.shape[axis] <= FEW:
        keep = lax.broadcasted_iota(jnp.int32, x.shape, axis) < jnp.where(keep, x.shape[axis], 0)
    return _check.masked(x, keep)


def _dtype(x: Array, terms: Terms) -> jnp.dtype:
    return at_least_float32(x.dtype, *([terms.target.dtype] if is_soft(terms) else []))


def is_soft(terms: Terms) -> bool:
    """Whether the target is class probabilities."""
    return jnp.issubdtype(terms.target.dtype, jnp.floating)


def _mixed(terms: Terms) -> Array:
    a = terms.scale * _check.masked(terms.target, terms.keep)
    return a if terms.uniform is None else a + terms.uniform


def _z_loss(sums: Sums, terms: Terms) -> Array:
    return jnp.zeros_like(sums.top) if terms.square is None else times(terms.square, (sums.top + sums.log_total) ** 2)


def _statistics(classes: Classes, z: Array, sums: Sums, terms: Terms) -> RowStatistics:
    z, sums, terms = lax.stop_gradient((z, sums, terms))
    # -Σ p log p = log Σ e^z - Σ p z, again a sum of positive terms.
    entropy = sums.log_total - classes.total(times(jnp.exp(z - sums.log_total), z))
    guess, target = _first_largest(classes, z), terms.target
    if is_soft(terms):
        target = _first_largest(classes, _check.masked(target, terms.keep))
    correct = classes.of_parts(((guess == target) & (guess < z.shape[classes.axis])).astype(jnp.int32)) > 0
    z_loss = classes.of_parts(classes.only_first(_z_loss(sums, terms)))
    found = RowStatistics(sums.top + sums.log_total, z_loss, correct, entropy)
    return RowStatistics(*(_check.masked(a, terms.keep) for a in found))


def _first_largest(classes: Classes, x: Array) -> Array:
    """The number of the largest entry, of equals the first, or that of no class if another device has it."""
    found = lax.argmax(x, classes.axis, jnp.int32)[(*[slice(None)] * classes.axis, None)]
    if classes.axis_name is None:
        return found
    here, largest = x.shape[classes.axis], jnp.max(x, classes.axis, keepdims=True)
    number = classes.rank() * here + found
    mine = largest == classes.largest_of_parts(largest)
    first = lax.pmin(jnp.where(mine, number, classes.count(here)), classes.axis_name)
    return jnp.where(mine & (number == first), found, here)


def reduced(name: str, found: RowStatistics, reduction: str, keep: Array | None, share: Array | None) -> RowStatistics:
    """Statistics of rows without the class axis, the z-loss reduced as the loss that it is a part of."""
    return found._replace(z_loss=lax.stop_gradient(reduce(name, found.z_loss, reduction, keep, share)))
