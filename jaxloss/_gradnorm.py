"""GradNorm: weights from the lengths of the tasks' gradients."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import jax.numpy as jnp

from . import _check, _gram, _tasks
from ._numerics import reciprocal
from ._tasks import Losses, Terms, Weights
from ._types import Array, ArrayLike, Number, Tree
from ._weighting import Weighting

LEARNING_RATE = 0.025  # the paper's
LEAST_WEIGHT = 1e-3


class Optimizer(Protocol):
    """What is used of an optax optimiser."""

    @property
    def init(self) -> Any:
        """From parameters to a state."""

    @property
    def update(self) -> Any:
        """From gradients, state and parameters to updates and the next state."""


class GradNormState(NamedTuple):
    """The weight of each task, its first loss, 0 before there is one, and the state of the weights' optimiser."""

    weights: dict[str, Array]
    initial: dict[str, Array]
    optimizer: Any


def gradnorm(*, alpha: Number = 1.5, optimizer: Optimizer | None = None) -> Weighting:
    r"""GradNorm: weights under which tasks that lag behind pull harder on what all of them share.

    $$G_k = w_k\, |\nabla_W \ell_k|, \qquad r_k = \frac{\ell_k / \ell_k(0)}{\operatorname{mean}_j\, \ell_j / \ell_j(0)},
    \qquad w \leftarrow w - \eta\, \nabla_w \sum_k \bigl| G_k - \bar G\, r_k^\alpha \bigr|$$

    with the target Ḡ r^α held constant; then the weights are scaled to sum to the number of tasks.

    Args:
        alpha: How hard to pull tasks to one pace, at least 0. A number or a 0-d array.
        optimizer: What updates the weights: an optax optimiser. None is gradient descent with the
            paper's learning rate of 0.025.

    Returns:
        A `Weighting`. `init(tasks)` gives the state. `apply(losses, gradients, state, *, weights=None, step=None)`
        gives the pair of `Terms`, with the weights before the update, and the next state. `gradients` holds for each
        task the gradient of its own, unweighted loss for the shared parameters W, usually the last shared layer; see
        `value_and_grads`. `weights` of the user's own multiply those of the method, and 0 skips a task, whose weight
        then stays as it is.

    Raises:
        ValueError: If `alpha` is a negative Python number, or names differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> method = jaxloss.multitask.gradnorm()
        >>> losses = {"a": jnp.float32(1), "b": jnp.float32(1)}
        >>> gradients = {"a": jnp.array([3.0, 4.0]), "b": jnp.array([1.0, 0.0])}
        >>> terms, state = method.apply(losses, gradients, method.init(losses))
        >>> float(state.weights["a"]), float(state.weights["b"])
        (0.92105, 1.07895)

    Note:
        The first loss of a task is the first that is finite and positive. A task whose loss or gradient is not finite
        is left out of the update. No weight falls below 1e-3.

    References:
        Chen et al. (2018), "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks",
        https://arxiv.org/abs/1711.02257
    """
    name = "gradnorm"
    dtype = jnp.result_type(float)
    alpha = _check.number(name, "alpha", alpha, dtype, low=0)

    def init(given: Iterable[str]) -> GradNormState:
        ones = {task: jnp.ones(()) for task in _tasks.names_of(name, given)}
        zeros = {task: jnp.zeros(()) for task in ones}
        return GradNormState(ones, zeros, None if optimizer is None else optimizer.init(ones))

    def apply(
        losses: Losses,
        gradients: Mapping[str, Tree],
        state: GradNormState,
        *,
        weights: Weights | None = None,
        step: ArrayLike | None = None,
    ) -> tuple[Terms, GradNormState]:
        base = _tasks.weights_at(name, losses, weights, step)
        _tasks.same_names(name, "state", state.weights, losses)
        _tasks.same_names(name, "gradients", gradients, losses)
        raw = _tasks.values(name, losses, base)
        w, initial = (_tasks.vector(part, base, dtype) for part in state[:2])
        terms = _tasks.in_step(raw, base, w)

        loss, norms = _tasks.vector(raw, base, dtype), _norms(name, [gradients[task] for task in base]).astype(dtype)
        usable = _tasks.active(base) & jnp.isfinite(loss) & jnp.isfinite(norms)
        loss, norms = jnp.where(usable, loss, 0), jnp.where(usable, norms, 0)
        initial = jnp.where(usable & (initial == 0), jnp.maximum(loss, 0), initial)
        slopes = _tasks.named(base, _slopes(w, norms, _pace(loss, initial, usable), usable, alpha))
        if optimizer is None:
            updates, memory = {task: -LEARNING_RATE * slope for task, slope in slopes.items()}, None
        else:
            updates, memory = optimizer.update(slopes, state.optimizer, state.weights)
        moved = w + jnp.where(usable, _tasks.vector(updates, base, w.dtype), 0)
        moved = jnp.where(usable, jnp.maximum(moved, LEAST_WEIGHT), 0)
        scaled = jnp.where(usable, moved * jnp.sum(usable) * reciprocal(jnp.sum(moved)), w)
        return terms, GradNormState(_tasks.named(base, scaled), _tasks.named(base, initial), memory)

    return Weighting(init, apply)


def _norms(name: str, gradients: list[Tree]) -> Array:
    return jnp.sqrt(jnp.maximum(jnp.stack([_gram.gram(_gram.trees(name, [tree]))[0, 0] for tree in gradients]), 0))


def _pace(loss: Array, initial: Array, usable: Array) -> Array:
    """The loss of each task relative to its first, relative to the mean of these: r."""
    left = jnp.where(initial > 0, jnp.maximum(loss, 0) * reciprocal(initial), 1)
    mean = jnp.sum(jnp.where(usable, left, 0)) * reciprocal(jnp.sum(usable))
    return jnp.where(mean > 0, left * reciprocal(mean), 1)


def _slopes(w: Array, norms: Array, pace: Array, usable: Array, alpha: Number) -> Array:
    """The derivatives of Σ |w·n - target| for w."""
    lengths = jnp.where(usable, w * norms, 0)
    target = jnp.sum(lengths) * reciprocal(jnp.sum(usable)) * jnp.power(pace, alpha)
    return jnp.sign(lengths - target) * norms
