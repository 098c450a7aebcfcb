"""Losses between a probability, or its logit, and yes or no."""

from functools import partial

import jax
import jax.numpy as jnp

from . import _check
from ._numerics import TORCH_EPSILON, again, log1p_in_loop, softplus_mix, times, widened
from ._reduce import better_in_loop, reduce
from ._types import Array, ArrayLike, Reduced, Reduction


def binary_cross_entropy(
    input: ArrayLike,
    target: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Cross entropy between probabilities and binary targets.

    $$\ell = -w\,\bigl(t \log p + (1 - t) \log (1 - p)\bigr), \qquad \log \ge -100$$

    Prefer `binary_cross_entropy_with_logits`: a probability near 1 has already lost its digits.

    Args:
        input: Probabilities p in [0, 1], floating point, any shape.
        target: Targets t in [0, 1], floating point, of the input's shape.
        weight: Weight w of each entry, of the input's shape or broadcastable to it. As in torch the mean divides
            by the number of entries.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit; integer targets are refused, as in torch.
        ValueError: If the shapes do not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.binary_cross_entropy(jnp.array([0.5, 0.7, 0.3]), jnp.array([1.0, 1.0, 0.0]))
        Array(0.4688, dtype=float32)

    Note:
        As in torch each logarithm is held at -100 or above, and the gradient is (p - t) / max(p·(1 - p), 1e-12).
        The gradient of the target uses the held logarithms too, so it is finite where torch's is not. A
        probability outside [0, 1], for which torch raises, gives NaN.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy.html
    """
    name = "binary_cross_entropy"
    p, t, keep = _check.pair(name, input, target, where)
    p, t = _check.as_given((p, t), _check.dtypes(name, input=input, target=target))
    in_loop = better_in_loop(keep, input, target, weight=weight)
    return _weighted(name, _binary_cross_entropy(in_loop, p, t), weight, keep, reduction, in_loop=in_loop)


def _log_and_complement(p: Array) -> tuple[Array, Array]:
    """log p and log(1 - p), held at -100, with finite derivatives where they are."""
    held, held_other = p == 0, p == 1
    log_p = jnp.maximum(jnp.log(jnp.where(held, 1, p)), -100)
    log_q = jnp.maximum(jnp.log1p(-jnp.where(held_other, 0, p)), -100)
    return jnp.where(held, -100, log_p), jnp.where(held_other, -100, log_q)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _binary_cross_entropy(in_loop: bool, p: Array, t: Array) -> Array:
    p, t = widened(p, t)
    # No constant, which XLA would put second: a CPU's fast pass would take it for a NaN. Nor made of the 0 that the
    # derivative has too, which it would spread in memory.
    least, log_q = -0.0 * t - 100, log1p_in_loop(-p) if in_loop else jnp.log1p(-p)
    return (t - 1) * jnp.maximum(least, log_q) - t * jnp.maximum(least, jnp.log(p))


@_binary_cross_entropy.defjvp
def _binary_cross_entropy_jvp(
    in_loop: bool, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    # dℓ = (p - t) / (p (1 - p)) dp + (log(1 - p) - log p) dt. The floor keeps p = t = 0 or 1 at 0 and not 0/0.
    (dp, dt), (p, t) = widened(*tangents), widened(*again(*primals))
    log_p, log_q = _log_and_complement(p)
    outside = jnp.where((p < 0) | (p > 1), jnp.nan, 1)
    slope = (p - t) / jnp.maximum(p * (1 - p), TORCH_EPSILON) * outside
    return _binary_cross_entropy(in_loop, *primals), slope * dp + (log_q - log_p) * dt


def binary_cross_entropy_with_logits(
    input: ArrayLike,
    target: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Reduced:
    r"""Cross entropy between logits and binary targets.

    $$\ell = w\,\bigl(p_w\,t \log(1 + e^{-x}) + (1 - t) \log(1 + e^x)\bigr)$$

    Args:
        input: Logits x, floating point, any shape.
        target: Targets t in [0, 1], floating point, of the input's shape.
        pos_weight: Weight of the positive part, broadcast against the trailing axes of the input: one number, or
            (labels,) for an input of (N, labels).
        weight: Weight w of each entry, of the input's shape or broadcastable to it. As in torch the mean divides
            by the number of entries.
        where: Boolean mask, of the input's shape or broadcastable to it. What stands in a masked place has no
            influence on the value or on any gradient.
        reduction: "mean", "sum", "none", or "sum_and_weight" for the pair (sum, weight) with mean = sum / weight.

    Returns:
        A scalar, the unreduced loss in the input's shape, or a pair of scalars; float32, or float64 if an
        argument is. The mean over nothing is NaN with gradient 0.

    Raises:
        TypeError: If a dtype does not fit; integer targets are refused, as in torch.
        ValueError: If the shapes do not fit or `reduction` is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x, t = jnp.array([0.8, -0.5, 1.2]), jnp.array([1.0, 0.0, 1.0])
        >>> jaxloss.binary_cross_entropy_with_logits(x, t)
        Array(0.3695, dtype=float32)

    Note:
        A logit of ±inf gives 0 or inf with a finite gradient of the right sign; torch gives NaN where the loss
        is 0. Both terms are positive and the gradient is their sum, so neither loses digits when the prediction
        is confident.

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html
    """
    name = "binary_cross_entropy_with_logits"
    x, t, keep = _check.pair(name, input, target, where)
    positive = t
    if pos_weight is not None:
        positive = t * _check.spread(name, "pos_weight", pos_weight, x, keep)
    return _weighted(name, softplus_mix(x, 1 - t, positive), weight, keep, reduction, in_loop=True)


def _weighted(
    name: str, loss: Array, weight: ArrayLike | None, keep: Array | None, reduction: str, *, in_loop: bool = False
) -> Reduced:
    if weight is not None:
        loss = times(_check.spread(name, "weight", weight, loss, keep), loss, bounded=True)
    return reduce(name, loss, reduction, keep, in_loop=in_loop)
