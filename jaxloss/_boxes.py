"""Losses between boxes, aligned pair by pair: IoU and its generalized, distance and complete forms."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check
from ._numerics import afresh, disguised
from ._reduce import reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction

BoxFormat: TypeAlias = Literal["xyxy", "yxyx", "xywh", "cxcywh"]


def box_iou_loss(
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    *,
    eps: Number = 1e-7,
    box_format: BoxFormat = "xyxy",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""One minus the intersection over union of two boxes.

    $$\ell = 1 - \text{IoU}, \qquad \text{IoU} = \frac{|A \cap B|}{|A \cup B| + \epsilon}$$

    Args:
        boxes1: Boxes A, floating point, (..., 4).
        boxes2: Boxes B of the same shape, one for each of A.
        eps: Added to the denominator, at least 0. A number or a 0-d array.
        box_format: "xyxy" or "yxyx", two corners, the second beyond the first; "xywh", a corner and the size;
            "cxcywh", the centre and the size.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the boxes' shape without the last axis, or a pair of scalars; float32, or
        float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `eps` is a negative Python number, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> a, b = jnp.array([[0.0, 0.0, 2.0, 2.0]]), jnp.array([[1.0, 0.0, 3.0, 2.0]])
        >>> jaxloss.box_iou_loss(a, b)
        Array(0.6667, dtype=float32)

    Note:
        Boxes that do not overlap cost 1 and have no gradient: `generalized_box_iou_loss` and the others have one. Two
        empty boxes cost 1 too, with gradient 0. torchvision has no such loss.

    References:
        Yu et al. (2016), "UnitBox: An Advanced Object Detection Network", https://arxiv.org/abs/1608.01471
    """
    name = "box_iou_loss"
    loss, keep = _loss(name, _by_iou, boxes1, boxes2, eps, box_format, where)
    return reduce(name, loss, reduction, keep, in_loop=True)


def generalized_box_iou_loss(
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    *,
    eps: Number = 1e-7,
    box_format: BoxFormat = "xyxy",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""IoU loss plus the share of the smallest enclosing box that neither box covers.

    $$\ell = 1 - \text{IoU} + \frac{|C| - |A \cup B|}{|C| + \epsilon}, \qquad
    \text{IoU} = \frac{|A \cap B|}{|A \cup B| + \epsilon}$$

    Args:
        boxes1: Boxes A, floating point, (..., 4).
        boxes2: Boxes B of the same shape, one for each of A.
        eps: Added to each denominator, at least 0. A number or a 0-d array.
        box_format: "xyxy" or "yxyx", two corners, the second beyond the first; "xywh", a corner and the size;
            "cxcywh", the centre and the size.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the boxes' shape without the last axis, or a pair of scalars; float32, or
        float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `eps` is a negative Python number, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> a, b = jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[2.0, 0.0, 3.0, 1.0]])
        >>> jaxloss.generalized_box_iou_loss(a, b)
        Array(1.333, dtype=float32)

    Note:
        The names and values are torchvision's, the reduction defaults to "mean" where torchvision has "none". Two
        empty boxes in one place cost 1, as there, with gradient 0; with `eps=0` torchvision gives NaN.

    References:
        Rezatofighi et al. (2019), "Generalized Intersection over Union", https://arxiv.org/abs/1902.09630
        https://pytorch.org/vision/stable/generated/torchvision.ops.generalized_box_iou_loss.html
    """
    name = "generalized_box_iou_loss"
    loss, keep = _loss(name, _generalized, boxes1, boxes2, eps, box_format, where)
    return reduce(name, loss, reduction, keep, in_loop=True)


def distance_box_iou_loss(
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    *,
    eps: Number = 1e-7,
    box_format: BoxFormat = "xyxy",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""IoU loss plus the squared distance of the centres, in units of the enclosing box's diagonal.

    $$\ell = 1 - \text{IoU} + \frac{d^2}{c^2 + \epsilon}, \qquad
    \text{IoU} = \frac{|A \cap B|}{|A \cup B| + \epsilon}$$

    Args:
        boxes1: Boxes A, floating point, (..., 4).
        boxes2: Boxes B of the same shape, one for each of A.
        eps: Added to each denominator, at least 0. A number or a 0-d array.
        box_format: "xyxy" or "yxyx", two corners, the second beyond the first; "xywh", a corner and the size;
            "cxcywh", the centre and the size.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the boxes' shape without the last axis, or a pair of scalars; float32, or
        float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `eps` is a negative Python number, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> a, b = jnp.array([[0.0, 0.0, 1.0, 1.0]]), jnp.array([[2.0, 0.0, 3.0, 1.0]])
        >>> jaxloss.distance_box_iou_loss(a, b)
        Array(1.4, dtype=float32)

    Note:
        The names and values are torchvision's, the reduction defaults to "mean" where torchvision has "none".

    References:
        Zheng et al. (2020), "Distance-IoU Loss", https://arxiv.org/abs/1911.08287
        https://pytorch.org/vision/stable/generated/torchvision.ops.distance_box_iou_loss.html
    """
    name = "distance_box_iou_loss"
    loss, keep = _loss(name, _distance, boxes1, boxes2, eps, box_format, where)
    return reduce(name, loss, reduction, keep)


def complete_box_iou_loss(
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    *,
    eps: Number = 1e-7,
    box_format: BoxFormat = "xyxy",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Distance IoU loss plus the difference of the aspect ratios.

    $$\ell = 1 - \text{IoU} + \frac{d^2}{c^2 + \epsilon} + \alpha\,v, \qquad
    v = \frac{4}{\pi^2} \Bigl(\arctan \frac{w_B}{h_B} - \arctan \frac{w_A}{h_A}\Bigr)^2, \quad
    \alpha = \frac{v}{1 - \text{IoU} + v + \epsilon}$$

    Args:
        boxes1: Boxes A, floating point, (..., 4).
        boxes2: Boxes B of the same shape, one for each of A.
        eps: Added to each denominator, at least 0. A number or a 0-d array.
        box_format: "xyxy" or "yxyx", two corners, the second beyond the first; "xywh", a corner and the size;
            "cxcywh", the centre and the size.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the boxes' shape without the last axis, or a pair of scalars; float32, or
        float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, `eps` is a negative Python number, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> a, b = jnp.array([[0.0, 0.0, 2.0, 1.0]]), jnp.array([[0.0, 0.0, 1.0, 2.0]])
        >>> jaxloss.complete_box_iou_loss(a, b)
        Array(0.7629, dtype=float32)

    Note:
        As in the paper and in torchvision, alpha carries no gradient. The names and values are torchvision's, the
        reduction defaults to "mean" where torchvision has "none". A box without a height has a finite gradient;
        torchvision gives NaN.

    References:
        Zheng et al. (2020), "Distance-IoU Loss", https://arxiv.org/abs/1911.08287
        https://pytorch.org/vision/stable/generated/torchvision.ops.complete_box_iou_loss.html
    """
    name = "complete_box_iou_loss"
    loss, keep = _loss(name, _complete, boxes1, boxes2, eps, box_format, where)
    return reduce(name, loss, reduction, keep)


class Box(NamedTuple):
    """Left, top, right, bottom; or top, left, bottom, right."""

    x1: Array
    y1: Array
    x2: Array
    y2: Array


class Pair(NamedTuple):
    """Two boxes, what they cover, and the size of the smallest box around both."""

    a: Box
    b: Box
    union: Array
    iou: Array
    width: Array
    height: Array
    eps: Array


Formula: TypeAlias = Callable[[Pair], Array]


def _loss(
    name: str,
    formula: Formula,
    boxes1: ArrayLike,
    boxes2: ArrayLike,
    eps: Number,
    box_format: str,
    where: ArrayLike | None,
) -> tuple[Array, Array | None]:
    _check.choice(name, "box_format", box_format, ("xyxy", "yxyx", "xywh", "cxcywh"))
    boxes, dtype, keep, _ = _check.unmasked_rows(name, -1, where, boxes1=boxes1, boxes2=boxes2)
    if boxes[0].shape[-1] != 4:
        raise ValueError(f"{name}: `boxes1` must have four numbers on the last axis, got {boxes[0].shape}.")
    eps = jnp.asarray(_check.number(name, "eps", eps, dtype, low=0), dtype)
    return _compiled(formula, box_format, keep, *boxes, eps), keep


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _of_pairs(formula: Formula, box_format: str, keep: Array | None, *arrays: Array) -> Array:
    return formula(_pair(box_format, keep, *arrays))


@_of_pairs.defjvp
def _of_pairs_jvp(
    formula: Formula, box_format: str, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Array, Array]:
    (keep, *arrays), (_, *darrays) = primals, tangents
    at = tuple(afresh(*arrays, shared_by_cpu=True))
    _, moved = jax.jvp(lambda *arrays: formula(_pair(box_format, keep, *arrays)), at, tuple(darrays))
    return _of_pairs(formula, box_format, *primals), moved


_compiled = jax.jit(_of_pairs, static_argnums=(0, 1))  # jax_debug_nans sees what leaves, not what is masked


def _pair(box_format: str, keep: Array | None, boxes1: Array, boxes2: Array, eps: Array) -> Pair:
    a, b = (_corners(box, box_format, keep, eps.dtype) for box in (boxes1, boxes2))
    width, height = jnp.minimum(a.x2, b.x2) - jnp.maximum(a.x1, b.x1), jnp.minimum(a.y2, b.y2) - jnp.maximum(a.y1, b.y1)
    both = jnp.where((width > 0) & (height > 0), width * height, 0)
    union = (a.x2 - a.x1) * (a.y2 - a.y1) + (b.x2 - b.x1) * (b.y2 - b.y1) - both
    around = jnp.maximum(a.x2, b.x2) - jnp.minimum(a.x1, b.x1), jnp.maximum(a.y2, b.y2) - jnp.minimum(a.y1, b.y1)
    return Pair(a, b, union, _ratio(both, union + eps), *around, eps)


def _corners(box: Array, box_format: str, keep: Array | None, dtype: jnp.dtype) -> Box:
    p, q, r, s = (_check.masked(column, keep) for column in _columns(box, dtype))
    if box_format in ("xyxy", "yxyx"):  # every loss here is the same with its axes exchanged
        return Box(p, q, r, s)
    if box_format == "xywh":
        return Box(p, q, p + r, q + s)
    return Box(p - r / 2, q - s / 2, p + r / 2, q + s / 2)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _columns(box: Array, dtype: jnp.dtype) -> list[Array]:
    """The four numbers of each box, in `dtype`."""

    def of_rows(box: Array) -> list[Array]:
        box = box.astype(dtype)
        return [box[..., i] for i in range(4)]

    def default(box: Array) -> list[Array]:
        # Strided slices of a flat array, which XLA must not exchange with what follows: then a GPU reads a box once.
        flat = box.reshape(*box.shape[:-2], -1)
        columns = disguised(1, *(flat[..., i::4].reshape(box.shape[:-1]) for i in range(4)))
        return [column.astype(dtype) for column in columns]

    columns: list[Array] = lax.platform_dependent(box, cpu=of_rows, tpu=of_rows, default=default)
    return columns


@_columns.defjvp
def _columns_jvp(dtype: jnp.dtype, primals: tuple[Array], tangents: tuple[Array]) -> tuple[list[Array], list[Array]]:
    # The transpose of a sum that selects is a select, in one loop with the others; that of a slice pads with zeros.
    def selected(dbox: Array) -> list[Array]:
        return [jnp.sum(jnp.where(jnp.arange(4) == i, dbox, 0), -1) for i in range(4)]

    def default(dbox: Array) -> list[Array]:
        return [column.astype(dtype) for column in selected(dbox)]  # a GPU keeps the columns of a gradient, narrow ones

    moved: list[Array] = lax.platform_dependent(
        *tangents, cpu=lambda dbox: selected(dbox.astype(dtype)), default=default
    )
    return _columns(*primals, dtype), moved


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 with derivative 0 where b is 0."""
    empty = b == 0
    return jnp.where(empty, 0, a / jnp.where(empty, 1, b))


def _by_iou(pair: Pair) -> Array:
    return 1 - pair.iou


def _generalized(pair: Pair) -> Array:
    enclosing = pair.width * pair.height
    return 1 - pair.iou + _ratio(enclosing - pair.union, enclosing + pair.eps)


def _distance(pair: Pair) -> Array:
    (a, b), eps = pair[:2], pair.eps
    apart = jnp.square((a.x1 + a.x2 - b.x1 - b.x2) / 2) + jnp.square((a.y1 + a.y2 - b.y1 - b.y2) / 2)
    return 1 - pair.iou + _ratio(apart, jnp.square(pair.width) + jnp.square(pair.height) + eps)


def _complete(pair: Pair) -> Array:
    v = 4 / math.pi**2 * jnp.square(_aspect(pair.b) - _aspect(pair.a))
    alpha = lax.stop_gradient(_ratio(v, 1 - pair.iou + v + pair.eps))
    return _distance(pair) + alpha * v


def _aspect(box: Box) -> Array:
    """arctan(w/h), with derivative 0 for a box that is a point.

    It does not change with the size of the box, which is therefore a constant to differentiation. Without it the
    squares in the derivative would vanish for a small box.
    """
    w, h = box.x2 - box.x1, box.y2 - box.y1
    size = jnp.maximum(jnp.abs(lax.stop_gradient(w)), jnp.abs(lax.stop_gradient(h)))
    point = size < 16 * np.finfo(w.dtype).tiny
    size = jnp.where(point, 1, size)
    return jnp.arctan2(jnp.where(point, 0, w) / size, jnp.where(point, 1, h / size))
