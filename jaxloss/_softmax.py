"""The public faces of the log-sum-exp that every categorical loss stands on."""

from functools import partial
from typing import TypeAlias

import jax
import jax.numpy as jnp

from . import _check
from ._numerics import again, narrow, softmax, sums, upcast
from ._rows import row_sums
from ._types import Array, ArrayLike


def logsumexp(input: ArrayLike, axis: int = -1) -> Array:
    r"""Logarithm of the sum of exponentials along one axis.

    $$\operatorname{logsumexp}(x) = m + \log \sum_c e^{x_c - m}, \qquad m = \max_c x_c$$

    Its `jax.custom_vjp` keeps the input and two numbers per row for the backward pass, where autodiff would keep
    the exponentials. It works in reverse mode only; in forward mode use `jax.nn.logsumexp`.

    Args:
        input: Floating-point array with at least one axis.
        axis: The axis to sum over.

    Returns:
        The input's shape without `axis`, in float32, or float64 for a float64 input. A row of -inf gives -inf
        with gradient 0.

    Raises:
        TypeError: If `input` is not floating point.
        ValueError: If `axis` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.logsumexp(jnp.array([1000.0, 1000.0]))
        Array(1000.693, dtype=float32)

    References:
        https://pytorch.org/docs/stable/generated/torch.logsumexp.html
    """
    x = _check.floating("logsumexp", "input", input)
    axis = _check.one_axis("logsumexp", axis, x)
    with _check.forward_mode_hint("logsumexp", "use jax.nn.logsumexp"):
        return _logsumexp(x, axis)


def log_softmax(input: ArrayLike, axis: int = -1) -> Array:
    r"""Logarithm of the softmax along one axis.

    $$\operatorname{log\_softmax}(x)_c = (x_c - m) - \log \sum_k e^{x_k - m}, \qquad m = \max_k x_k$$

    Its `jax.custom_vjp` keeps the input and two numbers per row for the backward pass. It works in reverse mode
    only; in forward mode use `jax.nn.log_softmax`.

    Args:
        input: Floating-point array with at least one axis.
        axis: The axis along which the exponentials of the result sum to 1. torch calls it `dim`.

    Returns:
        The input's shape, in float32, or float64 for a float64 input.

    Raises:
        TypeError: If `input` is not floating point.
        ValueError: If `axis` is out of range.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.log_softmax(jnp.array([0.0, 0.0]))
        Array([-0.6931, -0.6931], dtype=float32)

    References:
        https://pytorch.org/docs/stable/generated/torch.nn.functional.log_softmax.html
    """
    x = _check.floating("log_softmax", "input", input)
    axis = _check.one_axis("log_softmax", axis, x)
    with _check.forward_mode_hint("log_softmax", "use jax.nn.log_softmax"):
        return _log_softmax(x, axis)


# Both rules below keep the input, which is alive anyway, and two numbers per row, the maximum and the logarithm of
# Σ exp(x - max). Keeping their sum instead would do for x of ordinary size, but at x ≈ 1e6 its rounding alone is 3 % of
# every gradient. The forward rules are plain operations, so that jax.hessian, which is forward mode over reverse mode,
# can differentiate them again.

Kept: TypeAlias = tuple[Array, Array, Array]


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _logsumexp(x: Array, axis: int) -> Array:
    """log Σ exp(x) along `axis`; d logsumexp = Σ p dx with p = softmax(x)."""
    return _logsumexp_fwd(x, axis)[0]


def _logsumexp_fwd(x: Array, axis: int) -> tuple[Array, Kept]:
    top, log_total = row_sums(x, axis)
    return jnp.squeeze(top + log_total, axis), _kept(x, top, log_total, axis)


def _logsumexp_bwd(axis: int, kept: Kept, g: Array) -> tuple[Array]:
    return (narrow(jnp.expand_dims(g, axis) * _softmax_again(kept, axis), kept[0].dtype),)


_logsumexp.defvjp(_logsumexp_fwd, _logsumexp_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _log_softmax(x: Array, axis: int) -> Array:
    """x - log Σ exp(x) along `axis`; d log_softmax = dx - Σ p dx with p = softmax(x)."""
    return _log_softmax_fwd(x, axis)[0]


def _log_softmax_fwd(x: Array, axis: int) -> tuple[Array, Kept]:
    top, log_total = row_sums(x, axis)
    y, still = again(x, top)  # a pass of its own: what the sum has read is not kept for it on a CPU
    return upcast(y) - still - log_total, _kept(x, top, log_total, axis)


def _log_softmax_bwd(axis: int, kept: Kept, g: Array) -> tuple[Array]:
    (total,) = sums([g], axis, False)
    return (narrow(g - _softmax_again(kept, axis) * jnp.expand_dims(total, axis), kept[0].dtype),)


_log_softmax.defvjp(_log_softmax_fwd, _log_softmax_bwd)


def _kept(x: Array, top: Array, log_total: Array, axis: int) -> Kept:
    return x, jnp.squeeze(top, axis), jnp.squeeze(log_total, axis)


def _softmax_again(kept: Kept, axis: int) -> Array:
    x, top, log_total = again(*kept)
    return softmax(upcast(x) - jnp.expand_dims(top, axis), jnp.expand_dims(log_total, axis))
