"""Distances between vectors, and losses that pull some together and push others apart."""

import numbers
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp

from . import _check
from ._numerics import (
    TORCH_EPSILON,
    at_least_float32,
    cosine,
    lengths,
    norm,
    positive_part,
    smooth_cosine,
    together,
    widened,
)
from ._reduce import reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction


def pairwise_distance(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    p: float = 2.0,
    eps: Number = 1e-6,
    keepdim: bool = False,
) -> Array:
    r"""Distance between vectors on the last axis.

    $$d = \lVert x_1 - x_2 + \epsilon \rVert_p$$

    Args:
        x1: Vectors, floating point, (..., D).
        x2: Vectors; broadcast against `x1` as torch documents.
        p: Degree of the norm, greater than 0, `math.inf` included. Static, because its value selects a formula.
        eps: Added to each signed difference, so the distance is not quite symmetric. A number or a 0-d array.
        keepdim: Whether the last axis stays, with size 1.

    Returns:
        Distances of the broadcast shape without its last axis; float32, or float64 if an argument is.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not broadcast, a vector has no axis, or `p` is not above 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.pairwise_distance(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]]))
        Array([5.], dtype=float32)

    Note:
        With `eps=0` the gradient at equal points is 0, and it stays finite for vectors whose squares would
        overflow; torch returns inf there.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.pairwise_distance.html
    """
    name = "pairwise_distance"
    a, b = _pair(name, x1, x2)
    _check.flag(name, "keepdim", keepdim)
    eps = _check.number(name, "eps", eps, _dtype(a, b))
    (distance,) = _sizes(_difference, _degree(name, p), eps, None, *together(a, b))
    return distance[..., None] if keepdim else distance


def _pair(name: str, x1: ArrayLike, x2: ArrayLike) -> list[Array]:
    """Vectors of one shape, in their own dtypes."""
    a, b = (_check.floating(name, argument, x) for argument, x in (("x1", x1), ("x2", x2)))
    return _check.broadcast_together(name, x1=a, x2=b)


def _dtype(*arrays: Array) -> jnp.dtype:
    return at_least_float32(*(x.dtype for x in arrays))


def _difference(eps: Array, *points: Array) -> list[Array]:
    a, b = widened(*points)
    return [a - b + eps]


def _sizes(
    vectors: Callable[..., list[Array]], p: float, eps: Number, keep: Array | None, *points: Array
) -> list[Array]:
    """The p-norms of `vectors(eps, *points)`, of rows to `keep`."""
    eps = jnp.asarray(eps, _dtype(*points))
    if p == 2:
        found: list[Array] = lengths(vectors, -1, False, None, keep, eps, *points)
        return found
    return [norm(v, p) for v in vectors(eps, *_apart(keep, *points))]


def _degree(name: str, p: float) -> float:
    if not isinstance(p, numbers.Real) or isinstance(p, bool) or not p > 0:
        raise ValueError(f"{name}: `p` must be a Python number greater than 0, known while tracing; got {p!r}.")
    return float(p)


def cosine_similarity(x1: ArrayLike, x2: ArrayLike, *, axis: int = 1, eps: Number = 1e-8) -> Array:
    r"""Cosine of the angle between vectors along one axis.

    $$\cos = \frac{x_1 \cdot x_2}{\max(\lVert x_1 \rVert_2, \epsilon) \, \max(\lVert x_2 \rVert_2, \epsilon)}$$

    Args:
        x1: Vectors, floating point, any shape.
        x2: Vectors; broadcast against `x1` as torch documents.
        axis: The axis of the broadcast shape that holds the vectors. torch calls it `dim`.
        eps: The least length that a vector is divided by. A number or a 0-d array.

    Returns:
        Similarities in [-1, 1] of the broadcast shape without `axis`; float32, or float64 if an argument is.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not broadcast or `axis` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.cosine_similarity(jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]]))
        Array([0.6], dtype=float32)

    Note:
        A vector of zeros has similarity 0 and a finite gradient. Lengths are found without squaring large or
        small numbers, so vectors of 1e20 give their cosine, where torch gives 0.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.cosine_similarity.html
    """
    name = "cosine_similarity"
    a, b = _pair(name, x1, x2)
    axis = _check.one_axis(name, axis, a)
    a, b = together(a, b)
    return cosine(a, b, axis, _check.number(name, "eps", eps, _dtype(a, b)))


def cosine_embedding_loss(
    input1: ArrayLike,
    input2: ArrayLike,
    target: ArrayLike,
    *,
    margin: Number = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Pulls the directions of two vectors together (label 1) or apart (label -1).

    $$\ell = \begin{cases} 1 - \cos & y = 1 \\ \max(0, \cos - \text{margin}) & y = -1 \end{cases} \qquad
    \cos = \frac{x_1 \cdot x_2}{\sqrt{(x_1 \cdot x_1 + 10^{-12})(x_2 \cdot x_2 + 10^{-12})}}$$

    Args:
        input1: Vectors on the last axis, floating point: (D), (N, D), or with more leading axes.
        input2: Vectors of the same shape.
        target: Labels y, exactly 1 or -1, in the shape of `input1` without its last axis. Any other costs 0.
        margin: Cosine that vectors with label -1 may have for free, in [-1, 1]. A number or a 0-d array.
        where: Boolean mask, of the target's shape or broadcastable to it. What stands in a masked row has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the target's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If the shapes do not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, y = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]])
        >>> jaxloss.cosine_embedding_loss(x, y, jnp.array([1]))
        Array(0.4, dtype=float32)

    Note:
        As in torch, the full derivative passes where the margin is met exactly, and 1e-12 is added to each squared
        length, so that a vector of zeros has cosine 0 and a finite gradient.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.cosine_embedding_loss.html
    """
    name = "cosine_embedding_loss"
    vectors, dtype, keep, _ = _check.unmasked_rows(name, -1, where, input1=input1, input2=input2)
    y = _check.real(name, "target", target)
    if y.shape != vectors[0].shape[:-1]:
        raise ValueError(
            f"{name}: `target` must have the shape of `input1` without its last axis, "
            f"got {y.shape} for {vectors[0].shape}."
        )
    margin = _check.number(name, "margin", margin, dtype)
    a, b = _apart(keep, *together(*vectors))
    similarity = smooth_cosine(a, b, -1, TORCH_EPSILON)
    loss = jnp.where(y == 1, 1 - similarity, 0) + jnp.where(y == -1, positive_part(similarity - margin), 0)
    return reduce(name, loss, reduction, keep)


DistanceFunction: TypeAlias = Callable[[Array, Array], Array]


def triplet_margin_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    margin: Number = 1.0,
    p: float = 2.0,
    eps: Number = 1e-6,
    swap: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants an anchor closer to the positive than to the negative, by a margin.

    $$\ell = \max(0, \; d(a, p) - d(a, n) + \text{margin}), \qquad d(x, y) = \lVert x - y + \epsilon \rVert_p$$

    Args:
        anchor: Vectors a on the last axis, floating point: (D), (N, D), or with more leading axes.
        positive: Vectors of the same shape.
        negative: Vectors of the same shape.
        margin: By how much, greater than 0, in the units of the distance. A number or a 0-d array.
        p: Degree of the norm, greater than 0. Static, because its value selects a formula.
        eps: Added to each signed difference. A number or a 0-d array.
        swap: Whether d(a, n) is replaced by d(p, n) where that is smaller.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the anchor's shape without its last axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `swap` is not a bool.
        ValueError: If the shapes differ, `margin` is a Python number not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> a, p, n = jnp.array([[0.0, 0.0]]), jnp.array([[0.3, 0.9]]), jnp.array([[1.0, 0.0]])
        >>> jaxloss.triplet_margin_loss(a, p, n, p=1)
        Array(1.2, dtype=float32)

    Note:
        As in torch, the full derivative passes where the margin is met exactly.

    References:
        Balntas et al. (2016), "Learning Local Feature Descriptors with Triplets and Shallow Convolutional Neural
        Networks", for `swap`.
        https://pytorch.org/docs/stable/generated/torch.nn.functional.triplet_margin_loss.html
    """
    name = "triplet_margin_loss"
    degree = _degree(name, p)
    return _triplet(name, anchor, positive, negative, _Norm(degree, eps), margin, swap, where, reduction)


def triplet_margin_with_distance_loss(
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    *,
    distance_function: DistanceFunction | None = None,
    margin: Number = 1.0,
    swap: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Wants an anchor closer to the positive than to the negative, by a margin, under any distance.

    $$\ell = \max(0, \; d(a, p) - d(a, n) + \text{margin})$$

    Args:
        anchor: Vectors a on the last axis, floating point: (D), (N, D), or with more leading axes.
        positive: Vectors of the same shape.
        negative: Vectors of the same shape.
        distance_function: A function d of two arrays of vectors that returns one distance for each; by default
            `pairwise_distance`.
        margin: By how much, greater than 0, in the units of the distance. A number or a 0-d array.
        swap: Whether d(a, n) is replaced by d(p, n) where that is smaller.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the anchor's shape without its last axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `swap` is not a bool.
        ValueError: If the shapes differ, `distance_function` returns another shape, `margin` is a Python number
            not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> def distance(x, y):
        ...     return 1 - jaxloss.cosine_similarity(x, y, axis=-1)
        >>> a, p, n = jnp.array([[1.0, 0.0]]), jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 1.0]])
        >>> jaxloss.triplet_margin_with_distance_loss(a, p, n, distance_function=distance)
        Array(0.4, dtype=float32)

    Note:
        As in torch, the full derivative passes where the margin is met exactly.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.triplet_margin_with_distance_loss.html
    """
    name = "triplet_margin_with_distance_loss"
    distance = _Norm(2.0, 1e-6) if distance_function is None else distance_function
    return _triplet(name, anchor, positive, negative, distance, margin, swap, where, reduction)


class _Norm(NamedTuple):
    """The distance that `_triplet` knows."""

    degree: float
    eps: Number


def _triplet(
    name: str,
    anchor: ArrayLike,
    positive: ArrayLike,
    negative: ArrayLike,
    distance: DistanceFunction | _Norm,
    margin: Number,
    swap: bool,
    where: ArrayLike | None,
    reduction: str,
) -> Reduced:
    points, dtype, keep, _ = _check.unmasked_rows(name, -1, where, anchor=anchor, positive=positive, negative=negative)
    rows = points[0].shape[:-1]
    margin = _check.number(name, "margin", margin, dtype, low=0, above=True)
    _check.flag(name, "swap", swap)
    if isinstance(distance, _Norm):
        sides, eps = (_three_sides if swap else _two_sides), _check.number(name, "eps", distance.eps, dtype)
        distances = _sizes(sides, distance.degree, eps, keep, *together(*points))
    else:
        a, p, n = (x.astype(dtype) for x in _apart(keep, *points))
        distances = [distance(a, p), distance(a, n), *([distance(p, n)] if swap else [])]
        if distances[0].shape != rows:
            raise ValueError(
                f"{name}: `distance_function` must return one distance for each vector, shape {rows}, "
                f"got {distances[0].shape}."
            )
    to_positive, *to_negative = distances
    closest = jnp.minimum(*to_negative) if swap else to_negative[0]
    return reduce(name, positive_part(to_positive - closest + margin), reduction, keep)


def _apart(keep: Array | None, *points: Array) -> list[Array]:
    """Points that differ where they are masked: a distance may have no derivative between equal ones."""
    kept = None if keep is None else keep[..., None]
    return [_check.masked(x, kept, place) for place, x in enumerate(points)]


def _two_sides(eps: Array, *points: Array) -> list[Array]:
    a, p, n = widened(*points)
    return [a - p + eps, a - n + eps]


def _three_sides(eps: Array, *points: Array) -> list[Array]:
    a, p, n = widened(*points)
    return [*_two_sides(eps, a, p, n), p - n + eps]
