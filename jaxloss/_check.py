"""Every refusal and every conversion of input: the first step of each loss.

A message names the function and the argument, says what came and what was expected, and adds the remedy where
there is a usual one. TypeError is for a dtype, ValueError for a shape or the value of an option.
"""

import math
import numbers
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._numerics import upcast
from ._types import Array, ArrayLike, Number

Shape: TypeAlias = tuple[int, ...]
HostArray: TypeAlias = np.ndarray[Any, Any]


def array(name: str, argument: str, value: ArrayLike) -> Array:
    """`value` as a JAX array: Python numbers, lists and NumPy arrays too."""
    try:
        return jnp.asarray(value)
    except jax.errors.JAXTypeError:  # a tracer where none may be: JAX's own message explains it best
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name}: `{argument}` must be an array; {error}") from error


def floating(name: str, argument: str, value: ArrayLike, *, integers: bool = False) -> Array:
    """A floating-point array in its own dtype; integers become float32 where `integers` allows them."""
    x = array(name, argument, value)
    if integers and jnp.issubdtype(x.dtype, jnp.integer):
        return x.astype(jnp.float32)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: `{argument}` must be floating point, got {x.dtype} of shape {x.shape}; "
            f"convert it with `.astype(jnp.float32)` if that is what you mean."
        )
    return x


def same_shape(name: str, input: Array, target: Array) -> None:
    """Refuse a pair that only broadcasting could join."""
    if input.shape == target.shape:
        return
    remedy = "nothing is broadcast: reshape or broadcast one of them yourself"
    if input.size == target.size and _without_ones(input.shape) == _without_ones(target.shape):
        remedy = "remove or add the axis of size 1, for example with `jnp.squeeze(x, -1)` or `x[:, None]`"
    raise ValueError(
        f"{name}: `input` and `target` must have the same shape, got {input.shape} and {target.shape}; {remedy}."
    )


def _without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def pair(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    where: ArrayLike | None,
    *,
    integer_target: bool = False,
) -> tuple[Array, Array, Array | None]:
    """Input and target of one shape in one dtype of at least float32, zero where masked, and the mask."""
    x = floating(name, "input", input)
    t = floating(name, "target", target, integers=integer_target)
    same_shape(name, x, t)
    keep = mask(name, where, x.shape)
    dtype = jnp.promote_types(upcast(x).dtype, t.dtype)
    return masked(x.astype(dtype), keep), masked(t.astype(dtype), keep), keep


def mask(name: str, where: ArrayLike | None, shape: Shape) -> Array | None:
    """`where` broadcast to the shape of the unreduced loss."""
    if where is None:
        return None
    keep = array(name, "where", where)
    if keep.dtype != jnp.bool_:
        raise TypeError(
            f"{name}: `where` must be boolean, got {keep.dtype} of shape {keep.shape}; "
            f"write the condition, for example `where=mask > 0`."
        )
    return broadcast(name, "where", keep, shape)


def broadcast(name: str, argument: str, x: Array, shape: Shape) -> Array:
    """`x` spread over `shape`, which it must not make larger."""
    try:
        return jnp.broadcast_to(x, shape)
    except ValueError:
        raise ValueError(
            f"{name}: `{argument}` must have the shape of the unreduced loss or broadcast to it, "
            f"got {x.shape} for {shape}."
        ) from None


def masked(x: Array, keep: Array | None, harmless: float = 0) -> Array:
    """`x` with a harmless value in every masked place, before any arithmetic can see what stood there."""
    return x if keep is None else jnp.where(keep, x, jnp.asarray(harmless, x.dtype))


def weight(name: str, value: ArrayLike, like: Array, keep: Array | None) -> Array:
    """A weight for each entry, of exactly the shape and dtype of `like`; zero where masked."""
    w = real(name, "weight", value).astype(like.dtype)
    if w.shape != like.shape:
        raise ValueError(f"{name}: `weight` must have the shape of `input`, got {w.shape} and {like.shape}.")
    return masked(w, keep)


def spread(name: str, argument: str, value: ArrayLike, like: Array, keep: Array | None) -> Array:
    """A weight that broadcasts to the shape of `like`, in its dtype; zero where masked."""
    w = real(name, argument, value).astype(like.dtype)
    return masked(broadcast(name, argument, w, like.shape), keep)


def real(name: str, argument: str, value: ArrayLike) -> Array:
    """An array of floating-point numbers or integers."""
    x = array(name, argument, value)
    if not (jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)):
        raise TypeError(f"{name}: `{argument}` must be real numbers, got {x.dtype} of shape {x.shape}.")
    return x


def number(
    name: str,
    argument: str,
    value: Number,
    dtype: jnp.dtype,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: bool = False,
) -> Number:
    """A float or a 0-d array. Only a Python number is held against its range; a traced one is not known yet."""
    if isinstance(value, numbers.Real):
        if not (low <= value <= high) or (above and value == low):
            least = f"greater than {low:g}" if above else f"at least {low:g}"
            most = "" if high == math.inf else f" and at most {high:g}"
            raise ValueError(f"{name}: `{argument}` must be {least}{most}, got {value}.")
        return float(value)
    x = real(name, argument, value)
    if x.shape:
        raise ValueError(f"{name}: `{argument}` must be a single number, got an array of shape {x.shape}.")
    return x.astype(dtype)


def flag(name: str, argument: str, value: bool) -> None:
    """A switch that selects a formula is known while tracing."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: `{argument}` must be True or False, not {type(value).__name__}.")


def choice(name: str, argument: str, value: str, allowed: Sequence[str]) -> None:
    """One of a few words."""
    if not (isinstance(value, str) and value in allowed):
        words = ", ".join(repr(word) for word in allowed[:-1])
        raise ValueError(f"{name}: `{argument}` must be {words} or {allowed[-1]!r}, got {value!r}.")


def integer(name: str, argument: str, value: int) -> int:
    """A static whole number."""
    if isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: `{argument}` must be an integer, got {value}.")
    try:
        return operator.index(value)
    except (TypeError, jax.errors.JAXTypeError):
        raise TypeError(
            f"{name}: `{argument}` must be a Python integer known while tracing, got {type(value).__name__}."
        ) from None


def one_axis(name: str, axis: int, x: Array) -> int:
    """`axis` counted from the front."""
    axis = integer(name, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{name}: `axis` {axis} is out of range for an input of shape {x.shape}.")
    return axis % x.ndim


def class_axis(name: str, axis: int | None, x: Array) -> int:
    """The class axis counted from the front. By default torch's: 1, or 0 for a single sample."""
    if x.ndim == 0:
        raise ValueError(f"{name}: `input` must have a class axis, got a scalar.")
    axis = one_axis(name, (0 if x.ndim == 1 else 1) if axis is None else axis, x)
    if x.shape[axis] == 0:
        raise ValueError(f"{name}: `input` must have at least one class, got shape {x.shape} with classes on {axis}.")
    return axis


def without(axis: int, shape: Shape) -> Shape:
    """`shape` without one axis."""
    return shape[:axis] + shape[axis + 1 :]


def probabilities(name: str, target: ArrayLike, input: Array, axis: int) -> Array | None:
    """`target` as class probabilities, or None if it is meant to hold class indices."""
    t = array(name, "target", target)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        return None
    if t.shape == input.shape:
        return t
    if _without_ones(t.shape) == _without_ones(without(axis, input.shape)):
        return None  # indices in the wrong dtype, which `class_target` refuses
    raise ValueError(
        f"{name}: `target` must have the shape of `input` if it holds class probabilities, "
        f"got {t.shape} and {input.shape}; class indices must be integers."
    )


def class_target(name: str, target: ArrayLike, input: Array, axis: int) -> Array | HostArray:
    """`target`, if it has one class index for each row of `input`."""
    # NumPy arrays stay in NumPy: converting int64 without x64 would wrap 2**32 + 1 to class 1.
    t = np.asarray(target) if isinstance(target, np.ndarray | np.generic) else array(name, "target", target)
    rows = without(axis, input.shape)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise TypeError(
            f"{name}: class indices must be integers, got a `target` of {t.dtype} and shape {t.shape}; "
            f"convert it with `.astype(jnp.int32)`."
        )
    if t.shape == rows:
        return t
    remedy = ""
    if t.shape == input.shape:
        remedy = f"; if the target is one-hot, pass `jnp.argmax(target, {axis})`"
    elif t.shape == input.shape[:-1]:
        remedy = "; if the classes are on the last axis, pass `axis=-1`"
    elif t.ndim and t.shape[-1] == 1 and t.shape[:-1] == rows:
        remedy = "; remove the last axis with `jnp.squeeze(target, -1)`"
    raise ValueError(
        f"{name}: `target` must have one class index for each row, shape {rows}, got {t.shape} "
        f"for an input of shape {input.shape} with classes on axis {axis}{remedy}."
    )


def classes(t: Array | HostArray, num_classes: int, ignore_index: int) -> tuple[Array, Array]:
    """Class indices as int32, and which of them count.

    An index outside [0, num_classes) becomes -1, which stands for "no right answer": the last class is never
    meant. It is compared in its own dtype, before anything is narrowed. An ignored one becomes 0.
    """
    xp = np if isinstance(t, np.ndarray) else jnp
    if t.dtype.itemsize < 4:
        t = t.astype(np.int32)
    limits = np.iinfo(t.dtype)
    counts = t != ignore_index if limits.min <= ignore_index <= limits.max else xp.ones(t.shape, bool)
    known = (t >= 0) & (t < num_classes)
    index = xp.where(counts, xp.where(known, t, 0), 0).astype(np.int32)
    return jnp.where(counts & ~known, -1, index), jnp.asarray(counts)


def class_weight(name: str, value: ArrayLike, num_classes: int, dtype: jnp.dtype) -> Array:
    """One weight per class, (C,)."""
    w = real(name, "weight", value)
    if w.shape != (num_classes,):
        raise ValueError(f"{name}: `weight` must have one entry per class, shape ({num_classes},), got {w.shape}.")
    return w.astype(dtype)


@contextmanager
def forward_mode_hint(name: str) -> Iterator[None]:
    """Lead a user whom JAX tells that a custom_vjp refuses forward mode to the implementation that allows it."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" in str(error):
            error.add_note(f"{name}: pass implementation='autodiff' to differentiate in forward mode.")
        raise
