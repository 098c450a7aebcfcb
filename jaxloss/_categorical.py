"""Losses over a class axis: cross_entropy, nll_loss, kl_div."""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from . import _check, _labels, _rows
from ._devices import AxisName, Classes, mesh_axes, vary_alike
from ._numerics import at_least_float32, narrow, pick, times, upcast, xlogy
from ._reduce import REDUCTIONS, mean, reduce
from ._types import Array, ArrayLike, BatchReduction, KernelImplementation, Number, Reduced, Reduction, RowStatistics


def cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    *,
    ignore_index: int = -100,
    label_smoothing: Number = 0.0,
    z_loss: Number = 0.0,
    logit_softcap: Number | None = None,
    aux: bool = False,
    axis_name: AxisName | None = None,
    implementation: KernelImplementation = "auto",
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Cross entropy between logits and classes, given as indices or as probabilities.

    $$\ell = -\sum_c w_c\, \tilde q_c \log \frac{e^{x_c}}{\sum_k e^{x_k}}, \qquad
    \tilde q = (1 - \epsilon)\, q + \epsilon / C$$

    where q is 1 at the class of an index and 0 elsewhere, or the given probabilities, ε is `label_smoothing` and
    C the number of classes. It applies the softmax itself: pass logits. Two options of large language models:

    $$x \leftarrow s \tanh(x / s), \qquad \ell \leftarrow \ell + \zeta\, w_y \Big(\log \sum_k e^{x_k}\Big)^2$$

    where s is `logit_softcap`, applied first, and ζ is `z_loss`, with w_y = 1 for probabilities.

    Args:
        input: Logits x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices of any integer dtype, in the input's shape without the class axis; or class
            probabilities q, floating point, in the input's shape. They are neither checked nor normalised.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
            With class probabilities it means nothing, and one that is not negative is refused.
        label_smoothing: ε in [0, 1]. A number or a 0-d array, which may be traced.
        z_loss: ζ ≥ 0, which keeps the log-sum-exp near 0. A number or a 0-d array.
        logit_softcap: s > 0, which holds the logits in (-s, s), or None. A number or a 0-d array.
        aux: Whether to return the pair (loss, statistics), as `jax.value_and_grad(..., has_aux=True)` expects it.
            The statistics, found in the same reading of the logits and without gradient, are a named tuple of
            `log_sum_exp`, `correct` (whether the largest logit, of equals the first, is the target's) and `entropy`
            (of the softmax) for each row, 0 or False where a row does not count, and `z_loss`, the part of the
            loss that it makes, reduced as the loss is.
        axis_name: Inside `jax.shard_map`, the name or names of the mesh axes that the classes are spread over, in equal
            parts and in order: `input`, `weight` and class probabilities hold this device's classes, class indices
            and C count all of them. Three to five numbers for each row travel, however many classes there are.
        implementation: "xla" carries a `jax.custom_vjp` that keeps the logits and two numbers per row. "pallas" reads
            each row once, in a kernel for CUDA that is interpreted on a CPU, and wants the classes on the last
            axis. "auto" takes the kernel on CUDA where it is faster. "autodiff" is the same arithmetic without
            custom_vjp, for `jax.jvp`, `jax.jacfwd` and `jax.linearize`, which a custom_vjp refuses.
        weight: Weight w of each class, (C,).
        axis: The class axis. By default torch's: 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            The mean divides by the sum of w at the targets that count; with class probabilities by the number
            of rows.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is; with `aux` in a pair with the statistics. The mean over nothing is NaN with
        gradient 0. A class index outside [0, C) makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit, such as class indices that are floating point.
        ValueError: If a shape does not fit, a Python number such as `label_smoothing` is out of its range, or an
            option is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[1.0, 2.0, 3.0], [1.0, 1.0, 1.0]])
        >>> jaxloss.cross_entropy(logits, jnp.array([2, 0]))
        Array(0.7531, dtype=float32)
        >>> jaxloss.cross_entropy(logits, jnp.array([2, -100]), reduction="sum_and_weight")
        (Array(0.4076, dtype=float32), Array(1., dtype=float32))

    Note:
        Differs from torch on purpose: half precision gives a float32 loss; every integer dtype is taken; a row
        that is ignored may hold NaN; 0·inf is 0, so a class of logit -inf and weight or probability 0 costs
        nothing; an index out of range gives NaN and does not raise.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
        Szegedy et al. (2016), "Rethinking the Inception Architecture", for label smoothing.
        Chowdhery et al. (2022), "PaLM", for the z-loss; Gemma Team (2024), "Gemma 2", for the soft cap.
    """
    name = "cross_entropy"
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    classes = Classes(axis, mesh_axes(axis_name))
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    _check.choice(name, "implementation", implementation, ("auto", "xla", "pallas", "autodiff"))
    _check.flag(name, "aux", aux)
    terms, keep, share = _rows.terms(
        name,
        target,
        x,
        classes,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logit_softcap=logit_softcap,
        weight=weight,
        where=where,
    )
    if implementation == "pallas" and axis < x.ndim - 1:
        raise ValueError(
            f'{name}: implementation "pallas" needs the classes on the last axis, got {axis} of {x.shape}.'
        )
    x, terms = vary_alike((x, terms), classes.axis_name)
    if implementation == "autodiff":
        loss, found, _ = _rows.losses(classes, implementation, aux, x, terms)
    else:
        with _check.forward_mode_hint(name, "pass implementation='autodiff'"):
            loss, found = _each_row(classes, implementation, aux, x, terms)
    loss = reduce(name, jnp.squeeze(loss, axis), reduction, keep, share)
    if found is None:
        return loss
    found = jax.tree.map(partial(jnp.squeeze, axis=axis), found)
    return loss, _rows.reduced(name, found, reduction, keep, share)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _each_row(
    classes: Classes, implementation: KernelImplementation, aux: bool, x: Array, terms: _rows.Terms
) -> tuple[Array, RowStatistics | None]:
    return _rows.losses(classes, implementation, aux, x, terms, value_only=True)[:2]


Residuals: TypeAlias = tuple[Array, _rows.Terms, _rows.Sums]


def _each_row_fwd(
    classes: Classes, implementation: KernelImplementation, aux: bool, x: Array, terms: _rows.Terms
) -> tuple[tuple[Array, RowStatistics | None], Residuals]:
    loss, found, sums = _rows.losses(classes, implementation, aux, x, terms, kept=True)
    return (loss, found), (x, terms, sums)


def _each_row_bwd(
    classes: Classes,
    implementation: KernelImplementation,
    aux: bool,
    residuals: Residuals,
    cotangents: tuple[Array, RowStatistics | None],
) -> tuple[Array, _rows.Terms]:
    x, terms, sums = residuals
    dx, dterms = _rows.pull(classes, x, sums, terms, classes.to_parts(cotangents[0]))
    return narrow(dx, x.dtype), dterms


_each_row.defvjp(_each_row_fwd, _each_row_bwd)


def nll_loss(
    input: ArrayLike,
    target: ArrayLike,
    *,
    ignore_index: int = -100,
    weight: ArrayLike | None = None,
    axis: int | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Negative log-likelihood of classes under given log-probabilities.

    $$\ell = -w_y\, x_y$$

    `nll_loss(log_softmax(x), y)` is `cross_entropy(x, y)`, which is the better choice when logits are at hand.

    Args:
        input: Log-probabilities x, floating point: (C), (N, C) or (N, C, d1, ..., dK).
        target: Class indices y of any integer dtype, in the input's shape without the class axis.
        ignore_index: Rows with this class index count neither in the sum nor in the mean. It may be any integer.
        weight: Weight w of each class, (C,).
        axis: The class axis. By default torch's: 1, or 0 for a single sample (C). For classes last, pass -1.
        where: Boolean mask, of the unreduced loss's shape or broadcastable to it. What stands in a masked row
            has no influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.
            The mean divides by the sum of w at the targets that count.

    Returns:
        A scalar, the unreduced loss in the input's shape without the class axis, or a pair of scalars; float32,
        or float64 if an argument is. The mean over nothing is NaN with gradient 0. A class index outside [0, C)
        makes the loss and the gradient of its row NaN.

    Raises:
        TypeError: If a dtype does not fit.
        ValueError: If a shape does not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_p = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
        >>> jaxloss.nll_loss(log_p, jnp.array([1, 0]), reduction="none")
        Array([0.2877, 0.6931], dtype=float32)

    Note:
        A class of weight 0 costs nothing even at a log-probability of -inf; torch gives NaN.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html
    """
    name = "nll_loss"
    x = _check.floating(name, "input", input)
    axis = _labels.class_axis(name, axis, x)
    ignore_index = _check.integer(name, "ignore_index", ignore_index)
    w = None if weight is None else _labels.per_class(name, weight, x.shape[axis], at_least_float32(x.dtype))
    index, keep = _labels.rows(name, target, x, axis, where, ignore_index)
    share = _labels.of_target(w, index, at_least_float32(x.dtype))
    log_p = upcast(jnp.squeeze(pick(x, jnp.expand_dims(index, axis), axis), axis))
    loss = times(_labels.spoiled(share, index), -log_p)
    return reduce(name, loss, reduction, keep, share)


def smooth_labels(
    target: ArrayLike,
    num_classes: int,
    *,
    smoothing: Number = 0.1,
    axis: int | None = None,
) -> Array:
    r"""Class probabilities with what is taken from the right class spread over the others alone.

    $$q_c = \begin{cases} 1 - s & c = y \\ s / (C - 1) & \text{otherwise} \end{cases}$$

    This is the form often written by hand. `cross_entropy(label_smoothing=ε)` spreads ε over all C classes, the right
    one included: s = ε (C - 1) / C makes the two equal.

    Args:
        target: Class indices y of any integer dtype and shape.
        num_classes: The number of classes C, at least 2. Static.
        smoothing: s in [0, 1]. A number or a 0-d array.
        axis: Where the class axis goes in the result: by default 1, or 0 for a single index, as `cross_entropy`
            wants it.

    Returns:
        Probabilities in the target's shape with the class axis added, in JAX's default floating-point dtype. An
        index outside [0, C) gives NaN.

    Raises:
        TypeError: If `target` is not of integers.
        ValueError: If `num_classes` is below 2, `axis` is out of range, or `smoothing` is a Python number outside
            [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.smooth_labels(jnp.array(1), 3, smoothing=0.2)
        Array([0.1, 0.8, 0.1], dtype=float32)

    References:
        Müller et al. (2019), "When Does Label Smoothing Help?", https://arxiv.org/abs/1906.02629
    """
    name = "smooth_labels"
    y = _labels.indices(name, "target", target)
    num_classes = _check.integer(name, "num_classes", num_classes)
    if num_classes < 2:
        raise ValueError(f"{name}: `num_classes` must be at least 2, got {num_classes}.")
    dtype = jnp.result_type(float)  # JAX's default, since integers have no precision to keep
    s = jnp.asarray(_check.number(name, "smoothing", smoothing, dtype, low=0, high=1), dtype)
    index = _labels.narrowed(y, num_classes)
    place = min(1, index.ndim) if axis is None else axis
    q = jax.nn.one_hot(index, num_classes, axis=place, dtype=dtype)
    known = jnp.expand_dims((index >= 0) & (index < num_classes), place)
    return jnp.where(known, q * (1 - s) + (1 - q) * s / (num_classes - 1), jnp.nan)


def kl_div(
    input: ArrayLike,
    target: ArrayLike,
    *,
    log_target: bool = False,
    where: ArrayLike | None = None,
    reduction: BatchReduction = "mean",
) -> Reduced:
    r"""Kullback-Leibler divergence of a target from predicted log-probabilities, entry by entry.

    $$\ell = t\,(\log t - x), \qquad \text{or with log\_target} \quad \ell = e^t\,(t - x)$$

    Args:
        input: Predicted log-probabilities x, floating point, any shape.
        target: Probabilities t, or with `log_target=True` their logarithms; floating point, of the input's shape.
        log_target: Whether `target` is a logarithm.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean" divides by the number of entries; "batchmean", the divergence proper, by the size of the
            first axis, where only samples with an unmasked entry count; "sum", "none", or "sum_and_weight" for
            the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit, or `log_target` is not a bool.
        ValueError: If the shapes differ or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_p = jnp.log(jnp.array([[0.5, 0.5]]))
        >>> jaxloss.kl_div(log_p, jnp.array([[1.0, 0.0]]), reduction="batchmean")
        Array(0.6931, dtype=float32)

    Note:
        A target of 0 costs 0 whatever the input, -inf included, with gradient 0 for the input and a finite one
        for the target; torch gives NaN there. Nothing is broadcast.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.kl_div.html
    """
    name = "kl_div"
    x, t, keep = _check.pair(name, input, target, where)
    _check.flag(name, "log_target", log_target)
    _check.choice(name, "reduction", reduction, (*REDUCTIONS, "batchmean"))
    if log_target:
        absent = (t == -jnp.inf) & (x == -jnp.inf)
        loss = times(jnp.exp(t), jnp.where(absent, 0, t) - jnp.where(absent, 0, x))
    else:
        loss = xlogy(t, t) - times(t, x)
    if reduction != "batchmean":
        return reduce(name, loss, reduction, keep, in_loop=True)
    return mean(reduce(name, loss, "sum", keep, in_loop=True), _batch_size(x, keep))


def _batch_size(x: Array, keep: Array | None) -> Array:
    """How many samples have an unmasked entry; a scalar is one sample."""
    if keep is None:
        return jnp.asarray(x.shape[0] if x.ndim else 1, x.dtype)
    return jnp.sum(jnp.any(keep, tuple(range(1, x.ndim))), dtype=x.dtype)
