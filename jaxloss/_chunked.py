"""Any loss over samples, a few of them at a time."""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp

from . import _check
from ._chunks import over_rows
from ._devices import vary_alike
from ._reduce import REDUCTIONS, mean
from ._types import Reduced, Reduction


def chunked(
    loss: Callable[..., Any], chunk_size: int, *, per_sample: Sequence[str] = ("where",)
) -> Callable[..., Reduced]:
    r"""The same loss, computed for a few samples at a time, so that no more is ever in memory.

    $$\frac{\sum_k \text{sum}_k}{\sum_k \text{weight}_k} \quad\text{over chunks } k, \text{ each from }
    \text{reduction="sum\_and\_weight"}$$

    which is the exact mean, however a mask, ignored samples or weights are spread over the chunks. The mean of the
    chunks' means is not.

    Args:
        loss: A function of arrays with the samples on their first axis, and of options. It takes the keyword
            `reduction` as every loss of this package does: "sum_and_weight" and "sum" have to be sums over samples,
            "none" one entry, or one part of an array, for each. The head of a network can be a part of it.
        chunk_size: How many samples at a time. Their number, which may be any, need not be a multiple of it.
        per_sample: Names of the keyword arguments that have the samples on their first axis, as every positional
            argument has. All other keyword arguments go to every chunk as they are: options, a weight of each class,
            parameters.

    Returns:
        A function with the arguments of `loss`. What is given by position, or by a name in `per_sample`, is an array or
        a pytree of arrays with (N, ...) each, or None. `reduction` is "mean" by default, "sum", "none", or
        "sum_and_weight". It returns what `loss` would have returned at once, up to rounding: a mean over nothing is NaN
        with gradient 0.

    Raises:
        TypeError: If `chunk_size` is not an integer.
        ValueError: If `chunk_size` is below 1, and when called, if `reduction` is unknown, an array has no sample
            axis or not the others' number of samples, or `loss` does not return a scalar for "sum" or a pair of them
            for "sum_and_weight".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> def head(x, target, *, w, reduction, where=None):
        ...     return jaxloss.cross_entropy(x @ w, target, where=where, reduction=reduction)
        >>> x, w, y = jnp.ones((5, 3)), jnp.eye(3, 4), jnp.array([0, 1, 3, 2, 3])
        >>> jaxloss.chunked(head, 2)(x, y, w=w, where=jnp.arange(5) != 4)
        Array(1.4643, dtype=float32)

    Note:
        Class indices that JAX's default integers cannot hold are out of range, and `ignore_index` cannot name them.
        The backward pass computes each chunk again: what is kept is the arguments, and what a chunk needs exists for
        one chunk at a time. Everything is plain operations around `loss`: forward mode, second derivatives, `vmap`
        and `jit` work as far as they do for it. The gradient of an argument that all chunks share is added up over them
        in the argument's dtype: share parameters in float32 and convert them inside. A linear layer under cross
        entropy is faster with `linear_cross_entropy`, which computes no chunk twice.

    References:
        Chen et al. (2016), "Training Deep Nets with Sublinear Memory Cost", https://arxiv.org/abs/1604.06174
    """
    name = "chunked"
    size = _check.chunk_size(name, chunk_size)

    @wraps(loss)
    def of_chunks(*args: Any, reduction: Reduction = "mean", **kwargs: Any) -> Reduced:
        _check.choice(name, "reduction", reduction, REDUCTIONS)
        how = "sum_and_weight" if reduction == "mean" else reduction
        named = {key: kwargs.pop(key) for key in per_sample if key in kwargs}
        samples = _samples(name, args, named)

        def of(samples: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
            return loss(*samples[0], **samples[1], **kwargs, reduction=how)

        with _check.forward_mode_hint(name, "pass implementation='autodiff' on to the loss, if it has it"):
            if how == "none":
                return over_rows(lambda chunk, _, total: (of(chunk), total), samples, size, None)[0]
            start = _zeros(name, how, jax.eval_shape(of, samples))
            start, *_ = vary_alike([start, samples, [a for a in jax.tree.leaves(kwargs) if isinstance(a, jax.Array)]])
            add = partial(jax.tree.map, jnp.add)
            total = over_rows(lambda chunk, _, total: ((), add(total, of(chunk))), samples, size, start)[1]
        return mean(*total) if reduction == "mean" else total

    return of_chunks


def _samples(name: str, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What is cut, as JAX arrays that agree on the number of samples."""
    shapes = jax.tree.map(jnp.shape, [*args, *named.values()])
    numbers = {shape[:1] for shape in jax.tree.leaves(shapes, is_leaf=lambda a: isinstance(a, tuple))}
    if len(numbers) != 1 or () in numbers:
        given = f"shapes {', '.join(map(str, shapes))}" if shapes else "no array"
        raise ValueError(
            f"{name}: arrays given by position, or by a name in `per_sample`, must have the same number of samples on "
            f"their first axis, got {given}; pass what all chunks share by another keyword."
        )
    cut: tuple[tuple[Any, ...], dict[str, Any]] = jax.tree.map(_check.clipped, (args, named))
    return cut


def _zeros(name: str, reduction: str, result: Any) -> Any:
    """Where a sum begins, from what the loss will return."""
    shapes = [a.shape for a in jax.tree.leaves(result)]
    if shapes != ([()] if reduction == "sum" else [(), ()]):
        expected = "a scalar" if reduction == "sum" else "a pair of scalars"
        raise ValueError(f"{name}: with reduction {reduction!r} `loss` must return {expected}, got shapes {shapes}.")
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), result)
