"""What is wrong with a loss: what one prints by hand, and what the numbers hint at."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from . import _calls, _hints, _rules
from ._check import HostArray
from ._diagnosis import Diagnosis, Run, host, summary
from ._types import Array


def diagnose(loss: Callable[..., Any], *args: Any, **kwargs: Any) -> Diagnosis:
    r"""Runs a loss and its gradient once, and says what is in them and what is probably wrong.

    $$\ell(x), \quad \nabla_x \ell(x), \quad \text{and whatever is odd about either}$$

    It recognises: a softmax or sigmoid before a loss that applies it; a target (N, 1) where (N) is meant, or floats
    where classes are; classes on another axis; nothing that counts, or one class alone; values that do not fit; NaN and
    inf, and where they start; gradients that are 0, exploding or not finite; half precision that over- or underflowed.

    Args:
        loss: A loss of this package, or any function of arrays that returns a loss. For one of yours the hints are
            those that need no knowledge of it.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        A `Diagnosis`, a frozen dataclass: `loss`, `arguments`, `error`, `value`, `unreduced`, `gradients`, `starts`,
        `hints` and their `pitfalls`; `print` shows it all. What the loss raises is caught and stands in `error`.

    Raises:
        TypeError: If an argument is traced: it reads values, so call it outside of `jax.jit`.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probabilities = jax.nn.softmax(jnp.array([[2.0, 0.5, 0.3], [0.1, 3.0, 0.2]]))
        >>> print(jaxloss.diagnose(jaxloss.cross_entropy, probabilities, jnp.array([0, 1])))
        cross_entropy
          input: float32[2, 3]  in [0.04931, 0.8962]  norm 1.165
          target: int32[2]  in [0, 1]  norm 1
          loss: float32[]  in [0.6893, 0.6893]  norm 0.6893
          unreduced: float32[2]  in [0.6204, 0.7583]  norm 0.9797
          gradient for input: float32[2, 3]  in [-0.2658, 0.1348]  norm 0.4314
          ! softmax twice: rows of `input` sum to 1, and cross_entropy applies the softmax itself: pass logits.

    Note:
        It costs two or three calls and a gradient, and waits for them. Use it on one batch when something is wrong, not
        in every step.

    References:
        https://docs.jax.dev/en/latest/debugging.html
    """
    loss, args, kwargs = _calls.unwrapped(loss, args, kwargs)
    inner = getattr(loss, "__wrapped__", None)
    if inner is not None and _rules.of(inner) is not None:  # jitted, checked or chunked
        loss = inner
    arguments = _named(loss, args, kwargs)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(arguments)):
        raise TypeError("diagnose: it reads values, which are not known while tracing; call it outside of jax.jit.")
    with jax.debug_nans(False), jax.debug_infs(False):
        return _diagnosis(loss, arguments, {name: host(x) for name, x in arguments.items() if _is_array(loss, name, x)})


def _diagnosis(loss: Callable[..., Any], arguments: dict[str, Any], arrays: dict[str, HostArray]) -> Diagnosis:
    name = getattr(loss, "__name__", type(loss).__name__)
    shown = {argument: summary(x) for argument, x in arrays.items()}
    try:
        run = _run(loss, arguments, arrays)
    except (TypeError, ValueError) as error:
        hints = _hints.of_refusal(_rules.of(loss), arrays, arguments.get("axis"), error)
        return Diagnosis(name, shown, f"{type(error).__name__}: {error}", None, None, {}, None, tuple(hints))
    unreduced = None if run.unreduced is None else summary(run.unreduced)
    gradients = {argument: summary(g) for argument, g in run.gradients.items()}
    hints = _hints.of_run(run)
    return Diagnosis(name, shown, None, summary(run.value), unreduced, gradients, _hints.starts(run), tuple(hints))


def _named(loss: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(inspect.signature(loss).bind(*args, **kwargs).arguments)
    except TypeError:  # of too many or too few arguments the loss itself will tell
        return {f"argument {i}": value for i, value in enumerate(args)} | kwargs


def _is_array(loss: Callable[..., Any], argument: str, value: Any) -> bool:
    if isinstance(value, jax.Array):
        return not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    rules = _rules.of(loss)
    kinds = (int, float) if rules is not None and argument in rules.arrays else ()
    return isinstance(value, (np.ndarray, np.generic, list, *kinds))


def _run(loss: Callable[..., Any], arguments: dict[str, Any], arrays: dict[str, HostArray]) -> Run:
    held = (*_hints.TARGETS, "weight")
    floats = {argument: x for argument, x in arrays.items() if jnp.issubdtype(x.dtype, jnp.floating)}
    moving = {argument: jnp.asarray(x) for argument, x in floats.items() if argument not in held}
    rules = _rules.of(loss)
    call = None if rules is None else _calls.bind(loss, rules, **arguments)
    expected: dict[str, str] = {}

    def everything(moving: dict[str, Array]) -> dict[str, Any]:
        results = _values(loss, arguments, moving)
        if rules is not None:
            traced = _calls.bind(loss, rules, **{**arguments, **moving})
            results["keep"] = {argument: traced.keep(argument) for argument in rules.arrays if argument in arrays}
            findings = list(_rules.findings(traced))
            expected.update({finding.argument: finding.expected for finding in findings})
            results["bad"] = {finding.argument: finding.bad for finding in findings}
        return results

    try:  # in one program, where the loss does not look at values itself
        results = jax.jit(everything)(moving)
    except jax.errors.JAXTypeError:
        results = everything(moving)
    results = jax.device_get(results)
    for gradients in ("gradients", "wide_gradients"):  # a jitted function sorts them
        results[gradients] = {argument: results[gradients][argument] for argument in moving}
    bad = results.pop("bad", {})
    findings = tuple((argument, words, bad[argument]) for argument, words in expected.items())
    return Run(arrays=arrays, call=call, keep=results.pop("keep", {}), findings=findings, **results)


def _values(loss: Callable[..., Any], arguments: dict[str, Any], moving: dict[str, Array]) -> dict[str, Any]:
    """The loss, its gradients, and, where an input is in half precision, those from the same inputs in float32."""

    def returned(moving: dict[str, Array], **options: Any) -> Any:
        bound = inspect.signature(loss).bind_partial()
        bound.arguments.update({**arguments, **moving, **options})
        return loss(*bound.args, **bound.kwargs)

    def total(moving: dict[str, Array]) -> tuple[Array, Array]:
        value = jnp.asarray(jax.tree.leaves(returned(moving))[0])
        return jnp.sum(value), value

    gradients, value = jax.grad(total, has_aux=True)(moving) if moving else ({}, total(moving)[1])
    in_float32 = gradients
    if any(x.dtype.itemsize < 4 for x in moving.values()):
        in_float32 = jax.grad(total, has_aux=True)({k: x.astype(jnp.float32) for k, x in moving.items()})[0]
    ours = _rules.of(loss) is not None
    return {
        "value": value,
        "gradients": gradients,
        "wide_gradients": in_float32,
        "unreduced": jax.tree.leaves(returned(moving, reduction="none"))[0] if ours else None,
        "denominator": jax.tree.leaves(returned(moving, reduction="sum_and_weight"))[1] if ours else None,
    }
