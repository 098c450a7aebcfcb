"""Class indices and class probabilities: the axis they live on, what they may be, and which rows count."""

from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from . import _check
from ._devices import explicit_sharding, is_split
from ._types import Array, ArrayLike

# Logits, or only their shape and dtype where they never exist as a whole.
Logits: TypeAlias = Array | jax.ShapeDtypeStruct


def class_axis(name: str, axis: int | None, x: Array) -> int:
    """The class axis counted from the front. By default torch's: 1, or 0 for a single sample."""
    if x.ndim == 0:
        raise ValueError(f"{name}: `input` must have a class axis, got a scalar.")
    axis = _check.one_axis(name, (0 if x.ndim == 1 else 1) if axis is None else axis, x)
    if x.shape[axis] == 0:
        raise ValueError(f"{name}: `input` must have at least one class, got shape {x.shape} with classes on {axis}.")
    return axis


def indices(name: str, argument: str, value: ArrayLike) -> Array | _check.HostArray:
    """An array of integers. What is not JAX's stays in NumPy: int64 without x64 would wrap 2**32 + 1 to class 1."""
    host = _check.on_host(value)
    t = _check.array(name, argument, value) if host is None or host.dtype == object else host
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"{name}: class indices must be integers, got a `{argument}` of {t.dtype} and shape {t.shape}; "
            f"convert it with `.astype(jnp.int32)`, or a one-hot array with `jnp.argmax`."
        )
    return t.astype(np.int32) if t.dtype.itemsize < 4 else t


def narrowed(t: Array | _check.HostArray, num_classes: int) -> Array:
    """Indices as int32: -1 stays, anything else outside [0, num_classes) becomes `num_classes`."""
    xp = np if isinstance(t, np.ndarray) else jnp
    known = (t >= 0) & (t < num_classes)
    if np.issubdtype(t.dtype, np.signedinteger):
        known |= t == -1
    return jnp.asarray(xp.where(known, t, num_classes).astype(np.int32))


def rows(
    name: str,
    target: ArrayLike,
    input: Logits,
    axis: int,
    where: ArrayLike | None,
    ignore_index: int | None = None,
    *,
    classes: int | None = None,
) -> tuple[Array, Array]:
    """One int32 class index for each row of `input`, and which rows count.

    An index outside [0, C) becomes -1, which stands for "no right answer": the last class is never meant. It is
    compared in its own dtype, before anything is narrowed. Where a row does not count, the index is C: no class.
    """
    t = indices(name, "target", target)
    _check_row_shape(name, t.shape, input, axis)
    limits = np.iinfo(t.dtype)
    ignorable = ignore_index is not None and limits.min <= ignore_index <= limits.max
    counts = jnp.asarray(t != t.dtype.type(ignore_index)) if ignorable else jnp.ones(t.shape, bool)
    unmasked = _check.mask(name, where, t.shape)
    keep = counts if unmasked is None else counts & unmasked
    classes = input.shape[axis] if classes is None else classes
    known, xp = (t >= 0) & (t < classes), np if isinstance(t, np.ndarray) else jnp
    index = jnp.asarray(xp.where(known, t.astype(np.int32), -1))
    return jnp.where(keep, index, classes), keep


def _check_row_shape(name: str, shape: _check.Shape, input: Logits, axis: int) -> None:
    expected = _check.without(axis, input.shape)
    if shape == expected:
        return
    remedy = ""
    if shape == input.shape:
        remedy = f"; if the target is one-hot, pass `jnp.argmax(target, {axis})`"
    elif shape == input.shape[:-1] and isinstance(input, jax.Array):
        remedy = "; if the classes are on the last axis, pass `axis=-1`"
    elif _check.without_ones(shape) == _check.without_ones(expected):
        place = next(i for i in range(-1, -len(shape) - 1, -1) if shape[i] == 1) if 1 in shape else None
        remedy = "" if place is None else f"; remove the axis of size 1 with `jnp.squeeze(target, {place})`"
    raise ValueError(
        f"{name}: `target` must have one class index for each row, shape {expected}, got {shape} "
        f"for {'an input' if isinstance(input, jax.Array) else 'logits'} of shape {input.shape} "
        f"with classes on axis {axis}{remedy}."
    )


def probabilities(name: str, target: ArrayLike, input: Logits, axis: int, ignore_index: int) -> Array | None:
    """`target` as class probabilities, or None if it is meant to hold class indices."""
    if _check.as_integers(target) is not None:
        return None
    t = _check.array(name, "target", target)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        return None
    if t.shape != input.shape:
        if _check.without_ones(t.shape) == _check.without_ones(_check.without(axis, input.shape)):
            return None  # indices in the wrong dtype, which `indices` refuses
        raise ValueError(
            f"{name}: `target` must have the shape of {'`input`' if isinstance(input, jax.Array) else 'the logits'} "
            f"if it holds class probabilities, got {t.shape} and {input.shape}; class indices must be integers."
        )
    if ignore_index >= 0:
        raise ValueError(
            f"{name}: `ignore_index` has no meaning with class probabilities, got {ignore_index}; "
            f"mask rows with `where=`."
        )
    return t


def per_class(name: str, value: ArrayLike, num_classes: int, dtype: jnp.dtype, *, argument: str = "weight") -> Array:
    """One number for each class, (C,)."""
    w = _check.real(name, argument, value)
    if w.shape != (num_classes,):
        raise ValueError(f"{name}: `{argument}` must have one entry per class, shape ({num_classes},), got {w.shape}.")
    return w.astype(_check.at_least(w, dtype))


def along(axis: int, x: Logits, w: Array) -> Array:
    """A vector over classes, shaped to broadcast along `axis` of `x`."""
    return jnp.expand_dims(w, [i for i in range(x.ndim) if i != axis])


def of_target(w: Array | None, index: Array, dtype: jnp.dtype) -> Array:
    """The weight of each row's class, or 1; that of a row that does not count is not read."""
    if w is None:
        return jnp.ones(index.shape, dtype)
    index = jnp.maximum(index, 0)
    if is_split(w, 0):
        return jnp.sum(jnp.where(index[..., None] == jnp.arange(len(w)), w, 0), -1)
    nearest = jnp.minimum(index, len(w) - 1)
    found = w.at[nearest].get(mode="promise_in_bounds", out_sharding=explicit_sharding(index))
    return jnp.where(index < len(w), found, 0)


def spoiled(scale: Array, index: Array) -> Array:
    """`scale`, NaN for rows that count but have no right answer."""
    return jnp.where(index < 0, jnp.nan, scale)
