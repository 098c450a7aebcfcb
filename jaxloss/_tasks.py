"""Losses of several tasks as one: what each of them counts, and the total with every term."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from . import _check
from ._numerics import upcast
from ._types import Array, ArrayLike, Number

Loss: TypeAlias = ArrayLike | Callable[[], ArrayLike]
Losses: TypeAlias = Mapping[str, Loss]
Schedule: TypeAlias = Callable[[ArrayLike], ArrayLike]
Weights: TypeAlias = Mapping[str, Number | Schedule]


class Terms(NamedTuple):
    """A sum of losses and what it consists of, a pytree. `total` is the sum of `weighted`."""

    total: Array
    raw: dict[str, Array]
    weighted: dict[str, Array]
    weights: dict[str, Array]


def names_of(name: str, tasks: Iterable[str]) -> list[str]:
    """The names of the tasks: of a mapping its keys."""
    names = list(tasks)
    if not names or not all(isinstance(task, str) for task in names) or len(set(names)) < len(names):
        raise ValueError(f"{name}: give at least one task, each with a name of its own, got {names}.")
    return names


def same_names(name: str, argument: str, given: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse a mapping that forgets a task or names one that does not exist."""
    if set(given) != set(expected):
        raise ValueError(
            f"{name}: `{argument}` must name the tasks of `losses`, {sorted(expected)}, got {sorted(given)}."
        )


def weights_at(name: str, losses: Losses, weights: Weights | None, step: ArrayLike | None) -> dict[str, Number]:
    """The weight of each task: a Python number as a float, so that one of 0 is known while tracing."""
    names = names_of(name, losses)
    if weights is None:
        return dict.fromkeys(names, 1.0)
    same_names(name, "weights", weights, names)
    return {task: _weight_at(name, task, weights[task], step) for task in names}


def _weight_at(name: str, task: str, weight: Number | Schedule, step: ArrayLike | None) -> Number:
    argument = f"weights[{task!r}]"
    if callable(weight):
        if step is None:
            raise ValueError(f"{name}: `{argument}` is a schedule and needs a `step`.")
        value = weight(step)
        weight = float(value) if isinstance(value, int | float) else jnp.asarray(value)
    return _check.number(name, argument, weight, _default())


def _default() -> np.dtype[np.floating]:
    """JAX's default floating-point dtype, for numbers that come with none."""
    return jnp.result_type(float)


def values(name: str, losses: Losses, weights: Mapping[str, Number]) -> dict[str, Array]:
    """The value of each loss. One that is a function is not computed where its weight is 0, and is NaN there."""
    return {task: _value(name, task, loss, weights[task]) for task, loss in losses.items()}


def _value(name: str, task: str, loss: Loss, weight: Number) -> Array:
    if not callable(loss):
        return _scalar(name, task, loss)

    def computed() -> Array:
        return _scalar(name, task, loss())

    if isinstance(weight, float):
        return computed() if weight else jnp.asarray(jnp.nan, _default())
    dtype = jax.eval_shape(computed).dtype
    value: Array = lax.cond(weight != 0, computed, lambda: jnp.asarray(jnp.nan, dtype))
    return value


def _scalar(name: str, task: str, value: ArrayLike) -> Array:
    """A loss in at least float32, never weakly typed: the two branches of a condition have to agree."""
    x = _check.floating(name, f"losses[{task!r}]", value)
    if x.shape:
        raise ValueError(
            f"{name}: `losses[{task!r}]` must be a scalar, got shape {x.shape}; reduce it first, or use `jax.vmap`."
        )
    return lax.convert_element_type(upcast(x), upcast(x).dtype)


def counted(weight: Number, value: Array) -> Array:
    """`value`, but 0 with no gradient where the task is skipped."""
    if isinstance(weight, float):
        return value if weight else jnp.zeros_like(value)
    return jnp.where(weight == 0, 0, value)


def active(weights: Mapping[str, Number]) -> Array:
    """Which tasks are not skipped, (K,)."""
    return jnp.stack([jnp.asarray(weight) != 0 for weight in weights.values()])


def summed(raw: dict[str, Array], weighted: dict[str, Array], weights: Mapping[str, Number]) -> Terms:
    """All terms, and their sum in the order of the tasks."""
    used = {task: jnp.asarray(weight, raw[task].dtype) for task, weight in weights.items()}
    return Terms(jnp.sum(jnp.stack(list(weighted.values()))), raw, weighted, used)


def weighed(raw: dict[str, Array], weights: Mapping[str, Number]) -> Terms:
    """The sum of weight times loss."""
    return summed(raw, {task: weights[task] * counted(weights[task], loss) for task, loss in raw.items()}, weights)


def in_step(raw: dict[str, Array], base: Mapping[str, Number], factors: Array) -> Terms:
    """The sum with factors (K,) of a method, which are constants, on top of the user's own weights."""
    factors = lax.stop_gradient(factors)
    weights: dict[str, Number] = {}
    for k, (task, weight) in enumerate(base.items()):
        skipped = isinstance(weight, float) and not weight
        weights[task] = 0.0 if skipped else jnp.asarray(weight) * factors[k].astype(raw[task].dtype)
    return weighed(raw, weights)


def vector(values: Mapping[str, Array], tasks: Iterable[str], dtype: np.dtype[np.floating]) -> Array:
    """One number for each task as a constant vector, (K,)."""
    return lax.stop_gradient(jnp.stack([values[task].astype(dtype) for task in tasks]))


def named(tasks: Iterable[str], values: Array) -> dict[str, Array]:
    """A vector (K,) as one number for each task."""
    return {task: values[k] for k, task in enumerate(tasks)}
