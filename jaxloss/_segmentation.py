"""Losses between regions: dice, IoU, Tversky and their relatives, for one class, several, or overlapping labels."""

from collections.abc import Sequence
from functools import partial
from functools import reduce as fold
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from . import _check, _labels
from ._numerics import again, are_few, at_least_float32, disguised, finite, log_sum, one_hot, pick, shift, upcast
from ._reduce import reduce
from ._types import Array, ArrayLike, Number, Reduced, Reduction

Mode: TypeAlias = Literal["binary", "multiclass", "multilabel"]
Empty: TypeAlias = Literal["smooth", "zero", "skip"]
Weighting: TypeAlias = Literal["square", "simple", "uniform"]


class Regions(NamedTuple):
    """Which sums over pixels make up the loss: the static options of every function here."""

    mode: Mode
    per_sample: bool
    classes: Sequence[int] | None
    empty: Empty
    ignore_index: int
    axis: int | None


def dice_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    mode: Mode = "binary",
    smooth: Number = 1.0,
    per_sample: bool = False,
    classes: Sequence[int] | None = None,
    empty: Empty = "smooth",
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""One minus the dice coefficient (the F1 score) of predicted and true regions.

    $$\ell = w_c \left(1 - \frac{2 \sum p\,t + s}{\sum p + \sum t + s}\right)$$

    Args:
        input: Logits x, floating point. "binary": any shape, p = sigmoid(x). "multilabel": (N, C, d1, ..., dK),
            p = sigmoid(x). "multiclass": the same shape, p = softmax(x) over the class axis.
        target: Truth t in [0, 1] in the input's shape, floating point, integers or booleans; "multiclass" also
            takes class indices in the input's shape without the class axis.
        mode: "binary", "multiclass" or "multilabel".
        smooth: s, added above and below, at least 0. A number or a 0-d array.
        per_sample: Whether each sample, along the first axis, has its own regions, or the batch has one.
        classes: The classes that count, for example `range(1, C)` to leave out the background; by default all.
        empty: What a class costs whose region is empty in the target: "smooth", what the formula says; "zero",
            nothing; "skip", nothing, and it leaves the mean.
        ignore_index: Pixels with this class index do not exist. It may be any integer.
        weight: Weight w of each class, (C,). The mean divides by the sum over what counts.
        axis: The class axis; by default 1. For classes last, pass -1.
        where: Boolean mask over pixels, of the target's shape, with indices; otherwise of the input's, or
            broadcastable to it. What stands in a masked pixel has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.


    Returns:
        A scalar, the unreduced loss, or a pair of scalars; float32, or float64 if an argument is. Unreduced it is
        () or (N,) with `per_sample` for "binary", and (C,) or (N, C) otherwise, C counting only `classes`. Two
        empty regions without smoothing agree: they cost 0. The mean over nothing is NaN with gradient 0. A class
        index outside [0, C) makes the loss NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, a number is negative, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.dice_loss(jnp.array([9.0, 9.0, -9.0, -9.0]), jnp.array([1, 0, 0, 0]))
        Array(0.25, dtype=float32)

    Note:
        `where` masks pixels, not entries of the unreduced loss, since those are sums over pixels. Libraries differ
        in smoothing: optax adds s where this adds s/2 to each half of the fraction.

    References:
        Milletari et al. (2016), "V-Net", https://arxiv.org/abs/1606.04797
    """
    options = Regions(mode, per_sample, classes, empty, ignore_index, axis)
    half = _check.number("dice_loss", "smooth", smooth, jnp.dtype(jnp.float32), low=0) / 2
    return _loss("dice_loss", input, target, options, 0.5, 0.5, half, weight, where, reduction)


def iou_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    mode: Mode = "binary",
    smooth: Number = 1.0,
    per_sample: bool = False,
    classes: Sequence[int] | None = None,
    empty: Empty = "smooth",
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""One minus the intersection over union (the Jaccard index) of predicted and true regions.

    $$\ell = w_c \left(1 - \frac{I + s}{\sum p + \sum t - I + s}\right), \qquad I = \sum p\,t$$

    Args:
        input: Logits x, floating point. "binary": any shape, p = sigmoid(x). "multilabel": (N, C, d1, ..., dK),
            p = sigmoid(x). "multiclass": the same shape, p = softmax(x) over the class axis.
        target: Truth t in [0, 1] in the input's shape, floating point, integers or booleans; "multiclass" also
            takes class indices in the input's shape without the class axis.
        mode: "binary", "multiclass" or "multilabel".
        smooth: s, added above and below, at least 0. A number or a 0-d array.
        per_sample: Whether each sample, along the first axis, has its own regions, or the batch has one.
        classes: The classes that count, for example `range(1, C)` to leave out the background; by default all.
        empty: What a class costs whose region is empty in the target: "smooth", what the formula says; "zero",
            nothing; "skip", nothing, and it leaves the mean.
        ignore_index: Pixels with this class index do not exist. It may be any integer.
        weight: Weight w of each class, (C,). The mean divides by the sum over what counts.
        axis: The class axis; by default 1. For classes last, pass -1.
        where: Boolean mask over pixels, of the target's shape, with indices; otherwise of the input's, or
            broadcastable to it. What stands in a masked pixel has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.


    Returns:
        A scalar, the unreduced loss, or a pair of scalars; float32, or float64 if an argument is. Unreduced it is
        () or (N,) with `per_sample` for "binary", and (C,) or (N, C) otherwise, C counting only `classes`. Two
        empty regions without smoothing agree: they cost 0. The mean over nothing is NaN with gradient 0. A class
        index outside [0, C) makes the loss NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, a number is negative, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.iou_loss(jnp.array([9.0, 9.0, -9.0, -9.0]), jnp.array([1, 0, 0, 0]))
        Array(0.3334, dtype=float32)

    Note:
        `where` masks pixels, not entries of the unreduced loss, since those are sums over pixels.

    References:
        Rahman and Wang (2016), "Optimizing Intersection-Over-Union in Deep Neural Networks for Image Segmentation".
    """
    options = Regions(mode, per_sample, classes, empty, ignore_index, axis)
    return _loss("iou_loss", input, target, options, 1.0, 1.0, smooth, weight, where, reduction)


def tversky_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    mode: Mode = "binary",
    alpha: Number = 0.5,
    beta: Number = 0.5,
    smooth: Number = 1.0,
    per_sample: bool = False,
    classes: Sequence[int] | None = None,
    empty: Empty = "smooth",
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""One minus the Tversky index of predicted and true regions, the common form of dice and IoU.

    $$\ell = w_c \left(1 - \frac{TP + s}{TP + \alpha\,FP + \beta\,FN + s}\right), \qquad
    TP = \sum p\,t, \quad FP = \sum p\,(1 - t), \quad FN = \sum (1 - p)\,t$$

    Args:
        input: Logits x, floating point. "binary": any shape, p = sigmoid(x). "multilabel": (N, C, d1, ..., dK),
            p = sigmoid(x). "multiclass": the same shape, p = softmax(x) over the class axis.
        target: Truth t in [0, 1] in the input's shape, floating point, integers or booleans; "multiclass" also
            takes class indices in the input's shape without the class axis.
        mode: "binary", "multiclass" or "multilabel".
        alpha: Price of a false positive. A number or a 0-d array. 0.5 and 0.5 give dice, 1 and 1 give IoU.
        beta: Price of a false negative. A number or a 0-d array.
        smooth: s, added above and below, at least 0. A number or a 0-d array.
        per_sample: Whether each sample, along the first axis, has its own regions, or the batch has one.
        classes: The classes that count, for example `range(1, C)` to leave out the background; by default all.
        empty: What a class costs whose region is empty in the target: "smooth", what the formula says; "zero",
            nothing; "skip", nothing, and it leaves the mean.
        ignore_index: Pixels with this class index do not exist. It may be any integer.
        weight: Weight w of each class, (C,). The mean divides by the sum over what counts.
        axis: The class axis; by default 1. For classes last, pass -1.
        where: Boolean mask over pixels, of the target's shape, with indices; otherwise of the input's, or
            broadcastable to it. What stands in a masked pixel has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss, or a pair of scalars; float32, or float64 if an argument is. Unreduced it is
        () or (N,) with `per_sample` for "binary", and (C,) or (N, C) otherwise, C counting only `classes`. Two
        empty regions without smoothing agree: they cost 0. The mean over nothing is NaN with gradient 0. A class
        index outside [0, C) makes the loss NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, a number is negative, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.tversky_loss(jnp.array([9.0, 9.0, -9.0, -9.0]), jnp.array([1, 0, 0, 0]), alpha=0.3, beta=0.7)
        Array(0.1304, dtype=float32)

    Note:
        `where` masks pixels, not entries of the unreduced loss, since those are sums over pixels.

    References:
        Salehi et al. (2017), "Tversky loss function for image segmentation", https://arxiv.org/abs/1706.05721
    """
    name = "tversky_loss"
    options = Regions(mode, per_sample, classes, empty, ignore_index, axis)
    return _loss(name, input, target, options, alpha, beta, smooth, weight, where, reduction)


def focal_tversky_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    mode: Mode = "binary",
    alpha: Number = 0.3,
    beta: Number = 0.7,
    gamma: Number = 4 / 3,
    smooth: Number = 1.0,
    per_sample: bool = False,
    classes: Sequence[int] | None = None,
    empty: Empty = "smooth",
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""A root of the Tversky loss, which puts more weight on regions that are nearly right already than on lost ones.

    $$\ell = w_c \left(1 - \frac{TP + s}{TP + \alpha\,FP + \beta\,FN + s}\right)^{1/\gamma}, \qquad
    TP = \sum p\,t, \quad FP = \sum p\,(1 - t), \quad FN = \sum (1 - p)\,t$$

    Args:
        input: Logits x, floating point. "binary": any shape, p = sigmoid(x). "multilabel": (N, C, d1, ..., dK),
            p = sigmoid(x). "multiclass": the same shape, p = softmax(x) over the class axis.
        target: Truth t in [0, 1] in the input's shape, floating point, integers or booleans; "multiclass" also
            takes class indices in the input's shape without the class axis.
        mode: "binary", "multiclass" or "multilabel".
        alpha: Price of a false positive. A number or a 0-d array.
        beta: Price of a false negative. A number or a 0-d array.
        gamma: The root, greater than 0; 1 gives `tversky_loss`. A number or a 0-d array.
        smooth: s, added above and below, at least 0. A number or a 0-d array.
        per_sample: Whether each sample, along the first axis, has its own regions, or the batch has one.
        classes: The classes that count, for example `range(1, C)` to leave out the background; by default all.
        empty: What a class costs whose region is empty in the target: "smooth", what the formula says; "zero",
            nothing; "skip", nothing, and it leaves the mean.
        ignore_index: Pixels with this class index do not exist. It may be any integer.
        weight: Weight w of each class, (C,). The mean divides by the sum over what counts.
        axis: The class axis; by default 1. For classes last, pass -1.
        where: Boolean mask over pixels, of the target's shape, with indices; otherwise of the input's, or
            broadcastable to it. What stands in a masked pixel has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss, or a pair of scalars; float32, or float64 if an argument is. Unreduced it is
        () or (N,) with `per_sample` for "binary", and (C,) or (N, C) otherwise, C counting only `classes`. Two
        empty regions without smoothing agree: they cost 0. The mean over nothing is NaN with gradient 0. A class
        index outside [0, C) makes the loss NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, a number is negative, `gamma` is not above 0, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.focal_tversky_loss(jnp.array([9.0, 9.0, -9.0, -9.0]), jnp.array([1, 0, 0, 0]))
        Array(0.2171, dtype=float32)

    Note:
        The exponent is the paper's 1/gamma, for each region; other libraries raise to gamma, or the mean of the
        regions. alpha is the price of false positives as in `tversky_loss`; the paper calls that beta. `where` masks
        pixels, not entries of the unreduced loss. The derivative is 0 where the loss is.

    References:
        Abraham and Khan (2018), "A Novel Focal Tversky Loss Function with Improved Attention U-Net for Lesion
        Segmentation", https://arxiv.org/abs/1810.07842
    """
    name = "focal_tversky_loss"
    options = Regions(mode, per_sample, classes, empty, ignore_index, axis)
    return _loss(name, input, target, options, alpha, beta, smooth, weight, where, reduction, gamma)


def generalized_dice_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    mode: Mode = "multiclass",
    weighting: Weighting = "square",
    smooth: Number = 1.0,
    per_sample: bool = False,
    classes: Sequence[int] | None = None,
    ignore_index: int = -100,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Dice loss of all classes together, each weighted by the size of its region, so that small ones count.

    $$\ell = 1 - \frac{2 \sum_c w_c \sum p\,t + s}{\sum_c w_c \bigl(\sum p + \sum t\bigr) + s}, \qquad
    w_c \propto \Bigl(\sum t\Bigr)^{-2}, \quad \sum_c w_c = 1$$

    Args:
        input: Logits x, floating point, (N, C, d1, ..., dK). "multiclass": p = softmax(x) over the class axis;
            "multilabel": p = sigmoid(x).
        target: Truth t in [0, 1] in the input's shape, floating point, integers or booleans; "multiclass" also
            takes class indices in the input's shape without the class axis.
        mode: "multiclass" or "multilabel".
        weighting: "square", one over the squared size of the region; "simple", one over its size; "uniform", all
            alike. A class whose region is empty in the target has the largest weight of the others.
        smooth: s, added above and below, at least 0. A number or a 0-d array.
        per_sample: Whether each sample, along the first axis, has its own regions, or the batch has one.
        classes: The classes that count, for example `range(1, C)` to leave out the background; by default all.
        ignore_index: Pixels with this class index do not exist. It may be any integer.
        axis: The class axis; by default 1. For classes last, pass -1.
        where: Boolean mask over pixels, of the target's shape, with indices; otherwise of the input's, or
            broadcastable to it. What stands in a masked pixel has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss, () or (N,) with `per_sample`, or a pair of scalars; float32, or float64 if an
        argument is. Empty regions without smoothing agree: they cost 0. The mean over nothing is NaN with gradient
        0. A class index outside [0, C) makes the loss NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit, a number is negative, or an option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x = 9 * jnp.array([[[1.0, 1.0, 1.0, -1.0], [-1.0, -1.0, -1.0, 1.0]]])
        >>> jaxloss.generalized_dice_loss(x, jnp.array([[0, 0, 1, 1]]))
        Array(0.2, dtype=float32)

    Note:
        The weights are normalised, so that `smooth` keeps its size in pixels whatever the regions are. optax weighs
        the dice loss of each class instead, and does not sum over classes within the fraction.

    References:
        Sudre et al. (2017), "Generalised Dice overlap as a deep learning loss function for highly unbalanced
        segmentations", https://arxiv.org/abs/1707.03237
    """
    name = "generalized_dice_loss"
    _check.choice(name, "mode", mode, ("multiclass", "multilabel"))
    _check.choice(name, "weighting", weighting, ("square", "simple", "uniform"))
    options = Regions(mode, per_sample, classes, "smooth", ignore_index, axis)
    sums, counts, class_axis = _summed(name, input, target, options, where)
    smooth = _check.number(name, "smooth", smooth, sums.hit.dtype, low=0)
    chosen = _chosen(name, classes, sums, class_axis)
    sums, counts = Sums(*(a[chosen] for a in sums)), counts[chosen]
    w, wrong = _by_size(sums.size, weighting), sums.false + sums.missed
    both = 2 * sums.hit + wrong
    loss = _share(jnp.sum(w * wrong, -1), jnp.sum(w * both, -1) + smooth)
    return reduce(name, loss, reduction, jnp.any(counts, -1))


def _by_size(size: Array, weighting: Weighting) -> Array:
    """Weights of the classes on the last axis, which sum to 1."""
    empty = size == 0
    w = jnp.where(empty, 1, size) ** {"square": -2, "simple": -1, "uniform": 0}[weighting]
    largest = jnp.max(jnp.where(empty, 0, w), -1, keepdims=True)
    w = jnp.where(empty, jnp.where(largest == 0, 1, largest), w)
    return w / jnp.sum(w, -1, keepdims=True)


def _loss(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    options: Regions,
    alpha: Number,
    beta: Number,
    smooth: Number,
    weight: ArrayLike | None,
    where: ArrayLike | None,
    reduction: str,
    gamma: Number | None = None,
) -> Reduced:
    _check.choice(name, "empty", options.empty, ("smooth", "zero", "skip"))
    sums, counts, axis = _summed(name, input, target, options, where)
    dtype = sums.hit.dtype
    alpha = _check.number(name, "alpha", alpha, dtype, low=0)
    beta = _check.number(name, "beta", beta, dtype, low=0)
    smooth = _check.number(name, "smooth", smooth, dtype, low=0)
    w = None
    if weight is not None:
        if axis is None:
            raise ValueError(f"{name}: `weight` is for each class, and mode='binary' has none.")
        w = _labels.per_class(name, weight, sums.hit.shape[-1], dtype)
    chosen = _chosen(name, options.classes, sums, axis)
    sums, counts, w = Sums(*(a[chosen] for a in sums)), counts[chosen], None if w is None else w[chosen]

    wrong = alpha * sums.false + beta * sums.missed
    loss = _share(wrong, sums.hit + wrong + smooth)
    if gamma is not None:
        loss = _root(loss, _check.number(name, "gamma", gamma, dtype, low=0, above=True))

    present = sums.size != 0  # NaN is
    if options.empty == "zero":
        loss = jnp.where(present, loss, 0)
    elif options.empty == "skip":
        counts = counts & present
    if w is None:
        return reduce(name, loss, reduction, counts)
    return reduce(name, w * loss, reduction, counts, share=jnp.broadcast_to(w, loss.shape))


class Sums(NamedTuple):
    """Over the pixels of each region. None is a difference: a region that is nearly right keeps its digits."""

    hit: Array  # Σ p t
    false: Array  # Σ p (1 - t)
    missed: Array  # Σ (1 - p) t
    size: Array  # Σ t


def _summed(
    name: str, input: ArrayLike, target: ArrayLike, options: Regions, where: ArrayLike | None
) -> tuple[Sums, Array, int | None]:
    """The sums of each region, which regions have a pixel that exists, and the class axis if there is one."""
    _check.choice(name, "mode", options.mode, ("binary", "multiclass", "multilabel"))
    x = _check.floating(name, "input", input)
    ignored = _check.integer(name, "ignore_index", options.ignore_index)
    axis = None if options.mode == "binary" else _labels.class_axis(name, options.axis, x)
    t = _check.array(name, "target", target)
    if jnp.issubdtype(t.dtype, jnp.complexfloating):
        raise TypeError(f"{name}: `target` must be real numbers, got {t.dtype} of shape {t.shape}.")
    over = _summed_axes(name, x, axis, options.per_sample)
    if axis is not None and options.mode == "multiclass" and t.shape != x.shape:
        index, _ = _labels.rows(name, target, x, axis, where, ignored)
        right = jnp.expand_dims(index, axis)
        hit, false, missed = _of_classes(x, right, axis, over)
        sums = Sums(hit, false, missed, lax.stop_gradient(hit + missed))
        exists = jnp.min(right.astype(hit.dtype), over, initial=jnp.inf) < x.shape[axis]
    else:
        _check.same_shape(name, input=x, target=t)
        counts = t.astype(jnp.float32) != ignored
        unmasked = _check.mask(name, where, x.shape)
        keep = counts if unmasked is None else counts & unmasked
        x, t = upcast(_check.masked(x, keep)), _check.masked(t.astype(at_least_float32(x.dtype)), keep)
        if options.mode == "multiclass" and axis is not None:
            z, _ = shift(x, axis)
            p = jnp.exp(z - log_sum(z, axis))
        else:
            p = jax.nn.sigmoid(x)
        p = _check.masked(p, keep)
        sums = Sums(*(jnp.sum(a, over) for a in (p * t, p * (1 - t), (1 - p) * t, t)))
        exists = jnp.any(keep, over)
    return sums, jnp.broadcast_to(exists, sums.hit.shape), axis


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _of_classes(x: Array, right: Array, axis: int, over: tuple[int, ...]) -> tuple[Array, Array, Array]:
    """The sums Σ p t, Σ p (1 - t) and Σ (1 - p) t of each class, t being 1 at the class `right` of a pixel.

    A pixel without a right answer, -1, makes them NaN; one that is not read, C, adds nothing.
    """
    others, scale, own, rest = _shares(x, right, axis, 1)
    (once_more,) = again(right)
    hit = _at_class(own, _away(right, others, axis), over)
    missed = _at_class(rest, _away(once_more, others, axis), over)
    return hit, jnp.sum(others * scale, over), missed


@_of_classes.defjvp
def _of_classes_jvp(
    axis: int, over: tuple[int, ...], primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    # dp = p (dx - Σ p dx). At the right class that is p ((1 - p) dx - Σ p dx of the others), which rounds no p to 1.
    others, scale, own, rest, right = again(*_shares(*primals, axis, 2), primals[1])
    dx = jnp.where(right < others.shape[axis], tangents[0], 0).astype(others.dtype)
    at_right = one_hot(right, others, axis)
    d_own = jnp.sum(jnp.where(at_right, dx, 0), axis, keepdims=True)
    d_rest = scale * jnp.sum(others * dx, axis, keepdims=True)
    d_hit = jnp.sum(jnp.where(at_right, own * (rest * d_own - d_rest), 0), over)
    # The select, where it is 0 already, keeps the transpose of the product out of a CPU's slowest pass.
    d_all = jnp.where(at_right, 0, own * d_own + d_rest)
    d_false = jnp.sum(others * (scale * dx), over) - jnp.sum(others * scale * d_all, over)
    return _of_classes(*primals, axis, over), (d_hit, d_false, -d_hit)


@partial(jax.jit, static_argnums=(2, 3))  # jax_debug_nans sees only what leaves, not the pixels that are not read
def _shares(x: Array, right: Array, axis: int, bit: int) -> tuple[Array, Array, Array, Array]:
    """The softmax of each pixel in parts, z being the logits less their largest.

    e^z of all classes but the right one, and by pixel what that is to be multiplied by, the share of the right class,
    and that of all others. A GPU shares the numbers of a pixel between calls, but e^z only if they have the same `bit`.
    """
    classes = x.shape[axis]

    def of_many(x: Array, right: Array) -> tuple[Array, Array, Array]:
        z, top = shift(x, axis)
        others = _but_right(z, right, axis)
        return others, jnp.exp(upcast(pick(x, right, axis)) - top), jnp.sum(others, axis, keepdims=True)

    def of_few(x: Array, right: Array) -> tuple[Array, Array, Array]:
        top, own, rest = _totals_of_few(x, right, axis)
        x, right = disguised(bit, x, right)
        return _but_right(upcast(x) - top, right, axis), own, rest

    one_reading = of_few if are_few(x, axis) else of_many
    others, own, rest = lax.platform_dependent(x, right, cpu=of_many, tpu=of_many, default=one_reading)
    own = jnp.where(right < 0, jnp.nan, jnp.where(right < classes, own, 1))
    scale = 1 / (own + rest)
    return others, scale, jnp.minimum(own * scale, 1), jnp.minimum(rest * scale, 1)


@partial(jax.jit, static_argnums=2)  # traced once for value and derivative
def _totals_of_few(x: Array, right: Array, axis: int) -> tuple[Array, Array, Array]:
    """The largest logit of each pixel, e^z of its right class, and the sum of e^z of the others.

    Without reductions, so that a GPU makes one kernel of them all, whose threads have a pixel each.
    """
    x = jnp.where(right < x.shape[axis], x, 0)
    each = [upcast(z) for z in lax.split(x, [1] * x.shape[axis], axis)]
    nothing = jnp.zeros_like(each[0])
    top = finite(fold(lax.max, lax.stop_gradient(each)))
    here = [lax.eq(right, lax.full_like(right, c)) for c in range(len(each))]
    own = fold(lax.add, map(partial(lax.select, on_false=nothing), here, each))
    rest = [lax.select(h, nothing, lax.exp(lax.sub(z, top))) for h, z in zip(here, each, strict=True)]
    return top, jnp.exp(own - top), fold(lax.add, rest)


def _but_right(z: Array, right: Array, axis: int) -> Array:
    """e^z of all classes but the right one, 0 in a pixel that is not read."""
    return jnp.exp(jnp.where(one_hot(right, z, axis) | (right == z.shape[axis]), -jnp.inf, z))


def _at_class(share: Array, away: Array, over: tuple[int, ...]) -> Array:
    """Σ over the pixels of each class of a share between 0 and 1, which is less than away from any other class."""
    return jnp.sum(share - jnp.minimum(away, share), over)


def _away(right: Array, like: Array, axis: int) -> Array:
    """How far each class is from the right one of a pixel."""
    return jnp.abs(lax.broadcasted_iota(like.dtype, like.shape, axis) - right.astype(like.dtype))


def _summed_axes(name: str, x: Array, axis: int | None, per_sample: bool) -> tuple[int, ...]:
    """All axes but that of the classes and, per sample, the first."""
    _check.flag(name, "per_sample", per_sample)
    if per_sample and (x.ndim == 0 or axis == 0):
        raise ValueError(f"{name}: `per_sample` needs samples on the first axis, got an input of shape {x.shape}.")
    return tuple(i for i in range(x.ndim) if i != axis and not (per_sample and i == 0))


def _chosen(name: str, classes: Sequence[int] | None, sums: Sums, axis: int | None) -> tuple[Any, ...]:
    """What picks the classes that count from numbers of each class."""
    if classes is None:
        return (...,)
    if axis is None:
        raise ValueError(f"{name}: `classes` chooses among classes, and mode='binary' has none.")
    chosen, number = [_check.integer(name, "classes", c) for c in classes], sums.hit.shape[-1]
    if not chosen or not all(0 <= c < number for c in chosen):
        raise ValueError(f"{name}: `classes` must name some of the classes 0 to {number - 1}, got {chosen}.")
    return (..., jnp.asarray(chosen))


def _share(part: Array, whole: Array) -> Array:
    """part / whole, 0 for two empty regions without smoothing, which agree."""
    nothing = whole == 0
    return jnp.where(nothing, 0, part / jnp.where(nothing, 1, whole))


def _root(x: Array, gamma: Number) -> Array:
    """x^(1/γ) for x ≥ 0, with derivative 0 at 0."""
    zero = x == 0
    return jnp.where(zero, 0, jnp.exp(jnp.log(jnp.where(zero, 1, x)) / gamma))
