"""A call of a loss, and which entries of its arguments count: what a mask, an index or a length leaves out does not."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from . import _check, _labels, _sequences
from ._devices import Classes, mesh_axes
from ._types import Array

Activation: TypeAlias = Literal["softmax", "sigmoid"]
Layout: TypeAlias = Literal["entries", "classes", "vectors", "pixels", "frames"]


class Kind(NamedTuple):
    """What an entry of an argument must be: in words, and as a test of all entries at once."""

    expected: str
    holds: Callable[[Array, "Call"], Array]


# A kind, or how to choose one by the other arguments.
Rule: TypeAlias = Kind | Callable[["Call"], Kind]


@dataclass(frozen=True)
class Rules:
    """The kinds of a loss's arguments, and how a mask of its unreduced loss lies over them.

    "entries": as they are. "classes": the class axis of the first argument is missing. "vectors": its last axis is.
    "pixels": entries, or classes where the target holds class indices. "frames": time and classes are missing.
    `options` have an entry for each class, label or feature, and no mask. `applies` is what the loss does to its
    first argument; over pixels the mode says that.
    """

    layout: Layout
    arrays: Mapping[str, Rule]
    options: Mapping[str, Rule] = field(default_factory=dict)
    applies: Activation | None = None


@dataclass(frozen=True)
class Call:
    """The arguments of a call that the loss itself has accepted, by name, every default filled in."""

    name: str
    arguments: Mapping[str, Any]
    rules: Rules

    @functools.cached_property
    def first(self) -> Array:
        """The argument that gives the unreduced loss its shape."""
        return jnp.asarray(self.arguments[next(iter(self.rules.arrays))])

    @functools.cached_property
    def logits(self) -> Any:
        """What has the shape of the logits, which some losses compute themselves."""
        shape = self.first.shape
        if "linear_weight" in self.arguments:
            weight = jnp.shape(self.arguments["linear_weight"])
            shape = shape[:-1] + (weight[1:] if self.arguments.get("feature_axis") == 0 else weight[:-1])
        return jax.eval_shape(lambda: jnp.zeros(shape, self.first.dtype))

    @functools.cached_property
    def axis(self) -> int:
        """The class axis, counted from the front; in losses between vectors and over frames that of the features."""
        if "linear_weight" in self.arguments or self.rules.layout in ("vectors", "frames"):
            return self.first.ndim - 1
        return _labels.class_axis(self.name, self.arguments.get("axis"), self.first)

    @property
    def applies(self) -> Activation | None:
        """What the loss does to its first argument."""
        if self.rules.layout != "pixels":
            return self.rules.applies
        return "softmax" if self.arguments["mode"] == "multiclass" else "sigmoid"

    @property
    def spread(self) -> Classes:
        """That axis, and the devices that its classes are spread over."""
        return Classes(self.axis, mesh_axes(self.arguments.get("axis_name")) if self.has_indices else None)

    @property
    def classes(self) -> int:
        """The size of that axis, on all devices together."""
        return self.spread.count(self.logits.shape[self.axis])

    @functools.cached_property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of the logits, or vectors, without that axis."""
        return _check.without(self.axis, self.logits.shape)

    @functools.cached_property
    def has_indices(self) -> bool:
        """Whether the target holds a class index for each row."""
        if self.rules.layout not in ("classes", "pixels") or self.arguments.get("mode", "multiclass") != "multiclass":
            return False
        target = self.arguments["target"]
        return target is not None and jnp.shape(target) == self.row_shape

    @functools.cached_property
    def indices(self) -> tuple[Array, Array]:
        """Class indices, -1 where there is no such class, and which rows count."""
        ignored = self.arguments.get("ignore_index", "none")
        ignored = {None: -100, "none": None}.get(ignored, ignored)  # linear_cross_entropy's None is torch's -100
        target, where = self.arguments["target"], self.arguments["where"]
        return _labels.rows(self.name, target, self.logits, self.axis, where, ignored, classes=self.classes)

    @functools.cached_property
    def batch(self) -> _sequences.Batch:
        """The arguments of CTC."""
        rest = ("targets", "input_lengths", "target_lengths", "blank", "batch_first", "where")
        scores = next(iter(self.rules.arrays))
        return _sequences.batch(self.name, scores, self.first, *(self.arguments[name] for name in rest))

    def keep(self, argument: str) -> Array:
        """Which entries of an argument count, in its shape."""
        shape = jnp.shape(self.arguments[argument])
        if argument in self.rules.options:
            keep = None
        elif self.rules.layout == "frames":
            keep = self._keep_frames(argument, shape)
        elif self.rules.layout == "entries" or (self.rules.layout == "pixels" and not self.has_indices):
            keep = self._keep_entries(shape)
        else:
            keep = self._keep_rows(argument, shape)
        return jnp.ones(shape, bool) if keep is None else jnp.broadcast_to(keep, shape)

    def _mask(self, shape: tuple[int, ...]) -> Array | None:
        return _check.mask(self.name, self.arguments["where"], shape)

    def _keep_entries(self, shape: tuple[int, ...]) -> Array | None:
        if shape != self.first.shape:  # an entry for many of the loss's
            return None
        keep = self._mask(shape)
        if self.rules.layout == "entries":
            return keep
        target = jnp.asarray(self.arguments["target"])
        counts: Array = target.astype(jnp.float32) != self.arguments["ignore_index"]
        return counts if keep is None else counts & keep

    def _keep_rows(self, argument: str, shape: tuple[int, ...]) -> Array | None:
        rows = self.indices[1] if self.has_indices else self._mask(self.row_shape)
        if rows is None or shape == rows.shape:
            return rows
        if argument == "negatives":  # each query its own, or all of them shared
            return rows[:, None, None] if len(shape) == 3 else None
        if len(shape) <= rows.ndim:  # a row of features counts where any of its several rows of logits does
            rows = jnp.any(rows, tuple(range(len(shape) - 1, rows.ndim)))
            return rows[..., None]
        return jnp.expand_dims(rows, self.axis)

    def _keep_frames(self, argument: str, shape: tuple[int, ...]) -> Array:
        batch = self.batch
        count = batch.bad.shape
        samples = jnp.ones(count, bool) if batch.keep is None else batch.keep.reshape(count)
        if argument.endswith("lengths"):
            return samples.reshape(shape)
        if argument == "targets":
            sizes = self.arguments["target_lengths"]
            if len(shape) == 1 and batch.layout != "single":  # one behind the other: then the lengths are static
                return jnp.repeat(samples, np.asarray(sizes), total_repeat_length=shape[0])
            there = jnp.arange(shape[-1]) < jnp.asarray(sizes).reshape(-1, 1)
            return (there & samples[:, None]).reshape(shape)
        frames = jnp.where(samples, jnp.asarray(self.arguments["input_lengths"]).reshape(-1), 0)
        live = _sequences.live(_sequences.length_of(self.first, batch.layout), frames)
        return _sequences.placed(live, batch.layout)[..., None]


def bind(loss: Callable[..., Any], rules: Rules, *args: Any, **kwargs: Any) -> Call:
    """A call of a loss of this package."""
    bound = inspect.signature(loss).bind(*args, **kwargs)
    bound.apply_defaults()
    return Call(loss.__name__, bound.arguments, rules)


def unwrapped(
    loss: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """What a call of a `functools.partial` really calls."""
    if not isinstance(loss, functools.partial):
        return loss, args, dict(kwargs)
    partial: functools.partial[Any] = loss
    return unwrapped(partial.func, (*partial.args, *args), {**partial.keywords, **kwargs})
