"""Losses that ask for a margin: hinge_embedding, margin_ranking, multi_margin, multilabel_margin and the soft ones."""

from collections.abc import Callable
from functools import partial
from functools import reduce as fold
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _labels
from ._devices import is_split
from ._numerics import (
    afresh,
    at_least_float32,
    by_itself,
    compiled_once,
    for_any,
    one_hot,
    pick,
    positive_part,
    softplus,
    softplus_mix,
    sum_of_rows,
    sums,
    taken,
    times,
    upcast,
)
from ._reduce import reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def hinge_embedding_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Makes a distance small (label 1) or larger than a margin (label -1).

    $$\ell = \begin{cases} x & y = 1 \\ \max(0, \text{margin} - x) & y = -1 \end{cases}$$

    Args:
        input: Distances x, floating point, any shape.
        target: Labels y, 1 or -1, in the input's shape; floating point or integers. Any other adds both branches.
        margin: Distance from which label -1 costs nothing. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.hinge_embedding_loss(jnp.array([0.5, 0.25]), jnp.array([1, -1]), reduction="none")
        Array([0.5 , 0.75], dtype=float32)

    Note:
        As in torch, the full derivative passes where the margin is met exactly.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.hinge_embedding_loss.html
    """
    name = "hinge_embedding_loss"
    x, y, keep = _check.pair(name, input, target, where, integer_target=True)
    margin = _check.number(name, "margin", margin, x.dtype)
    return reduce(name, _embedded(x, y, margin), reduction, keep, in_loop=True)


@jax.custom_jvp
def _embedded(x: Array, y: Array, margin: Array) -> Array:
    apart = positive_part(margin - x)
    return jnp.where(y == 1, x, jnp.where(y == -1, apart, apart + x))


@_embedded.defjvp
def _embedded_jvp(primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]) -> tuple[Array, Array]:
    # A GPU would keep what y says for both.
    at = tuple(afresh(*primals, shared_by_cpu=True))
    return _embedded(*primals), jax.jvp(_embedded.fun, at, tangents)[1]


def margin_ranking_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Ranks the first score above the second (label 1) or below it (label -1), by a margin.

    $$\ell = \max(0, \; -y\,(x_1 - x_2) + \text{margin})$$

    Args:
        input1: Scores, floating point, any shape.
        input2: Scores of the same shape.
        target: Labels y, 1 or -1, of the same shape; floating point or integers.
        margin: By how much. A number or a 0-d array.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x1, x2, y = jnp.array([1.0, 2.0, 3.0]), jnp.array([0.5, 2.5, 2.0]), jnp.array([1, -1, 1])
        >>> jaxloss.margin_ranking_loss(x1, x2, y, margin=1.0)
        Array(0.3333, dtype=float32)

    Note:
        As in torch, the full derivative passes where the margin is met exactly. Nothing is broadcast.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.margin_ranking_loss.html
    """
    name = "margin_ranking_loss"
    (x1, x2, y), keep = _check.alike(name, where, integers=("target",), input1=input1, input2=input2, target=target)
    margin = _check.number(name, "margin", margin, x1.dtype)
    return reduce(name, positive_part(margin - y * (x1 - x2)), reduction, keep, in_loop=True)


def soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Logistic loss between scores and signs.

    $$\ell = \log(1 + e^{-y x})$$

    Args:
        input: Scores x, floating point, any shape.
        target: Labels y, 1 or -1, in the input's shape; floating point or integers.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.soft_margin_loss(jnp.array([-1000.0]), jnp.array([1]))
        Array(1000., dtype=float32)

    Note:
        Finite where torch overflows: at y·x = -1000 torch gives inf with a NaN gradient.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.soft_margin_loss.html
    """
    name = "soft_margin_loss"
    x, y, keep = _check.pair(name, input, target, where, integer_target=True)
    return reduce(name, softplus(-y * x), reduction, keep, in_loop=True)


def multilabel_soft_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Mean over classes of the cross entropy between logits and yes or no.

    $$\ell = \frac1C \sum_c w_c \bigl(t_c \log(1 + e^{-x_c}) + (1 - t_c) \log(1 + e^{x_c})\bigr)$$

    Args:
        input: Logits x, floating point: (C), (N, C), or with more leading axes.
        target: Targets t in [0, 1] in the input's shape; floating point or integers.
        weight: Weight w of each class, (C,).
        axis: The class axis; torch's is the last.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked sample
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multilabel_soft_margin_loss(jnp.array([[0.0, 0.0]]), jnp.array([[1, 0]]))
        Array(0.6931, dtype=float32)

    Note:
        A logit of ±inf costs 0 or inf, where torch gives NaN. The mean divides by the number of samples.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.multilabel_soft_margin_loss.html
    """
    name = "multilabel_soft_margin_loss"
    (x, t), keep, axis = _check.rows(name, axis, where, integers=("target",), input=input, target=target)
    loss = softplus_mix(x, 1 - t, t)
    if weight is not None:
        w = _labels.per_class(name, weight, x.shape[axis], x.dtype)
        loss = times(_labels.along(axis, x, w), loss, bounded=True)
    return reduce(name, sum_of_rows(loss, axis) / x.shape[axis], reduction, keep)


def multi_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    p: int = 1,
    margin: Number = 1.0,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants the score of the right class above every other, by a margin.

    $$\ell = \frac{w_y}{C} \sum_{c \ne y} \max(0, \; \text{margin} - x_y + x_c)^p$$

    Args:
        input: Scores x, floating point: (C), (N, C), or with more axes.
        target: Class indices y of any integer dtype, in the input's shape without the class axis.
        p: 1 or 2. Static.
        margin: By how much. A number or a 0-d array.
        weight: Weight w of each class, (C,). As in torch the mean divides by the number of rows.
        axis: The class axis. By default torch's: 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A class index outside [0, C)
        makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `p` is neither 1 nor 2, or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multi_margin_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([3]))
        Array(0.325, dtype=float32)

    Note:
        As in torch, no derivative passes where the margin is met exactly.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.multi_margin_loss.html
    """
    name = "multi_margin_loss"
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    if p not in (1, 2):
        raise ValueError(f"{name}: `p` must be 1 or 2, got {p!r}.")
    index, keep = _labels.rows(name, target, x, axis, where)
    margin = _check.number(name, "margin", margin, at_least_float32(x.dtype))
    w = None if weight is None else _labels.per_class(name, weight, x.shape[axis], at_least_float32(x.dtype))

    right, counted = jnp.expand_dims(index, axis), jnp.expand_dims(keep, axis)
    gap = margin - upcast(_right(x, right, axis))  # which reads no masked row
    (excess,) = _excess_of_others(_check.masked(x, counted), gap, right, axis, (p,))
    scale = _labels.spoiled(_labels.of_target(w, index, excess.dtype), index)
    return reduce(name, scale * (excess / x.shape[axis]), reduction, keep)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _right(x: Array, index: Array, axis: int) -> Array:
    """`pick`, whose derivative a GPU adds to that of the others where they have been written, with the value.

    In a row without a right answer those of the others are NaN by themselves.
    """
    return pick(x, index, axis)


@_right.defjvp
def _right_jvp(axis: int, primals: tuple[Array, Array], tangents: tuple[Array, Any]) -> tuple[Array, Array]:
    (x, index), dx = primals, tangents[0]

    def masked(dx: Array, index: Array) -> Array:
        change: Array = jax.jvp(lambda x: pick(x, index, axis), (x,), (dx,))[1]
        return change

    def gathered(dx: Array, index: Array) -> Array:
        return jnp.take_along_axis(dx, jnp.maximum(index, 0), axis, mode="fill", fill_value=0)

    if is_split(x, axis):
        return _right(*primals, axis), masked(dx, index)
    change: Array = lax.platform_dependent(dx, index, cuda=gathered, rocm=gathered, default=masked)
    return _right(*primals, axis), change


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _excess_of_others(x: Array, gap: Array, right: Array, axis: int, powers: tuple[int, ...]) -> list[Array]:
    """Σ max(0, x + gap)^p for each p, over all classes but the right one; for p = 0 how many are above 0."""
    excess = _excess(x, gap, right, axis)
    return sums([_power(excess, p) for p in powers], axis)


def _excess(x: Array, gap: Array, right: Array, axis: int) -> Array:
    x = upcast(x)
    return jnp.where((x + gap <= 0) | one_hot(right, x, axis), 0, x + gap)


def _power(excess: Array, p: int) -> Array:
    return jnp.where(excess > 0, 1.0, 0.0).astype(excess.dtype) if p == 0 else excess if p == 1 else excess * excess


@_excess_of_others.defjvp
def _excess_of_others_jvp(
    axis: int, powers: tuple[int, ...], primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Any]
) -> tuple[list[Array], list[Array]]:
    # Every class that is too high pushes against the gap, which all of them share. Where the gap is met none does.
    lower = tuple(p - 1 for p in powers if p > 0)
    needed = tuple({*powers, *lower})
    found = dict(zip(needed, _excess_of_others(*primals, axis, needed), strict=True))
    (dx, dgap, _), (x, gap) = tangents, afresh(*primals[:2])
    excess = _excess(x, gap, primals[2], axis)

    def change(p: int) -> Array:
        if p == 0:
            return jnp.zeros_like(found[p])
        return p * (jnp.sum(_power(excess, p - 1) * dx, axis) + by_itself(found[p - 1]) * jnp.squeeze(dgap, axis))

    return [found[p] for p in powers], [change(p) for p in powers]


def multilabel_margin_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants the score of every label of a sample above that of every other class, by 1.

    $$\ell = \frac1C \sum_{j \in \text{labels}} \; \sum_{c \notin \text{labels}} \max(0, \; 1 - x_j + x_c)$$

    Args:
        input: Scores x, floating point: (C), (N, C), or with more axes.
        target: Labels along the class axis up to the first -1, any integer dtype, in the input's shape. What
            follows the -1 is not read. A label that stands there twice counts twice.
        axis: The class axis. By default torch's: 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked sample
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A label outside [0, C) before
        the first -1 makes the loss and the gradient of its sample NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multilabel_margin_loss(jnp.array([[0.1, 0.2, 0.4, 0.8]]), jnp.array([[3, 0, -1, 1]]))
        Array(0.85, dtype=float32)

    Note:
        As in torch, no derivative passes where the margin is met exactly. It compares each label of a sample
        with each class.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.multilabel_margin_loss.html
    """
    name = "multilabel_margin_loss"
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    labels = _labels.indices(name, "target", target)
    if labels.shape != x.shape:
        raise ValueError(f"{name}: `target` must have the shape of `input`, got {labels.shape} and {x.shape}.")
    keep = _check.mask(name, where, _check.without(axis, x.shape))
    if not isinstance(labels, jax.Array):
        labels = _labels.narrowed(labels, x.shape[axis])
    counted = None if keep is None else jnp.expand_dims(keep, axis)
    x, labels = (jnp.moveaxis(a, axis, -1) for a in (_check.masked(x, counted), labels))
    loss = _multilabel_margin(x, labels, jnp.ones(x.shape[:-1], bool) if keep is None else keep)
    return reduce(name, loss / x.shape[-1], reduction, keep)


@jax.custom_jvp
@compiled_once()
def _multilabel_margin(x: Array, labels: Array, keep: Array) -> Array:
    """Σ max(0, 1 - x at a label + x at no label), over the labels in front of the -1s and over the other classes.

    NaN where one of the labels is no class.
    """
    named, unknown = _named(x, labels, keep)

    def add(total: Array, index: Array) -> Array:
        wide, gap = upcast(x)[..., None, :], _gap(x, index)
        excess = _over_few(jnp.where(wide <= -gap, 0, wide + gap))
        return total + jnp.sum(jnp.where(named, 0, excess), -1)

    return jnp.where(unknown, jnp.nan, _by_few_labels(add, jnp.sum(_nothing(x), -1), x, labels, keep))


@_multilabel_margin.defjvp
def _multilabel_margin_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Any, Any]
) -> tuple[Array, Array]:
    # Linear between kinks: of each pair that counts, +1 for the other class and -1 for the label.
    (x, labels, keep), (dx, _, _) = primals, tangents
    # A loop of unknown length has no reverse mode, and needs none.
    slope = _slope_of_labels(lax.stop_gradient(x), labels, keep)
    return _multilabel_margin(*primals), jnp.sum(slope * dx, -1)


@compiled_once()
def _slope_of_labels(still: Array, labels: Array, keep: Array) -> Array:
    named, unknown = _named(still, labels, keep)

    def add(slope: Array, index: Array) -> Array:
        gap = _gap(still, index)

        def above(x: Array) -> Array:
            return jnp.where(upcast(x)[..., None, :] <= -gap, 0.0, 1.0).astype(gap.dtype)

        of_label = _of_each(above(jnp.where(named, -jnp.inf, still)))
        of_named = _over_few(jnp.where(_hits(still, index), of_label[..., None], 0))
        return slope + jnp.where(named, -of_named, _over_few(above(still)))

    slope: Array = jnp.where(unknown[..., None], jnp.nan, _by_few_labels(add, _nothing(still), still, labels, keep))
    return slope


def _nothing(x: Array) -> Array:
    """Zeros that lie on devices as `x` does, for a loop to begin with."""
    return upcast(jnp.where(jnp.isnan(x) & False, x, 0))


def _named(x: Array, labels: Array, keep: Array) -> tuple[Array, Array]:
    """Which classes are a label of each sample, and whether one of its labels is no class."""

    def add(found: tuple[Array, Array], index: Array) -> tuple[Array, Array]:
        named, unknown = found
        hit: Array = lax.platform_dependent(_hits(x, index), cpu=lambda hits: jnp.any(hits, -2), default=_any_of_few)
        return named | hit, unknown | jnp.any(index == x.shape[-1], -1)

    nothing = _nothing(x)
    return _by_few_labels(add, (nothing != 0, jnp.sum(nothing, -1) != 0), x, labels, keep)


def _hits(x: Array, index: Array) -> Array:
    """Where a class is a label, for each of a few labels."""
    return jnp.arange(x.shape[-1], dtype=index.dtype) == index[..., None]


def _gap(x: Array, index: Array) -> Array:
    """1 - x at each of a few labels; -inf for none, so that nothing reaches it. In an array that all classes share."""
    if is_split(x, x.ndim - 1):
        own = jnp.sum(jnp.where(_hits(x, index), x[..., None, :], 0), -1)
    else:
        own = taken(x, jnp.maximum(index, 0), x.ndim - 1)
    gap: Array = lax.optimization_barrier(jnp.where(index == -1, -jnp.inf, 1 - upcast(own)))
    return gap[..., None]


def _over_few(x: Array) -> Array:
    """The sum over a few labels, in the loop that computes its numbers."""

    def on_cpu(x: Array) -> Array:
        total: Array = lax.reduce(x, np.zeros((), x.dtype), lambda a, b: a - (-b), (x.ndim - 2,))
        return total  # this addition XLA leaves to no library

    total: Array = lax.platform_dependent(x, cpu=on_cpu, default=lambda x: fold(jnp.add, _each_of_few(x)))
    return total


def _any_of_few(x: Array) -> Array:
    return fold(jnp.logical_or, _each_of_few(x))


def _of_each(x: Array) -> Array:
    """The sum over the classes for each of a few labels, in an array of its own."""

    def on_cpu(x: Array) -> Array:
        return jnp.concatenate(sums(jnp.split(x, 1 + (x.shape[-2] % 2 == 0), -2), -1), -1)

    def default(x: Array) -> Array:
        return jnp.stack([jnp.sum(each, -1) for each in _each_of_few(x)], -1)

    total: Array = lax.optimization_barrier(lax.platform_dependent(x, cpu=on_cpu, default=default))
    return total


def _each_of_few(x: Array) -> list[Array]:
    """What there is for each label: a GPU computes it where it is used, and reads the classes once for all."""
    return [x[..., i, :] for i in range(x.shape[-2])]


State = TypeVar("State")


def _by_few_labels(
    add: Callable[[State, Array], State], state: State, x: Array, labels: Array, listing: Array
) -> State:
    """`add` for a few labels of each sample after the other, up to the longest list; -1 where a list has ended.

    All pairs of classes at once would be C² for a sample.
    """
    classes = x.shape[-1]
    few = min(8, classes)

    def step(carry: tuple[Array, Array, State]) -> tuple[Array, Array, State]:
        first, listing, state = carry
        start = jnp.minimum(first, classes - few)
        index = _labels.narrowed(lax.dynamic_slice_in_dim(labels, start, few, -1), classes)
        place = jnp.arange(few)
        read = start + place < first
        end = jnp.min(jnp.where((index == -1) & ~read, place, few), -1, keepdims=True)
        index = jnp.where(read | (place >= end) | ~listing[..., None], -1, index)
        return first + few, listing & (end[..., 0] == few), add(state, index)

    listing = listing & (jnp.sum(_nothing(x), -1) == 0)  # on devices as x is
    carry = (jnp.zeros((), jnp.int32), listing, state)
    found = lax.while_loop(lambda carry: for_any(jnp.any(carry[1]) & (carry[0] < classes)), step, carry)
    return found[2]
