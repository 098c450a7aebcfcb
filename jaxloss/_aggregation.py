"""One gradient from the gradients of several tasks: pcgrad, cagrad, mgda, upgrad."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _gram
from ._gram import Gradients
from ._numerics import reciprocal
from ._types import Array, Number, Tree


def value_and_grads(
    function: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., tuple[Any, dict[str, Tree]]]:
    r"""The losses of several tasks, and for each of them its gradient for all parameters.

    $$g_k = \nabla_\theta\, \ell_k(\theta)$$

    What `jax.value_and_grad` is for one loss. Each gradient is taken for itself, so that NaN of one task does not reach
    another's. Under `jax.jit` the forward pass is shared.

    Args:
        function: A function of the parameters and anything else that returns a mapping of named losses.
        has_aux: Whether it returns a pair of that mapping and something else, which is handed through.

    Returns:
        A function with the same arguments that returns the pair of what `function` returns, and a gradient tree for
        each task under its name.

    Raises:
        TypeError: When called, if `function` does not return a mapping.

    Example:
        >>> import jaxloss
        >>> losses = lambda x: {"near": (x - 1.0) ** 2, "far": (x - 5.0) ** 2}
        >>> values, gradients = jaxloss.multitask.value_and_grads(losses)(2.0)
        >>> float(gradients["near"]), float(gradients["far"])
        (2.0, -6.0)

    References:
        https://docs.jax.dev/en/latest/_autosummary/jax.value_and_grad.html
    """

    def wrapped(params: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, Tree]]:
        def output(params: Any) -> Any:
            return function(params, *args, **kwargs)

        def one(task: str, params: Any) -> tuple[Array, Any]:
            result = output(params)
            return (result[0] if has_aux else result)[task], result

        shapes = jax.eval_shape(output, params)
        losses = shapes[0] if has_aux else shapes
        if not isinstance(losses, Mapping):
            raise TypeError(f"value_and_grads: `function` must return a mapping of losses, got {type(losses)}.")
        gradients = {}
        for task in losses:
            (_, result), gradients[task] = jax.value_and_grad(lambda p, t=task: one(t, p), has_aux=True)(params)
        return result, gradients

    return wrapped


def pcgrad(gradients: Gradients, *, key: Array | None = None) -> Tree:
    r"""PCGrad: each gradient loses what points against another's, then they are added up.

    $$g_i \leftarrow g_i - \min\Bigl(0, \frac{g_i \cdot g_j}{|g_j|^2}\Bigr)\, g_j
    \quad \text{for every } j \ne i \text{ in turn}, \qquad d = \sum_i g_i$$

    Args:
        gradients: One gradient tree for each task, in a mapping or a sequence: floating-point leaves, the same
            structure and shapes. Whole trees, since a conflict is one of tasks and not of single parameters.
        key: A JAX random key for the order of the others, drawn for each task, as in the paper. None takes them as
            they stand.

    Returns:
        One tree d, with the leaves' dtypes. Of three tasks or more it may still conflict with one; `upgrad` cannot.

    Raises:
        TypeError: If a leaf is not floating point.
        ValueError: If there is no task, or the trees differ in structure or shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> conflicting = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([-1.0, 1.0])}
        >>> jaxloss.multitask.pcgrad(conflicting)
        Array([0.5, 1.5], dtype=float32)

    Note:
        A gradient of zero is projected on by none and changes nothing. Before it comes to the optimiser the sum is as
        long as that of a plain sum of losses; the other methods give means.

    References:
        Yu et al. (2020), "Gradient Surgery for Multi-Task Learning", https://arxiv.org/abs/2001.06782
    """
    tasks = _gram.trees("pcgrad", gradients)
    g = _gram.gram(tasks)
    count = len(tasks)
    order = jnp.broadcast_to(jnp.arange(count), (count, count))
    if key is not None:
        order = jax.random.permutation(key, order, axis=1, independent=True)
    inverse_square = reciprocal(jnp.diagonal(g))

    def projected(own: Array, order: Array) -> Array:
        """The coefficients of one task's gradient in those of all."""

        def off(turn: Array, a: Array) -> Array:
            j = order[turn]
            excess = jnp.minimum(a @ g[:, j], 0) * inverse_square[j]
            return a.at[j].add(jnp.where(j == own, 0, -excess))

        start = (jnp.arange(count) == own).astype(g.dtype)
        result: Array = lax.fori_loop(0, count, off, start)
        return result

    return _gram.combined(tasks, jnp.sum(jax.vmap(projected)(jnp.arange(count), order), 0))


def mgda(gradients: Gradients) -> Tree:
    r"""MGDA: the shortest vector among all weighted means of the gradients.

    $$d = \sum_k w_k g_k, \qquad w = \arg\min_{w \ge 0,\; \sum w = 1} \Bigl| \sum_k w_k g_k \Bigr|^2$$

    No task's gradient has a negative inner product with it, and it is 0 exactly where no direction serves all tasks.

    Args:
        gradients: One gradient tree for each task, in a mapping or a sequence: floating-point leaves, the same
            structure and shapes.

    Returns:
        One tree d, with the leaves' dtypes. It is never longer than the shortest gradient.

    Raises:
        TypeError: If a leaf is not floating point.
        ValueError: If there is no task, or the trees differ in structure or shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multitask.mgda([jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])])
        Array([0.4, 0.8], dtype=float32)

    Note:
        A task without gradient makes it 0: that task is at its optimum, and any step might harm it. The weights are
        exact, from an active-set method, where the papers iterate.

    References:
        Désidéri (2012), "Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization"
        Sener and Koltun (2018), "Multi-Task Learning as Multi-Objective Optimization",
        https://arxiv.org/abs/1810.04650
    """
    tasks = _gram.trees("mgda", gradients)
    return _gram.combined(tasks, _gram.shortest(_gram.gram(tasks)))


def cagrad(gradients: Gradients, *, c: Number = 0.5) -> Tree:
    r"""CAGrad: near the mean gradient, the direction that serves best whoever it serves worst.

    $$d = \arg\max_d \; \min_k \; g_k \cdot d \quad \text{with} \quad |d - \bar g| \le c\, |\bar g|, \qquad
    \bar g = \tfrac1K \sum_k g_k$$

    Args:
        gradients: One gradient tree for each task, in a mapping or a sequence: floating-point leaves, the same
            structure and shapes.
        c: How far to go from the mean, at least 0. 0 gives the mean; towards infinity it turns to `mgda`'s direction.
            Below 1 it still leads to a minimum of the mean loss. A number or a 0-d array.

    Returns:
        One tree d, with the leaves' dtypes.

    Raises:
        TypeError: If a leaf is not floating point.
        ValueError: If there is no task, the trees differ in structure or shapes, or `c` is a negative Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multitask.cagrad([jnp.array([2.0, 0.0]), jnp.array([0.0, 1.0])], c=0.5).tolist()
        [1.000, 1.059]

    Note:
        Where the tasks cancel, the bound is 0 and so is the result. The paper's code divides the result by 1 + c²
        besides; leave that to the learning rate.

    References:
        Liu et al. (2021), "Conflict-Averse Gradient Descent for Multi-task Learning",
        https://arxiv.org/abs/2110.14048
    """
    tasks = _gram.trees("cagrad", gradients)
    g = _gram.gram(tasks)
    c = _check.number("cagrad", "c", c, g.dtype, low=0)
    along_mean = jnp.mean(g, 1)
    radius = c * jnp.sqrt(jnp.maximum(jnp.mean(along_mean), 0))

    # The dual is min over w of ḡ·g_w + radius·|g_w|, g_w = Σ w_k g_k. With |g_w| = min over τ of (|g_w|²/τ + τ)/2 and
    # μ = τ/radius it is, for each μ, the shortest mean of the g_k + μ ḡ, and μ solves |g_w| = μ·radius: left of the
    # solution |g_w| is larger, right of it smaller.
    def weights(mu: Array) -> Array:
        shifted = g + mu * (along_mean + along_mean[:, None]) + mu * mu * jnp.mean(along_mean)
        return _gram.shortest(shifted)

    def length(w: Array) -> Array:
        return jnp.sqrt(jnp.maximum(w @ g @ w, 0))

    def halved(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        longer = length(weights(middle)) > middle * radius
        return jnp.where(longer, middle, low), jnp.where(longer, high, middle)

    furthest = jnp.sqrt(jnp.max(jnp.diagonal(g))) * reciprocal(radius)
    ends = jnp.zeros_like(furthest), furthest
    w = weights(lax.fori_loop(0, np.finfo(g.dtype).nmant, halved, ends)[1])
    return _gram.combined(tasks, 1 / len(tasks) + radius * reciprocal(length(w)) * w)


def upgrad(gradients: Gradients) -> Tree:
    r"""UPGrad: each gradient projected to where it conflicts with none, then their mean.

    $$d = \frac1K \sum_k \arg\min_{y} |y - g_k|^2 \quad \text{with} \quad g_j \cdot y \ge 0 \text{ for all } j$$

    No task's gradient has a negative inner product with it, whatever their number and however their lengths differ.

    Args:
        gradients: One gradient tree for each task, in a mapping or a sequence: floating-point leaves, the same
            structure and shapes.

    Returns:
        One tree d, with the leaves' dtypes: the mean of the gradients where no two of them conflict.

    Raises:
        TypeError: If a leaf is not floating point.
        ValueError: If there is no task, or the trees differ in structure or shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.multitask.upgrad({"a": jnp.array([1.0, 0.0]), "b": jnp.array([-1.0, 1.0])}).tolist()
        [0.250, 0.750]

    Note:
        A task without gradient asks for nothing and adds nothing. The projections are exact, from the dual, a problem
        in one number for each task.

    References:
        Quinton and Rey (2024), "Jacobian Descent for Multi-Objective Optimization", https://arxiv.org/abs/2406.16232
    """
    tasks = _gram.trees("upgrad", gradients)
    g = _gram.gram(tasks)
    count = len(tasks)
    length = jnp.sqrt(jnp.maximum(jnp.diagonal(g), 0))
    per_length = reciprocal(length)
    # The cone knows no lengths. Among unit vectors u the projection of u_k is u_k + Σ v_j u_j, with the v ≥ 0 that
    # minimises |u_k + Σ v_j u_j|².
    cosines = g * per_length * per_length[:, None]
    added = jax.vmap(lambda cosine: _gram.nonnegative(cosines, -cosine))(cosines)
    weights = length @ (jnp.eye(count, dtype=g.dtype) + added) * per_length / count
    return _gram.combined(tasks, weights)
