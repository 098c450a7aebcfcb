"""Every refusal and every conversion of input: the first step of each loss.

A message names the function and the argument, says what came and what was expected, and adds the remedy where
there is a usual one. TypeError is for a dtype, ValueError for a shape or the value of an option.
"""

import math
import numbers
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from ._devices import broadcast_like
from ._numerics import at_least_float32
from ._types import Array, ArrayLike, Number

Shape: TypeAlias = tuple[int, ...]
HostArray: TypeAlias = np.ndarray[Any, Any]


def array(name: str, argument: str, value: ArrayLike) -> Array:
    """`value` as a JAX array: Python numbers, lists and NumPy arrays too."""
    if isinstance(value, jax.Array):  # untouched: even a conversion that changes nothing would look at its NaN
        return value
    try:
        return jnp.asarray(value)
    except jax.errors.JAXTypeError:  # a tracer where none may be: JAX's own message explains it best
        raise
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name}: `{argument}` must be an array; {error}") from error


def on_host(value: ArrayLike) -> HostArray | None:
    """NumPy's view of what is no JAX array, or None. JAX would narrow 64-bit integers when x64 is off."""
    if isinstance(value, jax.Array):
        return None
    try:
        return np.asarray(value)
    except Exception:  # a list with tracers or ragged rows, a tensor on another device: JAX will say what is wrong
        return None


def clipped(value: ArrayLike) -> Array:
    """`value` as a JAX array. Integers that JAX would wrap when x64 is off become the outermost that it has."""
    host = on_host(value)
    if host is None or not np.issubdtype(host.dtype, np.integer):
        return jnp.asarray(value)
    limits = np.iinfo(jax.dtypes.canonicalize_dtype(host.dtype))
    return jnp.asarray(host.clip(limits.min, limits.max))


def floating(name: str, argument: str, value: ArrayLike) -> Array:
    """A floating-point array in its own dtype."""
    x = array(name, argument, value)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{name}: `{argument}` must be floating point, got {x.dtype} of shape {x.shape}; "
            f"convert it with `.astype(jnp.float32)` if that is what you mean."
        )
    return x


def same_shape(name: str, **arrays: Array) -> None:
    """Refuse arrays that only broadcasting could join."""
    (first, x), *others = arrays.items()
    for argument, y in others:
        if x.shape == y.shape:
            continue
        remedy = "nothing is broadcast: reshape or broadcast one of them yourself"
        if without_ones(x.shape) == without_ones(y.shape):
            remedy = "remove or add the axis of size 1, with `jnp.squeeze` or `jnp.expand_dims`"
        raise ValueError(
            f"{name}: `{first}` and `{argument}` must have the same shape, got {x.shape} and {y.shape}; {remedy}."
        )


def without_ones(shape: Shape) -> Shape:
    return tuple(size for size in shape if size != 1)


def promoted(name: str, integers: Sequence[str] = (), **values: ArrayLike) -> list[Array]:
    """Arrays in one dtype of at least float32; those named in `integers` may come as integers."""
    arrays, dtype = _converted(name, integers, values)
    return [x.astype(dtype) for x in arrays]


def _converted(name: str, integers: Sequence[str], values: Mapping[str, ArrayLike]) -> tuple[list[Array], jnp.dtype]:
    """Arrays in their own dtypes, integers as the dtype that all of them will have, and that dtype."""
    whole = {key: as_integers(values[key]) for key in integers}
    floats = {key: floating(name, key, value) for key, value in values.items() if whole.get(key) is None}
    dtype = at_least_float32(*(x.dtype for x in floats.values()))
    return [floats[key] if key in floats else jnp.asarray(whole[key], dtype) for key in values], dtype


def as_integers(value: ArrayLike) -> Array | HostArray | None:
    """`value` if it is an array of integers, in NumPy if it came from there, or else None."""
    x = value if isinstance(value, jax.Array) else on_host(value)
    return x if x is not None and jnp.issubdtype(x.dtype, jnp.integer) else None


def alike(
    name: str, where: ArrayLike | None, *, integers: Sequence[str] = (), **values: ArrayLike
) -> tuple[list[Array], Array | None]:
    """Arrays of one shape in one dtype of at least float32, zero where masked, and the mask."""
    arrays, dtype = _converted(name, integers, values)
    same_shape(name, **dict(zip(values, arrays, strict=True)))
    keep = mask(name, where, arrays[0].shape)
    return [masked(x, keep).astype(dtype) for x in arrays], keep


def pair(
    name: str,
    input: ArrayLike,
    target: ArrayLike,
    where: ArrayLike | None,
    *,
    integer_target: bool = False,
) -> tuple[Array, Array, Array | None]:
    """Input and target of one shape in one dtype of at least float32, zero where masked, and the mask."""
    integers = ("target",) if integer_target else ()
    (x, t), keep = alike(name, where, integers=integers, input=input, target=target)
    return x, t, keep


def rows(
    name: str, axis: int, where: ArrayLike | None, *, integers: Sequence[str] = (), **values: ArrayLike
) -> tuple[list[Array], Array | None, int]:
    """Arrays of one shape whose loss has no `axis`: with the mask, and `axis` counted from the front."""
    arrays, dtype, keep, axis = rows_as_given(name, axis, where, integers=integers, **values)
    return [x.astype(dtype) for x in arrays], keep, axis


def rows_as_given(
    name: str, axis: int, where: ArrayLike | None, *, integers: Sequence[str] = (), **values: ArrayLike
) -> tuple[list[Array], jnp.dtype, Array | None, int]:
    """`rows` in their own dtypes, and the one that they are to have: a CPU widens them in each pass, if it can."""
    arrays, dtype, keep, axis = unmasked_rows(name, axis, where, integers=integers, **values)
    spread_out = None if keep is None else jnp.expand_dims(keep, axis)
    return [masked(x, spread_out) for x in arrays], dtype, keep, axis


def unmasked_rows(
    name: str, axis: int, where: ArrayLike | None, *, integers: Sequence[str] = (), **values: ArrayLike
) -> tuple[list[Array], jnp.dtype, Array | None, int]:
    """`rows_as_given` whose mask is yet to be put on, by what is faster once they are read."""
    arrays, dtype = _converted(name, integers, values)
    same_shape(name, **dict(zip(values, arrays, strict=True)))
    first = next(iter(values))
    if arrays[0].ndim == 0:
        raise ValueError(f"{name}: `{first}` must have at least one axis, got a scalar.")
    axis = one_axis(name, axis, arrays[0])
    return arrays, dtype, mask(name, where, without(axis, arrays[0].shape)), axis


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
        raise _does_not_broadcast(name, argument, x, shape) from None


def _does_not_broadcast(name: str, argument: str, x: Array, shape: Shape) -> ValueError:
    return ValueError(
        f"{name}: `{argument}` must have the shape of the unreduced loss or broadcast to it, got {x.shape} for {shape}."
    )


def masked(x: Array, keep: Array | None, harmless: float = 0) -> Array:
    """`x` with a harmless value in every masked place, before any arithmetic can see what stood there."""
    return x if keep is None else jnp.where(keep, x, jnp.asarray(harmless, x.dtype))


def dtypes(name: str, **values: ArrayLike) -> list[jnp.dtype]:
    return [array(name, argument, value).dtype for argument, value in values.items()]


def as_given(arrays: Sequence[Array], dtypes: Sequence[jnp.dtype]) -> list[Array]:
    """Arrays in the narrow dtypes that they came in, for what widens them where it reads them, not once for all.

    XLA drops both conversions.
    """
    return [x.astype(dtype) for x, dtype in zip(arrays, dtypes, strict=True)]


def weight(name: str, value: ArrayLike, like: Array, keep: Array | None) -> Array:
    """A weight for each entry, of exactly the shape of `like` and at least its dtype; zero where masked."""
    w = real(name, "weight", value)
    if w.shape != like.shape:
        raise ValueError(f"{name}: `weight` must have the shape of `input`, got {w.shape} and {like.shape}.")
    return masked(w, keep).astype(at_least(w, like.dtype))


def broadcast_together(name: str, **arrays: Array) -> list[Array]:
    """Arrays broadcast against each other, for functions that are no losses."""
    try:
        return jnp.broadcast_arrays(*arrays.values())
    except ValueError:
        given = " and ".join(f"`{argument}` {x.shape}" for argument, x in arrays.items())
        raise ValueError(f"{name}: the shapes do not broadcast: {given}.") from None


def spread(name: str, argument: str, value: ArrayLike, like: Array, keep: Array | None) -> Array:
    """A weight that broadcasts to the shape of `like`, in at least its dtype; zero where masked."""
    w = real(name, argument, value)
    try:
        return masked(widened_like(w, like), keep).astype(at_least(w, like.dtype))
    except ValueError:
        raise _does_not_broadcast(name, argument, w, like.shape) from None


def widened_like(x: Array, like: Array) -> Array:
    """`x` broadcast to the shape of `like`, first widened to at least its dtype: a gradient is added up as it is."""
    return x if x.shape == like.shape else broadcast_like(x.astype(at_least(x, like.dtype)), like)


def at_least(x: Array, dtype: jnp.dtype) -> jnp.dtype:
    """`dtype`, or that of `x` if it is wider; a Python number is never wider."""
    return jnp.result_type(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else dtype


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
    below: bool = False,
) -> Number:
    """A float or a 0-d array. Only a Python number is held against its range; a traced one is not known yet."""
    if value is None:
        raise TypeError(f"{name}: `{argument}` must be a number, got None.")
    if isinstance(value, numbers.Real):
        if math.isnan(value):
            raise ValueError(f"{name}: `{argument}` must be a number, got nan.")
        if not (low <= value <= high) or (above and value == low) or (below and value == high):
            least = f"greater than {low:g}" if above else f"at least {low:g}"
            most = "" if high == math.inf else f" and less than {high:g}" if below else f" and at most {high:g}"
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


def chunk_size(name: str, value: int) -> int:
    """How many rows, samples or anchors to take at a time."""
    size = integer(name, "chunk_size", value)
    if size < 1:
        raise ValueError(f"{name}: `chunk_size` must be at least 1, got {size}.")
    return size


def one_axis(name: str, axis: int, x: Array) -> int:
    """`axis` counted from the front."""
    axis = integer(name, "axis", axis)
    if not -x.ndim <= axis < x.ndim:
        raise ValueError(f"{name}: `axis` {axis} is out of range for an input of shape {x.shape}.")
    return axis % x.ndim


def without(axis: int, shape: Shape) -> Shape:
    """`shape` without one axis."""
    return shape[:axis] + shape[axis + 1 :]


@contextmanager
def forward_mode_hint(name: str, remedy: str) -> Iterator[None]:
    """Lead a user whom JAX tells that a custom_vjp refuses forward mode to what allows it."""
    try:
        yield
    except TypeError as error:
        if "custom_vjp" in str(error):
            error.add_note(f"{name}: to differentiate in forward mode, {remedy}.")
        raise
