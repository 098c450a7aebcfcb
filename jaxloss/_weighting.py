"""Weights for the losses of several tasks: given, scheduled, learned or found from their course."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check, _tasks
from ._numerics import reciprocal
from ._tasks import Losses, Terms, Weights
from ._types import Array, ArrayLike, Number

Likelihood: TypeAlias = Literal["regression", "classification"]


class Weighting(NamedTuple):
    """A method that changes the weights: a pair of pure functions, as optax has them.

    `init(tasks)` makes the state, a pytree, from the names of the tasks or a mapping that has them as keys.
    """

    init: Callable[[Iterable[str]], Any]
    apply: Callable[..., Any]


def weighted_sum(losses: Losses, weights: Weights | None = None, *, step: ArrayLike | None = None) -> Terms:
    r"""The weighted sum of named losses, with every term.

    $$L = \sum_k w_k\, \ell_k$$

    Args:
        losses: A mapping of names to scalars, floating point, or to functions without arguments that compute them.
        weights: A mapping of the same names to numbers, 0-d arrays, which may be traced, or schedules, such as
            optax's, of `step`. None weighs all by 1. A weight of 0 skips its task: the loss may be NaN, and neither the
            total nor a gradient sees it.
        step: The step at which schedules are read: a number or a 0-d array of integers.

    Returns:
        `Terms`, a named tuple of `total`, a scalar, and three dicts by name: `raw`, the losses as they are, `weighted`,
        the terms that add up to `total`, and `weights`. In float32, or the float64 of a loss.

    Raises:
        TypeError: If a loss is not floating point or a weight is no number.
        ValueError: If there is no loss, one is no scalar, the names of losses and weights differ, a weight is a Python
            NaN, or a schedule finds no `step`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> losses = {"mask": jnp.float32(2), "box": jnp.float32(3)}
        >>> terms = jaxloss.multitask.weighted_sum(losses, {"mask": 1, "box": 0.5})
        >>> float(terms.total), float(terms.weighted["box"])
        (3.5, 1.5)

    Note:
        A Python weight of 0 is known while tracing, and cuts its task out of the gradient. One that is traced or
        scheduled sends a cotangent of 0 to a loss that came as a number, and 0·inf on its way back is still NaN if what
        computed the loss divides by 0. Give such a loss as a function, `lambda: cross_entropy(logits, labels)`: it is
        then computed, forward and back, only where its weight is not 0, and `raw` is NaN elsewhere. Where the weight
        is one of many under `jax.vmap`, take the gradient inside.

    References:
        Kendall et al. (2018), "Multi-Task Learning Using Uncertainty to Weigh Losses", equation 1,
        https://arxiv.org/abs/1705.07115
    """
    at_step = _tasks.weights_at("weighted_sum", losses, weights, step)
    return _tasks.weighed(_tasks.values("weighted_sum", losses, at_step), at_step)


def uncertainty(likelihoods: Mapping[str, Likelihood], *, bound: float = 10.0) -> Weighting:
    r"""Weights from the noise of each task, whose log-variance s is learned with the model.

    $$L = \sum_k \begin{cases}
    \tfrac12 e^{-s_k} \ell_k + \tfrac12 s_k & \text{regression} \\
    e^{-s_k} \ell_k + \tfrac12 s_k & \text{classification} \end{cases} \qquad s_k = \log \sigma_k^2$$

    Args:
        likelihoods: For each task "regression", for a squared error, or "classification", for a cross entropy.
        bound: s is held in [-bound, bound]. Outside, its gradient is that at the bound, so that it can come back.
            Static.

    Returns:
        A `Weighting`. `init(tasks)` gives the log-variances, a dict of zeros: put it into the parameters that the
        optimiser trains. `apply(losses, log_variances, *, weights=None, step=None)` gives `Terms` whose weighted terms
        hold ½·s too, so that they add up to the total; `weights` of the user's own multiply whole terms, and 0 skips a
        task, its s included.

    Raises:
        ValueError: If a likelihood is unknown, `bound` is not above 0, or names differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> method = jaxloss.multitask.uncertainty({"depth": "regression", "class": "classification"})
        >>> losses = {"depth": jnp.float32(4), "class": jnp.float32(1)}
        >>> params = {"log_variances": method.init(losses)}
        >>> method.apply(losses, params["log_variances"]).total
        Array(3., dtype=float32)

    Note:
        The total falls below 0 as the tasks are learned: it is a likelihood of densities. A learned σ would end in the
        logarithm of a negative number; its logarithm cannot.

    References:
        Kendall et al. (2018), "Multi-Task Learning Using Uncertainty to Weigh Losses",
        https://arxiv.org/abs/1705.07115
    """
    name = "uncertainty"
    tasks = _tasks.names_of(name, likelihoods)
    for task in tasks:
        _check.choice(name, f"likelihoods[{task!r}]", likelihoods[task], ("regression", "classification"))
    bound = float(_check.number(name, "bound", bound, jnp.result_type(float), low=0, above=True))

    def init(given: Iterable[str]) -> dict[str, Array]:
        _tasks.same_names(name, "tasks", given, tasks)
        return {task: jnp.zeros(()) for task in tasks}

    def apply(
        losses: Losses,
        log_variances: Mapping[str, Array],
        *,
        weights: Weights | None = None,
        step: ArrayLike | None = None,
    ) -> Terms:
        base = _tasks.weights_at(name, losses, weights, step)
        _tasks.same_names(name, "likelihoods", likelihoods, losses)
        _tasks.same_names(name, "log_variances", log_variances, losses)
        raw = _tasks.values(name, losses, base)
        weighted, used = {}, {}
        for task, loss in raw.items():
            s = log_variances[task].astype(jnp.result_type(loss, log_variances[task]))
            s += lax.stop_gradient(jnp.clip(s, -bound, bound) - s)
            precision = jnp.exp(-s) * (0.5 if likelihoods[task] == "regression" else 1)
            term = precision * _tasks.counted(base[task], loss) + 0.5 * s
            weighted[task] = base[task] * term
            used[task] = base[task] * precision
        return _tasks.summed(raw, weighted, used)

    return Weighting(init, apply)


class DynamicState(NamedTuple):
    """The sums of the current period with how often each was added to, and the means of the two periods before."""

    step: Array
    sums: dict[str, Array]
    counts: dict[str, Array]
    last: dict[str, Array]
    before: dict[str, Array]


def dynamic_weight_average(period: int, *, temperature: Number = 2.0) -> Weighting:
    r"""Dynamic weight average: more weight for a task whose loss falls more slowly than the others'.

    $$w_k = K \operatorname{softmax}_k \Bigl( \frac{1}{T} \frac{\bar\ell_k(t - 1)}{\bar\ell_k(t - 2)} \Bigr)$$

    where the means are over the last period and the one before it.

    Args:
        period: Steps to a period, usually those of an epoch. Static.
        temperature: T > 0: the larger, the more alike the weights. A number or a 0-d array.

    Returns:
        A `Weighting`. `init(tasks)` gives the state. `apply(losses, state, *, weights=None, step=None)` gives the pair
        of `Terms` and the next state; `weights` of the user's own multiply those of the method, and 0 skips a task.
        Those of the method sum to the number of tasks that are not skipped, and are 1 in the first two periods.

    Raises:
        TypeError: If `period` is no integer.
        ValueError: If `period` is below 1, `temperature` is a Python number not above 0, or names differ.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> method = jaxloss.multitask.dynamic_weight_average(period=1)
        >>> state = method.init(["a", "b"])
        >>> for a in (4.0, 2.0, 1.0):
        ...     terms, state = method.apply({"a": jnp.float32(a), "b": jnp.float32(1)}, state)
        >>> float(terms.weights["a"]), float(terms.weights["b"])
        (0.8756, 1.1244)

    Note:
        It looks at ratios alone, so a loss of another scale keeps it. A ratio to a mean that is not positive counts as
        1, and a loss that is not finite leaves no trace in the means.

    References:
        Liu et al. (2019), "End-to-End Multi-Task Learning with Attention", https://arxiv.org/abs/1803.10704
    """
    name = "dynamic_weight_average"
    period = _check.integer(name, "period", period)
    if period < 1:
        raise ValueError(f"{name}: `period` must be at least 1, got {period}.")
    dtype = jnp.result_type(float)
    temperature = _check.number(name, "temperature", temperature, dtype, low=0, above=True)

    def init(given: Iterable[str]) -> DynamicState:
        zeros = {task: jnp.zeros(()) for task in _tasks.names_of(name, given)}
        return DynamicState(jnp.asarray(0), zeros, zeros, zeros, zeros)

    def apply(
        losses: Losses, state: DynamicState, *, weights: Weights | None = None, step: ArrayLike | None = None
    ) -> tuple[Terms, DynamicState]:
        base = _tasks.weights_at(name, losses, weights, step)
        _tasks.same_names(name, "state", state.sums, losses)
        raw = _tasks.values(name, losses, base)
        active = _tasks.active(base)
        sums, counts, last, before = (_tasks.vector(part, base, dtype) for part in state[1:])
        known = (before > 0) & (last >= 0)
        ratio = jnp.where(known, last / jnp.where(known, before, 1), 1)
        terms = _tasks.in_step(raw, base, jnp.sum(active) * _shares(ratio / temperature, active))

        loss = _tasks.vector(raw, base, sums.dtype)
        seen = active & jnp.isfinite(loss)
        sums, counts = sums + jnp.where(seen, loss, 0), counts + seen
        ended = (state.step + 1) % period == 0
        renewed = ended & (counts > 0)
        mean = sums * reciprocal(counts)
        before, last = jnp.where(renewed, last, before), jnp.where(renewed, mean, last)
        sums, counts = jnp.where(ended, 0, sums), jnp.where(ended, 0, counts)
        parts = (_tasks.named(base, part) for part in (sums, counts, last, before))
        return terms, DynamicState(state.step + 1, *parts)

    return Weighting(init, apply)


def _shares(scores: Array, active: Array) -> Array:
    """The softmax over the tasks that are not skipped."""
    limit = np.finfo(scores.dtype).max
    scores = jnp.where(active, jnp.minimum(scores, limit), -jnp.inf)
    e = jnp.where(active, jnp.exp(scores - jnp.max(scores, initial=-limit)), 0)
    return e * reciprocal(jnp.sum(e))


class RandomState(NamedTuple):
    """The random key of the next step."""

    key: Array


def random_weighting(key: Array) -> Weighting:
    r"""Random loss weighting: weights drawn anew in every step.

    $$w = \operatorname{softmax}(z), \qquad z_k \sim \mathcal N(0, 1)$$

    Args:
        key: The JAX random key of the first step.

    Returns:
        A `Weighting`. `init(tasks)` gives the state. `apply(losses, state, *, weights=None, step=None)` gives the pair
        of `Terms` and the next state; `weights` of the user's own multiply those of the method, and 0 skips a task.
        Those of the method sum to 1 over the tasks that are not skipped.

    Raises:
        ValueError: If there is no task.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> method = jaxloss.multitask.random_weighting(jax.random.key(0))
        >>> losses = {"a": jnp.float32(1), "b": jnp.float32(1)}
        >>> terms, state = method.apply(losses, method.init(losses))
        >>> terms.total
        Array(1., dtype=float32)

    References:
        Lin et al. (2022), "Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning",
        https://arxiv.org/abs/2111.10603
    """
    name = "random_weighting"

    def init(given: Iterable[str]) -> RandomState:
        _tasks.names_of(name, given)
        return RandomState(key)

    def apply(
        losses: Losses, state: RandomState, *, weights: Weights | None = None, step: ArrayLike | None = None
    ) -> tuple[Terms, RandomState]:
        base = _tasks.weights_at(name, losses, weights, step)
        raw = _tasks.values(name, losses, base)
        now, later = jax.random.split(state.key)
        drawn = jax.random.normal(now, (len(base),), jnp.result_type(float))
        return _tasks.in_step(raw, base, _shares(drawn, _tasks.active(base))), RandomState(later)

    return Weighting(init, apply)
