"""Means and gradients that are right when a batch is spread over devices.

Under `jax.jit` with sharded arguments nothing is needed: an array is whole there, and so is its mean. Inside
`jax.shard_map`, `jax.pmap` or `jax.vmap` with an `axis_name` each device sees its part alone, and a mean of the
devices' means is wrong as soon as they count unevenly. Take "sum_and_weight" and divide once:

    loss = spmd.mean(jaxloss.cross_entropy(logits, labels, reduction="sum_and_weight"), "data")

Its gradient is right as it is if it is taken outside, of the function that `jax.shard_map` returns, or inside with
`check_vma=True`, the default. Inside with `check_vma=False`, under `jax.pmap` and under `jax.vmap`, JAX differentiates
the sum of all devices' losses, which are all the same: take `spmd.value_and_grad`, which is right in every style.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

from . import _reduce
from ._devices import AxisName, names_of, varying_axes
from ._types import Array


def mean(sum_and_weight: tuple[Array, Array], axis_name: AxisName) -> Array:
    r"""The mean over all devices along mesh axes, from what each has of the sum and of the weight.

    $$\bar\ell = \frac{\sum_d \text{sum}_d}{\sum_d \text{weight}_d}$$

    Args:
        sum_and_weight: What a loss returns with `reduction="sum_and_weight"` on each device.
        axis_name: The name of the mesh axis that the batch is spread over, or several names.

    Returns:
        A scalar, the same on every device. A device on which nothing counts adds nothing; if nothing counts on any
        device, it is NaN with gradient 0. The weight carries no gradient.

    Raises:
        NameError: If no such axis is bound here.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxloss
        >>> def loss(x, t):  # one row on each device
        ...     parts = jaxloss.mse_loss(x, t, where=t != 0, reduction="sum_and_weight")
        ...     return jaxloss.spmd.mean(parts, "data")
        >>> x, t = jnp.ones((2, 3)), jnp.array([[2.0, 2.0, 2.0], [3.0, 0.0, 0.0]])
        >>> jax.vmap(loss, axis_name="data")(x, t)  # (1 + 1 + 1 + 4) / 4; the mean of the means is (1 + 4) / 2
        Array([1.75, 1.75], dtype=float32)

    References:
        https://docs.jax.dev/en/latest/notebooks/shard_map.html
    """
    total, weight = lax.psum(sum_and_weight, axis_name)
    return _reduce.mean(total, lax.stop_gradient(weight))


def value_and_grad(
    fun: Callable[..., Any],
    axis_name: AxisName,
    *,
    argnums: int | Sequence[int] = 0,
    has_aux: bool = False,
    specs: Any = None,
) -> Callable[..., Any]:
    r"""`jax.value_and_grad` for use inside `jax.shard_map`, `jax.pmap` and `jax.vmap`, right in each of them.

    $$\bigl(\ell(w), \; \partial \ell / \partial w\bigr), \qquad \ell \text{ the loss of all devices}$$

    Args:
        fun: A function whose value is the same on all devices along `axis_name`, as `mean` makes it.
        axis_name: The name of every mesh axis along which `fun` adds up, or several names.
        argnums: Which arguments to differentiate.
        has_aux: Whether `fun` returns a pair of the value and something else.
        specs: How those arguments are spread over devices: `PartitionSpec`s as in `in_specs`, one for all or a tree
            that begins like the arguments'. By default they are the same on all devices.

    Returns:
        A function of the same arguments that returns the value, or the pair, and the gradients: of arguments that all
        devices have, the whole gradient on each; of arguments that are spread, each device's part.

    Raises:
        NameError: When called, if no such axis is bound there.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jaxloss
        >>> def loss(w, x, t):
        ...     return jaxloss.spmd.mean(jaxloss.mse_loss(w * x, t, reduction="sum_and_weight"), "data")
        >>> step = jax.vmap(jaxloss.spmd.value_and_grad(loss, "data"), (None, 0, 0), axis_name="data")
        >>> value, gradient = step(1.0, jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0]))
        >>> gradient.tolist()  # d/dw of (w² + (2w - 1)²) / 2, on both
        [3.0, 3.0]

    Note:
        `jax.value_and_grad` gives the same with `check_vma=True`, and this adds nothing to it there.

    References:
        https://docs.jax.dev/en/latest/notebooks/shard_map.html
    """
    plain = jax.value_and_grad(fun, argnums, has_aux)
    names = names_of(axis_name)

    def value_and_gradients(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        value, gradients = plain(*args, **kwargs)
        if not _tracks_variation(names[0]):
            layout = PartitionSpec() if specs is None else specs
            gradients = jax.tree.map(
                lambda spec, part: jax.tree.map(lambda g: _of_one_loss(g, names, spec), part),
                layout,
                gradients,
                is_leaf=lambda spec: isinstance(spec, PartitionSpec),
            )
        return value, gradients

    return value_and_gradients


def _of_one_loss(g: Array, names: tuple[str, ...], spec: PartitionSpec) -> Array:
    """Of the gradient of all devices' equal losses, added up, the part that is one loss's.

    For what all devices have, each holds the derivative by its own copy: their sum, over the number of losses.
    """
    spread = {name for entry in spec for name in names_of(entry)}
    copies = tuple(name for name in names if name not in spread)
    g = lax.pmean(g, copies) if copies else g
    return g / math.prod(lax.axis_size(name) for name in names if name in spread)


def _tracks_variation(name: str) -> bool:
    """Whether types say along which axes a value varies: inside `jax.shard_map` with `check_vma=True`."""
    return name in varying_axes(lax.axis_index(name))
