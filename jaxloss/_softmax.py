"""The public faces of the log-sum-exp that every categorical loss stands on."""

from . import _check, _numerics
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
        return _numerics.logsumexp(x, axis)


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
        return _numerics.log_softmax(x, axis)
