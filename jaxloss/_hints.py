"""What the numbers of a loss hint at: one function for each thing that can be wrong."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from . import _check, _rules
from ._calls import Call, Rules
from ._check import HostArray, Shape
from ._diagnosis import Hint, Run, is_half, position, wide

ENOUGH = 4  # fewer logits may all lie in [0, 1], and fewer labels be of one class, by chance
EXPLODING = 1e4
TARGETS = ("target", "targets")


def starts(run: Run) -> str | None:
    """Where NaN or inf first appears that reaches the loss or a gradient."""
    outputs = [("the loss", run.value if run.unreduced is None else run.unreduced), ("the loss", run.value)]
    outputs += [(f"the gradient for `{argument}`", g) for argument, g in run.gradients.items()]
    if all(np.isfinite(wide(x)).all() for _, x in outputs):
        return None
    inputs = [(f"argument `{argument}`", np.where(run.counted(argument), x, 0)) for argument, x in run.arrays.items()]
    for word, x in inputs + outputs:
        place = position(~np.isfinite(wide(x)))
        if place:
            return f"{word} at {place}" if place != "()" else word
    return None


def of_run(run: Run) -> Iterator[Hint]:
    """All hints about a loss that returned."""
    yield from _of_shapes(None if run.call is None else run.call.rules, run.arrays)
    nothing = run.denominator is not None and bool(run.denominator == 0)
    if nothing:
        text = "the mean is over nothing: every entry is masked or ignored, the batch is empty, or all weights are 0."
        yield Hint("nothing counts", None, text)
    else:
        yield from _of_values(run)
        if run.call is not None:
            yield from _of_activation(run, run.call)
            yield from _of_labels(run, run.call)
        yield from _of_loss(run)
        yield from _of_gradients(run)
    yield from _of_half(run)


def _of_values(run: Run) -> Iterator[Hint]:
    for argument, expected, bad in run.findings:
        place = position(bad)
        if place is None:
            continue
        value = wide(run.arrays[argument])[bad][0]
        text = f"`{argument}` must be {expected}; {bad.sum()} of {bad.size} are not, first {value} at position {place}."
        yield Hint("out of range" if np.isfinite(value) else "not finite", argument, text)


def _of_activation(run: Run, call: Call) -> Iterator[Hint]:
    first = next(iter(call.rules.arrays))
    x, keep = wide(run.arrays[first]), run.counted(first)
    if call.applies is None or not keep.any() or not ((x >= 0) & (x <= 1))[keep].all():
        return
    if call.applies == "sigmoid":
        if keep.sum() >= ENOUGH and x[keep].min() < x[keep].max():
            text = f"all of `{first}` lies in [0, 1], and {call.name} applies the sigmoid itself: pass logits."
            yield Hint("sigmoid twice", first, text)
        return
    rows = keep.all(call.axis)
    if call.classes > 1 and rows.any() and np.abs(x.sum(call.axis)[rows] - 1).max() < 1e-2:
        text = f"rows of `{first}` sum to 1, and {call.name} applies the softmax itself: pass logits."
        yield Hint("softmax twice", first, text)


def _of_labels(run: Run, call: Call) -> Iterator[Hint]:
    if "target" not in run.arrays:
        return
    t = wide(run.arrays["target"])
    if call.applies == "softmax" and not call.has_indices and t.shape == call.first.shape:
        yield from _of_other_axis(call, t)
    if call.has_indices and call.classes == 1:
        yield Hint("one class", "input", f"`input` has one class on axis {call.axis}, whose softmax is always 1.")
        return
    counted = t[run.counted("target")]
    numbers = call.rules.arrays["target"] is _rules.FINITE  # or labels of groups
    if counted.size < ENOUGH or not (call.has_indices or (not numbers and np.isin(counted, (-1, 0, 1)).all())):
        return
    if counted.min() == counted.max():
        text = f"all {counted.size} targets that count are {counted[0]:g}: there is nothing to tell apart."
        yield Hint("one class", "target", text)


def _of_other_axis(call: Call, t: HostArray) -> Iterator[Hint]:
    """Soft targets that sum to 1, but along another axis than that of the classes."""

    def sums_to_one(axis: int) -> bool:
        return t.shape[axis] > 1 and bool(np.abs(t.sum(axis) - 1).max() < 1e-2)

    others = [axis for axis in range(t.ndim) if axis != call.axis and sums_to_one(axis)]
    if others and not sums_to_one(call.axis):
        text = f"`target` sums to 1 along axis {others[-1]}, but the classes are on axis {call.axis}: pass `axis`."
        yield Hint("class axis", "target", text)


def _of_loss(run: Run) -> Iterator[Hint]:
    x = wide(run.value if run.unreduced is None else run.unreduced)
    if np.isfinite(x).all() and np.isfinite(wide(run.value)).all():
        return
    why = ""
    if run.call is not None and run.call.rules.layout == "frames" and np.isinf(x).any():
        why = "; a target cannot be aligned with fewer frames than labels and repetitions, see `zero_infinity`"
    yield Hint("not finite", None, f"the loss is not finite; NaN or inf starts in {starts(run)}{why}.")


def _of_gradients(run: Run) -> Iterator[Hint]:
    for argument, given in run.gradients.items():
        g = wide(given)
        size = np.abs(g[np.isfinite(g)]).max(initial=0)
        if not np.isfinite(g).all():
            text = f"the gradient for `{argument}` is not finite, first at {position(~np.isfinite(g))}."
            yield Hint("gradient not finite", argument, text)
        elif size > EXPLODING:
            text = f"the gradient for `{argument}` reaches {size:.3g}, first at {position(np.abs(g) == size)}."
            yield Hint("exploding gradient", argument, text)
    for argument, g in list(run.gradients.items())[:1]:
        value = wide(run.value)
        if g.size and not wide(g).any() and np.isfinite(value).all() and value.any():
            text = f"the gradient for `{argument}` is exactly 0 but the loss is not: saturated, clipped or cut off."
            yield Hint("zero gradient", argument, text)


def _of_half(run: Run) -> Iterator[Hint]:
    for argument, x in run.arrays.items():
        place = position(run.counted(argument) & np.isinf(x)) if x.dtype == np.float16 else None
        if place:
            text = f"`{argument}` is inf at {place}: float16 ends at 65504. Use bfloat16, or scale before the cast."
            yield Hint("half precision", argument, text)
    if is_half(run.value) and np.isinf(wide(run.value)).any():
        yield Hint("half precision", None, f"the loss overflowed in {run.value.dtype}; compute it in float32.")
    for argument, given in run.gradients.items():
        g, in_float32 = wide(given), run.wide_gradients[argument]
        if not is_half(given):
            continue
        if (np.isinf(g) & np.isfinite(in_float32)).any():
            largest = np.abs(in_float32).max()
            text = f"the gradient for `{argument}` overflowed in {given.dtype}; in float32 it reaches {largest:.3g}."
            yield Hint("half precision", argument, text)
        if in_float32.any() and not g.any():
            text = f"the gradient for `{argument}` underflowed to 0 in {given.dtype}; scale the loss."
            yield Hint("half precision", argument, text)


def of_refusal(rules: Rules | None, arrays: dict[str, HostArray], axis: int | None, error: Exception) -> Iterator[Hint]:
    """Why a loss refuses its arguments: shapes and dtypes alone tell."""
    found = [*_of_shapes(rules, arrays), *_of_classes(rules, arrays, axis)]
    yield from found or [Hint("refused", None, str(error))]


def _of_shapes(rules: Rules | None, arrays: dict[str, HostArray]) -> Iterator[Hint]:
    """A target that differs from what is meant by axes of size 1 alone."""
    if len(arrays) < 2 or (rules is not None and ("target" not in arrays or rules.layout in ("vectors", "frames"))):
        return
    first, second = list(arrays)[:2]
    argument = second if rules is None else "target"
    x, t = arrays[first].shape, arrays[argument].shape
    for shape in [x] if rules is None or rules.layout != "classes" else [*_row_shapes(x), x]:
        if len(t) == len(shape) and t == shape:
            return
    for shape in [x] if rules is None or rules.layout != "classes" else _row_shapes(x):
        if len(t) != len(shape) and _check.without_ones(t) == _check.without_ones(shape):
            text = f"`{argument}` has shape {t} where {shape} is meant: remove the axis of size 1 with `jnp.squeeze`."
            yield Hint("column", argument, text)
            return


def _row_shapes(x: Shape) -> list[Shape]:
    """The shapes of class indices for logits of shape x, with classes where torch has them and on the last axis."""
    return [_check.without(axis, x) for axis in ([0] if len(x) == 1 else [1, len(x) - 1])] if x else []


def _of_classes(rules: Rules | None, arrays: dict[str, HostArray], axis: int | None) -> Iterator[Hint]:
    """Targets of a loss over classes that are neither indices nor probabilities."""
    if rules is None or rules.layout not in ("classes", "pixels") or "target" not in arrays:
        return
    x, target = next(iter(arrays.values())).shape, arrays["target"]
    shape = target.shape
    flat = _check.without_ones(shape)
    if jnp.issubdtype(target.dtype, jnp.floating) and flat in map(_check.without_ones, _row_shapes(x)):
        text = f"`target` holds {target.dtype}; class indices are integers: `target.astype(jnp.int32)`."
        yield Hint("float classes", "target", text)
    if len(x) < 2 or axis not in (None, 1) or shape in (x, _check.without(1, x)):
        return
    if shape == x[:-1]:
        text = f"`target` has shape {shape} for an input of shape {x}: the classes are last, pass `axis=-1`."
        yield Hint("class axis", "target", text)
